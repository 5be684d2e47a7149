"""An archive's own climatology, read for the times that forecasts are scored at: each process its devices' boxes."""

import dataclasses

import jax
import numpy as np
import tensorstore as ts
from jax.sharding import Mesh
from jaxtyping import Array, Float

from weathermixer.data import storage
from weathermixer.data.archive import Archive
from weathermixer.data.climatology import GROUP, days_of_year
from weathermixer.data.sampling import in_period
from weathermixer.mesh import sharding
from weathermixer.variables import ChannelSet


@dataclasses.dataclass(frozen=True, eq=False)
class Normals:
    """WeatherBench 2's climatology of an archive; fields [hour, day, lat, lon] in SI units, one per dynamic channel.

    `period` is the first and last date of the times that it is the mean of; None: all of the archive's.
    """

    channel_set: ChannelSet
    fields: tuple[ts.TensorStore, ...]
    hours: tuple[int, ...]
    period: tuple[str, str] | None
    mean: Float[np.ndarray, " channel"]
    std: Float[np.ndarray, " channel"]

    @property
    def description(self) -> str:
        of = " of " + " to ".join(self.period) if self.period else ""
        return f"the archive's{of}, by hour of day and day of year over 61 days, as WeatherBench 2's"

    def holds_any(self, times: np.ndarray) -> bool:
        """Whether some of these times of the archive are among those that it is the mean of."""
        return self.period is None or bool(in_period(times, self.period).any())

    def at(self, times: np.ndarray, mesh: Mesh) -> Float[Array, "b n lat lon"]:
        """The standardized climatology at these times, cut like a batch of fields; static and padding channels zero.

        Raises ValueError for a time whose hour of day it does not have.
        """
        hours = (times - times.astype("datetime64[D]")) // np.timedelta64(1, "h")
        if unknown := sorted(set(hours.tolist()) - set(self.hours)):
            raise ValueError(f"the archive's climatology has the hours {list(self.hours)}, not {unknown}")
        entries = list(zip(np.searchsorted(self.hours, hours).tolist(), (days_of_year(times) - 1).tolist()))

        def read(box: tuple[slice, ...]) -> np.ndarray:
            rows, channels, lats, lons = (range(size)[part] for part, size in zip(box, shape))
            values = np.zeros((len(rows), len(channels), len(lats), len(lons)), np.float32)
            wanted = [n for n in channels if n < len(self.fields)]
            reads = [[self.fields[n][entries[row]][lats.start : lats.stop].read() for n in wanted] for row in rows]
            for row, futures in zip(values, reads):
                for n, field, future in zip(wanted, row, futures):
                    field[:] = (future.result() - self.mean[n]) / self.std[n]
            return values

        shape = (len(times), self.channel_set.size, *self.fields[0].shape[2:])
        return jax.make_array_from_callback(shape, sharding(mesh, "batch", "channel", "lat", "lon"), read)


def open_normals(archive: Archive, channel_set: ChannelSet) -> Normals | None:
    """Opens the climatology that `prepare` put into an archive; None where there is none."""
    folder = storage.join(archive.path, GROUP)
    if storage.read_json(storage.open_folder(folder), "zarr.json") is None:
        return None
    levels = None
    if any(channel.level_hpa is not None for channel in channel_set.dynamic):
        levels = storage.read_array(storage.join(folder, "level")).result().tolist()
    fields = []
    for channel in channel_set.dynamic:
        spec = {"driver": "zarr3", "kvstore": storage.kvstore_spec(storage.join(folder, channel.variable))}
        field = ts.open(spec | {"fill_missing_data_reads": False}, read=True).result()
        fields.append(field if channel.level_hpa is None else field[:, :, levels.index(channel.level_hpa)])
    chosen = archive.channel_indices(channel_set.names)
    return Normals(
        channel_set=channel_set,
        fields=tuple(fields),
        hours=tuple(storage.read_array(storage.join(folder, "hour")).result().tolist()),
        period=archive.attributes["statistics_period"] and tuple(archive.attributes["statistics_period"]),
        mean=archive.statistics.mean[chosen],
        std=archive.statistics.std[chosen],
    )

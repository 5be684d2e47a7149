"""The table that statistics are gathered in on the host, batch by batch, and the Dataset that it becomes."""

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Bool, Int

from weathermixer.fields.variables import Channel, parse_channel
from weathermixer.verification.statistics import SINGLE, STATISTICS

BANDS = ("southern-hemisphere", "tropics", "northern-hemisphere")  # of the spectra
MOST_BYTES = 16e9
DIMS = ("source", "time", "grid", "region", "lead_hours", "channel")
WIND = {  # vector -> components, the short name
    "wind_vector": ("u_component_of_wind", "v_component_of_wind", "wind"),
    "10m_wind_vector": ("10m_u_component_of_wind", "10m_v_component_of_wind", "wind10"),
}
# of a vector these are the sums of those of its components; it has no others
SUMMED = ("squared_error", "anomaly_covariance", "squared_anomaly", "squared_target_anomaly", "variance")
SUMMED += ("mean_squared_error_unbiased",)


class Table:
    """Statistics [source, start, grid, region, lead, channel] of forecasts, by start, NaN where they do not count.

    Raises ValueError where memory would not hold them.
    """

    def __init__(self, coords: Mapping[str, Sequence], channels: Sequence[Channel]):
        """`coords` are the values of all DIMS but the last."""
        self._coords, self._channels = dict(coords), tuple(channels)
        self._shape = (*map(len, coords.values()), len(channels))
        if (size := 4.0 * SINGLE * np.prod(self._shape, dtype=float)) > MOST_BYTES:
            raise ValueError(
                f"statistics of {dict(zip(DIMS, self._shape))} would take {size / 1e9:.0f} GB of memory: choose fewer "
                "starts (--max-starts), leads or regions"
            )
        # all of those of single forecasts, so that scores have one form: of anomalies NaN without a climatology
        self._statistics = {name: np.full(self._shape, np.nan, np.float32) for name in list(STATISTICS)[:SINGLE]}
        self._counted = np.zeros(self._shape[1:], bool)
        self._sums: dict[tuple, Any] = defaultdict(float)  # of what has one more dimension, and none of starts

    def put(self, starts: Int[np.ndarray, " b"], lead: int, counted: Bool[np.ndarray, " b"], found: Mapping) -> None:
        """Takes in what evaluation.py found of a batch at a lead: of the rows that are `counted`."""
        rows, n = starts[counted], len(self._channels)
        found = {key: np.moveaxis(values[counted, :n], 1, 2) for key, values in found.items()}
        for (name, source, grid), values in found.items():
            some = found["counted", 0, grid]
            if name == "counted":
                self._counted[rows, grid, :, lead] = some
            elif name in STATISTICS:
                if name not in self._statistics:
                    self._statistics[name] = np.full(self._shape, np.nan, np.float32)
                self._statistics[name][source, rows, grid, :, lead] = np.where(some, values, np.nan)
            else:
                values = np.where(some[..., None], values, 0) if name == "rank_histogram" else values
                self._sums[name, source, grid, lead] += values.astype(np.float64).sum(axis=0)

    def dataset(self) -> xr.Dataset:
        """The statistics with their coordinates, winds as vectors too, spectra, rank histograms, samples [lead]."""
        coords = {**self._coords, **_describe(self._channels)}
        arrays = {name: (DIMS, values, {"long_name": STATISTICS[name]}) for name, values in self._statistics.items()}
        found = xr.Dataset(arrays | {"counted": (DIMS[1:], self._counted)}, coords)
        options = dict(data_vars="all", coords="different", compat="equals", join="exact")
        found = xr.concat([found, *_wind_vectors(found)], "channel", **options)
        found["samples"] = found.counted.any(("grid", "region", "channel")).sum("time")
        with np.errstate(invalid="ignore"):
            if (ranks := self._summed("rank_histogram", ("region", "channel", "rank"))) is not None:
                found = found.assign(rank_histogram=ranks / found.counted.sum("time"))
            if (power := self._summed("spectrum", ("band", "channel", "wavenumber"))) is not None:
                power = power.isel(grid=0).assign_coords(band=list(BANDS)) / found.samples
                truth = power.sel(source="truth", drop=True)
                found = found.assign(spectrum=power.drop_sel(source="truth"), spectrum_truth=truth)
        return found

    def _summed(self, name: str, dims: tuple[str, ...]) -> xr.DataArray | None:
        """The sums of a name over starts [source, grid, lead_hours, *dims]; None where there are none."""
        sources, channels = [*self._coords["source"], "truth"], [channel.name for channel in self._channels]
        parts = []
        for (other, source, grid, lead), values in self._sums.items():
            if other == name:
                place = {"source": [sources[source]], "grid": [self._coords["grid"][grid]]}
                place |= {"lead_hours": [self._coords["lead_hours"][lead]], "channel": channels}
                place[dims[-1]] = range(values.shape[-1])
                parts.append(xr.DataArray(values[None, None, None], place, ("source", "grid", "lead_hours", *dims)))
        return xr.combine_by_coords(parts, join="outer") if parts else None  # ensembles have as many ranks as they have


def _describe(channels: Sequence[Channel]) -> dict[str, Any]:
    return {
        "channel": [channel.name for channel in channels],
        "short": ("channel", [channel.short for channel in channels]),
        "units": ("channel", [channel.units for channel in channels]),
        "variable": ("channel", [channel.variable for channel in channels]),
        "level_hpa": ("channel", [channel.level_hpa or np.nan for channel in channels]),
    }


def _wind_vectors(statistics: xr.Dataset) -> list[xr.Dataset]:
    """The statistics of the vectors whose components are there, a dataset of one channel each."""
    names, found = statistics.channel.values.tolist(), []
    for channel in map(parse_channel, names):
        for vector, (u, v, short) in WIND.items():
            other = dataclasses.replace(channel, variable=v)
            if channel.variable != u or other.name not in names:
                continue
            parts = statistics.sel(channel=[channel.name, other.name])
            about = _describe([dataclasses.replace(channel, variable=vector)])
            about |= {"short": ("channel", [short + str(channel.level_hpa or "")])}
            about["units"] = ("channel", parts.units.values[:1])
            sums = {n: x.sum("channel", skipna=False) * (1 if n in SUMMED else np.nan) for n, x in parts.items()}
            whole = xr.Dataset(sums | {"counted": parts.counted.all("channel")})
            found.append(whole.drop_vars([*about], errors="ignore").expand_dims("channel").assign_coords(about))
    return found

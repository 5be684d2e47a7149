"""Sources: any regular latitude-longitude data set, read as frames in the project's order, units and types.

Zarr stores (WeatherBench 2, ARCO-ERA5), netCDF and GRIB files come with latitudes and longitudes in either direction,
levels in any order and dimensions in any order; what is there is read from the data and never assumed. Frames come out
as float32 [time, channel, lat, lon], latitude north to south, longitude east from 0, in SI units.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Float, Int

from weathermixer.fields.grid import Grid
from weathermixer.fields.variables import Channel, group_by_variable, parse_channel
from weathermixer.prepare.formats import Spec, open_pieces
from weathermixer.prepare.names import ALIASES, STATIC, conversion, find_variable
from weathermixer.prepare.orientation import Orientation, make_orientation
from weathermixer.prepare.selection import choose_channels, describe_contents
from weathermixer.prepare.series import Series, compare_repeats, find_series, read_piece, take_times
from weathermixer.prepare.times import choose_times, gather_notes


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """An open source: what it holds of what was asked for, and `read` for its frames.

    times [time] are datetime64[ns], ascending, whole steps apart; missing_times are the steps between that are absent.
    `account` tells what was taken of the source, what was not and why, a line for each.
    """

    name: str
    times: np.ndarray
    missing_times: np.ndarray
    step_hours: int
    grid: Grid
    channels: tuple[Channel, ...]
    static: dict[str, Float[np.ndarray, "lat lon"]]
    attributes: dict[str, Any]
    account: tuple[str, ...]
    series: Mapping[str, Series]
    orientation: Orientation

    @property
    def variables(self) -> tuple[str, ...]:
        """The variables, in the channels' order."""
        return tuple(self.series)

    @property
    def time_chunk(self) -> int:
        """How many of these times lie in one of the source's chunks: reading fewer at once decodes it repeatedly."""
        chunks = [s.pieces[0].encoding.get("preferred_chunks", {}).get("time", 1) for s in self.series.values()]
        stride = int(np.median(np.diff(next(iter(self.series.values())).position))) if len(self.times) > 1 else 1
        return max(1, max(chunks) // max(1, stride))

    def decoded_bytes(self, variable: str, times: int) -> int:
        """Bytes of the source's chunks that hold some consecutive times of a variable, all of their levels included."""
        series = self.series[variable]
        array = series.pieces[0]
        chunks = array.encoding.get("preferred_chunks", {})
        wanted = {"level": sum(channel.variable == variable for channel in self.channels), "time": times}
        count = array.dtype.itemsize
        for dim, size in array.sizes.items():
            chunk = min(chunks.get(dim, 1 if dim == "time" else size), size)
            count *= -(-min(wanted.get(dim, size), size) // chunk) * chunk
        return count

    def read(
        self, times: slice | Sequence[int] | Int[np.ndarray, " time"], *, variables: Sequence[str] | None = None
    ) -> Float[np.ndarray, "time channel lat lon"]:
        """Reads frames as float32, of all channels or of those of some variables.

        Raises ValueError naming variable and time where the source cannot be read.
        """
        times = np.arange(len(self.times))[times]
        names = self.variables if variables is None else variables
        if not len(times):
            return np.empty((0, sum(c.variable in names for c in self.channels), *self.grid.shape), np.float32)
        frames = [_read_series(self, name, times) for name in names]
        return frames[0] if len(frames) == 1 else np.concatenate(frames, axis=1)


def open_source(
    spec: Spec | Sequence[Spec],
    *,
    variables: Sequence[str] | None = None,
    levels_hpa: Sequence[int] | None = None,
    static: Sequence[str] | None = None,
    period: tuple[str, str] | None = None,
    step_hours: int | None = None,
    crop_south_pole: bool = False,
    coarsen: int = 1,
    exclude: Sequence[str] = (),
    select: Mapping[str, Any] | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Source:
    """Opens a source and picks what is wanted from it.

    Args:
      spec: path, glob, folder, address, or a dataset that is open, or several of these (see `formats.open_pieces`).
      variables: WeatherBench 2 names, on all of `levels_hpa`, or with a level: `geopotential_500`. None: all known.
      levels_hpa: pressure levels of upper-air variables. None: all, from the ground up.
      static: names of static fields. None: those of land_sea_mask, soil_type, geopotential_at_surface that are there.
      period: first and last date, both inclusive.
      step_hours: hours between times. None: 6, or the source's own step where that is no part of 6.
      crop_south_pole: drops the last row where it is the pole, 721 -> 720 as published.
      coarsen: averages blocks of coarsen x coarsen cells, weighted by area.
      exclude: times to leave out: every one within a year, month, day or hour, as 2020-02-29.
      select: entries of other dimensions, {"number": 0}; of a forecast's lead in hours, {"step": 6}.

    Raises ValueError that names what is missing and what there is instead.

    >>> source = weathermixer.open_source("dry.zarr", variables=["temperature", "geopotential"], levels_hpa=[850, 500])
    >>> [channel.name for channel in source.channels]
    ['temperature_850', 'temperature_500', 'geopotential_850', 'geopotential_500']
    >>> source.read([0, 1]).shape
    (2, 4, 16, 32)
    """
    specs = [spec] if isinstance(spec, str | os.PathLike | xr.Dataset) else list(spec)
    name = ", ".join(str(s.encoding.get("source", "dataset") if isinstance(s, xr.Dataset) else s) for s in specs)
    asked = None if variables is None else [parse_channel(variable).variable for variable in variables]
    pieces, notes = open_pieces(specs, variables=asked, select=select, storage_options=storage_options)
    channels = choose_channels(pieces, variables, levels_hpa, source=name)
    orientation = make_orientation(pieces, crop_south_pole=crop_south_pole, coarsen=coarsen, source=name)
    found = {variable: find_series(pieces, variable, source=name) for variable in group_by_variable(channels)}
    times, missing, step_hours, account = choose_times(
        {variable: its_times for variable, (its_times, *_) in found.items()},
        period=period,
        step_hours=step_hours,
        exclude=exclude,
        source=name,
    )
    series, repeats = {}, []
    for variable, (its_times, whole, *again) in found.items():
        series[variable] = take_times(its_times, whole, times)
        levels = [channel.level_hpa for channel in channels if channel.variable == variable]
        repeats.append(compare_repeats(variable, times, series[variable], *again, levels))
    return Source(
        name=name,
        times=times,
        missing_times=missing,
        step_hours=step_hours,
        grid=orientation.grid,
        channels=channels,
        static=_read_static(pieces, static, orientation, name),
        attributes={str(key): _plain(value) for key, value in pieces[0].attrs.items()},
        account=(*gather_notes(notes), *filter(None, repeats), *account),
        series=series,
        orientation=orientation,
    )


def _read_static(pieces, names, orientation: Orientation, source: str) -> dict[str, np.ndarray]:
    fields = {}
    for name in STATIC if names is None else names:
        holders = [piece for piece in pieces if find_variable(piece, name)]
        if not holders and names is None:
            continue
        if not holders:
            raise ValueError(
                f"{source} has no static field {name!r} (or {ALIASES.get(name, ())}); {describe_contents(pieces)}"
            )
        array = holders[0][find_variable(holders[0], name)]
        if "time" in array.dims:
            array = array.isel(time=0)  # WeatherBench 2 has it once, other sources repeat it
        if set(array.dims) != {"latitude", "longitude"}:
            raise ValueError(f"static field {name} in {source} has dimensions {array.dims}, not (latitude, longitude)")
        factor, shift = conversion(array, name)
        values = orientation.apply(array.transpose("latitude", "longitude").to_numpy()) * factor + shift
        if not np.all(np.isfinite(values)):
            raise ValueError(
                f"static field {name} in {source} has {np.sum(~np.isfinite(values))} values that are missing"
            )
        fields[name] = values.astype(np.float32)
    return fields


def _read_series(source: Source, variable: str, times: np.ndarray) -> Float[np.ndarray, "time channel lat lon"]:
    series = source.series[variable]
    levels = [channel.level_hpa for channel in source.channels if channel.variable == variable]
    parts = []
    breaks = np.flatnonzero(np.diff(series.piece[times])) + 1
    for run in np.split(times, breaks):
        try:
            number = series.piece[run[0]]
            remote = "://" in series.names[number]
            block = read_piece(series.pieces[number], series.position[run], levels, remote=remote)
        except Exception as error:
            if len(run) > 1:
                for time_index in run:  # find the first time that is at fault; its error names it
                    _read_series(source, variable, np.array([time_index]))
            what = f"{source.name}: {variable} at {source.times[run[0]]} cannot be read"
            raise ValueError(f"{what}: {type(error).__name__}: {error}") from error
        parts.append(source.orientation.apply(block))
    frames = parts[0] if len(parts) == 1 else np.concatenate(parts)
    if (series.factor, series.shift) != (1.0, 0.0):
        frames = frames * np.float32(series.factor)
        frames += np.float32(series.shift)
    return frames


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else str(value) if value is not None else None

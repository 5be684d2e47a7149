"""Sources: any regular latitude-longitude data set, read as frames in the project's order, units and types.

Zarr stores (WeatherBench 2, ARCO-ERA5), netCDF and GRIB files come with latitudes and longitudes in either direction,
levels in any order and dimensions in any order; what is there is read from the data and never assumed. Frames come out
as float32 [time, channel, lat, lon], latitude north to south, longitude east from 0, in SI units.
"""

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Float, Int

from weathermixer.fields.grid import Grid
from weathermixer.fields.variables import VARIABLES, Channel, group_by_variable
from weathermixer.sources.coordinates import Orientation
from weathermixer.sources.formats import Spec, open_pieces
from weathermixer.sources.names import possible_names
from weathermixer.sources.parts import Note, find_sums, make_orient, take_apart, tell
from weathermixer.sources.selection import choose_channels, read_static
from weathermixer.sources.series import Series, check_levels, compare_repeats, find_series
from weathermixer.sources.times import choose_times


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """An open source: what it holds of what was asked for, and `read` for its frames."""

    name: str
    times: np.ndarray  # [time], datetime64[ns], ascending, whole steps apart
    missing_times: np.ndarray  # the steps between that are absent
    step_hours: int
    channels: tuple[Channel, ...]
    static: dict[str, Float[np.ndarray, "lat lon"]]
    account: tuple[str, ...]  # what was taken of the source, what was not and why, a line for each
    series: Mapping[str, tuple[Series, ...]]
    # packed values that are netCDF's mark of missing values, undeclared, are read as missing, and else refused
    gaps: bool = False

    @property
    def orientation(self) -> Orientation:
        """That of the first variable's first file."""
        return next(iter(self.series.values()))[0].parts[0].orientation

    @property
    def grid(self) -> Grid:
        return self.orientation.grid

    @property
    def variables(self) -> tuple[str, ...]:
        """The variables, in the channels' order."""
        return tuple(self.series)

    @property
    def read_as(self) -> dict[str, list]:
        """Of each variable, what it is called and the factor and shift to its units, in all of its files."""
        return {
            variable: sorted({(part.given, *part.scaling) for one in series for part in one.parts})
            for variable, series in self.series.items()
        }

    @property
    def stride(self) -> int:
        """How many of the source's times apart these times mostly are, in the first variable's first file."""
        positions = next(iter(self.series.values()))[0].entries["position"][:, 0]
        return max(1, int(np.median(np.diff(positions)))) if len(positions) > 1 else 1

    @property
    def time_chunk(self) -> int:
        """How many of these times lie in one of the source's chunks: reading fewer at once decodes it repeatedly."""
        first = [series[0].parts[0].array for series in self.series.values()]
        chunks = [array.encoding.get("preferred_chunks", {}).get("time", 1) for array in first]
        return max(1, max(chunks) // self.stride)

    def decoded_bytes(self, variable: str, times: int) -> int:
        """Bytes of the source's chunks that hold some consecutive times of a variable, at most, wherever they begin."""
        most = 0
        for series in self.series[variable]:
            array, levels = series.parts[0].array, series.parts[0].levels_hpa
            wanted = [levels.index(level) for level in series.levels_hpa] or [0]
            entries = {"time": times * series.window, "level": len(wanted)}
            reach = {"time": (times - 1) * self.stride + series.window, "level": max(wanted) - min(wanted) + 1}
            count = array.dtype.itemsize
            for dim, size in array.sizes.items():
                chunk = min(array.encoding.get("preferred_chunks", {}).get(dim, 1 if dim == "time" else size), size)
                touched = min(entries.get(dim, size), -(-(reach.get(dim, size) - 1) // chunk) + 1, -(-size // chunk))
                count *= touched * chunk
            most = max(most, count)
        return most

    def narrow(self, times: slice | Int[np.ndarray, " time"], *, variables: Sequence[str] | None = None) -> "Source":
        """A source of some of the times and variables that holds nothing else, to be sent to other processes."""
        index = np.arange(len(self.times))[times]
        names = self.variables if variables is None else variables
        return dataclasses.replace(
            self,
            times=self.times[index],
            channels=tuple(channel for channel in self.channels if channel.variable in names),
            missing_times=self.missing_times[:0],
            static={},
            account=(),
            series={name: tuple(one.narrow(index) for one in self.series[name]) for name in names},
        )

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
        frames = [_read_variable(self, name, times) for name in names]
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
    rename: Mapping[str, str] | None = None,
    units: Mapping[str, str] | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Source:
    """Opens a source and picks what is wanted from it.

    Args:
      spec: path, glob, folder, address, or a dataset that is open, or several of these (see `formats.open_pieces`).
      variables: WeatherBench 2's names or the source's, on all of `levels_hpa` or with a level, `geopotential_500`;
        None: all that are known. total_precipitation_6hr is summed where the source has total_precipitation every hour.
      levels_hpa: pressure levels of upper-air variables. None: all, from the ground up.
      static: names of static fields. None: those of land_sea_mask, soil_type, geopotential_at_surface that are there.
      period: first and last date, both inclusive.
      step_hours: hours between times. None: 6, or the source's own step where that is no part of 6. 0: all times on
        whole hours, whatever lies between them, to start forecasts from.
      crop_south_pole: drops the last row where it is the pole, 721 -> 720 as published.
      coarsen: averages blocks of coarsen x coarsen cells, weighted by area.
      exclude: times to leave out: every one within a year, month, day or hour, as 2020-02-29.
      select: entries of other dimensions, {"number": 0}; of a forecast's lead in hours, {"step": 6}.
      rename: name in the source -> name, {"hgt": "geopotential", "T850": "temperature_850"}.
      units: name of a variable or of levels -> unit, in the place of what the source says: {"t2m": "degC"}.

    Raises ValueError that names what is missing and what there is instead.

    >>> source = weathermixer.open_source("dry.zarr", variables=["temperature", "geopotential"], levels_hpa=[850, 500])
    >>> [channel.name for channel in source.channels]
    ['temperature_850', 'temperature_500', 'geopotential_850', 'geopotential_500']
    >>> source.read([0, 1]).shape
    (2, 4, 16, 32)
    """
    specs = [spec] if isinstance(spec, str | os.PathLike | xr.Dataset) else list(spec)
    names = (str(s.encoding.get("source", "dataset") if isinstance(s, xr.Dataset) else s) for s in specs)
    name = ", ".join(dict.fromkeys(names))
    rename, units = dict(rename or {}), dict(units or {})
    asked = None if variables is None and not rename else possible_names(variables, rename)
    pieces, notes = open_pieces(specs, variables=asked, select=select, storage_options=storage_options)
    parts = take_apart(pieces, notes, rename=rename, units=units, source=name)
    parts += find_sums(parts, variables or ())
    channels = choose_channels(parts, notes, variables, levels_hpa, source=name)
    wanted = {variable: [p for p in parts if p.variable == variable] for variable in group_by_variable(channels)}
    orient = make_orient(wanted[channels[0].variable][0], crop_south_pole=crop_south_pole, coarsen=coarsen)
    found = {
        variable: find_series(some, [channel for channel in channels if channel.variable == variable], orient)
        for variable, some in wanted.items()
    }
    times, missing, step_hours, account = choose_times(
        {variable: np.unique(np.concatenate([one.times for one, _ in pairs])) for variable, pairs in found.items()},
        period=period,
        step_hours=step_hours,
        exclude=exclude,
        source=name,
    )
    series = {}
    for variable, pairs in found.items():
        check_levels(variable, [one for one, _ in pairs], times)
        series[variable] = tuple(
            dataclasses.replace(one, entries=one.entries[np.searchsorted(one.times, times)]) for one, _ in pairs
        )
        for one, (_, again) in zip(series[variable], pairs):
            notes += compare_repeats(variable, one, again)
        if (first := series[variable][0]).window > 1:
            account.append(f"{variable}: the sum of {first.window} values of {first.parts[0].given}, up to its time")
    fields = read_static(parts, static, orient, notes, source=name)
    if variables is None:
        unknown = [part for part in parts if part.variable not in VARIABLES]
        notes += [Note("not known by name (--variables, --rename)", part.file, part.given) for part in unknown]
    for part in (part for some in wanted.values() for part in some):
        if twice := len(part.longitude) - len(orient(part).columns):
            notes.append(Note(f"longitudes that are there twice: {twice}, the first of each is taken", part.file))
        if how := re.search(r"\btime: (?!point|sum)\w+", str(part.array.attrs.get("cell_methods", ""))):
            notes.append(Note(f"{part.given} is given as '{how[0]}', taken as the value at its time", part.file))
    bare = dict.fromkeys(p.given for some in wanted.values() for p in some if p.variable in VARIABLES and not p.units)
    if bare:
        account.append(f"no unit is given of {', '.join(bare)}: taken to be in SI (--units says otherwise)")
    return Source(
        name=name,
        times=times,
        missing_times=missing,
        step_hours=step_hours,
        channels=channels,
        static=fields,
        account=(*tell(notes), *account),
        series=series,
    )


def _read_variable(source: Source, variable: str, times: np.ndarray) -> Float[np.ndarray, "time channel lat lon"]:
    series = source.series[variable]
    try:
        blocks = [one.read(times, gaps=source.gaps) for one in series]
    except Exception as error:
        if len(times) > 1:
            for time in times:  # find the first time that is at fault; its error names it
                _read_variable(source, variable, np.array([time]))
        what = f"{source.name}: {variable} at {source.times[times[0]]} cannot be read"
        raise ValueError(f"{what}: {type(error).__name__}: {error}") from error
    if len(blocks) == 1:
        return blocks[0]
    frames = np.empty((len(times), sum(len(one.channels) for one in series), *source.grid.shape), np.float32)
    for one, block in zip(series, blocks):
        frames[:, one.channels] = block
    return frames

"""What the dimensions of a file are: time, latitude, longitude and pressure levels, told by names and as CF says.

Levels are known by units, standard_name and positive, never by their size. Levels that are no pressures (of a model's
own, heights, depths) are named, and so is what has none of either. Rows and columns are brought into the project's
order, north to south and east from 0, and cropped and averaged where that is asked for.
"""

import dataclasses
import re
from collections.abc import Mapping

import numpy as np
import xarray as xr
from jaxtyping import Float, Int

from weathermixer.archive.storage import as_slice
from weathermixer.fields.grid import Grid, area_weights
from weathermixer.fields.units import conversion, is_pressure

DIMENSIONS = {
    "time": ("time", "valid_time"),
    "level": ("level", "isobaricInhPa", "isobaricInPa", "pressure_level", "plev", "isobaric", "lev", "pressure"),
    "latitude": ("latitude", "lat"),
    "longitude": ("longitude", "lon"),
}
_DEGREES = {"latitude": r"degrees?_?n(orth)?", "longitude": r"degrees?_?e(ast)?"}
# what WeatherBench 2, ARCO-ERA5 and cfgrib call pressures, which may come without units: the names tell them
_UNITS_BY_NAME = {"level": "hPa", "pressure_level": "hPa", "isobaricInhPa": "hPa", "isobaricInPa": "Pa"}
_VERTICAL = re.compile(
    r"p?levs?\d*$|i?lev$|levels?|pressure|isobaric|pfull|phalf|hybrid|eta\b|sigma|height|altitude|depth|layer|isentropic",
    re.IGNORECASE,
)
_OTHER_LEVELS = re.compile(
    r"hybrid|sigma|model|\beta\b|ref full|ref half|height|altitude|depth|layer|isentropic|theta|potential",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"\s*p?(\d+(?:\.\d+)?(?:e[+-]?\d+)?)[ _]*([A-Za-z]*)\s*", re.IGNORECASE)  # and its unit, as 500hPa
_HIGHEST_HPA = 1100
# steps between latitudes may differ by this share: those of a Gaussian grid do by 1 %
UNEVEN = 0.05
_REGRID = "interpolate it to a regular latitude-longitude grid first, with `cdo remapbil` or ECMWF's `mir`"


@dataclasses.dataclass(frozen=True)
class Levels:
    """A vertical coordinate: its pressures in hPa, or the reason why it has none."""

    hpa: tuple[float, ...] = ()
    reason: str = ""


def rename_dimensions(dataset: xr.Dataset, *, source: str) -> xr.Dataset:
    """The dataset with dimensions called time, latitude and longitude, and without those of one entry and no level.

    Raises ValueError for grids that are not regular in latitude and longitude, and coordinates that are not there.
    """
    kinds = {array.attrs.get("GRIB_gridType", "regular_ll") for array in dataset.data_vars.values()}
    others = kinds - {"regular_ll", "regular_gg"}
    if others or any(name in dataset.variables and dataset[name].ndim > 1 for name in DIMENSIONS["latitude"]):
        grid = f"GRIB's {', '.join(others)}" if others else "two-dimensional latitudes"
        raise ValueError(f"{source} is on {grid}: {_REGRID}")
    for canonical in ("time", "latitude", "longitude"):
        found = [n for n in dataset.variables if dataset[n].ndim <= 1 and _is_called(dataset[n], canonical)]
        found.sort(key=lambda name: (name not in DIMENSIONS[canonical], name not in dataset.dims))
        if not found:
            continue
        dims = dataset[found[0]].dims
        if dims and dims[0] != found[0]:  # lat(y)
            dataset = dataset.set_coords(found[0]).swap_dims({dims[0]: found[0]})
        if found[0] != canonical:
            dataset = dataset.drop_vars(canonical, errors="ignore").rename({found[0]: canonical})
    for canonical in ("latitude", "longitude"):
        if canonical not in dataset.dims or canonical not in dataset.coords:
            lacks = "no coordinate for its" if set(DIMENSIONS[canonical]) & set(dataset.dims) else "no"
            raise ValueError(f"{source} has {lacks} {canonical} dimension; it has {dict(dataset.sizes)}")
    single = [name for name, size in dataset.sizes.items() if size == 1 and name not in DIMENSIONS]
    return dataset.squeeze([name for name in single if _read_levels(dataset, name, {}) is None])


def find_levels(dataset: xr.Dataset, units: Mapping[str, str]) -> dict[str, Levels]:
    """The vertical dimensions and scalar coordinates of a dataset, by name; `units` override what the file says."""
    names = {*dataset.dims, *(name for name, coordinate in dataset.coords.items() if not coordinate.ndim)}
    names -= {"time", "latitude", "longitude"}
    return {str(name): levels for name in names if (levels := _read_levels(dataset, str(name), units)) is not None}


def _is_called(coordinate: xr.DataArray, canonical: str) -> bool:
    attributes, degrees = coordinate.attrs, _DEGREES.get(canonical, "$^")
    return (
        coordinate.name in DIMENSIONS[canonical]
        or (attributes.get("standard_name") == canonical and coordinate.name in coordinate.dims)
        or bool(re.fullmatch(degrees, str(attributes.get("units")), re.IGNORECASE))
    )


def _read_levels(dataset: xr.Dataset, name: str, units: Mapping[str, str]) -> Levels | None:
    """The levels that a dimension or a scalar coordinate has; None where it is no vertical coordinate."""
    if name not in dataset.coords:
        remedy = f"give it its pressures, dataset.assign_coords({name}=[...]) in hPa"
        return Levels(reason=f"its dimension {name!r} has no coordinate: {remedy}") if _VERTICAL.match(name) else None
    coordinate = dataset[name]
    attributes = coordinate.attrs
    standard, long = (str(attributes.get(key, "")) for key in ("standard_name", "long_name"))
    unit = str(units.get(name, attributes.get("units", ""))).strip()
    is_vertical = _VERTICAL.match(name) or attributes.get("axis") == "Z" or attributes.get("positive") in ("up", "down")
    if not is_vertical and not is_pressure(unit) and standard != "air_pressure":
        return None
    pressures = name in units or standard == "air_pressure"
    other = standard or "formula_terms" in attributes or _OTHER_LEVELS.search(f"{name} {long}")
    values = np.atleast_1d(coordinate.values).tolist()
    texts = [value.decode() if isinstance(value, bytes) else str(value) for value in values]
    numbers = [number for text in texts if (number := _NUMBER.fullmatch(text))]
    is_number = len(numbers) == len(texts) and len({number[2] for number in numbers}) == 1
    named = f"its levels, {name!r}, are"
    what = f"{named} {(standard or long or unit or 'without units')!r}" if is_number else f"{named} {texts}"
    unit = (is_number and numbers[0][2]) or unit or _UNITS_BY_NAME.get(name, "")
    if not is_number or (other and not pressures) or (unit and not is_pressure(unit)):
        return Levels(reason=f"{what}, not pressures")
    if not unit:
        return Levels(reason=f"{what}: say their unit, --units {name}=hPa")
    heights = np.array([float(number[1]) for number in numbers])
    if unit != attributes.get("units") and name not in units and len(heights) > 1 and np.all(np.diff(heights) == 1):
        # WeatherBench 2 gives no units, and neither does who counts the levels of a model
        first = f"its levels, {name!r}, count {heights[0]:g}, {heights[1]:g}"
        return Levels(reason=f"{first}: if these are hPa, --units {name}=hPa")
    hpa = np.round(heights * conversion(unit, "hPa")[0], 6)
    if not np.all((hpa > 0) & (hpa <= _HIGHEST_HPA)) or len(np.unique(hpa)) < len(hpa):
        given = f"{named} {heights.tolist()} {unit}"
        return Levels(reason=f"{given}: set right what they are, as --units {name}=Pa")
    return Levels(tuple(hpa.tolist()))


@dataclasses.dataclass(frozen=True, eq=False)
class Orientation:
    """How a source's rows and columns lie on `grid`: rows [lat], columns [lon] of the source, then block averages."""

    grid: Grid
    rows: Int[np.ndarray, " row"]
    columns: Int[np.ndarray, " column"]
    coarsen: int
    weights: Float[np.ndarray, " row"]

    def apply(self, field: np.ndarray) -> Float[np.ndarray, "*batch lat lon"]:
        """Fields [..., latitude, longitude] as read -> float32 [..., lat, lon] on `grid`."""
        field = take(take(field, self.rows, axis=-2), self.columns, axis=-1)
        if self.coarsen > 1:
            k = self.coarsen
            *batch, lat, lon = field.shape
            field = field.reshape(*batch, lat, lon // k, k).mean(axis=-1, dtype=np.float64)
            field = (field * self.weights[:, None]).reshape(*batch, lat // k, k, lon // k).sum(axis=-2)
            field = field / self.weights.reshape(-1, k).sum(axis=1)[:, None]
        return np.ascontiguousarray(field, np.float32)


def make_orientation(
    latitude: Float[np.ndarray, " row"],
    longitude: Float[np.ndarray, " column"],
    *,
    crop_south_pole: bool,
    coarsen: int,
    source: str,
) -> Orientation:
    """How rows and columns at these places lie on the grid; ValueError where it is not global and regular."""
    rows = np.argsort(-latitude, kind="stable")
    # decimals of float32 coordinates are not meant: 0.1 degrees is 0.1, and 360 is 0
    east = np.round(longitude, 5) % 360
    columns = np.argsort(east, kind="stable")
    if np.any(np.diff(east[columns]) == 0):
        _, columns = np.unique(east, return_index=True)  # a cyclic column, 0 and 360
    try:
        _check_latitudes(latitude[rows])
        if len(columns) < 2:
            raise ValueError(f"it has one longitude, {longitude[0]:g}")
        grid = Grid(np.round(latitude[rows], 5), east[columns])
    except ValueError as error:
        raise ValueError(f"{source} is not on a global regular grid: {error}") from None
    if crop_south_pole:  # 721 -> 720 at 0.25 degrees, as published (Jigsaw, section 4)
        if grid.latitude[-1] > -90 + 1e-3:
            raise ValueError(f"{source}: its last latitude is {grid.latitude[-1]:g}, not the south pole, to drop")
        grid, rows = Grid(grid.latitude[:-1], grid.longitude), rows[:-1]
    weights = area_weights(grid.latitude)
    if coarsen > 1:
        lat, lon = grid.shape
        if lat % coarsen or lon % coarsen:
            raise ValueError(
                f"{source}: {lat} x {lon} cells do not divide into blocks of {coarsen} x {coarsen}; a crop may help"
            )
        means = (places.reshape(-1, coarsen).mean(axis=1) for places in (grid.latitude, grid.longitude))
        grid = Grid(*means)
    return Orientation(grid, rows, columns, coarsen, weights)


def _check_latitudes(latitude: np.ndarray) -> None:
    """Raises ValueError where latitudes from north to south are not evenly spaced, or end before the poles.

    Rows of a full Gaussian grid are even enough; at a pole one row may be cut off.
    """
    if len(latitude) < 2 or not np.all(np.isfinite(latitude)):
        raise ValueError(f"its latitudes are {latitude.tolist()}")
    steps = -np.diff(latitude)
    step = float(np.median(steps))
    odd = np.flatnonzero(np.abs(steps - step) > UNEVEN * step)
    if len(odd):
        a, b = latitude[odd[0] : odd[0] + 2]
        raise ValueError(f"latitudes {a:g} and {b:g} lie {a - b:g} degrees apart, most others {step:g}")
    for gap in (90 - latitude[0], 90 + latitude[-1]):
        if gap > (1 + UNEVEN) * step:
            raise ValueError(f"latitudes run from {latitude[0]:g} to {latitude[-1]:g}, in steps of {step:g}")


def take(field: np.ndarray, index: np.ndarray, *, axis: int) -> np.ndarray:
    """field[index] along an axis, without a copy where the index has equal steps, forwards or backwards."""
    if index[0] > index[-1]:
        return np.flip(take(field, index[::-1], axis=axis), axis)
    some = as_slice(index)
    if isinstance(some, slice):
        return field[(slice(None),) * (axis % field.ndim) + (some,)]
    return np.take(field, index, axis=axis)

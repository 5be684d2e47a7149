"""Fields from one regular grid to another, by xarray-regrid."""

import warnings

import numpy as np
import xarray as xr
from jaxtyping import Float

from weathermixer.fields.grid import Grid, sines_of_bounds

METHODS = ("linear", "conservative", "nearest", "cubic")


def regrid(
    fields: Float[np.ndarray, "*batch from_lat from_lon"], grid: Grid, target: Grid, *, method: str
) -> Float[np.ndarray, "*batch lat lon"]:
    """Fields of one grid on another, float32; "conservative" keeps the means of cells: best for a coarser target.

    Raises ValueError for an unknown method, and where xarray-regrid is not installed.
    """
    if method not in METHODS:
        raise ValueError(f"regrid={method!r} is not one of {METHODS}")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=DeprecationWarning)  # of packages that it imports
            import xarray_regrid  # noqa: F401 - gives arrays their `regrid`
    except ImportError as error:
        raise ValueError(
            f"regrid={method!r} needs xarray-regrid ({error}): pip install 'weathermixer[regrid]'"
        ) from None
    names = ("latitude", "longitude")
    batch = [f"batch_{n}" for n in range(fields.ndim - 2)]
    array = xr.DataArray(fields, dims=(*batch, *names), coords={name: getattr(grid, name) for name in names})
    options = {"latitude_coord": names[0]} if method == "conservative" else {}
    wanted = xr.Dataset(coords={name: getattr(target, name) for name in names})
    found = getattr(array.regrid, method)(wanted, **options)
    return found.transpose(*batch, *names).to_numpy().astype(np.float32)


def conservative_weights(
    grid: Grid, target: Grid
) -> tuple[Float[np.ndarray, "to_lat from_lat"], Float[np.ndarray, "to_lon from_lon"]]:
    """Matrices of conservative regridding, rows and columns apart, that fields cut over a mesh can be multiplied by.

        coarse = rows @ field @ columns.T      each weight is the share of the cell that the other grid's cell covers

    Bounds are halfway between points, and at the poles, as those of WeatherBench 2's ConservativeRegridder.
    """
    rows = _overlap(-sines_of_bounds(target.latitude), -sines_of_bounds(grid.latitude))  # which ascend
    to, of = _longitude_bounds(target.longitude), _longitude_bounds(grid.longitude)
    columns = sum(_overlap(to, of + turn) for turn in (-360, 0, 360))
    return tuple(weights / weights.sum(axis=1, keepdims=True) for weights in (rows, columns))


def equiangular_grid(lat: int, lon: int) -> Grid:
    """WeatherBench 2's grids: 64x32 without poles, 240x121 and others of an odd number of rows with them."""
    latitude = np.linspace(90, -90, lat) if lat % 2 else 90 - (np.arange(lat) + 0.5) * 180 / lat
    return Grid(latitude, np.arange(lon) * 360 / lon)


def _longitude_bounds(longitude: np.ndarray) -> Float[np.ndarray, " bound"]:
    return longitude[0] + (np.arange(len(longitude) + 1) - 0.5) * 360 / len(longitude)


def _overlap(one: Float[np.ndarray, " a"], other: Float[np.ndarray, " b"]) -> Float[np.ndarray, "a-1 b-1"]:
    """How much the intervals between ascending bounds have in common with those between others."""
    upper, lower = np.minimum(one[1:, None], other[1:]), np.maximum(one[:-1, None], other[:-1])
    return np.maximum(upper - lower, 0)

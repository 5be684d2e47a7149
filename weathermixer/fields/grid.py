"""Regular latitude-longitude grids: canonical order, cell weights; fields from one to another.

Inside the project latitudes run north to south and longitudes east from 0; sources in any other order are put in this
one when they are read.
"""

import dataclasses
import warnings

import numpy as np
from jaxtyping import Float

METHODS = ("linear", "conservative", "nearest", "cubic")  # of regridding


@dataclasses.dataclass(frozen=True, eq=False)
class Grid:
    """A regular grid: latitudes [lat] in degrees north, descending; longitudes [lon] in degrees east, in [0, 360).
    Raises ValueError for latitudes that do not descend, and longitudes that are not equally spaced around the globe.

    >>> grid = weathermixer.Grid(np.array([67.5, 22.5, -22.5, -67.5]), np.arange(0.0, 360.0, 45.0))
    >>> grid.shape
    (4, 8)
    """

    latitude: Float[np.ndarray, " lat"]
    longitude: Float[np.ndarray, " lon"]

    def __post_init__(self):
        if np.any(np.diff(self.latitude) >= 0):
            raise ValueError(f"latitudes must descend from north to south, got {_ends(self.latitude)}")
        if np.any(np.abs(self.latitude) > 90 + 1e-6):
            raise ValueError(f"latitudes must lie in [-90, 90] degrees, got {_ends(self.latitude)}")
        step = 360 / len(self.longitude)
        even = self.longitude[0] + np.arange(len(self.longitude)) * step
        if self.longitude[0] < 0 or self.longitude[-1] >= 360 or np.abs(self.longitude - even).max() > 1e-2 * step:
            steps = np.diff(self.longitude)
            given = f"{_ends(self.longitude)}, in steps of {steps.min():g} to {steps.max():g}"
            raise ValueError(f"longitudes must go once around the globe, evenly, in [0, 360) degrees: got {given}")

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.latitude), len(self.longitude)

    def difference(self, other: "Grid") -> str | None:
        """How another grid differs from this one by more than 1e-4 degrees; None where it does not."""
        for what in ("latitude", "longitude"):
            here, there = getattr(self, what), getattr(other, what)
            if len(here) != len(there) or not np.allclose(here, there, rtol=0, atol=1e-4):
                return f"{what}s {_ends(there)}, not {_ends(here)}"
        return None


def _ends(values: np.ndarray) -> str:
    return f"{values[0]} ... {values[-1]} ({len(values)} values)"


def area_weights(latitude: Float[np.ndarray, " lat"]) -> Float[np.ndarray, " lat"]:
    """Weights of latitude rows by the cells' area, with mean one, as WeatherBench 2 defines them for scores.

        w = sin(upper bound) - sin(lower bound),   bounds halfway between rows and at the poles

    (Rasp et al. 2024, WeatherBench 2, section 3.1.)

    >>> weathermixer.area_weights(np.array([67.5, 22.5, -22.5, -67.5])).round(3)
    array([0.586, 1.414, 1.414, 0.586])
    """
    weights = np.abs(np.diff(sines_of_bounds(np.asarray(latitude, np.float64))))
    return weights / weights.mean()


def sines_of_bounds(latitude: Float[np.ndarray, " lat"]) -> Float[np.ndarray, " lat+1"]:
    """Sines of the bounds of latitude rows, halfway between them and at the poles."""
    pole = 90.0 if latitude[0] > latitude[-1] else -90.0
    return np.sin(np.deg2rad(np.concatenate([[pole], (latitude[1:] + latitude[:-1]) / 2, [-pole]])))


def cosine_weights(latitude: Float[np.ndarray, " lat"]) -> Float[np.ndarray, " lat"]:
    """Weights cos(latitude) with mean one, as in the training loss (Jigsaw, section 4)."""
    weights = np.cos(np.deg2rad(np.asarray(latitude, np.float64)))
    return weights / weights.mean()


def regrid(
    fields: Float[np.ndarray, "*batch from_lat from_lon"], grid: Grid, target: Grid, *, method: str
) -> Float[np.ndarray, "*batch lat lon"]:
    """Fields of one grid on another, float32, by xarray-regrid; "conservative" keeps the means of cells.

    Raises ValueError for an unknown method, and where xarray-regrid is not installed.
    """
    if method not in METHODS:
        raise ValueError(f"regrid={method!r} is not one of {METHODS}")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=DeprecationWarning)  # of packages that it imports
            import xarray as xr
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

"""Fields from one regular grid to another, by xarray-regrid."""

import warnings

import numpy as np
import xarray as xr
from jaxtyping import Float

from weathermixer.fields.grid import Grid

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

"""Turns fields as a source holds them into the project's order, north to south and east from 0; crops and coarsens."""

import dataclasses

import numpy as np
from jaxtyping import Float, Int

from weathermixer.archive.storage import as_slice
from weathermixer.fields.grid import Grid, area_weights

# steps between latitudes may differ by this share: those of a Gaussian grid do by 1 %
UNEVEN = 0.05


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
    if crop_south_pole:
        grid, rows = grid.drop_south_pole(), rows[:-1]
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

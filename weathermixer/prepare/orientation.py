"""Turns fields as a source holds them into the project's order, north to south and east from 0; crops and coarsens."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import xarray as xr
from jaxtyping import Float, Int

from weathermixer.fields.grid import Grid, area_weights


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


def make_orientation(pieces: Sequence[xr.Dataset], *, crop_south_pole: bool, coarsen: int, source: str) -> Orientation:
    """Finds the grid of a source; ValueError where its pieces differ or the grid is not global and regular."""
    latitude, longitude = (np.asarray(pieces[0][name].values, np.float64) for name in ("latitude", "longitude"))
    for piece in pieces[1:]:
        for name, values in (("latitude", latitude), ("longitude", longitude)):
            if piece.sizes[name] != len(values) or not np.allclose(piece[name].values, values, atol=1e-4):
                other = piece.encoding.get("source", "another piece")
                raise ValueError(f"{source}: {other} is on another grid: its {name} has {piece.sizes[name]} values")
    rows = np.argsort(-latitude, kind="stable")
    # decimals of float32 coordinates are not meant: 0.1 degrees is 0.1, and 360 is 0
    east = np.round(longitude, 5) % 360
    columns = np.argsort(east, kind="stable")
    if np.any(np.diff(east[columns]) == 0):
        _, columns = np.unique(east, return_index=True)  # a cyclic column, 0 and 360
    try:
        grid = Grid(np.round(latitude[rows], 5), east[columns])
    except ValueError as error:
        raise ValueError(f"{source} is not on a global regular grid: {error}") from None
    if crop_south_pole:
        grid, rows = grid.drop_south_pole(), rows[:-1]
    weights = area_weights(grid.latitude)
    if coarsen > 1:
        grid = _coarse_grid(grid, coarsen, source)
    return Orientation(grid, rows, columns, coarsen, weights)


def _coarse_grid(grid: Grid, k: int, source: str) -> Grid:
    lat, lon = grid.shape
    if lat % k or lon % k:
        raise ValueError(f"{source}: {lat} x {lon} cells do not divide into blocks of {k} x {k}; a crop may help")
    return Grid(grid.latitude.reshape(-1, k).mean(axis=1), grid.longitude.reshape(-1, k).mean(axis=1))


def take(field: np.ndarray, index: np.ndarray, *, axis: int) -> np.ndarray:
    """field[index] along an axis, without a copy where the index runs through, forwards or backwards."""
    steps = np.diff(index)
    if len(steps) and np.all(steps == steps[0]) and abs(steps[0]) == 1:
        stop = int(index[-1] + steps[0])
        part = [slice(None)] * field.ndim
        part[axis] = slice(int(index[0]), None if stop < 0 else stop, int(steps[0]))
        return field[tuple(part)]
    return np.take(field, index, axis=axis)

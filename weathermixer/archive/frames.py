"""A data set as a model sees it: frames by the index of their times, standardized with the model's own statistics."""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, reshard
from jaxtyping import Array, Float, Int, Num

from weathermixer.archive.archive import Archive
from weathermixer.archive.loader import read_frames
from weathermixer.archive.reference import Reference
from weathermixer.archive.sampling import find_times
from weathermixer.archive.standardization import (
    Standardization,
    count_unexpected,
    make_input,
    make_standardization,
    place_terms,
    standardize,
)

_make_input = jax.jit(make_input)


@dataclasses.dataclass(frozen=True, eq=False)
class Frames:
    """Frames of the ascending `times` on a mesh.

    >>> frames = weathermixer.open_run("runs/quickstart").open_frames("dry.zarr")  # or an archive, or an xarray.Dataset
    >>> with jax.set_mesh(frames.mesh):
    ...     x = frames.read(np.array([0, 7]))
    >>> x.shape, f"{frames.times[7]:.13}"
    ((2, 4, 16, 32), '2000-01-02T18')
    """

    name: str  # for messages
    source: str  # where the values came from
    times: np.ndarray
    reference: Reference
    mesh: Mesh
    standardization: Standardization  # of what read_stored returns
    read_stored: Callable[[Int[np.ndarray, " b"]], Num[Array, "b n lat lon"]]
    absent: tuple[str, ...] = ()  # output-only channels that the data set lacks: NaN, and the model sees none

    def read(self, indices: Int[np.ndarray, " b"]) -> Float[Array, "b n lat lon"]:
        """The states at some times as a global array, standardized, NaN where values are missing; on the mesh in use.

        Raises ValueError that names channel and time where values are missing on one that should lack none.
        """
        state = standardize(self.read_stored(indices), self.standardization)
        names = self.reference.channel_set.stored_names
        counts = reshard(count_unexpected(state, self.standardization), NamedSharding(self.mesh, PartitionSpec()))
        lacking = np.asarray(counts)[:, : len(names)] * ~np.isin(names, self.absent)
        if lacking.any():
            row, channel = np.argwhere(lacking)[0]
            when, count = self.times[indices[row]], f"{lacking[row, channel]} of {np.prod(state.shape[2:])}"
            raise ValueError(
                f"{self.name}: {names[channel]} at {when:.16} has {count} values that are missing or infinite, and its "
                f"statistics know of none: leave this time out (experiments.prepare --exclude={when:.13}), or train "
                "without the channel"
            )
        return state

    def make_input(self, state: Float[Array, "b n lat lon"], times: np.ndarray) -> Float[Array, "b n lat lon"]:
        """The model's input of states at these times."""
        reference = self.reference
        terms = place_terms(reference.channel_set, times, self.mesh, step_hours=reference.step_hours)
        return _make_input(state, self.standardization, terms)

    def read_previous(self, starts: Int[np.ndarray, " b"]) -> Float[Array, "b n lat lon"]:
        """The model's input a step before some starts; raises as `find_previous` does."""
        before = self.find_previous(starts)
        return self.make_input(self.read(before), self.times[before])

    def find_previous(self, starts: Int[np.ndarray, " b"]) -> Int[np.ndarray, " b"]:
        """Indices of the times a step before some starts; ValueError that names those which are not there."""
        before = find_times(self.times, self.times[starts] - np.timedelta64(self.reference.step_hours, "h"))
        if (before < 0).any():
            lacking = np.unique(self.times[starts[before < 0]]).astype("datetime64[h]")
            raise ValueError(
                f"starts {lacking} of {self.name} lack the frame {self.reference.step_hours} h before, which history=2 "
                "needs"
            )
        return before


def archive_frames(archive: Archive, reference: Reference, mesh: Mesh) -> Frames:
    """An archive's frames for a model: each process reads its own boxes; channels are found by their names.

    Raises as `Reference.find_channels` and `check_grid` do.
    """
    chosen = reference.find_channels(archive.path, archive.channels)
    reference.check_grid(archive.path, archive.grid)
    standardization = make_standardization(reference, mesh, scale=archive.scale[chosen], offset=archive.offset[chosen])
    return Frames(
        name=archive.path,
        source=str(archive.attributes["source"]) if "source" in archive.attributes else archive.path,
        times=archive.times,
        reference=reference,
        mesh=mesh,
        standardization=standardization,
        read_stored=lambda indices: read_frames(archive, reference.channel_set, mesh, indices),
    )

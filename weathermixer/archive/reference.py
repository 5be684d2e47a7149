"""What a model's numbers refer to, whichever data set its frames come from: channels, statistics, grid, step."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from weathermixer.archive.archive import Archive
from weathermixer.fields.grid import Grid
from weathermixer.fields.variables import Channel, ChannelSet


@dataclasses.dataclass(frozen=True, eq=False)
class Reference:
    """The channels of a model in their order, their statistics in SI units, its grid, its step and its static fields.

    mean, std, tendency_std (of x(t + 6 h) - x(t)) are of the stored channels; `static` has a field of each static one.

    >>> archive = weathermixer.open_archive("dry.archive")
    >>> reference = weathermixer.make_reference(archive, weathermixer.ChannelSet(archive.channels))
    >>> reference.find_channels("another.zarr", archive.channels[::-1], archive.grid).tolist()
    [3, 2, 1, 0]
    """

    channel_set: ChannelSet
    grid: Grid
    step_hours: int
    mean: Float[np.ndarray, " stored"]
    std: Float[np.ndarray, " stored"]
    tendency_std: Float[np.ndarray, " stored"]
    static: dict[str, Float[np.ndarray, "lat lon"]]

    @property
    def tendency(self) -> Float[np.ndarray, " n"]:
        """[channel] each channel's 6 h change in units of its own deviation, zero on what is not predicted."""
        predicted = slice(len(self.channel_set.dynamic))
        return self.channel_set.pad((self.tendency_std / self.std)[predicted])

    def find_channels(self, name: str, channels: Sequence[Channel], grid: Grid) -> Int[np.ndarray, " stored"]:
        """Positions of the model's channels among those of a data set with this name; the order does not matter.

        Raises ValueError for channels that are not there or in another unit, and for another grid.
        """
        position = {channel.name: index for index, channel in enumerate(channels)}
        absent = [wanted for wanted in self.channel_set.stored_names if wanted not in position]
        if absent:
            raise ValueError(f"{name} has no channels {absent}, which the model needs; it has {list(position)}")
        found = np.array([position[wanted] for wanted in self.channel_set.stored_names], np.int64)
        for own, index in zip(self.channel_set.stored, found):
            if channels[index].units != own.units:
                raise ValueError(f"{name} has {own.name} in {channels[index].units!r}, the model in {own.units!r}")
        self.grid.check_same(grid, name)
        return found


def make_reference(archive: Archive, channel_set: ChannelSet) -> Reference:
    """An archive's statistics, grid, step and static fields for some of its channels, in a channel set's order.

    Raises ValueError for channels and static fields that it does not have, and for a channel whose statistics are not
    finite or whose standard deviation is zero.

    >>> archive = weathermixer.open_archive("dry.archive")
    >>> reference = weathermixer.make_reference(archive, weathermixer.ChannelSet(archive.channels[:3], multiple=4))
    >>> reference.std.shape, reference.tendency.shape
    ((3,), (4,))
    """
    chosen, statistics = archive.channel_indices(channel_set.stored_names), archive.statistics
    mean, std, tendency = (values[chosen] for values in (statistics.mean, statistics.std, statistics.tendency_std))
    bad = ~(np.isfinite(mean) & np.isfinite(std) & np.isfinite(tendency) & (std > 0))
    if bad.any():
        names = [channel_set.stored_names[index] for index in np.flatnonzero(bad)]
        raise ValueError(f"channels {names} of {archive.path} are constant or have no statistics: leave them out")
    absent = [name for name in channel_set.static if name not in archive.static]
    if absent:
        raise ValueError(f"{archive.path} has no static fields {absent}; it has {list(archive.static)}")
    static = {name: archive.static[name] for name in channel_set.static}
    return Reference(channel_set, archive.grid, archive.step_hours, mean, std, tendency, static)

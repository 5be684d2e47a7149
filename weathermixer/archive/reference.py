"""What a model's numbers refer to, whichever data set its frames come from: channels, statistics, grid, step."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from weathermixer.archive.archive import Archive
from weathermixer.fields.grid import Grid
from weathermixer.fields.variables import Channel, ChannelSet, find_channels


@dataclasses.dataclass(frozen=True, eq=False)
class Reference:
    """The channels of a model in their order, their statistics in SI units, its grid, its step and its static fields.

    >>> archive = weathermixer.open_archive("dry.archive")
    >>> reference = weathermixer.make_reference(archive, weathermixer.ChannelSet(archive.channels))
    >>> reference.find_channels("another.zarr", archive.channels[::-1]).tolist()
    [3, 2, 1, 0]
    """

    channel_set: ChannelSet
    grid: Grid
    step_hours: int
    mean: Float[np.ndarray, " stored"]
    std: Float[np.ndarray, " stored"]
    tendency_std: Float[np.ndarray, " stored"]  # of x(t + 6 h) - x(t)
    fill: Float[np.ndarray, " stored"]  # the input's where values are missing, NaN for channels that should lack none
    static: dict[str, Float[np.ndarray, "lat lon"]]

    @property
    def tendency(self) -> Float[np.ndarray, " n"]:
        """[channel] each channel's 6 h change in units of its own deviation, zero on what is not predicted."""
        predicted = slice(len(self.channel_set.dynamic))
        return self.channel_set.pad((self.tendency_std / self.std)[predicted])

    def check_grid(self, name: str, grid: Grid) -> None:
        """Raises ValueError where the grid of a data set with this name is not the model's."""
        if difference := self.grid.difference(grid):
            raise ValueError(f"{name} is on another grid than the model: {difference}")

    def find_channels(
        self, name: str, channels: Sequence[Channel], *, optional: Collection[str] = ()
    ) -> Int[np.ndarray, " stored"]:
        """Positions of the model's channels among those of a data set with this name; the order does not matter.

        -1 for what is `optional` and not there. Raises ValueError for others that are not, or are in another unit.
        """
        position = {channel.name: index for index, channel in enumerate(channels)}
        names = self.channel_set.stored_names
        absent = [wanted for wanted in names if wanted not in position and wanted not in optional]
        if absent:
            raise ValueError(f"{name} has no channels {absent}, which the model needs; it has {list(position)}")
        found = np.array([position.get(wanted, -1) for wanted in names], np.int64)
        for own, index in zip(self.channel_set.stored, found):
            if index >= 0 and channels[index].units != own.units:
                raise ValueError(f"{name} has {own.name} in {channels[index].units!r}, the model in {own.units!r}")
        return found


def describe_roles(reference: Reference) -> list[str]:
    """Lines about channels that are not both input and output, and about those that lack values."""
    channels = reference.channel_set
    roles = {
        "input only": [channel.name for channel in channels.input_only],
        "output only": channels.output_only,
        "forcings": channels.forcings,
    }
    lines = [f"{role}: {', '.join(names)}" for role, names in roles.items() if names]
    return lines + [
        f"{channel.name} lacks values: the input has {fill:.6g}{f' {channel.units}'.removesuffix(' 1')} there, "
        "losses and scores leave them out"
        for channel, fill in zip(channels.stored, reference.fill, strict=True)
        if np.isfinite(fill)
    ]


def make_reference(
    archive: Archive, channel_set: ChannelSet, *, fill_values: Mapping[str, float] | None = None
) -> Reference:
    """An archive's statistics, grid, step and static fields for some of its channels, in a channel set's order.

    Channels that lack values are filled with their mean, or with one of `fill_values`, in SI units by the names of
    channels or variables. Raises ValueError for channels and static fields that it does not have, for a channel whose
    statistics are not finite or whose standard deviation is zero, and for a fill value of one that lacks no values.

    >>> archive = weathermixer.open_archive("dry.archive")
    >>> reference = weathermixer.make_reference(archive, weathermixer.ChannelSet(archive.channels[:3], multiple=4))
    >>> reference.std.shape, reference.tendency.shape
    ((3,), (4,))
    """
    names = channel_set.stored_names
    chosen, statistics = archive.channel_indices(names), archive.statistics
    mean, std, tendency = (values[chosen] for values in (statistics.mean, statistics.std, statistics.tendency_std))
    bad = ~(np.isfinite(mean) & np.isfinite(std) & np.isfinite(tendency) & (std > 0))
    if bad.any():
        wrong = [names[index] for index in np.flatnonzero(bad)]
        raise ValueError(f"channels {wrong} of {archive.path} are constant or have no statistics: leave them out")
    absent = [name for name in channel_set.static if name not in archive.static]
    if absent:
        raise ValueError(f"{archive.path} has no static fields {absent}; it has {list(archive.static)}")
    static = {name: archive.static[name] for name in channel_set.static}
    lacking = statistics.missing[chosen] > 0
    fill = np.where(lacking, mean, np.nan)
    for name, value in (fill_values or {}).items():
        of = find_channels(channel_set.stored, [name])
        if not lacking[of].any():
            there = [name for name, some in zip(names, lacking, strict=True) if some]
            raise ValueError(f"fill_values[{name!r}]: {name} lacks no values in {archive.path}, but {there} do")
        fill[of] = np.where(lacking[of], value, np.nan)
    return Reference(channel_set, archive.grid, archive.step_hours, mean, std, tendency, fill, static)

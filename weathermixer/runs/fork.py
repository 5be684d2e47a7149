"""A new run from a trained one: its parameters on the new run's mesh, and rows for channels that it did not have."""

import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh, reshard

from weathermixer.archive.archive import Archive
from weathermixer.archive.reference import make_reference
from weathermixer.fields.forcings import FORCINGS
from weathermixer.fields.variables import ChannelSet
from weathermixer.forecasting.forecasts import gather
from weathermixer.runs import build
from weathermixer.runs.run import open_run
from weathermixer.runs.settings import Settings
from weathermixer.runs.workdir import CHECKPOINTS, Record, describe_archive, read_record, read_settings
from weathermixer.training.checkpoint import Checkpoints
from weathermixer.training.state import TrainState, name_leaves

# parameter -> its dimensions along channels, or along a patch's features, which are channels first
CHANNEL_DIMENSIONS = {
    "encode/kernel": (0,), "previous_kernel": (0,), "decode_kernel": (2,), "decode_bias": (0,),
    "head/inner_scale": (0,), "head/inner_bias": (0,), "head/outer_scale": (1,), "head/outer_bias": (1,),
    "head/kernel": (1, 2), "head/bias": (0,),
}  # fmt: skip


def begin_record(settings: Settings, archive: Archive) -> Record:
    """The record of a run that begins on an archive.

    Where it starts from another run it has that one's statistics and static fields, as the parameters were made with
    them, for what both have. Raises ValueError where that run is not there, or has another step or another unit.
    """
    channel_set = build.make_channel_set(settings, archive)
    own = make_reference(archive, channel_set, fill_values=settings.data.fill_values)
    if not settings.training.init_from:
        return Record(own, describe_archive(archive))
    path, _ = parse_origin(settings.training.init_from)
    read_settings(path)  # raises where there is no run
    record = read_record(path)
    parent = record.reference
    if own.step_hours != parent.step_hours:
        raise ValueError(f"the run to start from has steps of {parent.step_hours} h, the data {own.step_hours} h")
    stored = channel_set.stored_names
    places = own.find_channels("the run to start from", parent.channel_set.stored, optional=stored)
    names = ("mean", "std", "tendency_std", "fill")
    found = {name: np.where(places < 0, getattr(own, name), getattr(parent, name)[places]) for name in names}
    same = own.grid.difference(parent.grid) is None
    static = {name: parent.static.get(name, field) if same else field for name, field in own.static.items()}
    reference = dataclasses.replace(own, **found, static=static)
    return Record(reference, describe_archive(archive), history=record.history)


def fork_state(
    training: build.Training, settings: Settings, channels: ChannelSet, mesh: Mesh
) -> tuple[TrainState, str]:
    """(the state before the first step of a run with settings.training.init_from, what it was made of, in words).

    Raises ValueError where the run to start from is not there, or differs in more than its channels.
    """
    path, step = parse_origin(settings.training.init_from)
    state, parent = jax.jit(training.initial_state)(), open_run(path, mesh=mesh, step=step)
    labels, before = channel_labels(channels), channel_labels(parent.reference.channel_set)
    fresh = [label for label in labels if label and label not in before]
    gone = [label for label in before if label and label not in labels]
    if settings.training.init_moments:
        if labels != before:
            difference = f"new {fresh}, gone {gone}" if fresh or gone else "another order or padding"
            raise ValueError(
                "config.training.init_moments=True takes the state as it is, and the channels differ from those of "
                f"{path}: {difference}; with False the moments begin anew"
            )
        kept = {"params": state.params, "moments": state.moments} | ({"ema": state.ema} if state.ema else {})
        with Checkpoints(path / CHECKPOINTS) as checkpoints:
            found = checkpoints.restore(kept, parent.step, partial=True)
        restart = lambda s: s._replace(count=0 * s.count) if _is_schedule(s) else s  # noqa: E731 - rates begin anew
        found["moments"] = jax.tree.map(restart, found["moments"], is_leaf=_is_schedule)
        return dataclasses.replace(state, **found), f"parameters and moments of step {parent.step} of {path}"
    own, theirs = name_leaves(state.params), name_leaves(parent.params)
    added = {name for name in own if name.endswith("condition_kernel")} - set(theirs)
    if wrong := sorted((set(own) ^ set(theirs)) - added):
        raise ValueError(f"{path} is another model: {', '.join(wrong)} are parameters of one of the two alone")
    taken = [x if name in added else _take(name, x, theirs[name], labels, before) for name, x in own.items()]
    params = jax.tree.unflatten(jax.tree.structure(state.params), taken)
    part = "moving average" if parent.settings.training.ema_decay else "parameters"
    about = f"{part} of step {parent.step} of {path}"
    about += f"; born fresh: the rows of {', '.join(fresh)}" if fresh else ""
    about += "; born zero: what noise and leads change" if added else ""
    about += f"; left behind: {', '.join(gone)}" if gone else ""
    ema = None if state.ema is None else jax.tree.map(lambda p, e: reshard(p, e.sharding), params, state.ema)
    return dataclasses.replace(state, params=params, ema=ema), about


def parse_origin(text: str) -> tuple[pathlib.Path, int | None]:
    """(path, step) of RUN or RUN@STEP; None: the last."""
    path, at, step = text.rpartition("@")
    if at and step.isdigit():
        return pathlib.Path(path).expanduser(), int(step)
    return pathlib.Path(text).expanduser(), None


def channel_labels(channels: ChannelSet) -> list[str | None]:
    """What lies in each place of the channel dimension; None: padding."""
    forcings = [f"{name}/{n}" for name in channels.forcings for n in range(FORCINGS[name])]
    names = [*channels.stored_names, *channels.static, *forcings]
    return names + [None] * (channels.size - len(names))


def _take(name: str, own: jax.Array, theirs: jax.Array, labels: list, before: list) -> jax.Array:
    """A parameter with what the other run's holds for the same channels, the rest as it was born."""
    along = CHANNEL_DIMENSIONS.get(name, ())
    points = {axis: own.shape[axis] // len(labels) for axis in along}
    if theirs.shape != tuple(points[n] * len(before) if n in along else size for n, size in enumerate(own.shape)):
        raise ValueError(f"{name} is {list(theirs.shape)} in the run to start from, {list(own.shape)} in this one")
    if labels == before or not along:
        return reshard(theirs, own.sharding)
    index = np.array([before.index(label) if label and label in before else -1 for label in labels])
    values, known = gather(theirs), np.array(True)
    for axis in along:
        places = (index[:, None] * points[axis] + np.arange(points[axis])).ravel()  # negative: the other has none
        values = values.take(places, axis)
        known = known & np.expand_dims(places >= 0, [n for n in range(own.ndim) if n != axis])
    values = np.where(known, values, gather(own))
    return jax.make_array_from_callback(values.shape, own.sharding, lambda box: values[box])


def _is_schedule(node: Any) -> bool:
    return isinstance(node, optax.ScaleByScheduleState)

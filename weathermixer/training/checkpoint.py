"""Sharded checkpoints of a run, numbered by step: every process writes and reads just its parts of each array.

A checkpoint holds the state's arrays under their names in the tree (`params/blocks/0/token/kernel`) and a small JSON
document beside them. It restores on any mesh, bit for bit, whole or in parts. Writing goes on in the background; a
checkpoint is visible only when it is complete, so that a process killed in a save leaves the earlier ones usable.

    with open_checkpoints(directory, every=1000, keep=3) as checkpoints:
        if checkpoints.latest_step() is not None:
            state = checkpoints.restore(abstract_state)
        ...
            checkpoints.save(step, state, {"config": config})      # writes where step is a multiple of 1000
"""

import importlib.metadata
import os
import platform
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from jax.tree_util import GetAttrKey, KeyPath, keystr, tree_flatten_with_path, tree_unflatten

PyTree = Any

SOFTWARE = ("weathermixer", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorstore", "numpy")


def open_checkpoints(directory: str | os.PathLike, *, every: int | None = None, keep: int = 3) -> "Checkpoints":
    """Opens the checkpoints of a run, to read or, with `every`, to write one every so many steps and keep the last few.

    All processes of a run open, save and restore together. Raises ValueError where the directory cannot be written,
    or is not there when it is to be read.

    >>> with weathermixer.open_checkpoints("checkpoints", every=10, keep=2) as checkpoints:
    ...     saved = checkpoints.save(10, {"params": jnp.arange(3.0)}, {"config": {}})
    >>> with weathermixer.open_checkpoints("checkpoints") as checkpoints:
    ...     checkpoints.latest_step(), checkpoints.restore({"params": jnp.zeros(3)})["params"].tolist()
    (10, [0.0, 1.0, 2.0])
    """
    path = epath.Path(directory).expanduser().resolve()
    writing = every is not None
    if writing and (every < 1 or keep < 1):
        raise ValueError(f"checkpoints every={every} steps, keep={keep}: both must be at least 1")
    if not writing and not path.is_dir():
        raise ValueError(f"there are no checkpoints in {path}: no such directory")
    if writing and jax.process_index() == 0:
        _check_writable(path)
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep if writing else None, create=writing, cleanup_tmp_directories=writing
    )
    handlers = {"state": ocp.PyTreeCheckpointHandler(), "meta": ocp.JsonCheckpointHandler()}
    return Checkpoints(ocp.CheckpointManager(path, item_handlers=handlers, options=options), every)


class Checkpoints:
    """The checkpoints of one run, as open_checkpoints returns them; close them, or use them in a `with` block."""

    def __init__(self, manager: ocp.CheckpointManager, every: int | None):
        self._manager = manager
        self._every = every

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def close(self) -> None:
        """Waits for the save under way, then lets go; raises what that save raised."""
        self.wait()
        self._manager.close()

    def wait(self) -> None:
        """Waits until the save under way is complete; raises what it raised."""
        self._manager.wait_until_finished()

    @property
    def directory(self) -> epath.Path:
        return self._manager.directory

    def steps(self) -> list[int]:
        """The steps that were saved and kept, ascending; the last may still be in writing (see wait)."""
        return sorted(self._manager.all_steps())

    def latest_step(self) -> int | None:
        """The last of steps(), or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: PyTree, meta: Mapping[str, Any], *, force: bool = False) -> bool:
        """Writes the arrays of `state` and the JSON values of `meta` in the background; True where it does.

        It does so where `step` is a multiple of `every`, or with `force`, unless that step is there already. The
        arrays are copied before this returns: they may be donated at once. `step` and `software` are added to meta.
        Saving only finite states is the caller's duty.
        """
        if self._every is None:
            raise ValueError(f"the checkpoints in {self.directory} were opened to read: pass every= to write")
        if (step % self._every and not force) or step in self._manager.all_steps():
            return False
        meta = {**meta, "step": step, "software": software_versions()}
        arguments = ocp.args.Composite(
            state=ocp.args.PyTreeSave(_nested(name_leaves(state))), meta=ocp.args.JsonSave(meta)
        )
        return self._manager.save(step, args=arguments, force=True)

    def restore(self, target: PyTree, *, step: int | None = None, partial: bool = False) -> PyTree:
        """Reads the state of a step, the last one by default, as arrays with the shardings of `target`.

        Args:
            target: tree of jax.ShapeDtypeStruct with shardings, or of arrays; on any mesh, whatever mesh saved it.
            partial: read just what `target` holds, such as {"params": ...}, and leave the rest of the checkpoint.

        Raises ValueError where there is no such step, or where names, shapes or dtypes differ: it names all of them.
        """
        step = self._known(step)
        named = name_leaves(target)
        _check_matches(named, self._saved(step), where=f"{self.directory}/{step}", partial=partial)
        item = _nested(named)
        arguments = ocp.args.PyTreeRestore(
            item=item, restore_args=ocp.checkpoint_utils.construct_restore_args(item), partial_restore=True
        )
        restored = name_leaves(self._manager.restore(step, args=ocp.args.Composite(state=arguments)).state)
        return tree_unflatten(jax.tree.structure(target), [restored[name] for name in named])

    def restore_meta(self, *, step: int | None = None) -> dict[str, Any]:
        """Reads the JSON document of a step, the last one by default."""
        arguments = ocp.args.Composite(meta=ocp.args.JsonRestore())
        return self._manager.restore(self._known(step), args=arguments).meta

    def parts(self, *, step: int | None = None) -> set[str]:
        """Which parts of a state a step holds, "params" and "ema" for two; the last step by default."""
        return {name.partition("/")[0] for name in self._saved(self._known(step))}

    def _known(self, step: int | None) -> int:
        self.wait()  # a save under way can be read only when it is complete
        steps = self.steps()
        if not steps:
            raise ValueError(f"there are no checkpoints in {self.directory}")
        if step is not None and step not in steps:
            raise ValueError(f"there is no checkpoint of step {step} in {self.directory}: it has {steps}")
        return steps[-1] if step is None else step

    def _saved(self, step: int) -> dict[str, Any]:
        """Name -> metadata with shape and dtype of every array in a checkpoint; reads no array."""
        return name_leaves(self._manager.item_metadata(step)["state"].tree)


def software_versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide what a run computes."""
    versions = {"python": platform.python_version()}
    for package in SOFTWARE:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # run from a source tree that is not installed
            versions[package] = "not installed"
    return versions


def name_leaves(tree: PyTree) -> dict[str, Any]:
    """The leaves of a tree by name, in the tree's order: {"encode/kernel": ...}."""
    return {_name(path): leaf for path, leaf in tree_flatten_with_path(tree)[0]}


def _name(path: KeyPath) -> str:
    """`params/head/kernel`; without the last `.value` with which nnx wraps a parameter."""
    wrapped = len(path) > 1 and path[-1] == GetAttrKey("value")
    return keystr(path[:-1] if wrapped else path, simple=True, separator="/")


def _nested(named: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts, the form on disk: it needs none of the state's classes to be read."""
    tree: dict[str, Any] = {}
    for name, leaf in named.items():
        *parents, last = name.split("/")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[last] = leaf
    return tree


def _check_matches(target: Mapping[str, Any], saved: Mapping[str, Any], *, where: str, partial: bool) -> None:
    """Raises one ValueError that names everything in which a target and a checkpoint differ."""
    wrong = [f"{name} is not in the checkpoint" for name in target if name not in saved]
    if not partial:
        wrong += [f"{name} is in the checkpoint alone" for name in saved if name not in target]
    for name in target.keys() & saved.keys():
        want, have = _type(target[name]), _type(saved[name])
        if want.startswith("key<"):  # a random key is stored as its words
            have = f"{want.split('[')[0]}{list(saved[name].shape[:-1])}"
        if want != have:
            wrong.append(f"{name} is {have} in the checkpoint, {want} in this run")
    if wrong:
        shown = "; ".join(sorted(wrong)[:8]) + (f"; and {len(wrong) - 8} more" if len(wrong) > 8 else "")
        raise ValueError(
            f"the checkpoint {where} does not fit this run: {shown}. Use the configuration that the checkpoint was "
            "made with, or a new workdir."
        )


def _type(array: Any) -> str:
    return f"{array.dtype}{list(array.shape)}"


def _check_writable(path: epath.Path) -> None:
    probe = path / ".writable"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise ValueError(f"cannot write checkpoints to {path}: {error}; choose another workdir") from error

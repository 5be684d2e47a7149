"""Sharded checkpoints of a run, numbered by step: every process writes and reads just its parts of each array.

A checkpoint holds the state's arrays under their names in the tree (`params/blocks/0/token/kernel`), a small JSON
document beside them, and the CRC-32C of every file (checksums.py), which is compared before anything is read. It
restores on any mesh, bit for bit, whole or in parts. Writing goes on in the background; a checkpoint is visible only
when it is complete, so that a process killed in a save leaves the earlier ones usable.

    with open_checkpoints(directory, every=1000, keep=3) as checkpoints:
        if step := checkpoints.resume():  # the last that is whole
            state = checkpoints.restore(abstract_state, step=step)
        ...
            checkpoints.save(step, state, {"config": config})      # writes where step is a multiple of 1000
"""

import importlib.metadata
import json
import os
import pathlib
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from jax.tree_util import GetAttrKey, KeyPath, keystr, tree_flatten_with_path, tree_unflatten
from orbax.checkpoint import checkpoint_managers

from weathermixer.parallel.distributed import exchange
from weathermixer.training.checksums import CHECKSUMS_FILE, check_files, write_checksums

PyTree = Any

SOFTWARE = ("weathermixer", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorstore", "numpy")


def open_checkpoints(
    directory: str | os.PathLike,
    *,
    every: int | None = None,
    keep: int = 3,
    keep_every: int = 0,
    keep_hours: float = 0.0,
    keep_best: int = 0,
    on_damage: str = "before",
    say: Callable[[str], None] | None = None,
) -> "Checkpoints":
    """Opens the checkpoints of a run, to read or, with `every`, to write one every so many steps.

    Args:
        keep: of those that are written the last so many are kept, and besides
        keep_every: those of every so many steps,
        keep_hours: the first, and always one that is so much younger than the one kept before,
        keep_best: so many with the least validation loss (see `rate`); 0: none.
        on_damage: what is read where the last one is damaged: the one "before", or nothing, and that is an error.
        say: is told of damage; None: a line on stderr, of the first process.

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
    losses: dict[int, float] = {}
    kept = [checkpoint_managers.LatestN(keep), _LeastLoss(keep_best, losses)]
    if keep_every:
        kept.append(checkpoint_managers.EveryNSteps(keep_every))
    if keep_hours:
        kept.append(checkpoint_managers.EveryNSeconds(round(keep_hours * 3600)))
    policy = checkpoint_managers.AnyPreservationPolicy(kept) if writing else None
    return Checkpoints(path, every, policy, losses, on_damage, say or _to_stderr)


class Checkpoints:
    """The checkpoints of one run, as open_checkpoints returns them; close them, or use them in a `with` block."""

    def __init__(
        self,
        path: epath.Path,
        every: int | None,
        policy: Any,
        losses: dict[int, float],
        on_damage: str,
        say: Callable[[str], None],
    ):
        self._every, self._losses, self._on_damage, self._say = every, losses, on_damage, say
        self._whole: dict[int, str] = {}  # steps that were found whole, and what that took
        self._saving: tuple[int, float, float] | None = None  # step, when its save began, how long that held us up
        self._bytes, self._told = 0, ""
        writing = every is not None
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policy,
            create=writing,
            cleanup_tmp_directories=writing,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._sum),
        )
        self._handler = _SummedHandler()
        handlers = {"state": self._handler, "meta": ocp.JsonCheckpointHandler()}
        self._manager = ocp.CheckpointManager(path, item_handlers=handlers, options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def close(self) -> None:
        """Waits for the save under way, then lets go; raises what that save raised."""
        self.wait()
        self._manager.close()

    def wait(self) -> str:
        """Waits until the save under way is there; a line about it, empty where none was. OSError where it failed."""
        saving = self._saving
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            self._saving = None
            if saving is None:
                raise
            raise self._failed(saving[0], error) from error
        if saving is None:
            return ""
        self._saving = None
        step, began, stall = saving
        seconds = time.monotonic() - began
        return f"saved step {step}: {self._bytes / 1e9:.3g} GB in {seconds:.3g} s; training waited {stall:.3g} s for it"

    def _failed(self, step: int, error: Exception) -> OSError:
        return OSError(
            f"saving step {step} to {self.directory} failed: {' '.join(str(error).split())}; "
            f"there are {[other for other in self.steps() if other != step]}: remove the cause, and the same command "
            "goes on from the last"
        )

    def saved(self) -> str:
        """As `wait`, of a save that has ended; empty while it is under way. OSError as soon as it fails here."""
        if self._handler.failures and self._saving and jax.process_count() > 1:
            raise self._failed(self._saving[0], self._handler.failures[0])
        if self._told or self._saving is None or self._manager.is_saving_in_progress():
            told, self._told = self._told, ""
            return told
        return self.wait()

    def saving(self) -> bool:
        """Whether a save is under way."""
        return self._manager.is_saving_in_progress()

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
        Saving only finite states is the caller's duty. Raises OSError where the save before has failed.
        """
        if self._every is None:
            raise ValueError(f"the checkpoints in {self.directory} were opened to read: pass every= to write")
        if (step % self._every and not force) or step in self._manager.all_steps():
            return False
        began = time.monotonic()
        self._told = self.wait() or self._told
        meta = {**meta, "step": step, "software": software_versions(), "checksums": True}
        meta["validation"] = {number: self._losses[number] for number in self.steps() if number in self._losses}
        arguments = ocp.args.Composite(state=_SummedSave(_nested(name_leaves(state))), meta=ocp.args.JsonSave(meta))
        self._saving = step, began, 0.0
        self._manager.save(step, args=arguments, force=True)
        self._saving = step, began, time.monotonic() - began
        return True

    def rate(self, step: int, loss: float) -> None:
        """Tells the validation loss after a step, by which the best are kept."""
        self._losses[step] = loss

    def resume(self, step: int | None = None) -> int:
        """The step to go on from: the last that is whole, or the one that is asked for; 0 where nothing was saved.

        Raises ValueError where none is whole, or not the one that is asked for.
        """
        if step is None and not self.steps():
            return 0
        step = self.whole(step)
        self._say(self._whole[step])
        losses = self.restore_meta(step=step).get("validation", {})
        self._losses |= {int(number): loss for number, loss in losses.items()}
        return step

    def put_aside(self, after: int) -> None:
        """Renames the checkpoints of later steps, which will be made again, to STEP.aside-TIME."""
        if later := [step for step in self.steps() if step > after]:
            aside = f"aside-{time.strftime('%Y%m%dT%H%M%S')}"
            if jax.process_index() == 0:
                for step in later:
                    (self.directory / str(step)).rename(self.directory / f"{step}.{aside}")
            exchange("later checkpoints are put aside", "")
            self._manager.reload()
            self._say(f"goes on from step {after}: later ones are put aside, as {self.directory}/{later[-1]}.{aside}")

    def restore(self, target: PyTree, *, step: int | None = None, partial: bool = False) -> PyTree:
        """Reads the state of a step, the last one by default, as arrays with the shardings of `target`.

        Args:
            target: tree of jax.ShapeDtypeStruct with shardings, or of arrays; on any mesh, whatever mesh saved it.
            partial: read just what `target` holds, such as {"params": ...}, and leave the rest of the checkpoint.

        Raises ValueError where there is no such step, where it is damaged, or where names, shapes or dtypes differ: it
        names all of them.
        """
        step = self.whole(step)
        named = name_leaves(target)
        _check_matches(named, self._saved(step), where=f"{self.directory}/{step}", partial=partial)
        item = _nested(named)
        arguments = _SummedRestore(
            item=item, restore_args=ocp.checkpoint_utils.construct_restore_args(item), partial_restore=True
        )
        restored = name_leaves(self._manager.restore(step, args=ocp.args.Composite(state=arguments)).state)
        return tree_unflatten(jax.tree.structure(target), [restored[name] for name in named])

    def restore_meta(self, *, step: int | None = None) -> dict[str, Any]:
        """Reads the JSON document of a step, the last one by default."""
        arguments = ocp.args.Composite(meta=ocp.args.JsonRestore())
        return self._manager.restore(self.whole(step), args=arguments).meta

    def parts(self, *, step: int | None = None) -> set[str]:
        """Which parts of a state a step holds, "params" and "ema" for two; the last step by default."""
        return {name.partition("/")[0] for name in self._saved(self.whole(step))}

    def check(self, step: int) -> str:
        """Compares the checksums of a step, all processes a share of them each; how much that was, in words.

        Raises ValueError that names step and files where one differs. A step of older software has none.
        """
        folder, since = pathlib.Path(self.directory / str(step)), time.monotonic()
        meta = _read_meta(folder)
        if "checksums" not in meta and not (folder / CHECKSUMS_FILE).exists():
            return f"step {step} is of older software and has no checksums: what is damaged in it goes unnoticed"
        size, problems = check_files(folder, share=slice(jax.process_index(), None, jax.process_count()))
        if not problems and meta.get("step", step) != step:
            problems = [f"{folder} holds step {meta['step']}"]
        found = [text for text in exchange(f"checksums of step {step}", "; ".join(problems)) if text]
        if found:
            raise ValueError(f"the checkpoint of step {step} is damaged: {'; '.join(sorted(set(found)))}")
        return f"step {step}: checksums of {size / 1e9:.3g} GB compared in {time.monotonic() - since:.3g} s"

    def whole(self, step: int | None = None) -> int:
        """The last step that is whole, or the step itself; ValueError where it is not there, or damaged."""
        self._told = self.wait() or self._told  # a save under way can be read only when it is complete
        steps = self.steps()
        if not steps:
            raise ValueError(f"there are no checkpoints in {self.directory}")
        if step is not None and step not in steps:
            raise ValueError(f"there is no checkpoint of step {step} in {self.directory}: it has {steps}")
        for number in reversed(steps) if step is None else [step]:
            if number in self._whole:
                return number
            try:
                self._whole[number] = self.check(number)
                return number
            except ValueError as error:
                if step is not None or self._on_damage == "stop":
                    raise ValueError(f"{error}; before it there are {[n for n in steps if n < number]}") from None
                self._say(f"{error}; the one before is taken")
        raise ValueError(f"none of the checkpoints {steps} in {self.directory} is whole: begin again in a new workdir")

    def _saved(self, step: int) -> dict[str, Any]:
        """Name -> metadata with shape and dtype of every array in a checkpoint; reads no array."""
        return name_leaves(self._manager.item_metadata(step)["state"].tree)

    def _sum(self) -> None:
        """Sums, on the first process, what the others have not, before Orbax gives the checkpoint its name."""
        folder = pathlib.Path(self.directory / f"{self._saving[0]}.orbax-checkpoint-tmp")
        write_checksums(folder)
        self._bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


class _SummedHandler(ocp.PyTreeCheckpointHandler):
    """Orbax's own, but every process sums the files that it has written before it says so; `failures` are its own."""

    def __init__(self) -> None:
        super().__init__()
        self.failures: list[Exception] = []

    async def async_save(self, directory: epath.Path, *args, **kwargs) -> list[ocp.future.Future]:
        commits = await super().async_save(directory, *args, **kwargs)
        own = pathlib.Path(directory / f"ocdbt.process_{jax.process_index()}")
        # a process whose arrays are all copies of another's writes none
        summed = ocp.future.ChainedFuture(commits, lambda: own.is_dir() and write_checksums(own))
        return [_Told(summed, self.failures)]


class _Told:
    """A future of Orbax's whose failure is known at once: Orbax waits for all processes, in vain, before it raises."""

    def __init__(self, future: Any, failures: list[Exception]):
        self._future, self._failures = future, failures

    def result(self, timeout: float | int | None = None) -> Any:
        try:
            return self._future.result(timeout)
        except Exception as error:
            self._failures.append(error)
            raise


# Orbax finds a handler by the type of its arguments
_SummedSave, _SummedRestore = (
    ocp.args.register_with_handler(_SummedHandler, **{purpose: True})(type(base.__name__, (base,), {}))
    for base, purpose in ((ocp.args.PyTreeSave, "for_save"), (ocp.args.PyTreeRestore, "for_restore"))
)


class _LeastLoss:
    """Orbax's form of a policy: keeps the checkpoints with the least of the validation losses that are known."""

    def __init__(self, count: int, losses: Mapping[int, float]):
        self._count, self._losses = count, losses

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        rated = sorted((self._losses[info.step], info.step) for info in checkpoints if info.step in self._losses)
        best = {step for _, step in rated[: self._count]}
        return [info.step in best for info in checkpoints]


def saved_steps(directory: pathlib.Path) -> list[int]:
    """The steps of which a folder of checkpoints has one, whole or not, ascending; without opening it."""
    return sorted(int(path.name) for path in directory.glob("*") if path.name.isdigit() and path.is_dir())


def read_meta(directory: pathlib.Path) -> dict[str, Any] | None:
    """The JSON document of the last checkpoint in a folder that has a whole one; None where there is none."""
    for step in reversed(saved_steps(directory)):
        folder = directory / str(step)
        damaged = (folder / CHECKSUMS_FILE).exists() and check_files(folder, only="meta/metadata")[1]
        if not damaged and "config" in (meta := _read_meta(folder)):
            return meta
    return None


def _read_meta(folder: pathlib.Path) -> dict[str, Any]:
    """The JSON document of a checkpoint; where it is damaged one that only has checksums, which tell."""
    try:
        return json.loads((folder / "meta" / "metadata").read_bytes())
    except (OSError, ValueError):
        return {"checksums": True}


def _to_stderr(text: str) -> None:
    if jax.process_index() == 0:
        print(text, file=sys.stderr, flush=True)


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

"""Sharded checkpoints of a run, numbered by step: every process writes and reads just its parts of each array.

A checkpoint holds the state's arrays under their names in the tree (`params/blocks/0/token/kernel`), a small JSON
document beside them, and the CRC-32C of every file (checksums.py), which is compared before anything is read. It
restores on any mesh, bit for bit, whole or in parts. Writing goes on in the background; a checkpoint is visible only
when it is complete, so that a process killed in a save leaves the earlier ones usable. One file: Orbax is in no other.
"""

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform
import sys
import time
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from flax.traverse_util import unflatten_dict
from jax.tree_util import tree_unflatten
from orbax.checkpoint import checkpoint_managers

import weathermixer
from weathermixer.parallel.distributed import exchange
from weathermixer.training.checksums import CHECKSUMS_FILE, check_files, write_checksums
from weathermixer.training.state import check_matches, name_leaves

PyTree = Any

SOFTWARE = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorstore", "numpy")


def _to_stderr(text: str) -> None:
    if jax.process_index() == 0:
        print(text, file=sys.stderr, flush=True)


@dataclasses.dataclass(eq=False)
class Checkpoints(contextlib.AbstractContextManager):
    """The checkpoints of a run, to read or, with `keep`, to write; to be used in a `with` block.

    All processes of a run open, save and restore together. Raises ValueError where there is no directory to read.

    >>> with weathermixer.Checkpoints("checkpoints", keep=2) as checkpoints:
    ...     saved = checkpoints.save(10, {"params": jnp.arange(3.0)}, {"config": {}})
    >>> with weathermixer.Checkpoints("checkpoints") as checkpoints:
    ...     checkpoints.steps(), checkpoints.restore({"params": jnp.zeros(3)})["params"].tolist()
    ([10], [0.0, 1.0, 2.0])
    """

    directory: str | os.PathLike
    _: dataclasses.KW_ONLY
    keep: int | None = None  # of those that are written the last so many are kept, and besides:
    keep_every: int = 0  # those of every so many steps; 0: none
    keep_hours: float = 0.0  # the first, and always one that is so much younger than the one kept before; 0: none
    keep_best: int = 0  # so many with the least validation loss (see `rate`)
    on_damage: str = "before"  # where the last one is damaged the one before is read, or it is an error ("stop")
    say: Callable[[str], None] = _to_stderr  # is told of damage and of saves; by default by the first process alone

    def __post_init__(self):
        self.directory = path = pathlib.Path(self.directory).expanduser().resolve()
        self._writing = self.keep is not None
        if not self._writing and not path.is_dir():
            raise ValueError(f"there are no checkpoints in {path}: no such directory")
        if self._writing and self.keep < 1:
            raise ValueError(f"keep={self.keep} of the checkpoints in {path}: keep the last one at least")
        self._losses: dict[int, float] = {}  # by step, of those that were validated
        self._whole: dict[int, str] = {}  # steps that were found whole, and what that took
        self._saving: tuple[int, float, float] | None = None  # step, when its save began, how long that held us up
        self._bytes = 0
        kept = [checkpoint_managers.LatestN(self.keep), _LeastLoss(self.keep_best, self._losses)]
        if self.keep_every:
            kept.append(checkpoint_managers.EveryNSteps(self.keep_every))
        if self.keep_hours:
            kept.append(checkpoint_managers.EveryNSeconds(round(self.keep_hours * 3600)))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(kept),
            create=self._writing,
            cleanup_tmp_directories=self._writing,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._sum),
        )
        self._handler = _SummedHandler()
        registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
        for kind in (ocp.args.PyTreeSave, ocp.args.PyTreeRestore):
            registry.add("state", kind, self._handler)
        registry.add("meta", ocp.args.JsonSave)
        self._manager = ocp.CheckpointManager(path, options=options, handler_registry=registry)

    def __exit__(self, *exception) -> None:
        """Waits for the save under way, then lets go; raises what that save raised."""
        self.wait()
        self._manager.close()

    def wait(self) -> None:
        """Waits until the save under way is there, and says so. OSError where it failed."""
        saving = self._saving
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            if saving is None:
                raise
            raise self._failed(saving[0], error) from error
        finally:
            self._saving = None
        if saving:
            step, began, stall = saving
            took = f"{self._bytes / 1e9:.3g} GB in {time.monotonic() - began:.3g} s"
            self.say(f"saved step {step}: {took}; training waited {stall:.3g} s for it")

    def look(self) -> None:
        """As `wait`, of a save that has ended; nothing while it is under way. OSError as soon as it fails here."""
        if self._handler.failures and self._saving and jax.process_count() > 1:
            raise self._failed(self._saving[0], self._handler.failures[0])
        if self._saving and not self.saving():
            self.wait()

    def _failed(self, step: int, error: Exception) -> OSError:
        return OSError(
            f"saving step {step} to {self.directory} failed: {' '.join(str(error).split())}; "
            f"there are {[other for other in self.steps() if other != step]}: remove the cause, and the same command "
            "goes on from the last"
        )

    def saving(self) -> bool:
        """Whether a save is under way."""
        return self._manager.is_saving_in_progress()

    def steps(self) -> list[int]:
        """The steps that were saved and kept, ascending; the last may still be in writing (see wait)."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: PyTree, meta: Mapping[str, Any]) -> bool:
        """Writes the arrays of `state` and the JSON values of `meta` in the background; False where the step is there.

        The arrays are copied before this returns: they may be donated at once. `step` and `software` are added to meta.
        Saving only finite states is the caller's duty. Raises OSError where the save before has failed.
        """
        if not self._writing:
            raise ValueError(f"the checkpoints in {self.directory} were opened to read: pass keep= to write")
        if step in self.steps():
            return False
        began = time.monotonic()
        self.wait()
        meta = {**meta, "step": step, "software": software_versions(), "summed": True}
        meta["validation"] = {number: self._losses[number] for number in self.steps() if number in self._losses}
        tree = unflatten_dict(name_leaves(state), sep="/")  # which needs none of the state's classes to be read
        self._saving = step, began, 0.0
        arguments = ocp.args.Composite(state=ocp.args.PyTreeSave(tree), meta=ocp.args.JsonSave(meta))
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
        self.say(self._whole[step])
        losses = _read_meta(self.directory / str(step)).get("validation", {})
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
            self.say(f"goes on from step {after}: later ones are put aside, as {self.directory}/{later[-1]}.{aside}")

    def restore(self, target: PyTree, step: int | None = None, *, partial: bool = False) -> PyTree:
        """Reads the state of a step, the last one by default, as arrays with the shardings of `target`.

        Args:
            target: tree of jax.ShapeDtypeStruct with shardings, or of arrays; on any mesh, whatever mesh saved it.
            partial: read just what `target` holds, such as {"params": ...}, and leave the rest of the checkpoint.

        Raises ValueError where there is no such step, where it is damaged, or where names, shapes or dtypes differ: it
        names all of them.
        """
        step, named = self.whole(step), name_leaves(target)
        saved = self._saved(step)
        if partial:
            saved = {name: saved[name] for name in named if name in saved}
        check_matches(named, saved, what=f"the checkpoint {self.directory}/{step}")
        item = unflatten_dict(named, sep="/")
        how = ocp.checkpoint_utils.construct_restore_args(item)
        arguments = ocp.args.PyTreeRestore(item=item, restore_args=how, partial_restore=True)
        restored = name_leaves(self._manager.restore(step, args=ocp.args.Composite(state=arguments)).state)
        return tree_unflatten(jax.tree.structure(target), [restored[name] for name in named])

    def parts(self, step: int | None = None) -> set[str]:
        """Which parts of a state a step holds, "params" and "ema" for two; the last step by default."""
        return {name.partition("/")[0] for name in self._saved(self.whole(step))}

    def whole(self, step: int | None = None) -> int:
        """The last step that is whole, or the step itself; ValueError where it is not there, or damaged."""
        self.wait()  # a save under way can be read only when it is complete
        steps = self.steps()
        if not steps:
            raise ValueError(f"there are no checkpoints in {self.directory}")
        if step is not None and step not in steps:
            raise ValueError(f"there is no checkpoint of step {step} in {self.directory}: it has {steps}")
        for number in reversed(steps) if step is None else [step]:
            if number in self._whole or not (problems := self._check(number)):
                return number
            text = f"the checkpoint of step {number} is damaged: {'; '.join(problems)}"
            if step is not None or self.on_damage == "stop":
                raise ValueError(f"{text}; before it there are {[n for n in steps if n < number]}")
            self.say(f"{text}; the one before is taken")
        raise ValueError(f"none of the checkpoints {steps} in {self.directory} is whole: begin again in a new workdir")

    def _check(self, step: int) -> list[str]:
        """Compares the checksums of a step, all processes a share of them each; what is wrong, by files."""
        folder, since = self.directory / str(step), time.monotonic()
        meta = _read_meta(folder)
        if meta and "summed" not in meta and not (folder / CHECKSUMS_FILE).exists():
            self._whole[step] = f"step {step} is of older software and has no checksums: what is damaged goes unnoticed"
            return []
        size, problems = check_files(folder, share=slice(jax.process_index(), None, jax.process_count()))
        if not problems and meta.get("step", step) != step:
            problems = [f"{folder} holds step {meta['step']}"]
        found = {text for text in exchange(f"checksums of step {step}", "; ".join(problems)) if text}
        if not found:
            took = f"compared in {time.monotonic() - since:.3g} s"
            self._whole[step] = f"step {step}: checksums of {size / 1e9:.3g} GB {took}"
        return sorted(found)

    def _saved(self, step: int) -> dict[str, Any]:
        """Name -> metadata with shape and dtype of every array in a checkpoint; reads no array."""
        return name_leaves(self._manager.item_metadata(step)["state"].tree)

    def _sum(self) -> None:
        """Sums, on the first process, what the others have not, before Orbax gives the checkpoint its name."""
        self._bytes = write_checksums(self.directory / f"{self._saving[0]}.orbax-checkpoint-tmp")


class _SummedHandler(ocp.PyTreeCheckpointHandler):
    """Orbax's own, but every process sums the files that it has written before it says so; `failures` are its own."""

    def __init__(self) -> None:
        # by compression float32 weights lose a tenth of their bytes, and half their speed
        super().__init__(use_compression=False)
        self.failures: list[Exception] = []

    async def async_save(self, directory: Any, *args, **kwargs) -> list[Any]:
        commits = await super().async_save(directory, *args, **kwargs)
        folder = pathlib.Path(directory / f"ocdbt.process_{jax.process_index()}")

        def result(timeout: float | int | None = None) -> None:
            try:
                for commit in commits:
                    commit.result(timeout)
                if folder.is_dir():  # a process whose arrays are all copies of another's writes none
                    write_checksums(folder)
            except Exception as error:  # known at once: Orbax waits for all processes, in vain, before it raises
                self.failures.append(error)
                raise

        return [types.SimpleNamespace(result=result)]  # the one future that Orbax asks


@dataclasses.dataclass
class _LeastLoss:
    """Orbax's form of a policy: keeps the checkpoints with the least of the validation losses that are known."""

    count: int
    losses: Mapping[int, float]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        rated = sorted((self.losses[info.step], info.step) for info in checkpoints if info.step in self.losses)
        best = {step for _, step in rated[: self.count]}
        return [info.step in best for info in checkpoints]


def saved_steps(directory: pathlib.Path) -> list[int]:
    """The steps of which a folder of checkpoints has one, whole or not, ascending; without opening it."""
    return sorted(int(path.name) for path in directory.glob("*") if path.name.isdigit() and path.is_dir())


def read_meta(directory: pathlib.Path) -> dict[str, Any] | None:
    """The JSON document of the last checkpoint in a folder that is whole; None where there is none."""
    for step in reversed(saved_steps(directory)):
        if not check_files(directory / str(step))[1]:
            return _read_meta(directory / str(step))
    return None


def _read_meta(folder: pathlib.Path) -> dict[str, Any]:
    """The JSON document of a checkpoint; an empty one where it is damaged, as the checksums tell."""
    try:
        return json.loads((folder / "meta" / "metadata").read_bytes())
    except (OSError, ValueError):
        return {}


def software_versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide what a run computes."""
    versions = {"python": platform.python_version(), "weathermixer": weathermixer.__version__}
    return versions | {package: importlib.metadata.version(package) for package in SOFTWARE}

"""The account of memory: what each device holds of every part of a training step, against a fair share of it.

    ratio = bytes on the fullest device / (bytes of one model instance / devices of an instance)

is 1 where nothing is stored twice. It is read off the shardings of real or abstract arrays and, for what the backward
pass keeps, off the traced loss; the compiler's own count of a step's arguments and temporaries is set beside it.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from jax.core import ShapedArray
from jax.extend.core import Literal
from jax.sharding import AbstractMesh, Mesh

from weathermixer.parallel.mesh import instance_devices, instances

TOLERATED = 1.02
LOOPS = ("scan", "while")  # what goes round is made of all that goes in
NEGLIGIBLE = 1e-3  # of all that a device holds: vectors of the norms, counts


class Entry(NamedTuple):
    """One part of a step: bytes in one model instance, on the fullest device, and of a device's fair share."""

    part: str
    instance: float | int
    device: int
    fair: float

    @property
    def ratio(self) -> float:
        return self.device / self.fair if self.fair else 1.0


def kept_for_backward(loss: Callable, params: Any, *rest: Any) -> tuple[list[ShapedArray], list[ShapedArray]]:
    """What differentiating loss(params, *rest) by `params` keeps apart from its arguments: activations, copies.

    Copies are what can be made of the parameters alone, such as kernels in the compute dtype. The arrays are those of
    the traced program; the compiler may drop some that it can make again for less.
    """

    def residuals(params, *rest):
        return jax.vjp(lambda params: loss(params, *rest), params)[1]

    jaxpr = jax.make_jaxpr(residuals)(params, *rest).jaxpr
    own = len(jax.tree.leaves(params))
    sources = _sources(jaxpr, [{"params"}] * own + [{"batch"}] * (len(jaxpr.invars) - own))
    activations, copies = {}, {}  # each array once
    for variable, made_of in zip(jaxpr.outvars, sources, strict=True):
        if made_of and variable not in jaxpr.invars:  # a constant is not kept
            (activations if "batch" in made_of else copies)[variable] = variable.aval
    return list(activations.values()), list(copies.values())


def _sources(jaxpr: Any, given: list[set[str]]) -> list[set[str]]:
    """Of which arguments each result of a traced program is made, where `given` names those of its arguments."""
    known = dict(zip(jaxpr.invars, given, strict=True))

    def find(variable):
        return set() if isinstance(variable, Literal) else known.get(variable, set())

    for equation in jaxpr.eqns:
        sources = [find(variable) for variable in equation.invars]
        results = [set().union(*sources)] * len(equation.outvars)
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)  # of a ClosedJaxpr
            sizes = (len(inner.invars), len(inner.outvars)) if hasattr(inner, "eqns") else None
            if sizes == (len(sources), len(results)) and equation.primitive.name not in LOOPS:
                results = _sources(inner, sources)
        known |= zip(equation.outvars, results, strict=True)
    return [find(variable) for variable in jaxpr.outvars]


def held(array: Any) -> int:
    """Bytes that a device holds of an array, or of what describes one; the whole where no sharding is told."""
    shard = array.shape if array.sharding is None else array.sharding.shard_shape(array.shape)
    return array.dtype.itemsize * math.prod(shard)


def make_account(mesh: Mesh | AbstractMesh, state: Mapping[str, Any], batch: Mapping[str, Any]) -> list[Entry]:
    """The account of a step's parts, each a pytree of arrays or of their descriptions.

    Args:
      mesh: the step's mesh.
      state: parts of which every instance holds its own (parameters, moments): an instance's bytes are the array's.
      batch: parts that are divided among instances (inputs, activations): an instance's bytes are 1 / data of them.
    """
    entries = []
    for parts, shares in ((state, 1), (batch, instances(mesh))):
        for part, tree in parts.items():
            leaves = jax.tree.leaves(tree)
            instance = sum(leaf.dtype.itemsize * math.prod(leaf.shape) for leaf in leaves) / shares
            entries.append(Entry(part, instance, sum(map(held, leaves)), instance / instance_devices(mesh)))
    return entries


def account_step(mesh: Mesh | AbstractMesh, state: Any, batch: Any, *, loss: Callable, rest: tuple = ()) -> list[Entry]:
    """The account of a training step on the mesh in use, from its TrainState and batch, real or described.

    Args:
      loss: loss(params, batch, *rest), whose differentiation keeps activations.
      rest: further arguments of the loss.

    A gradient is as large as its parameter, and cut as it is.

    >>> import optax
    >>> run = weathermixer.open_run("runs/quickstart")
    >>> frames, state = run.open_frames("dry.archive"), weathermixer.make_state(run.params, optax.adam(1e-4), ema=False)
    >>> batch = weathermixer.Batch(frames.read_stored(np.arange(2)), frames.read_stored(np.arange(2) + 1))
    >>> loss = weathermixer.make_loss(run.apply, area=np.ones(16), channel=np.ones(4), repeats=1)
    >>> rest = (frames.standardization, None)
    >>> with jax.set_mesh(run.mesh):
    ...     [entry.part for entry in weathermixer.account_step(run.mesh, state, batch, loss=loss, rest=rest)]
    ['parameters', 'gradients', 'moments', 'copies', 'batch', 'activations']
    """
    activations, copies = kept_for_backward(loss, state.params, batch, *rest)
    own = {"parameters": state.params, "gradients": state.params, "moments": state.moments, "ema": state.ema}
    own["copies"] = copies  # of kernels and the like, made on the way
    shared = {"batch": batch, "activations": activations}
    return [entry for entry in make_account(mesh, own, shared) if entry.instance]


def format_account(entries: list[Entry], compiled: Any = None) -> str:
    """A readable table of the account; with a compiled step, XLA's count of arguments, results and temporaries below.

    Parts above 1.02 of a fair share are marked, unless the excess is under a thousandth of all that a device holds.
    """
    lines = [f"{'part':<14}{'one instance':>14}{'per device':>14}{'of fair share':>15}"]
    total = sum(entry.device for entry in entries)
    for entry in entries:
        twice = entry.ratio > TOLERATED and entry.device - entry.fair > NEGLIGIBLE * total
        sizes = f"{format_bytes(entry.instance):>14}{format_bytes(entry.device):>14}"
        lines.append(f"{entry.part:<14}{sizes}{entry.ratio:>15.3f}" + "  stored more than once" * twice)
    if compiled is not None:
        memory = compiled.memory_analysis()
        arguments, results = memory.argument_size_in_bytes, memory.output_size_in_bytes - memory.alias_size_in_bytes
        lines.append(
            f"the compiled step, per device: arguments {format_bytes(arguments)}, results {format_bytes(results)}, "
            f"temporaries {format_bytes(memory.temp_size_in_bytes)} (activations are among the temporaries; results "
            "beside the donated arguments)"
        )
    return "\n".join(lines)


def format_bytes(number: float | int) -> str:
    """Bytes in decimal units with three digits: 4.41 GB."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f} B"

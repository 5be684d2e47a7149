"""All that training carries from step to step, cut over the mesh, made or described without a whole copy anywhere."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jax.tree_util import keystr, tree_flatten_with_path
from jaxtyping import Int

from weathermixer.parallel.mesh import CutArray
from weathermixer.parallel.zero import ZERO, cut_instances


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Steps done, parameters, the optimizer's moments, and the parameters' moving average (None: not kept).

    The number of steps done is all that data order and dropout depend on, beside the run's seed.

    >>> state = weathermixer.TrainState(jnp.int32(0), {"kernel": jnp.ones(3)}, moments=(), ema=None)
    >>> int(state.step), len(jax.tree.leaves(state))
    (0, 2)
    """

    step: Int[CutArray, ""]
    params: Any
    moments: Any
    ema: Any


def make_state(params: Any, optimizer: optax.GradientTransformation, *, ema: bool, zero: str = "none") -> TrainState:
    """The state before the first step; to be traced under jit, so that everything is born on its own shards.

    `zero` says what is cut over the instances too: "none" of it, or "parameters" and all that goes with them.
    Raises ValueError for anything else.

    >>> import optax
    >>> state = weathermixer.make_state({"kernel": jnp.ones(3)}, optax.adam(1e-3), ema=True)
    >>> int(state.step), state.ema["kernel"].shape
    (0, (3,))
    """
    if zero not in ZERO:
        raise ValueError(f"zero={zero!r} is not one of {ZERO}")
    params = params if zero == "none" else cut_instances(params)
    average = jax.tree.map(jnp.copy, params) if ema else None
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), average)


def describe(tree: Any, mesh: Mesh | AbstractMesh) -> Any:
    """ShapeDtypeStructs, with shardings on `mesh`, of a tree that jax.eval_shape returned: what a restore aims at."""

    def on_mesh(leaf):
        cut = PartitionSpec() if leaf.sharding is None else leaf.sharding.spec  # a count is not cut
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, cut))

    return jax.tree.map(on_mesh, tree)


def name_leaves(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by name, in its order: {"params/head/kernel": ...}; without nnx's `.value` at their end."""
    leaves = tree_flatten_with_path(tree)[0]
    return {keystr(path, simple=True, separator="/").removesuffix("/value"): leaf for path, leaf in leaves}


def check_matches(target: Mapping[str, Any], given: Mapping[str, Any], *, what: str) -> None:
    """Raises one ValueError that names everything in which named arrays differ from those that are wanted."""
    want, have = ({name: f"{x.dtype}{list(x.shape)}" for name, x in named.items()} for named in (target, given))
    wrong = [
        f"{name} is {have.get(name, 'not')} there, {want.get(name, 'not')} here"
        for name in sorted(want | have)
        if want.get(name) != have.get(name)
    ]
    if wrong:
        shown = "; ".join(wrong[:8]) + (f"; and {len(wrong) - 8} more" if len(wrong) > 8 else "")
        raise ValueError(f"{what} does not fit this model: {shown}. Use the settings that it was made with")

"""ZeRO: what training carries is cut over the instances too, and gathered where an instance needs it whole.

Moments and the moving average are used nowhere but in the update, so each instance can keep and update 1 / data of
them; parameters can be kept cut as well and gathered block by block where they are used (Rajbhandari et al. 2020, ZeRO,
stages 1 and 3). In explicit mode a cut is part of an array's type: functions here read it and reshard, and do nothing
to arrays that are not cut over the instances, so that model and update are the same code with and without.
"""

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec, reshard

from weathermixer.parallel.mesh import LOGICAL_AXES, axes_of, cut_axes, instances, without

ZERO = ("none", "moments", "parameters")
OVER = LOGICAL_AXES["batch"]


def cut_spec(spec: PartitionSpec, shape: Sequence[int], mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """The spec of an array that is cut over the instances too, where a dimension's part on a device divides.

    The first dimension that can be is cut once more, within its part; an array without one, a small vector, stays.
    """
    if OVER in cut_axes(spec):
        return spec
    entries = tuple(spec) + (None,) * (len(shape) - len(spec))
    part = NamedSharding(mesh, spec).shard_shape(tuple(shape))
    for dimension, (entry, size) in enumerate(zip(entries, part, strict=True)):
        if size % instances(mesh) == 0:
            cut = (*axes_of(entry), OVER) if entry else OVER
            return PartitionSpec(*entries[:dimension], cut, *entries[dimension + 1 :])
    return spec


@jax.named_scope("exchange")
def cut_instances(tree: Any) -> Any:
    """A tree's arrays cut over the instances of the mesh in use, each where it can be."""
    mesh = jax.sharding.get_abstract_mesh()
    return jax.tree.map(lambda x: reshard(x, cut_spec(jax.typeof(x).sharding.spec, x.shape, mesh)), tree)


@jax.named_scope("exchange")
def gather_instances(tree: Any) -> Any:
    """A tree's arrays as every instance uses them: gathered over the instances where they are cut over them."""

    def gather(x):
        spec = jax.typeof(x).sharding.spec
        return reshard(x, without(spec, OVER)) if OVER in cut_axes(spec) else x

    return jax.tree.map(gather, tree)

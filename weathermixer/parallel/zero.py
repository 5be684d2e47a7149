"""ZeRO: what training carries is cut over the instances too, and gathered where an instance needs it whole.

Each instance keeps and updates 1 / data of parameters, moments and moving average, and nothing is stored twice
(Rajbhandari et al. 2020, ZeRO, stage 3). In explicit mode a cut is part of an array's type: contractions gather such
kernels chunk by chunk and sum their gradients the same way (jigsaw.py), what else is cut is gathered here, and the
update is the same code with and without.
"""

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec, reshard

from weathermixer.parallel.mesh import LOGICAL_AXES, axes_of, cut_axes, instances, without

ZERO = ("none", "parameters")
OVER = LOGICAL_AXES["batch"]


def cut_spec(spec: PartitionSpec, shape: Sequence[int], mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """The spec of an array that is cut over the instances too, where a dimension's part on a device divides.

    The longest dimension that is cut and can be once more is, within its part; an array without one, a small vector,
    stays. Dimensions that are stacked are never cut.
    """
    if OVER in cut_axes(spec):
        return spec
    part = NamedSharding(mesh, spec).shard_shape(tuple(shape))
    sizes = [size if entry and size % instances(mesh) == 0 else 0 for entry, size in zip(spec, part)]
    if not max(sizes, default=0):
        return spec
    longest = sizes.index(max(sizes))
    return PartitionSpec(*spec[:longest], (*axes_of(spec[longest]), OVER), *spec[longest + 1 :])


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

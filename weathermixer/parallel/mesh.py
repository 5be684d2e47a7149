"""The device mesh and the one table that says how every named array dimension is cut over it.

The mesh is always (data, domain, tensor), of Explicit axis type, so that a sharding is part of an array's type:
`data` replicates model instances, `domain` cuts the globe into latitude bands, `tensor` cuts channels and features.
Axes of size one count as cut too: there is one code path for all meshes.
"""

import math
import os
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "domain", "tensor")
# chunks go from GPU to GPU of one process by copy engines, which leave the products alone: 5 % of a step
COPY_ENGINES = "--xla_gpu_collective_permute_mode=peer"
KNOWN_TO_JAX = (0, 11, 2), (0, 13)  # from, until: XLA ends a program that sets a flag which it does not know
# what a tree of arrays may hold: an array, or anything that describes one by its shape and dtype, as JAX's stages do
CutArray = Any

# logical dimension name -> mesh axis (or axes, major first); None is not cut
LOGICAL_AXES: dict[str, str | tuple[str, ...] | None] = {
    # fields on the grid [batch, channel, lat, lon] and activations [batch, token, embed]
    "batch": "data",
    "channel": "tensor",
    "lat": "domain",
    "lon": None,
    "token": "domain",
    "token_hidden": "domain",
    "feature": "tensor",
    "embed": "tensor",
    "embed_hidden": "tensor",
    # kernels: the contracted dimension (_in) follows the activation it meets, the produced one (_out) takes the
    # other model axis, so that a kernel, its gradient and its moments are cut domain x tensor ways
    "token_in": "domain",
    "token_out": "tensor",
    "embed_in": "tensor",
    "embed_out": "domain",
    # the same the other way round, for contractions that gather their input (schedule.py): the produced dimension
    # follows the activation, the contracted one takes the other axis
    "gather_token_in": "tensor",
    "gather_token_out": "domain",
    "gather_embed_in": "domain",
    "gather_embed_out": "tensor",
    # biases and norms' scales: cut as their activation's dimension, and over the other model axis within it
    "token_vector": ("domain", "tensor"),
    "embed_vector": ("tensor", "domain"),
    # the head's parameters per grid point (about 10 k numbers) are too few to divide by every `domain`
    "channel_vector": "tensor",
    "channel_in": "tensor",
    "channel_out": None,
    # dimensions that are stacked, never cut
    "stack": None,
}


def use_copy_engines() -> None:
    """Sets XLA's flag where this jax is known to have it and nobody has set it; before devices are looked for."""
    flags = os.environ.get("XLA_FLAGS", "")
    if KNOWN_TO_JAX[0] <= jax.__version_info__ < KNOWN_TO_JAX[1] and COPY_ENGINES.partition("=")[0] not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {COPY_ENGINES}".strip()


def make_mesh(data: int, domain: int, tensor: int) -> Mesh:
    """Builds the (data, domain, tensor) mesh over the first data * domain * tensor devices.

    `data` may be -1: as many instances as the devices hold. Raises ValueError where the sizes are not positive, the
    devices too few, or those of some process in none of the mesh.

    >>> mesh = weathermixer.make_mesh(-1, 2, 2)  # on eight devices
    >>> dict(mesh.shape)
    {'data': 2, 'domain': 2, 'tensor': 2}
    """
    shape, devices = f"mesh data={data} x domain={domain} x tensor={tensor}", jax.devices()
    if domain < 1 or tensor < 1 or (data < 1 and data != -1):
        raise ValueError(f"{shape}: every size must be at least 1 (data may be -1: all devices that are left)")
    sizes = (data if data > 0 else max(1, len(devices) // (domain * tensor)), domain, tensor)
    if (needed := math.prod(sizes)) > len(devices):
        raise ValueError(
            f"{shape} needs {needed} devices, {len(devices)} are visible: choose a smaller mesh, or simulate devices "
            "on the CPU with XLA_FLAGS=--xla_force_host_platform_device_count=N"
        )
    if idle := sorted({device.process_index for device in devices} - {d.process_index for d in devices[:needed]}):
        raise ValueError(
            f"{shape} needs {needed} of {len(devices)} devices, and none of process {', '.join(map(str, idle))}: "
            "choose a larger mesh (data=-1 takes all devices), or start fewer processes"
        )
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Explicit,) * 3, devices=devices[:needed])


def make_abstract_mesh(data: int, domain: int, tensor: int) -> AbstractMesh:
    """A mesh of that shape with no devices, for tracing and planning."""
    return AbstractMesh((data, domain, tensor), AXES, axis_types=(AxisType.Explicit,) * 3)


use_mesh = jax.set_mesh


def spec(*names: str | None) -> PartitionSpec:
    """The PartitionSpec of an array whose dimensions have these logical names; unknown names raise KeyError."""
    unknown = [name for name in names if name is not None and name not in LOGICAL_AXES]
    if unknown:
        raise KeyError(f"no rule for logical axis {unknown}; the table knows {sorted(LOGICAL_AXES)}")
    return PartitionSpec(*(None if name is None else LOGICAL_AXES[name] for name in names))


def sharding(mesh: Mesh | AbstractMesh, *names: str | None) -> NamedSharding:
    """The NamedSharding on `mesh` of an array whose dimensions have these logical names.
    Raises KeyError for a name that the table does not have.

    >>> mesh = weathermixer.make_mesh(1, 4, 2)
    >>> fields = jax.device_put(np.zeros((1, 6, 32, 64)), weathermixer.sharding(mesh, "batch", "channel", "lat", "lon"))
    >>> tuple(fields.sharding.spec), fields.addressable_shards[0].data.shape
    (('data', 'tensor', 'domain', None), (1, 3, 8, 64))
    """
    return NamedSharding(mesh, spec(*names))


def put(values: np.ndarray, mesh: Mesh | AbstractMesh, *names: str | None) -> jax.Array | jax.ShapeDtypeStruct:
    """Values that every process holds as a global array with these dimensions, cut as they are; described without."""
    if isinstance(mesh, AbstractMesh):
        return jax.ShapeDtypeStruct(values.shape, values.dtype, sharding=sharding(mesh, *names))
    return jax.make_array_from_callback(values.shape, sharding(mesh, *names), lambda box: values[box])


def axes_of(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The mesh axes that a PartitionSpec's entry names, major first."""
    return entry if isinstance(entry, tuple) else () if entry is None else (entry,)


def without(array_spec: PartitionSpec, *axes: str) -> PartitionSpec:
    """A spec with these mesh axes taken out: that of the array after it was gathered over them."""

    def keep(entry):
        kept = tuple(axis for axis in axes_of(entry) if axis not in axes)
        return kept[0] if len(kept) == 1 else (kept or None)

    return PartitionSpec(*map(keep, array_spec))


def ways(mesh: Mesh | AbstractMesh, name: str) -> int:
    """How many parts a dimension with this logical name is cut into on `mesh`."""
    return math.prod(mesh.shape[axis] for axis in axes_of(LOGICAL_AXES[name]))


def instances(mesh: Mesh | AbstractMesh) -> int:
    """How many model instances a mesh holds."""
    return mesh.shape["data"]


def instance_devices(mesh: Mesh | AbstractMesh) -> int:
    """How many devices hold one model instance together."""
    return mesh.shape["domain"] * mesh.shape["tensor"]


def cut_axes(array_spec: PartitionSpec) -> set[str]:
    """The mesh axes over which an array with this spec is cut."""
    return {axis for entry in array_spec for axis in axes_of(entry)}


def indivisible(mesh: Mesh | AbstractMesh, **sizes: tuple[str, int]) -> list[str]:
    """Every size that does not divide over the mesh, in words: what=(logical name, size), as latitude=("lat", 720)."""
    wrong = []
    for what, (name, size) in sizes.items():
        if size % ways(mesh, name):
            cut = " * ".join(f"{axis}={mesh.shape[axis]}" for axis in axes_of(LOGICAL_AXES[name]))
            wrong.append(f"{what}={size} is not divisible by {cut}")
    return wrong


def check_divides(mesh: Mesh | AbstractMesh, **sizes: tuple[str, int]) -> None:
    """Raises one ValueError that names every size that does not divide over the mesh (see indivisible)."""
    if wrong := indivisible(mesh, **sizes):
        raise ValueError(
            f"mesh {dict(mesh.shape)} does not fit: {'; '.join(wrong)}. Change the mesh or these sizes in the config."
        )

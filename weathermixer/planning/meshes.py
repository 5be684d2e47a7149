"""How a training step is laid out: the mesh's sizes and the options that cost work, memory or traffic."""

import dataclasses
from typing import NamedTuple

from weathermixer.model.shape import ModelShape
from weathermixer.parallel.mesh import cut_axes, indivisible, make_abstract_mesh, spec
from weathermixer.parallel.schedule import Schedule, choose_schedule, kernel_names
from weathermixer.parallel.zero import OVER, ZERO, cut_spec
from weathermixer.planning.work import Contraction, contractions, parameters


class Group(NamedTuple):
    """Devices that exchange: how many, and how far apart neighbours are in the order of devices."""

    size: int
    stride: int

    def in_node(self, node_size: int) -> int:
        """How many members share a node, where `node_size` consecutive devices make one."""
        return min(self.size, max(1, node_size // self.stride))


@dataclasses.dataclass(frozen=True)
class Layout:
    """Sizes of the (data, domain, tensor) mesh; devices are numbered with tensor running fastest."""

    data: int
    domain: int
    tensor: int

    @property
    def devices(self) -> int:
        return self.data * self.instance

    @property
    def instance(self) -> int:
        """Devices that hold one model instance."""
        return self.domain * self.tensor

    def contracted(self, over: str) -> Group:
        """The devices over which a mixing's contracted dimension is cut."""
        return Group(self.domain, self.tensor) if over == "token" else Group(self.tensor, 1)

    def across(self, over: str) -> Group:
        """The devices of the other model axis, over which a kernel is gathered."""
        return self.contracted("channel" if over == "token" else "token")

    @property
    def replicas(self) -> Group:
        return Group(self.data, self.instance)

    def __str__(self) -> str:
        return f"{self.data} x {self.domain} x {self.tensor}"


@dataclasses.dataclass(frozen=True)
class StepOptions:
    """What else a step's costs depend on; rematerialize and schedule are the model's.

    Raises ValueError for a batch or repeats below 1, an unknown dtype and an unknown zero.

    >>> options = weathermixer.StepOptions(batch=16, rematerialize="block", zero="parameters")
    >>> options.compute_bytes
    2
    """

    batch: int  # samples per step over all instances
    repeats: int = 1  # passes through the blocks (latent rollout)
    rollout: int = 1  # steps of forecasts that are fed back; more than one are made again in the backward pass
    accumulate: int = 1  # parts, one after the other, in which a batch's gradient is made
    muon: bool = False  # the blocks' kernels keep one moment, not two
    momentum_bytes: int = 4  # of a number of the first moments; of the second it is 4
    compute_dtype: str = "bfloat16"  # of activations and products; or "float32", "fp8"
    rematerialize: str = "none"
    schedule: Schedule = "auto"
    dropout: bool = False
    ema: bool = False  # an exponential moving average of the parameters is kept
    zero: str = "none"  # "parameters": they, moments and EMA are cut over the mesh's data axis as well
    frames: int = 2  # read per sample, the input and its targets

    def __post_init__(self):
        if self.zero not in ZERO:
            raise ValueError(f"zero={self.zero!r} is not one of {', '.join(ZERO)}")
        if self.compute_dtype not in ("bfloat16", "float32", "fp8"):
            raise ValueError(f"compute_dtype={self.compute_dtype!r} is not one of bfloat16, float32, fp8")
        if min(self.batch, self.repeats, self.rollout, self.accumulate) < 1:
            counts = f"repeats={self.repeats}, rollout={self.rollout}, accumulate={self.accumulate}"
            raise ValueError(f"batch={self.batch}, {counts}: each must be at least 1")
        if self.batch % self.accumulate:
            raise ValueError(f"accumulate={self.accumulate} does not divide batch={self.batch}")

    @property
    def part(self) -> int:
        """Samples that go through the model at a time."""
        return self.batch // self.accumulate

    @property
    def passes(self) -> float | int:
        """How often a sample goes through the model, forward and backward: a step that is made again counts 4/3."""
        return self.rollout * (4 / 3 if self.rollout > 1 else 1)

    @property
    def compute_bytes(self) -> int:
        return 4 if self.compute_dtype == "float32" else 2

    @property
    def operand_bytes(self) -> int:
        """Of an element of what the blocks' products read."""
        return 1 if self.compute_dtype == "fp8" else self.compute_bytes

    def repeated_in_backward(self, c: Contraction) -> bool:
        """Whether rematerialization makes a product again: not a block's last one, whose result nothing needs."""
        return self.rematerialize == "block" and c.in_block and c.name != "channel down"

    def times(self, c: Contraction) -> int:
        """How often such a contraction is made in a forward pass."""
        return c.count * (self.repeats if c.in_block else 1)

    def products(self, c: Contraction) -> int:
        """How many products such contractions are in a step: forward, again, and of one gradient or of two."""
        return self.times(c) * ((3 if c.needs_input_gradient else 2) + self.repeated_in_backward(c))


def sharing(c: Contraction, layout: Layout, options: StepOptions) -> int:
    """How many instances keep such a contraction's kernel together: all of them where it can be cut, or each its own.

    It can be where weathermixer.parallel.zero.cut_spec can cut it.
    """
    along = layout.contracted(c.over).size
    names = kernel_names(c.over, choose_schedule(options.schedule, c.inputs, c.outputs, along=along))
    sizes = c.inputs // c.operands // c.columns, c.outputs // c.columns
    mesh = make_abstract_mesh(*dataclasses.astuple(layout))
    shared = options.zero == "parameters" and OVER in cut_axes(cut_spec(spec(*names), sizes, mesh))
    return layout.data if shared else 1


def kept_parameters(shape: ModelShape, layout: Layout, options: StepOptions) -> float:
    """Numbers of the parameters that a device keeps, of kernels and of all vectors, which ZeRO is taken to cut."""
    kernels = [c for c in contractions(shape) if c.name != "blend"]
    sizes = [c.count * c.kernel // c.columns for c in kernels]
    own = sum(size / sharing(c, layout, options) for c, size in zip(kernels, sizes, strict=True))
    vectors = (parameters(shape) - sum(sizes)) / (layout.data if options.zero == "parameters" else 1)
    return (own + vectors) / layout.instance


def executed_flops(shape: ModelShape, options: StepOptions) -> int:
    """FLOPs of the products that a training step runs, those that rematerialization repeats among them."""
    return options.batch * sum(options.products(c) * c.flops for c in contractions(shape))


def misfits(shape: ModelShape, layout: Layout, batch: int) -> list[str]:
    """Why this mesh cannot hold the model or its batch: every size that does not divide, with the numbers."""
    mesh = make_abstract_mesh(layout.data, layout.domain, layout.tensor)
    return indivisible(mesh, batch=("batch", batch), **shape.cuts)

"""Bytes that one device holds during a training step.

State, gradients and batch are exact: each array is cut over all devices of the instance. Activations kept for the
backward pass and temporaries depend on the compiler; their formulae count the arrays that differentiation needs.
"""

from weathermixer.model.shape import ModelShape
from weathermixer.planning.meshes import Layout, StepOptions, kept_parameters, sharing
from weathermixer.planning.work import FLOAT32, STORED, block_kernels, contractions, parameters

# Fields on the grid that head and loss keep, in (float32, compute dtype): the error, and of blend the state, the
# result before the mask and the normalized fields
HEAD_KEEPS = {"blend": (3, 1), "increment": (1, 0)}


def activation_bytes(shape: ModelShape, options: StepOptions) -> float:
    """Bytes that differentiation keeps of one sample on one model instance, all its devices together.

    Of encode its patches; of a block what block_bytes counts, or under rematerialize="block" its input alone; then the
    last norm's input and result, and the head's fields. This is what the traced program keeps.
    """
    s, item = shape, options.compute_bytes
    state = s.tokens * s.embed
    block = state * item if options.rematerialize == "block" else block_bytes(shape, options)
    wide, narrow = HEAD_KEEPS[s.head]
    fields = (wide * FLOAT32 + narrow * item) * s.channels * s.grid[0] * s.grid[1]
    return float((s.history * s.tokens * s.features + 2 * state) * item + s.blocks * options.repeats * block + fields)


def block_bytes(shape: ModelShape, options: StepOptions) -> int:
    """Bytes that a mixer block keeps for its backward pass.

    Of each of its two MLPs the norm's input, the hidden layer before GELU, what follows either, in the dtype that
    products read, and dropout's masks of one byte.
    """
    kept = sum(c.inputs * c.rows for c in contractions(shape) if c.in_block)  # what each product reads
    return kept * (options.compute_bytes + options.operand_bytes + options.dropout)


def fed_back_bytes(shape: ModelShape) -> int:
    """Bytes that a step of a rollout keeps of one sample: its input, and its target as it is stored."""
    return (FLOAT32 + STORED) * shape.channels * shape.grid[0] * shape.grid[1]


def temporary_bytes(shape: ModelShape, layout: Layout, options: StepOptions) -> float:
    """Bytes in passing on one device, an estimate of the largest moment in the backward pass.

    A kernel and its gradient gathered over the other model axis, and where that is cut, or with ZeRO, every kernel, for
    nothing bounds how far ahead they travel in the forward pass. The parameters' copy in the compute dtype, three
    activations, and under rematerialize="block" what one block keeps.
    """
    batch, again = options.part / layout.data, options.rematerialize == "block"
    mixing = [c for c in contractions(shape) if c.name != "blend"]
    whole = [c.kernel / layout.contracted(c.over).size for c in mixing]
    cut = [layout.across(c.over).size * sharing(c, layout, options) > 1 for c in mixing]
    ahead = [size * c.count for c, size, cut in zip(mixing, whole, cut) if cut]
    largest = shape.tokens * max(shape.embed, shape.embed_hidden, shape.features)
    numbers = 2 * max(whole) + sum(ahead) + batch * 3 * largest / layout.instance
    if options.compute_dtype != "float32":
        numbers += kept_parameters(shape, layout, options)
    # circulant kernels that were made dense: kept for the backward pass, or a block's made again
    circulant = sum(c.kernel * (1 if again else c.count) for c in mixing if c.columns > 1)
    total = (numbers + circulant / layout.instance) * options.compute_bytes
    if again:
        total += batch * block_bytes(shape, options) / layout.instance
    return float(total)


def memory_parts(shape: ModelShape, layout: Layout, options: StepOptions) -> dict[str, float]:
    """Bytes on each device by part: parameters, moments, EMA, gradients, batch, activations, temporaries.

    With ZeRO over the data axis everything that lasts is cut over all devices, where it can be.
    """
    own = FLOAT32 * kept_parameters(shape, layout, options)
    one_moment = options.muon * sum(i * o * count for i, o, count in block_kernels(shape))
    activations = activation_bytes(shape, options) + (options.rollout - 1) * fed_back_bytes(shape)
    frame = shape.channels * shape.grid[0] * shape.grid[1] / layout.instance
    return {
        "parameters": own,
        "moments": own * (1 + options.momentum_bytes / FLOAT32 - one_moment / parameters(shape)),
        "ema": options.ema * own,
        # of a loop over parts or steps the sum, and that of the one under way
        "gradients": own * (1 + (options.accumulate * options.rollout > 1)),
        # what is being used and what the loader has put on the device ahead
        "batch": 2 * (options.batch / layout.data) * options.frames * frame * STORED,
        "activations": options.part / layout.data * activations / layout.instance,
        "temporaries": temporary_bytes(shape, layout, options),
    }

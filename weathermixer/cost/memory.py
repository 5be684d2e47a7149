"""Bytes that one device holds during a training step.

State, gradients and batch are exact: each array is cut over all devices of the instance. Activations kept for the
backward pass and temporaries depend on the compiler; their formulae count the arrays that differentiation needs.
"""

from weathermixer.cost.layout import Layout, StepOptions
from weathermixer.cost.work import Shape, contractions, parameters

FLOAT32 = 4


def activation_bytes(shape: Shape, options: StepOptions) -> float:
    """Bytes kept for the backward pass by one sample on one model instance, all its devices together.

    Of encode its patches and its result; of a block, for each MLP, the input and result of the norm and the hidden
    layer before and after its GELU, or under rematerialize="block" its input alone; then the norm before decode. The
    head keeps fields on the grid in float32.
    """
    s, item = shape, options.compute_bytes
    state = s.tokens * s.embed
    grid = s.channels * s.grid[0] * s.grid[1]
    block = state if options.rematerialize == "block" else block_activations(shape)
    tokens = s.tokens * s.features + state + s.blocks * options.repeats * block + 2 * state
    fields = (6 if s.head == "blend" else 2) * grid
    return float(tokens * item + fields * FLOAT32)


def block_activations(shape: Shape) -> int:
    """Numbers that a mixer block keeps for its backward pass: two norms' input and result, two hidden layers twice."""
    s = shape
    return 4 * s.tokens * s.embed + 2 * s.token_hidden * s.embed + 2 * s.tokens * s.embed_hidden


def temporary_bytes(shape: Shape, layout: Layout, options: StepOptions) -> float:
    """Bytes in passing on one device, an estimate of the largest moment in the backward pass.

    A kernel and its gradient gathered over the other model axis, the parameters' copy in the compute dtype, three
    activations, and under rematerialize="block" what one block keeps.
    """
    batch = options.batch / layout.data
    gathered = max(c.kernel / layout.contracted(c.over).size for c in contractions(shape) if c.name != "blend")
    largest = shape.tokens * max(shape.embed, shape.embed_hidden, shape.features)
    numbers = 2 * gathered + batch * 3 * largest / layout.instance
    if options.compute_dtype != "float32":
        numbers += parameters(shape) / layout.instance
    if options.rematerialize == "block":
        numbers += batch * block_activations(shape) / layout.instance
    return float(numbers * options.compute_bytes)


def memory_parts(shape: Shape, layout: Layout, options: StepOptions) -> dict[str, float]:
    """Bytes on each device by part: parameters, moments, EMA, gradients, batch, activations, temporaries.

    With ZeRO over the data axis moments and EMA, or everything that lasts, are cut over all devices.
    """
    own = parameters(shape) * FLOAT32 / layout.instance
    replicas = layout.data
    batch = options.batch / layout.data
    frame = shape.channels * shape.grid[0] * shape.grid[1] / layout.instance
    return {
        "parameters": own / (replicas if options.zero == "parameters" else 1),
        "moments": 2 * own / (1 if options.zero == "none" else replicas),
        "ema": options.ema * own / (1 if options.zero == "none" else replicas),
        "gradients": own / (1 if options.zero == "none" else replicas),
        # what is being used and what the loader has put on the device ahead
        "batch": 2 * batch * options.frames * frame * options.stored_bytes,
        "activations": batch * activation_bytes(shape, options) / layout.instance,
        "temporaries": temporary_bytes(shape, layout, options),
    }

"""Training steps that were timed, for the plan's predictions to be set beside: `experiments.plan --measured`.

On one node, a sample per instance that is made on the devices, float32 state, the whole step with clipping and Adam, by
`python -m experiments.benchmark train --mesh=DATA,DOMAIN,TENSOR --compute-dtype=DTYPE`.
"""

from typing import NamedTuple

from weathermixer.model.shape import ModelShape
from weathermixer.planning.meshes import Layout, StepOptions

MODEL, SHAPE = "16 TFLOP", ModelShape(embed=4896, embed_hidden=4896)  # of all of them


class Measured(NamedTuple):
    """One timed case: the machine, the mesh, milliseconds of a step, with what software, and how it was computed."""

    device: str
    layout: Layout
    step_ms: float
    software: str
    compute_dtype: str = "bfloat16"

    @property
    def options(self) -> StepOptions:
        return StepOptions(batch=self.layout.data, compute_dtype=self.compute_dtype)


PEER = "jax 0.11.2, XLA_FLAGS=--xla_gpu_collective_permute_mode=peer"
MEASURED = (
    Measured("h200", Layout(1, 1, 1), 87.8, "jax 0.11.2"),
    Measured("h200", Layout(1, 2, 1), 50.2, "jax 0.11.2"),
    Measured("h200", Layout(1, 2, 1), 48.2, PEER),
    Measured("h200", Layout(1, 1, 2), 54.6, PEER),
    Measured("h200", Layout(2, 1, 1), 101.5, "jax 0.11.2"),
    Measured("h100", Layout(1, 1, 1), 91.7, "jax 0.11.2"),
    Measured("h100", Layout(1, 1, 1), 67.8, "jax 0.11.2", "fp8"),
    Measured("h100", Layout(1, 2, 1), 53.1, "jax 0.11.2"),
    Measured("h100", Layout(1, 2, 1), 50.6, PEER),
    Measured("h100", Layout(1, 1, 2), 58.7, PEER),
    Measured("h100", Layout(2, 1, 1), 106.8, "jax 0.11.2"),
)

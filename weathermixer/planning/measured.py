"""Training steps that were timed, for the plan's predictions to be set beside: `experiments.plan --measured`.

On one node, a sample per instance that is made on the devices, bfloat16 products, float32 state, the whole step with
clipping and Adam.
"""

import dataclasses

from weathermixer.planning.meshes import Layout, StepOptions

# Sizes of the models that were timed, where they are not the published 1.06 B model's
MODELS = {"16 TFLOP": {"embed": 4896, "embed_hidden": 4896}}


@dataclasses.dataclass(frozen=True)
class Measured:
    """One timed case: the machine, the mesh, the model (of MODELS), milliseconds of a step, with what software."""

    device: str
    layout: Layout
    model: str
    step_ms: float
    software: str

    @property
    def command(self) -> str:
        sizes = f"{self.layout.data},{self.layout.domain},{self.layout.tensor}"
        return f"python -m experiments.benchmark train --mesh={sizes}"

    @property
    def options(self) -> StepOptions:
        return StepOptions(batch=self.layout.data)


PEER = "jax 0.11.2, XLA_FLAGS=--xla_gpu_collective_permute_mode=peer"
MEASURED = (
    Measured("h200", Layout(1, 1, 1), "16 TFLOP", 87.8, "jax 0.11.2"),
    Measured("h200", Layout(1, 2, 1), "16 TFLOP", 50.2, "jax 0.11.2"),
    Measured("h200", Layout(1, 2, 1), "16 TFLOP", 48.2, PEER),
    Measured("h200", Layout(1, 1, 2), "16 TFLOP", 54.6, PEER),
    Measured("h200", Layout(2, 1, 1), "16 TFLOP", 101.5, "jax 0.11.2"),
)

"""Shows that a mesh computes what one device computes: loss, every parameter's gradient and a short training run.

  python -m experiments.parity --config=quickstart --mesh=2,2,2

To try it without GPUs, simulate devices:

  XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m experiments.parity --config=quickstart --mesh=2,2,2

--mesh is data,domain,tensor. It and one device run the config's real model, loss and optimizer on the same random
fields, with dropout, latent rollout, rematerialization, moving average and ZeRO as the config has them, in float32
(products in full precision) and in bfloat16.

Differences are relative, |a - b| / |b| over all elements of a quantity (gradients that vanish: see `differences`). In
float32 they may be as large as sums in another order make them. Two runs in bfloat16 are rounded independently, so each
is held to one device's float32: the mesh may be at most twice as far from it as one device's bfloat16 is. After the run
parameters are not compared: Adam turns a zero gradient's rounding into a full step. Exit status 1 where a difference is
larger.
"""

import dataclasses
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from operator import methodcaller
from typing import Any

import jax
import numpy as np
import pandas as pd

from experiments import command_line, ends, synthetic
from weathermixer.parallel.mesh import check_divides, make_mesh, use_copy_engines, use_mesh
from weathermixer.runs.settings import Settings
from weathermixer.training.state import name_leaves

# Of float32 on a mesh: sums of thousands of terms in another order. A gradient is a long chain of such sums, a run a
# chain of gradients. What is wrong in kind, such as a norm over a shard or a bias counted twice, differs by percents.
FLOAT32_TOLERANCE = {"loss": 1e-6, "gradient": 2e-5, "run": 1e-5}
LEAST_SHARE = 1e-3  # of the whole gradient's norm, by which a parameter's is measured at least
# How far bfloat16 on a mesh may be from float32, in units of how far it is on one device: partial sums are rounded
# once more where they travel. Seen on eight devices: 1.2 to 1.8 for the worst parameter, 0.9 to 1.5 for all together
BFLOAT16_SHARE = 2.0
STEPS = 10


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a mesh computes of the first batch and of a short run: loss, gradient by parameter, losses by step."""

    loss: np.ndarray
    gradient: dict[str, np.ndarray]
    run: np.ndarray


def lower(
    settings: Settings, sizes: tuple[int, int, int], *, data: str | None, grid: tuple[int, int]
) -> tuple[synthetic.Problem, list[Any]]:
    """A config's problem on a mesh; its initial state, its loss with gradients and its training step, to be compiled.

    Raises ValueError, with the numbers, where the mesh does not divide the model or the batch.
    """
    mesh, key = make_mesh(*sizes), jax.random.key(settings.seed) if settings.model.dropout_rate else None
    check_divides(mesh, batch_size=("batch", settings.training.batch_size))
    precision = "highest" if settings.model.compute_dtype == "float32" else "default"
    with use_mesh(mesh), jax.default_matmul_precision(precision):
        problem = synthetic.make_problem(settings, mesh, data=data, grid=grid)
        training, (state, *fields) = problem.training, problem.describe()
        gradients = jax.jit(jax.value_and_grad(lambda *arguments: training.loss(*arguments, key)))
        lowered = jax.jit(training.initial_state).lower(), gradients.lower(state.params, *fields)
        return problem, [*lowered, training.train_step.lower(state, *fields)]


def measure(problem: synthetic.Problem, initial_state: Any, gradients: Any, train_step: Any) -> Measured:
    """Runs a problem's compiled programs, STEPS long; every array comes back whole."""
    with use_mesh(problem.mesh):
        batches = [problem.make_batch(step) for step in range(STEPS)]
        state = initial_state()
        loss, gradient = gradients(state.params, batches[0], problem.standardization)
        run = []
        for batch in batches:
            state, metrics = train_step(state, batch, problem.standardization)
            run.append(float(metrics["loss"]))
    named = {name: np.asarray(leaf) for name, leaf in name_leaves(gradient).items()}
    return Measured(np.asarray(loss), named, np.array(run))


def relative(a: np.ndarray, b: np.ndarray, *, least: float = 0.0) -> float:
    """|a - b| / |b| over all elements, or / least where |b| is smaller; 0 where both are zero."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    size = max(float(np.linalg.norm(b)), least)
    return float(np.linalg.norm(a - b)) / size if size else float(np.linalg.norm(a) > 0)


def differences(a: Measured, b: Measured) -> dict[str, float]:
    """Relative differences of every quantity; the run's is the worst of its losses.

    Some gradients vanish, such as those of a bias that is the same for all features and lost in the next norm: what is
    left of them is rounding: see LEAST_SHARE.
    """
    least = LEAST_SHARE * float(
        np.linalg.norm([np.linalg.norm(np.asarray(g, np.float64)) for g in b.gradient.values()])
    )
    found = {"loss": relative(a.loss, b.loss), "run": max(map(relative, a.run, b.run))}
    return found | {f"gradient {name}": relative(a.gradient[name], g, least=least) for name, g in b.gradient.items()}


def compare(found: Mapping[str, float], rounding: Mapping[str, float] | None) -> pd.DataFrame:
    """Each difference beside what it may be: float32's tolerance, or a share of bfloat16's own rounding."""
    rows = pd.DataFrame({"relative": found})
    kinds = rows.index.str.split().str[0]
    if rounding is None:
        rows["allowed"] = kinds.map(FLOAT32_TOLERANCE)
    else:  # a quantity whose rounding happens to cancel on one mesh is allowed the typical one of its kind
        own = pd.Series(rounding)
        rows["allowed"] = BFLOAT16_SHARE * own.clip(own.groupby(kinds).transform("median")).clip(1e-3)
    rows["fine"] = rows.relative <= rows.allowed
    return rows


def format_differences(title: str, rows: pd.DataFrame, show: int = 8) -> str:
    """Loss and run, then the gradients that are nearest to what they may be, or beyond it."""
    gradients = rows[rows.index.str.startswith("gradient")]
    nearest = (gradients.relative / gradients.allowed).sort_values(ascending=False).index[:show]
    shown = pd.concat([rows.drop(gradients.index), rows.loc[nearest]])
    table = shown.rename(columns={"allowed": "of"}).assign(fine=shown.fine.map({True: "", False: "TOO LARGE"}))
    within = f"{gradients.fine.sum()} of {len(gradients)} gradients within what is allowed"
    return f"{title}\n{table.to_string(float_format='{:.1e}'.format)}\n{within}"


def make_parser() -> command_line.Parser:
    parser = command_line.make_parser("experiments.parity", __doc__)
    command_line.add_config(parser)
    command_line.add_data(parser, "default: made-up fields")
    command_line.add_grid(parser, default=(64, 128))
    about = "mesh to show right, as 2,2,2"
    parser.add_argument("--mesh", required=True, type=command_line.mesh, metavar=command_line.MESH, help=about)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Measures and prints; returns 1 where a difference is too large."""
    options = make_parser().parse_args(arguments)
    use_copy_engines()
    if jax.process_count() > 1:
        raise ValueError("parity compares whole arrays in one process: start it on one host")
    config, sizes = command_line.read_settings(options), dict(data=options.data, grid=options.grid)
    lowered = [
        lower(config.replace({"model.compute_dtype": dtype}), mesh, **sizes)
        for dtype in ("float32", "bfloat16")
        for mesh in (options.mesh, (1, 1, 1))
    ]
    print(f"compiling {3 * len(lowered)} programs", file=sys.stderr, flush=True)
    with ThreadPoolExecutor() as pool:  # all at a time: compiling takes most of the time, and a core each
        compiled = [(problem, pool.map(methodcaller("compile"), programs)) for problem, programs in lowered]
    measured, fine = [measure(problem, *programs) for problem, programs in compiled], True
    exact = measured[1]
    for dtype, here, there in (("float32", *measured[:2]), ("bfloat16", *measured[2:])):
        rounding = None if there is exact else differences(there, exact)
        rows = compare(differences(here, exact), rounding)
        title = f"{dtype}: mesh {options.mesh} against one device in float32, relative differences"
        print(format_differences(title, rows), flush=True)
        fine &= rows.fine.all()
    print("the meshes agree" if fine else "the meshes DO NOT agree")
    return 0 if fine else 1


if __name__ == "__main__":
    ends.run(main)

"""Every config lowers at every mesh it is meant for, on abstract meshes: shapes, cuts, and what its collectives move.

A contract without devices: the step is traced and lowered from descriptions of its arguments, at its real size.
"""

import importlib
import math
import pathlib
import re
from collections import Counter

import jax
import jaxtyping
import pytest
from jax.interpreters import partial_eval

from experiments import plan, synthetic
from experiments.benchmark import scaling
from tests.moved import count_moved
from weathermixer.parallel.mesh import cut_axes, make_abstract_mesh
from weathermixer.planning.hardware import find_hardware
from weathermixer.planning.meshes import Layout
from weathermixer.planning.work import parameters
from weathermixer.runs.settings import make_settings

CONFIGS = sorted(
    path.stem for path in pathlib.Path("experiments/configs").glob("*.py") if path.stem not in ("__init__", "base")
)
SIMULATED = ("surface_pressure", *(f"geopotential_{level}" for level in range(100, 900, 100)))
WIND = ("10m_u_component_of_wind", "10m_v_component_of_wind")
WINTER = ("mean_sea_level_pressure", "vorticity_850")
# config -> grid, channels (None: the published ones), meshes that it is meant for
TARGETS = {
    "reference": (
        (720, 1440),
        None,
        [
            (1, 1, 1), (8, 1, 1), (1, 2, 1), (1, 1, 2), (1, 4, 2),
            (1, 8, 2), (4, 8, 2), (8, 4, 8), (256, 1, 1), (32, 8, 1),
        ],
    ),
    "reference:3.2b": ((720, 1440), None, [(1, 4, 2), (8, 16, 2), (4, 4, 4)]),
    "reference:10b": ((720, 1440), None, [(8, 8, 4)]),
    "quickstart": (
        (32, 64),
        SIMULATED,
        [(1, 1, 1), (2, 1, 1), (8, 1, 1), (1, 2, 1), (1, 1, 2), (1, 4, 2), (2, 2, 2), (1, 8, 1), (1, 1, 8)],
    ),
    "gfs_wind": ((32, 64), WIND, [(1, 1, 1), (2, 1, 1), (1, 4, 2), (8, 1, 1), (1, 2, 2)]),
    "gfs_wind:skill": ((32, 64), WIND, [(1, 1, 1), (1, 4, 2)]),
    "era5_djf": ((73, 144), WINTER, [(1, 1, 1), (8, 1, 1), (1, 1, 2)]),
}  # fmt: skip
PAIRS = [(name, sizes) for name, (_, _, meshes) in TARGETS.items() for sizes in meshes]
# each on the first of its meshes, and on a cut of each kind; the others are slow ones, as is 10b, a longer 3.2b
CUTS = [("reference", (1, 1, 2)), ("quickstart", (2, 1, 1)), ("quickstart", (1, 2, 1))]
QUICK = [(name, meshes[0]) for name, (_, _, meshes) in TARGETS.items() if name != "reference:10b"] + CUTS


def test_every_config_has_meshes():
    assert {name.partition(":")[0] for name in TARGETS} == set(CONFIGS)
    assert len(PAIRS) >= 24


@pytest.fixture(autouse=True)
def describe_instead_of_hold():
    """Lowering fills the step's dataclasses with descriptions of arrays, which the check of types would refuse."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def lower(name, sizes):
    """(sizes for the formulae, the step's arguments, its trace) of a config on an abstract mesh."""
    module, _, variant = name.partition(":")
    config = importlib.import_module(f"experiments.configs.{module}").get_config(*filter(None, [variant]))
    grid, channels, _ = TARGETS[name]
    if channels:
        config.data.channels, config.data.static = channels, ()
        config.data.channel_multiple = 8
    config.training.batch_size = max(config.training.batch_size, sizes[0])
    config.model.compute_dtype = "bfloat16"
    settings, mesh, layout = make_settings(config.to_dict()), make_abstract_mesh(*sizes), Layout(*sizes)
    batch = settings.training.batch_size
    options = plan.step_options(settings, find_hardware("h200"), batch=batch)
    with jax.sharding.use_abstract_mesh(mesh):
        problem = synthetic.make_problem(settings, mesh, grid=grid)
        arguments = problem.describe()
        traced = problem.training.train_step.trace(*arguments)
    return (problem.training.shape, layout, options), arguments, traced


@pytest.mark.parametrize(
    ("name", "sizes"), [pytest.param(*pair, marks=[pytest.mark.slow] * (pair not in QUICK)) for pair in PAIRS], ids=str
)
def test_a_config_lowers_as_its_plan_says(name, sizes):
    known, (state, batch, _), traced = lower(name, sizes)
    shape = known[0]

    after, metrics = traced.out_info
    described = [[(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)] for tree in (state, after)]
    assert described[0] == described[1] and metrics["loss"].shape == ()
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.params)) == parameters(shape)
    if name == "reference":
        assert parameters(shape) == pytest.approx(1.06e9, rel=0.005)

    instance, (lats, _) = sizes[1] * sizes[2], shape.grid
    box = batch.inputs.sharding.shard_shape(batch.inputs.shape)
    assert box[1:3] == (shape.channels // sizes[2], lats // sizes[1])
    for part in (state.params, *([state.ema] if state.ema else [])):
        for path, leaf in jax.tree_util.tree_leaves_with_path(part):
            if leaf.ndim == 2 and "head" not in jax.tree_util.keystr(path):
                assert math.prod(leaf.sharding.shard_shape(leaf.shape)) * instance == math.prod(leaf.shape)
                assert len(cut_axes(leaf.sharding.spec)) == 2

    # chunks of the contractions, in the program before the compiler: by axis, in the compute dtype, to the byte
    jaxpr = traced.jaxpr.jaxpr
    needed, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))  # no gradient of the data, for one
    moved = Counter({what: size for what, size in count_moved(needed, Counter()).items() if size})
    classes = {what.rpartition(" "): size for what, size in scaling.expected_bytes(*known).items() if size}
    assert moved == {
        (axis, "bfloat16"): size for (what, _, axis), size in classes.items() if what == "contractions over"
    }

    text = traced.lower(lowering_platforms=("cpu",)).as_text()
    kinds = set(re.findall(r"stablehlo\.(collective_permute|all_gather|all_to_all|reduce_scatter)\b", text))
    assert kinds <= {"collective_permute", "all_gather"} and ("collective_permute" in kinds) == (instance > 1)

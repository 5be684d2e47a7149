"""Every config builds at its target mesh, described alone, and cuts what the design says it cuts."""

import importlib
import pathlib

import jax
import numpy as np
import pytest

from experiments import synthetic
from weathermixer.parallel.mesh import make_abstract_mesh
from weathermixer.planning.work import parameters
from weathermixer.runs.settings import make_settings

CONFIGS = sorted(
    path.stem for path in pathlib.Path("experiments/configs").glob("*.py") if path.stem not in ("__init__", "base")
)
# (grid, channels: None for the published ones, meshes) that a config is meant for
TARGETS = {
    "reference": ((720, 1440), None, [(4, 8, 2), (1, 1, 1), (8, 4, 8)]),
    "quickstart": (
        (32, 64),
        ("surface_pressure", *(f"geopotential_{level}" for level in range(100, 900, 100))),
        [(1, 4, 2)],
    ),
    "gfs_wind": ((32, 64), ("10m_u_component_of_wind", "10m_v_component_of_wind"), [(1, 1, 1), (1, 4, 2), (8, 1, 1)]),
}


def test_every_config_has_a_target():
    assert set(TARGETS) == set(CONFIGS)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [  # the first mesh of each; the others are slow
        pytest.param(name, sizes, marks=[pytest.mark.slow] * (sizes != meshes[0]))
        for name, (_, _, meshes) in TARGETS.items()
        for sizes in meshes
    ],
)
def test_builds_at_its_target_mesh_with_every_kernel_cut_over_the_instance(name, sizes):
    config = importlib.import_module(f"experiments.configs.{name}").get_config()
    grid, channels, _ = TARGETS[name]
    if channels:
        config.data.channels, config.data.static = channels, ()
        config.data.channel_multiple = 8
    mesh = make_abstract_mesh(*sizes)
    config.training.batch_size = max(config.training.batch_size, sizes[0])
    settings = make_settings(config.to_dict())
    shape, channel_set = synthetic.find_sizes(settings, data=None, grid=grid)
    with jax.sharding.use_abstract_mesh(mesh):
        training = synthetic.make_training(settings, shape, channel_set, mesh)
        arguments = synthetic.describe_arguments(training, mesh, batch_size=settings.training.batch_size)
        state, metrics = jax.eval_shape(training.train_step, *arguments)
    assert metrics["loss"].shape == ()
    before, after = (
        [(leaf.shape, leaf.dtype, leaf.sharding.spec) for leaf in jax.tree.leaves(tree)]
        for tree in (arguments[0], state)
    )
    assert before == after
    count = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(state.params))
    assert count == parameters(shape)
    instance = sizes[1] * sizes[2]
    for path, leaf in jax.tree_util.tree_leaves_with_path(arguments[0].params):
        if leaf.ndim == 2 and "head" not in jax.tree_util.keystr(path):
            part = np.prod(leaf.sharding.shard_shape(leaf.shape))
            assert part * instance == np.prod(leaf.shape), jax.tree_util.keystr(path)
    if name == "reference":
        assert count == pytest.approx(1.06e9, rel=0.005)

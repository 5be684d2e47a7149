"""ZeRO: the same numbers with what training carries cut over the instances, and a fair share of 1 / data of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from tests.tiny_training import make_tiny, quick_compilation
from weathermixer.parallel.mesh import make_abstract_mesh, make_mesh, use_mesh
from weathermixer.parallel.zero import cut_instances, cut_spec, gather_instances
from weathermixer.planning.account import make_account

OPTIONS = dict(ema_decay=0.9, dropout_rate=0.1, rematerialize="block", head="increment")


@pytest.mark.parametrize(
    "spec, shape, expected",
    [
        (("domain", "tensor"), (16, 8), (("domain", "data"), "tensor")),
        (("domain", "tensor"), (6, 8), ("domain", ("tensor", "data"))),  # 3 rows a part do not divide
        ((None, "domain", "tensor"), (2, 16, 8), (None, ("domain", "data"), "tensor")),
        (("domain", "tensor"), (8, 16), ("domain", ("tensor", "data"))),  # the longer one
        ((("tensor", "domain"),), (16,), (("tensor", "domain", "data"),)),
        (("tensor",), (6,), ("tensor",)),  # nothing divides
        ((None, "domain", "tensor"), (2, 6, 6), (None, "domain", "tensor")),  # what is stacked is indexed
        ((("domain", "data"), "tensor"), (16, 8), (("domain", "data"), "tensor")),  # is cut already
    ],
)
def test_cut_spec(spec, shape, expected):
    mesh = make_abstract_mesh(2, 2, 2)
    assert cut_spec(PartitionSpec(*spec), shape, mesh) == PartitionSpec(*expected)


def test_gathering_undoes_cutting():
    mesh = make_mesh(2, 2, 2)
    with use_mesh(mesh):
        tree = {
            "kernel": jax.device_put(
                jnp.arange(128.0).reshape(16, 8), NamedSharding(mesh, PartitionSpec("domain", "tensor"))
            ),
            "count": jnp.int32(3),
        }
        cut = jax.jit(cut_instances)(tree)
        assert cut["kernel"].sharding.shard_shape((16, 8)) == (4, 4)
        back = jax.jit(gather_instances)(cut)
    assert back["kernel"].sharding.spec == tree["kernel"].sharding.spec
    np.testing.assert_array_equal(back["kernel"], tree["kernel"])
    np.testing.assert_array_equal(back["count"], 3)


@pytest.fixture(autouse=True, scope="module")
def compiled_quickly():
    with quick_compilation():
        yield


@pytest.fixture(scope="module")
def expected():
    losses, _ = make_tiny((4, 2, 1), **OPTIONS).run(steps=3)
    return losses


def test_same_training_with_a_part_of_the_state(expected):
    """Three steps with ZeRO are three steps without it: sums over instances are only cut."""
    tiny = make_tiny((4, 2, 1), zero="parameters", **OPTIONS)
    losses, state = tiny.run(steps=3)
    assert state.step == 3
    np.testing.assert_allclose(losses, expected, rtol=2e-6)
    entries = make_account(tiny.mesh, {"parameters": state.params, "moments": state.moments, "ema": state.ema}, {})
    ratios = {entry.part: entry.ratio for entry in entries}
    assert ratios == pytest.approx({"parameters": 0.25, "moments": 0.25, "ema": 0.25}, rel=0.02)


def test_unknown_option_is_refused():
    with pytest.raises(ValueError, match="config.mesh.zero='all': input should be 'none' or 'parameters'"):
        make_tiny((1, 1, 1), zero="all").run(steps=1)

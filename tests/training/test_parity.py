"""Every mesh of eight devices computes what one device computes, with all that a config can ask for.

Five channels are padded to eight, so that with tensor=8 three devices hold nothing but padding.
"""

import jax
import numpy as np
import pytest

from experiments.parity import Measured, compare, differences, format_differences, relative
from tests.tiny_training import make_tiny, quick_compilation
from weathermixer.parallel.mesh import use_mesh
from weathermixer.planning.plan import layouts
from weathermixer.training.state import describe, name_leaves

MESHES = [(layout.data, layout.domain, layout.tensor) for layout in layouts(8)]
PUBLISHED = dict(dropout_rate=0.1, head="blend", embed=64)
# every role that a channel can have, and values that are missing in two of them; 14 channels, padded to 16
ROLES = dict(
    channels=(
        "2m_temperature",
        "geopotential_500",
        "sea_surface_temperature",
        "total_precipitation_6hr",
        "sea_ice_cover",
    ),
    input_only=("sea_ice_cover",),
    output_only=("total_precipitation_6hr",),
    forcings=("insolation", "insolation_ahead", "time_of_day", "local_time", "time_of_year"),
    missing=("sea_surface_temperature", "sea_ice_cover"),
    history=2,
    augmentation="rotate_longitude",
)
ROLLOUT = dict(dropout_rate=0.1, head="increment", embed=64, lead_steps=2, rematerialize="block")
CIRCULANT = dict(token_mixing="circulant", token_hidden=32, head="increment", lead_steps=2)
ENSEMBLE = dict(noise=4, members=2, leads=(1, 2, 4), head="increment", rollout=(2,), missing=("geopotential_500",))
ENSEMBLE |= dict(spectral_crps=0.5)
FED_BACK = dict(head="increment", embed=64, rollout=(3,), rollout_weights=(1.0, 0.5, 2.0), accumulate=2, batch_size=16)


@pytest.fixture(autouse=True, scope="module")
def compiled_quickly():
    with quick_compilation():
        yield


def measure(sizes, options, params=None):
    """Loss and gradient on a mesh, from one device's parameters where they are given; the parameters too."""
    tiny = make_tiny(sizes, **options)
    with use_mesh(tiny.mesh):
        if params is None:
            params = jax.jit(tiny.training.initial_state)().params
        else:
            # leaf by leaf: how a parameter is cut, which is written in its tree, depends on the mesh
            targets, tree = jax.tree.flatten(describe(jax.eval_shape(tiny.training.initial_state).params, tiny.mesh))
            whole = map(np.asarray, jax.tree.leaves(params))
            params = tree.unflatten([jax.device_put(leaf, target.sharding) for leaf, target in zip(whole, targets)])
        arguments = (params, tiny.make_batch(0), tiny.standardization, jax.random.key(3))
        loss, gradient = jax.jit(jax.value_and_grad(tiny.training.loss))(*arguments)
    named = {name: np.asarray(leaf) for name, leaf in name_leaves(gradient).items()}
    return Measured(np.asarray(loss), named, np.zeros(1)), params


@pytest.fixture(scope="module")
def one_device():
    """What one device computes, by set of options, measured when first asked for."""
    found = {}

    def get(options):
        name = str(options)
        if name not in found:
            found[name] = measure((1, 1, 1), options)
        return found[name]

    return get


SLOW = ((8, 1, 1), (1, 2, 4), (4, 2, 1), (4, 1, 2), (2, 4, 1), (2, 1, 4), (1, 4, 2), (1, 1, 8), (1, 8, 1))


@pytest.mark.parametrize(
    "index",
    [pytest.param(i, marks=[pytest.mark.slow] * (mesh in SLOW)) for i, mesh in enumerate(MESHES)],
    ids=lambda i: "x".join(map(str, MESHES[i])),
)
def test_every_mesh_of_eight(index, one_device):
    """All ten meshes; dropout is on; every second one with a latent rollout under rematerialization."""
    options = (ROLLOUT, PUBLISHED)[index % 2]
    expected, params = one_device(options)
    here, _ = measure(MESHES[index], options, params)
    rows = compare(differences(here, expected), None)
    assert rows.fine.all(), format_differences(str(MESHES[index]), rows, 5)


@pytest.mark.parametrize("mesh", [(1, 2, 4), pytest.param((2, 2, 2), marks=pytest.mark.slow)])
@pytest.mark.parametrize("head", ["increment", pytest.param("blend", marks=pytest.mark.slow)])
def test_roles_forcings_and_missing_values(head, mesh, one_device):
    options = ROLES | {"head": head}
    expected, params = one_device(options)
    here, _ = measure(mesh, options, params)
    rows = compare(differences(here, expected), None)
    assert rows.fine.all(), format_differences(str(mesh), rows, 5)
    # the columns of output only, input only and padding are shown or changed as their roles say
    encode = expected.gradient["encode/kernel"].reshape(16, 4, -1)
    assert np.flatnonzero(~encode.any(axis=(1, 2))).tolist() == [3, 14, 15]
    decode = expected.gradient["decode_kernel"].reshape(2, -1, 16, 4)
    assert np.flatnonzero(decode.any(axis=(0, 1, 3))).tolist() == [0, 1, 2, 3]


@pytest.mark.slow
def test_forecasts_that_are_fed_back_three_times(one_device):
    expected, params = one_device(FED_BACK)
    here, _ = measure((2, 2, 2), FED_BACK, params)
    rows = compare(differences(here, expected), None)
    assert rows.fine.all(), format_differences("2x2x2", rows, 5)


@pytest.mark.parametrize("mesh", [(2, 2, 2), pytest.param((1, 4, 2), marks=pytest.mark.slow)])
def test_circulant_token_mixing(mesh, one_device):
    expected, params = one_device(CIRCULANT)
    here, _ = measure(mesh, CIRCULANT, params)
    rows = compare(differences(here, expected), None)
    assert rows.fine.all(), format_differences(str(mesh), rows, 5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options, mesh",
    [
        (ROLES | {"head": "blend"}, (2, 2, 2)),
        (ROLLOUT, (8, 1, 1)),
        (CIRCULANT, (4, 2, 1)),
        (FED_BACK, (4, 1, 2)),
        (PUBLISHED | {"schedule": "einsum"}, (2, 2, 2)),
        (dict(batch_size=6), (3, 2, 1)),  # few of its kernels divide by three
        (dict(channel_multiple=1, patch=(1, 1), embed=7, embed_hidden=9, head="increment"), (2, 1, 1)),  # one divides
    ],
    ids=lambda value: "x".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_instances_that_share_kernels(options, mesh, one_device):
    expected, params = one_device(options)
    here, _ = measure(mesh, options | {"zero": "parameters"}, params)
    rows = compare(differences(here, expected), None)
    assert rows.fine.all(), format_differences(str(mesh), rows, 5)


@pytest.mark.slow
def test_a_short_run_with_muon_on_kernels_of_two_and_three_dimensions():
    options = CIRCULANT | dict(kind="muon", zero="parameters", peak_rate=1e-2)
    (expected, _), (losses, state) = (make_tiny(sizes, **options).run(steps=4) for sizes in ((1, 1, 1), (2, 2, 2)))
    np.testing.assert_allclose(losses, expected, rtol=2e-5)
    # moments are cut as their parameters are, and over the instances
    kernels = [leaf for leaf in jax.tree.leaves(state.moments) if leaf.ndim > 1]
    assert all(np.prod(leaf.sharding.shard_shape(leaf.shape)) * 8 == leaf.size for leaf in kernels)


@pytest.mark.slow
def test_the_crps_of_an_ensemble_at_random_leads(one_device):
    expected, params = one_device(ENSEMBLE)
    # norms' kernels are born zero: other ones make members differ
    params = jax.tree.map(lambda p: p + 0.1 * np.cos(np.arange(p.size)).reshape(p.shape).astype(np.float32), params)
    expected, params = measure((1, 1, 1), ENSEMBLE, params)
    here, _ = measure((2, 2, 2), ENSEMBLE, params)
    rows = compare(differences(here, expected), None)
    assert rows.fine.all(), format_differences("2x2x2", rows, 5)
    assert all(np.abs(g).max() > 0 for name, g in expected.gradient.items() if name.endswith("condition_kernel"))


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "most"), [("bfloat16", 0.1), ("fp8", 0.3)])
def test_rounding_of_a_format_is_the_measure_of_it(one_device, dtype, most):
    exact, params = one_device(PUBLISHED)
    there, _ = measure((1, 1, 1), PUBLISHED | {"compute_dtype": dtype}, params)
    here, _ = measure((2, 2, 2), PUBLISHED | {"compute_dtype": dtype}, params)
    rounding = differences(there, exact)
    assert 1e-3 < np.median([value for name, value in rounding.items() if name.startswith("gradient")]) < most
    rows = compare(differences(here, exact), rounding)
    assert rows.fine.all(), format_differences(dtype, rows, 5)


def test_padding_is_exact(one_device):
    """Padding channels learn nothing: their rows and columns get a gradient of exactly zero."""
    gradient = one_device(PUBLISHED)[0].gradient
    encode = gradient["encode/kernel"].reshape(8, 4, 64)  # channel, column of the patch, embed
    assert np.all(encode[5:] == 0) and np.all(np.any(encode[:5] != 0, axis=(1, 2)))
    blend = gradient["head/kernel"]
    assert np.all(blend[:, 4:] == 0) and np.all(blend[:, :, 4:] == 0) and np.any(blend[:, :4, :4] != 0)


@pytest.mark.slow
def test_a_short_run_with_a_moving_average(one_device):
    options = dict(ema_decay=0.9, dropout_rate=0.1, head="increment")
    (expected, there), (losses, here) = (make_tiny(sizes, **options).run(steps=3) for sizes in ((1, 1, 1), (2, 2, 2)))
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert len(set(losses)) == 3
    # the average lags behind the parameters by the same amount on both
    lags = [
        np.sqrt(
            sum(np.sum((np.asarray(e) - np.asarray(p)) ** 2) for e, p in zip(*map(jax.tree.leaves, (s.ema, s.params))))
        )
        for s in (there, here)
    ]
    assert lags[0] > 0 and lags[1] == pytest.approx(lags[0], rel=1e-2)


def test_33_rows_are_refused_with_the_numbers():
    with pytest.raises(
        ValueError, match=r"patch_rows=33 is not divisible by domain=2; tokens=132 is not divisible by domain=2"
    ):
        make_tiny((1, 2, 4), grid=(33, 16))


def test_what_differs_is_told():
    """A gradient counted twice, a loss off by a percent and a run that departs are each found and named."""
    right = Measured(np.array(2.0), {"a.kernel": np.ones(4), "a.bias": np.zeros(2)}, np.array([2.0, 1.0]))
    wrong = Measured(np.array(2.02), {"a.kernel": 2 * np.ones(4), "a.bias": np.zeros(2)}, np.array([2.0, 1.1]))
    assert compare(differences(right, right), None).fine.all()
    rows = compare(differences(wrong, right), None)
    assert rows.index[~rows.fine].tolist() == ["loss", "run", "gradient a.kernel"]
    text = format_differences("title", rows, 1)
    (line,) = (line.split() for line in text.splitlines() if line.startswith("gradient"))
    assert line == ["gradient", "a.kernel", "1.0e+00", "2.0e-05", "TOO", "LARGE"] and "1 of 2 gradients within" in text
    # a gradient that vanishes is measured by the whole one: rounding is fine, a bias counted twice is not
    small, noise = (Measured(right.loss, right.gradient | {"a.bias": np.full(2, s)}, right.run) for s in (1e-4, 1e-12))
    assert compare(differences(noise, right), None).fine.all()
    rows = compare(differences(small, right), None)
    assert rows.index[~rows.fine].tolist() == ["gradient a.bias"]
    assert relative(np.ones(1), np.zeros(1)) == 1.0 and relative(np.zeros(3), np.zeros(3)) == 0.0

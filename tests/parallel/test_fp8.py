"""8-bit floats: what quantizing keeps, both writers alike, products within rounding, the same on every mesh."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, PartitionSpec

from experiments import synthetic
from tests.parallel.test_jigsaw import FACTORIZATIONS, SUBSCRIPTS, dense, distributed, make_case
from tests.tiny_training import GRID, tiny_settings
from weathermixer.parallel import fp8, rings
from weathermixer.parallel import schedule as schedules
from weathermixer.parallel.jigsaw import mix
from weathermixer.parallel.mesh import AXES, make_mesh, sharding, use_mesh
from weathermixer.parallel.schedule import SCHEDULES, kernel_names

QUICK = ((2, 2, 2),)


def quantize(x):
    return jax.tree.map(lambda y: np.asarray(y, np.float32), jax.jit(fp8.quantize)(x))


@pytest.mark.parametrize("largest", [3e-20, 1e-8, 0.9, 1.0, 1.1, 7e4])
def test_values_keep_their_first_digits_whatever_their_size(largest):
    x = np.random.default_rng(0).standard_normal((24, 40)).astype(np.float32)
    x *= np.float32(largest) / np.abs(x).max()
    straight, turned, unit = quantize(x)
    assert np.log2(unit) == np.round(np.log2(unit)) and 128 <= np.abs(x).max() / unit <= 256
    np.testing.assert_array_equal(straight, turned.T)
    # three bits of mantissa: half of 2**-3, down to the format's least step
    assert np.all(np.abs(straight * unit - x) <= np.maximum(np.abs(x) / 16, unit * 2**-10) * (1 + 1e-6))


def test_zeros_stay_and_what_is_not_finite_shows():
    straight, _, unit = quantize(np.zeros((4, 4), np.float32))
    assert not straight.any() and unit > 0
    for bad in (np.inf, np.nan):
        x = np.ones((4, 4), np.float32)
        x[3, 3] = bad
        straight, _, unit = quantize(x)
        assert np.isnan((straight * unit)[3, 3])


@pytest.mark.parametrize("ring", [True, False])
@pytest.mark.parametrize("size", [1.0, 1e-9, 1e20])
def test_parts_of_unlike_size_are_put_together_in_one_unit(size, ring):
    """Each device's values in its own unit, and in the largest: the same but for what is under the format's least."""
    mesh, cut = make_mesh(1, 4, 1), PartitionSpec("domain", None)
    x = np.random.default_rng(0).standard_normal((16, 6)).astype(np.float32)
    x *= size * np.repeat(np.float32([1e-3, 40, 7, 0]), 4)[:, None]  # zeros alone raise no unit
    whole = fp8.Quantized(PartitionSpec(None), PartitionSpec(None), PartitionSpec(None))

    def inner(x):
        return rings.gather(fp8.quantize(x), "domain", 0, ring=ring)

    def gather(x):
        function = jax.jit(jax.shard_map(inner, out_specs=whole, check_vma=False))
        found = function(jax.device_put(x, jax.sharding.NamedSharding(mesh, cut)))
        return jax.tree.map(lambda y: np.asarray(y, np.float32), found)

    with use_mesh(mesh):
        straight, turned, unit = gather(x)
        np.testing.assert_array_equal(straight, turned.T)
        assert unit == quantize(x)[2]
        np.testing.assert_allclose(straight * unit, quantize(x)[0] * unit, atol=unit.item() * 2**-9)
        x[2, 3] = np.nan  # of one device: that device's part shows it
        straight, _, _ = gather(x)
        assert np.isnan(straight[:4]).all()


@pytest.mark.parametrize("shape", [(64, 128), (150, 200), (7, 300)])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_the_kernel_writes_what_the_reference_writes(shape, dtype):
    x = jax.random.normal(jax.random.key(0), shape, dtype)
    for fast, plain in zip(fp8.write_fast(x, jnp.float32(32), interpret=True), fp8.write(x, jnp.float32(32))):
        assert fast.dtype == plain.dtype == fp8.FORMAT
        np.testing.assert_array_equal(np.asarray(fast, np.float32), np.asarray(plain, np.float32))


@pytest.fixture(scope="module")
def cases():
    schedules = [schedule for schedule in SCHEDULES if schedule not in ("auto", "einsum")]
    return [make_case(over, schedule, 4, 48, 96, 144) for over in SUBSCRIPTS for schedule in schedules]


def quantized(sizes, cases, *, zero=False):
    """(y, dx, dW) of every case with products in 8-bit floats, on a mesh."""
    results = distributed(make_mesh(*sizes), cases, jnp.float32, fp8=True, zero=zero)
    return [[np.asarray(array, np.float64) for array in result] for result in results]


@pytest.fixture(scope="module")
def on_one_device(cases):
    return quantized((1, 1, 1), cases)


def test_products_are_rounded_and_nothing_else(cases, on_one_device):
    for case, results in zip(cases, on_one_device, strict=True):
        for ours, exact in zip(results, dense(case[0], *case[2:]), strict=True):
            assert 1e-3 < np.abs(ours - exact).max() / np.abs(exact).max() < 8e-2


@pytest.mark.parametrize(
    "sizes",
    [pytest.param(sizes, marks=[pytest.mark.slow] * (sizes not in QUICK)) for sizes in FACTORIZATIONS[:-2]],
    ids=str,
)
def test_every_mesh_quantizes_alike(cases, on_one_device, sizes):
    """Units are powers of two: between meshes the order of sums differs, and numbers under a unit's least."""
    for found, expected in zip(quantized(sizes, cases), on_one_device, strict=True):
        for ours, one in zip(found, expected, strict=True):
            assert np.abs(ours - one).max() / np.abs(one).max() < 1e-5


@pytest.mark.parametrize("most_in_ring", [8, 1])
def test_so_do_instances_that_share_kernels(cases, on_one_device, most_in_ring, monkeypatch):
    monkeypatch.setattr(schedules, "MOST_IN_RING", most_in_ring)
    for found, expected in zip(quantized((4, 2, 1), cases, zero=True), on_one_device, strict=True):
        for ours, one in zip(found, expected, strict=True):
            assert np.abs(ours - one).max() / np.abs(one).max() < 1e-5


def test_the_compiler_has_no_schedule_for_it():
    x, kernel, _ = make_case("token", "einsum", 1, 16, 8, 8)[2:]
    mesh = make_mesh(1, 1, 1)
    with use_mesh(mesh), pytest.raises(ValueError, match="schedule='einsum' has no products in 8-bit floats"):
        x = jax.device_put(x, sharding(mesh, "batch", "token", "embed"))
        kernel = jax.device_put(kernel, sharding(mesh, *kernel_names("token", "einsum")))
        mix(x, kernel, over="token", schedule="einsum", fp8=True)


def test_a_gpu_without_such_products_is_named():
    fp8.check_device.__wrapped__(SimpleNamespace(platform="gpu", compute_capability="9.0", device_kind="NVIDIA H100"))
    fp8.check_device.__wrapped__(SimpleNamespace(platform="gpu", compute_capability="gfx942", device_kind="AMD"))
    fp8.check_device(jax.devices()[0])
    with pytest.raises(ValueError, match="A100 has compute capability 8.0, and products .* choose 'bfloat16'"):
        a100 = SimpleNamespace(platform="gpu", compute_capability="8.0", device_kind="NVIDIA A100")
        fp8.check_device.__wrapped__(a100)


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend")
@pytest.mark.parametrize("over", SUBSCRIPTS)
def test_a_gpu_multiplies_8_bit_floats_that_are_written_once(over):
    """In the program that a GPU's compiler is given: a kernel for x, W and dy each, three products, no transpose."""
    gpu = AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=132, platform="gpu")
    mesh = AbstractMesh((1, 1, 1), AXES, axis_types=(AxisType.Explicit,) * 3, abstract_device=gpu)
    x, kernel, dy = make_case(over, "scatter", 2, 64, 48, 80)[2:]
    names = ("batch", "token", "embed")
    with jax.sharding.use_abstract_mesh(mesh):
        described = [
            jax.ShapeDtypeStruct(array.shape, dtype, sharding=sharding(mesh, *cut))
            for array, dtype, cut in (
                (x, jnp.bfloat16, names),
                (kernel, jnp.float32, kernel_names(over, "scatter")),
                (dy, jnp.bfloat16, names),
            )
        ]
        forward = functools.partial(mix, over=over, fp8=True)
        pull = jax.jit(lambda x, w, dy: (lambda y, back: (y, *back(dy)))(*jax.vjp(forward, x, w)))
        text = pull.trace(*described).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("@__gpu$xla.gpu.triton") == 3
    widened = {line.split()[0] for line in text.splitlines() if "convert" in line and "xf8E4M3FN>) ->" in line}
    assert len(widened) == 6 and text.count("dot_general") == 3
    assert not [line for line in text.splitlines() if "stablehlo.transpose" in line and "f8E4M3FN" in line]


def test_training_is_in_8_bits_and_what_is_validated_or_forecast_in_16():
    settings, mesh = tiny_settings(compute_dtype="fp8"), make_mesh(1, 1, 1)
    with use_mesh(mesh):
        problem = synthetic.make_problem(settings, mesh, grid=GRID)
        state, batch, standardization = problem.describe()
        given = state.params, batch, standardization, None
        for function, narrow in ((problem.training.loss, True), (problem.training.eval_loss, False)):
            text = jax.jit(function).lower(*given).as_text()
            assert ("f8E4M3FN" in text) == narrow and "bf16" in text

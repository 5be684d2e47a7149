"""The distributed contraction against the dense product: result and both gradients, on every mesh and schedule."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny_training import quick_compilation
from weathermixer.parallel import schedule as schedules
from weathermixer.parallel.jigsaw import mix
from weathermixer.parallel.mesh import make_mesh, sharding, use_mesh
from weathermixer.parallel.schedule import SCHEDULES, choose_schedule, kernel_names
from weathermixer.parallel.zero import cut_instances
from weathermixer.planning.hlo import KINDS, is_product, parse

FACTORIZATIONS = [(1, 1, 8), (1, 2, 4), (1, 4, 2), (1, 8, 1), (2, 2, 2), (2, 4, 1), (1, 1, 1), (1, 3, 2)]
SUBSCRIPTS = {"channel": "bti,io->bto", "token": "bid,io->bod"}


def random(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def dense(over, x, kernel, dy):
    """(y, dx, dW) in float64."""
    x, kernel, dy = (np.asarray(array, np.float64) for array in (x, kernel, dy))
    ins, out = SUBSCRIPTS[over].split("->")
    xs, ks = ins.split(",")
    return (
        np.einsum(f"{xs},{ks}->{out}", x, kernel),
        np.einsum(f"{out},{ks}->{xs}", dy, kernel),
        np.einsum(f"{xs},{out}->{ks}", x, dy),
    )


def distributed(mesh, cases, dtype, *, fp8=False, zero=False):
    """(y, dx, dW) of every (over, schedule, x, kernel, dy), in one program; each must be cut as what it belongs to.

    With `zero` kernels are cut over the instances too.
    """
    activation = sharding(mesh, "batch", "token", "embed")

    def run(arguments):
        results = []
        for (over, schedule, *_), (x, kernel, dy) in zip(cases, arguments, strict=True):
            contract = functools.partial(mix, over=over, schedule=schedule, fp8=fp8)
            y, pull = jax.vjp(contract, x.astype(dtype), kernel)
            results.append((y, *pull(dy.astype(dtype))))
        return results

    with use_mesh(mesh), quick_compilation():
        arguments = [
            (
                jax.device_put(x, activation),
                jax.device_put(kernel, sharding(mesh, *kernel_names(over, schedule))),
                jax.device_put(dy, activation),
            )
            for over, schedule, x, kernel, dy in cases
        ]
        if zero:
            arguments = [(x, cut_instances(kernel), dy) for x, kernel, dy in arguments]
        results = jax.jit(run)(arguments)
    for (x, kernel, dy), (y, dx, dkernel) in zip(arguments, results, strict=True):
        for got, like in ((y, dy), (dx, x), (dkernel, kernel)):
            assert got.shape == like.shape and got.sharding.spec == like.sharding.spec
        assert y.dtype == dx.dtype == dtype and dkernel.dtype == jnp.float32
    return results


def check(mesh, cases, dtype, tolerance, *, zero=False):
    for (over, schedule, x, kernel, dy), got in zip(cases, distributed(mesh, cases, dtype, zero=zero), strict=True):
        for name, ours, exact in zip(("y", "dx", "dW"), got, dense(over, x, kernel, dy), strict=True):
            error = np.abs(np.asarray(ours, np.float64) - exact).max() / np.abs(exact).max()
            assert error < tolerance, f"{name} over {over}s on {schedule}: {error:.2e}"


def make_case(over, schedule, batch, tokens, embed, produced):
    contracted = {"token": tokens, "channel": embed}[over]
    dy = (batch, produced, embed) if over == "token" else (batch, tokens, produced)
    return over, schedule, random(batch, tokens, embed), random(contracted, produced), random(*dy)


# 2x2x2 is that of bfloat16, which is quick; rings of eight are those of four, longer
SLOW = [(1, 1, 8), (1, 8, 1), (2, 2, 2)]


@pytest.mark.parametrize(
    "sizes", [pytest.param(sizes, marks=[pytest.mark.slow] * (sizes in SLOW)) for sizes in FACTORIZATIONS], ids=str
)
def test_every_schedule_equals_the_dense_product(sizes):
    cases = [make_case(over, schedule, 4, 48, 96, 144) for over in SUBSCRIPTS for schedule in SCHEDULES]
    check(make_mesh(*sizes), cases, jnp.float32, 2e-6)


def test_bfloat16_rounds_and_nothing_else():
    cases = [make_case(over, schedule, 2, 48, 96, 144) for over in SUBSCRIPTS for schedule in SCHEDULES]
    check(make_mesh(2, 2, 2), cases, jnp.bfloat16, 2e-2)


@pytest.mark.parametrize("most_in_ring", [8, 1])
@pytest.mark.parametrize("sizes", [(4, 2, 1), pytest.param((2, 2, 2), marks=pytest.mark.slow)], ids=str)
def test_kernels_that_instances_share(sizes, most_in_ring, monkeypatch):
    """Gathered and summed chunk by chunk, or by collectives: the same, and each instance gets its part of dW."""
    monkeypatch.setattr(schedules, "MOST_IN_RING", most_in_ring)
    cases = [make_case(over, schedule, 4, 48, 96, 144) for over in SUBSCRIPTS for schedule in SCHEDULES]
    check(make_mesh(*sizes), cases, jnp.float32, 2e-6, zero=True)


def test_instances_sum_a_shared_kernels_gradient_in_float32(monkeypatch):
    """Of four instances three add 3/4 to 256, where bfloat16's next number is 258: one by one it would lose them."""
    x, dy = np.full((4, 8, 8), 3 / 32, np.float32), np.ones((4, 8, 8), np.float32)
    x[0] = 32
    kernel = random(8, 8)
    for most_in_ring in (8, 1):
        monkeypatch.setattr(schedules, "MOST_IN_RING", most_in_ring)
        case = ("channel", "ring_scatter", x, kernel, dy)
        ((_, _, dkernel),) = distributed(make_mesh(4, 1, 1), [case], jnp.bfloat16, zero=True)
        np.testing.assert_allclose(np.asarray(dkernel), 258.25, atol=0.25)


@pytest.mark.parametrize("seed", [0, 3, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_any_shape_that_divides_on_any_mesh(seed):
    draw = np.random.default_rng(seed)
    data, domain, tensor = draw.permutation([(1, 2, 3), (2, 2, 1), (1, 5, 1), (2, 1, 4), (1, 4, 2)][seed])
    unit = int(domain * tensor)
    cases = []
    for over in SUBSCRIPTS:
        for schedule in ("gather", "scatter", "ring_gather", "ring_scatter"):
            tokens, embed, produced = (int(unit * n) for n in draw.integers(1, 7, 3))
            cases.append(make_case(over, schedule, int(data * draw.integers(1, 3)), tokens, embed, produced))
    check(make_mesh(int(data), int(domain), int(tensor)), cases, jnp.float32, 3e-6)


def test_auto_follows_the_cut_of_the_kernel():
    mesh = make_mesh(1, 2, 2)
    x, up, down = random(1, 16, 8), random(16, 8), random(16, 8)
    with use_mesh(mesh):
        x = jax.device_put(x, sharding(mesh, "batch", "token", "embed"))
        for kernel, stored in ((up, "scatter"), (down, "gather")):
            kernel = jax.device_put(kernel, sharding(mesh, *kernel_names("token", stored)))

            def jaxpr(schedule, kernel=kernel):
                return str(jax.make_jaxpr(lambda x, w: mix(x, w, over="token", schedule=schedule))(x, kernel))

            assert jaxpr("auto") == jaxpr(f"ring_{stored}")
            assert "ppermute" in jaxpr("auto") and "ppermute" not in jaxpr(stored)


def free_products(text):
    """Of every collective of a compiled program, how many products can run meanwhile: none feeds it or needs it."""
    transfers = []
    computations, _ = parse(text)
    for instructions in computations.values():
        needs = {}
        for each in instructions:
            needs[each.name] = set(each.operands).union(*(needs.get(operand, ()) for operand in each.operands))
        products = [each.name for each in instructions if is_product(each, computations)]
        for each in instructions:
            if (kind := each.opcode.removesuffix("-start")) in KINDS:
                free = (name not in needs[each.name] and each.name not in needs[name] for name in products)
                transfers.append((kind, sum(free)))
    return transfers


@pytest.mark.parametrize("devices", [2, 4])
def test_a_chunk_and_another_chunks_product_wait_for_nothing_of_each_other(devices):
    """In the compiled program: the ring's transfers can run under all products but their own, a bulk one under none."""
    mesh = make_mesh(1, devices, 1)

    def compiled(schedule, *, pull=False):
        x, kernel, dy = make_case("token", schedule, 1, 32, 16, 64)[2:]
        with use_mesh(mesh):
            x, dy = (jax.device_put(array, sharding(mesh, "batch", "token", "embed")) for array in (x, dy))
            kernel = jax.device_put(kernel, sharding(mesh, *kernel_names("token", schedule)))
            forward = lambda x, kernel: mix(x, kernel, over="token", schedule=schedule)  # noqa: E731
            backward = lambda x, kernel, dy: jax.vjp(forward, x, kernel)[1](dy)  # noqa: E731
            lowered = jax.jit(backward).lower(x, kernel, dy) if pull else jax.jit(forward).lower(x, kernel)
            return free_products(lowered.compile().as_text())

    for way in ("gather", "scatter"):
        assert compiled(f"ring_{way}") == [("collective-permute", devices - 1)] * (devices - 1)
        assert {free for _, free in compiled(way)} == {0}
        backward = compiled(f"ring_{way}", pull=True)
        assert len(backward) >= devices - 1 and all(free >= devices - 1 for _, free in backward)


def test_a_kernel_cut_for_another_schedule_is_refused():
    mesh = make_mesh(1, 2, 2)
    with use_mesh(mesh):
        x = jax.device_put(random(1, 16, 8), sharding(mesh, "batch", "token", "embed"))
        kernel = jax.device_put(random(16, 8), sharding(mesh, *kernel_names("token", "scatter")))
        with pytest.raises(ValueError, match=r"does not fit schedule='ring_gather' over tokens.*gather_token_in"):
            mix(x, kernel, over="token", schedule="ring_gather")
        mesh_of_two = make_mesh(2, 2, 2)
        with use_mesh(mesh_of_two), pytest.raises(ValueError, match="cut alike, not .* and .*: reshard one"):
            x2 = jax.device_put(random(2, 16, 8), sharding(mesh_of_two, "batch", "token", "embed"))
            whole = jax.device_put(random(16, 8), sharding(mesh_of_two, *kernel_names("token", "scatter")))
            mix((x2, x2), (whole, cut_instances(whole)), over="token")
        with pytest.raises(ValueError, match="schedule='fastest' is not one of"):
            mix.__wrapped__(x, kernel, over="token", schedule="fastest")


def test_the_cheaper_of_gather_and_scatter_is_chosen():
    # token MLP of 17280 tokens and 8640 hidden: 2 * 8640 < 3 * 17280 on the way in, 3 * 8640 < 2 * 17280 on the way out
    assert choose_schedule("auto", 17280, 8640, along=2) == "ring_scatter"
    assert choose_schedule("auto", 8640, 17280, along=2) == "ring_gather"
    assert choose_schedule("auto", 12000, 17280, along=2) == "ring_scatter"
    assert choose_schedule("auto", 8640, 17280, along=1) == "ring_scatter"
    assert choose_schedule("einsum", 1, 1, along=2) == "einsum"
    with pytest.raises(ValueError, match="schedule='best' is not one of"):
        choose_schedule.__wrapped__("best", 1, 1, along=2)

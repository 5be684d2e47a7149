"""Traffic by hand on small cases, and its split between nodes."""

import dataclasses

import pytest

from weathermixer.model.weathermixer import ModelShape
from weathermixer.parallel.schedule import choose_schedule
from weathermixer.planning.meshes import Group, Layout, StepOptions, misfits
from weathermixer.planning.traffic import Transfer, read_bytes, step_transfers
from weathermixer.planning.work import contractions

SHAPE = ModelShape((8, 16), 8, 6, (1, 4), embed=32, token_hidden=16, embed_hidden=64, blocks=2, head="increment")


def transfers(layout, **options):
    found = {t.name: t for t in step_transfers(SHAPE, layout, StepOptions(**{"batch": layout.data, **options}))}
    assert all(t.bytes > 0 for t in found.values())
    return found


def test_one_device_exchanges_nothing():
    assert transfers(Layout(1, 1, 1)) == {}


def test_domain_by_hand():
    """32 tokens of 32 features on domain=2: hidden [16, 32] moves in bf16, twice up (scattered, gathered back)."""
    found = transfers(Layout(1, 2, 1), schedule="scatter")
    hidden = 16 * 32 * 2
    # two blocks; forward y is scattered, backward dy gathered, half of it from the other device
    assert found["token up: activation"].bytes == 2 * 2 * hidden // 2
    assert found["token down: activation"].bytes == 2 * 2 * (32 * 32 * 2) // 2
    # channel kernels are gathered forward and backward over domain, their gradients summed and cut
    assert found["channel up: kernel"].bytes == 2 * 3 * (32 * 64 * 2) // 2
    # encode's input is data: its kernel is not gathered for a gradient of it
    assert found["encode: kernel"].bytes == 2 * (32 * 32 * 2) // 2
    assert "token up: kernel" not in found and "channel up: activation" not in found and "norms" not in found


def test_auto_moves_the_hidden_layer_twice():
    """With H < 2/3 T the hidden [H, D] is scattered after the first product and gathered before the second."""
    layout = Layout(1, 4, 1)
    chosen = {c.name: choose_schedule("auto", c.inputs, c.outputs, along=4) for c in contractions(SHAPE)}
    assert chosen["token up"] == "ring_scatter" and chosen["token down"] == "ring_gather"
    found = transfers(layout)
    assert found["token down: activation"].bytes == 2 * 3 * (16 * 32 * 2) * 3 // 4
    assert found["token down: activation"].bytes < transfers(layout, schedule="scatter")["token down: activation"].bytes


def test_rematerialization_repeats_a_blocks_transfers():
    layout = Layout(1, 2, 2)
    kept, again = transfers(layout, schedule="scatter"), transfers(layout, schedule="scatter", rematerialize="block")
    assert again["token up: activation"].bytes == 1.5 * kept["token up: activation"].bytes
    assert again["token up: kernel"].bytes == pytest.approx(4 / 3 * kept["token up: kernel"].bytes)
    for name in ("channel down: activation", "channel down: kernel", "encode: activation", "decode: kernel"):
        assert again[name] == kept[name]


def test_sum_over_data():
    kernels = sum(c.kernel * c.count for c in contractions(SHAPE))
    all_reduce = transfers(Layout(4, 2, 1))["gradients over data"]
    assert all_reduce.bytes == pytest.approx(2 * 3 / 4 * kernels / 2 * 4) and not all_reduce.under


@pytest.mark.parametrize("compute_dtype, gathered", [("bfloat16", 2), ("fp8", 1)])
def test_instances_that_share_kernels_gather_chunks_twice_and_sum_them_once(compute_dtype, gathered):
    found = transfers(Layout(4, 2, 1), zero="parameters", compute_dtype=compute_dtype)
    up, encode = found["token up: kernel over data"], found["encode: kernel over data"]
    assert up.bytes == pytest.approx(3 / 4 / 2 * 2 * 32 * 16 * (2 * gathered + 2))  # of two blocks
    assert encode.bytes == pytest.approx(3 / 4 / 2 * 32 * 32 * (2 + 2))  # in bfloat16; its input is data
    assert (up.under, up.messages) == ("token up", 2 * 3 * 3)
    assert "gradients over data" not in found and "parameters over data" not in found


def test_many_instances_that_share_kernels_use_collectives_in_float32():
    found = transfers(Layout(16, 2, 1), zero="parameters")
    kernels = sum(c.kernel * c.count for c in contractions(SHAPE))
    for name in ("gradients over data", "parameters over data"):
        assert found[name].bytes == pytest.approx(15 / 16 * kernels / 2 * 4) and not found[name].under
    assert not [name for name in found if "kernel over data" in name]
    again = transfers(Layout(16, 2, 1), zero="parameters", rematerialize="block")
    blocks = sum(c.kernel * c.count for c in contractions(SHAPE) if c.in_block)
    more = again["parameters over data"].bytes - found["parameters over data"].bytes
    assert more == pytest.approx(15 / 16 * blocks / 2 * 4)


def test_a_rollout_gathers_kernels_once_and_sums_gradients_each_time():
    once, twice = (transfers(Layout(2, 2, 2), schedule="scatter", repeats=k) for k in (1, 2))
    assert twice["channel up: activation"].bytes == 2 * once["channel up: activation"].bytes
    assert twice["channel up: kernel"].bytes == pytest.approx(5 / 3 * once["channel up: kernel"].bytes)
    assert twice["decode: kernel"] == once["decode: kernel"]
    blocks = sum(c.kernel * c.count for c in contractions(SHAPE) if c.in_block)
    more = twice["gradients over data"].bytes - once["gradients over data"].bytes
    assert more == pytest.approx(2 * 1 / 2 * blocks / 4 * 4)


@pytest.mark.parametrize("times", [{"rollout": 3}, {"accumulate": 3}])
def test_gradients_are_summed_for_each_step_and_part(times):
    """The compiled step's loops of three have these sums in them."""
    once, thrice = (transfers(Layout(2, 1, 1), batch=6, **more) for more in ({}, times))
    assert thrice["gradients over data"].bytes == 3 * once["gradients over data"].bytes


def test_two_frames_are_encoded_in_one_contraction():
    two = dataclasses.replace(SHAPE, history=2)
    for schedule, activation in (("scatter", 1), ("gather", 2)):
        one, both = (
            {t.name: t.bytes for t in step_transfers(shape, Layout(1, 2, 2), StepOptions(batch=1, schedule=schedule))}
            for shape in (SHAPE, two)
        )
        assert both["encode: activation"] == activation * one["encode: activation"]
        assert both["encode: kernel"] == 2 * one["encode: kernel"]
        assert both["decode: activation"] == one["decode: activation"]


@pytest.mark.parametrize(
    "group, straight, between",
    [
        (Group(8, 1), False, 0.0),  # one node
        (Group(16, 1), False, 1 / 8),  # a ring through two nodes: one link in eight
        (Group(16, 1), True, 8 / 15),  # straight: eight of the fifteen others are elsewhere
        (Group(4, 8), False, 1.0),  # every member in its own node
        (Group(4, 4), True, 2 / 3),
    ],
)
def test_split_between_nodes(group, straight, between):
    within, across = Transfer("x", group, 1000.0, 1, straight=straight).split(8)
    assert (within, across) == pytest.approx((1000 * (1 - between), 1000 * between))


def test_a_process_reads_its_boxes():
    shape, options = ModelShape(), StepOptions(batch=4)
    frame = 720 * 1440 * 2
    # published batch of one sample per instance: two frames of 69 channels in 16 bits
    assert read_bytes(shape, Layout(4, 1, 1), options) == 2 * 69 * frame
    assert read_bytes(shape, Layout(4, 4, 2), options, devices=8) == 2 * 72 * frame
    assert read_bytes(shape, Layout(2, 4, 2), options, devices=8) == 4 * 72 * frame


def test_batch_and_model_must_divide():
    assert misfits(SHAPE, Layout(3, 1, 1), batch=4) == ["batch=4 is not divisible by data=3"]
    tokens = "tokens=32 is not divisible by domain=3 * tensor=1"
    assert tokens in misfits(SHAPE, Layout(1, 3, 1), batch=1) and not misfits(SHAPE, Layout(1, 2, 2), batch=1)


def test_bad_options():
    with pytest.raises(ValueError, match="zero='all' is not one of none, parameters"):
        StepOptions(batch=1, zero="all")
    with pytest.raises(ValueError, match="compute_dtype='float8' is not one of"):
        StepOptions(batch=1, compute_dtype="float8")
    with pytest.raises(ValueError, match="batch=0"):
        StepOptions(batch=0)

"""Other schemes' shares by hand, and the figure that compares them."""

import pytest

from experiments.benchmark import scaling
from weathermixer.model.weathermixer import ModelShape
from weathermixer.planning.baselines import fsdp, lower_bound, megatron, ours, published
from weathermixer.planning.meshes import Layout, StepOptions, executed_flops
from weathermixer.planning.work import parameters

SHAPE = ModelShape()


def test_one_device_is_the_same_for_all():
    options = StepOptions(batch=1)
    shares = [
        ours(SHAPE, Layout(1, 1, 1), options),
        published(SHAPE, Layout(1, 1, 1), options),
        megatron(SHAPE, Layout(1, 1, 1), options),
        fsdp(SHAPE, Layout(1, 1, 1), options),
    ]
    assert [share.received for share in shares] == [0, 0, 0, 0]
    assert {share.flops for share in shares} == {executed_flops(SHAPE, StepOptions(batch=1))}
    assert lower_bound(SHAPE, Layout(1, 1, 1), options).received == 0


def test_megatron_by_hand():
    """On four devices: an all-reduce per MLP forward and backward, decode's two, encode's and decode's gathers."""
    state, patches = 17280 * 4320, 17280 * 4320
    share = megatron(SHAPE, Layout(1, 1, 4), StepOptions(batch=1))
    assert share.received == pytest.approx(2 * (2 * 3 / 4 * (12 + 2) * state + 3 / 4 * (state + patches)))
    blend = 3 * 2 * 144 * 72 * 720 * 1440
    assert share.flops == pytest.approx((executed_flops(SHAPE, StepOptions(batch=1)) - blend) / 4 + blend)


def test_fsdp_by_hand():
    share = fsdp(SHAPE, Layout(8, 1, 1), StepOptions(batch=8))
    assert share.received == pytest.approx(7 / 8 * parameters(SHAPE) * (2 + 2 + 4))
    assert fsdp(SHAPE, Layout(4, 1, 2), StepOptions(batch=8)) is None


def test_the_published_four_way_scheme_is_unbalanced():
    options = StepOptions(batch=1)
    flops = executed_flops(SHAPE, options)
    assert published(SHAPE, Layout(1, 1, 4), options).flops == pytest.approx(flops / 3)
    assert published(SHAPE, Layout(1, 1, 2), options).flops == flops / 2


@pytest.mark.parametrize(
    "layout", [Layout(1, 2, 1), Layout(1, 2, 2), Layout(1, 4, 2), Layout(2, 4, 4), Layout(8, 1, 1)]
)
def test_nobody_beats_the_lower_bound(layout):
    options = StepOptions(batch=layout.data)
    bound = lower_bound(SHAPE, layout, options).received
    assert 0 < bound <= ours(SHAPE, layout, options).received


def test_figure_and_table(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(scaling, "COUNTS", [1, 8, 1024])
    rows = scaling.main([f"--output={tmp_path / 'figure.png'}"])
    assert (tmp_path / "figure.png").stat().st_size > 20_000
    # ours reaches 1024 devices both ways, and from eight devices on receives the fewest bytes
    for _, here in rows[rows.held_gb > 0].groupby("scaling"):
        assert here[here.scheme == "ours, any mesh"].devices.tolist() == scaling.COUNTS
        least = here[here.devices >= 8].groupby("devices").received_gb.idxmin()
        assert set(rows.scheme[least]) == {"ours, any mesh"}
    assert "on 8 x 16 x 8" in capsys.readouterr().out

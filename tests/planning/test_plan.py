"""Planning: every mesh is judged, the model sizes of the plan's range come out, refusals carry their numbers."""

import time

import pytest

from weathermixer.model.weathermixer import ModelShape
from weathermixer.planning.hardware import find_hardware
from weathermixer.planning.meshes import Layout, StepOptions
from weathermixer.planning.plan import Plan, Refusal, layouts, make_plan, plan_meshes

SIZES = {
    "1.06 B": {},
    "3.2 B": {"embed": 14336, "embed_hidden": 14336, "token_hidden": 17280},
    "10 B": {"embed": 22528, "embed_hidden": 22528, "token_hidden": 17280, "blocks": 6},
}
GRIDS = {0.25: {}, 0.125: {"grid": (1440, 2880), "patch": (2, 120)}}


def test_layouts_are_all_factorizations():
    assert len(layouts(8)) == 10 and len(layouts(1024)) == 66
    assert {layout.devices for layout in layouts(24)} == {24}
    assert len(set(layouts(24))) == len(layouts(24)) == 30
    with pytest.raises(ValueError, match="devices=0 must be at least 1"):
        layouts(0)


def test_one_to_1024_devices_in_seconds():
    """Three models, two grids: every mesh judged, and one for each count where memory allows."""
    h200, start = find_hardware("h200"), time.process_time()
    for size in SIZES.values():
        for grid in GRIDS.values():
            for power in (0, 2, 3, 6, 10):
                shape, options = ModelShape(**{**size, **grid}), StepOptions(batch=1)
                plans, refusals = plan_meshes(shape, 2**power, options, h200, samples_per_instance=1)
                assert len(plans) + len(refusals) == len(layouts(2**power))
                assert plans or power == 0
                assert [p.seconds_per_sample for p in plans] == sorted(p.seconds_per_sample for p in plans)
    assert time.process_time() - start < 20  # the checks of types take most of it


def test_refusals_carry_the_numbers():
    h200 = find_hardware("h200")
    refused = make_plan(ModelShape(), Layout(1, 32, 1), StepOptions(batch=1), h200)
    assert isinstance(refused, Refusal) and "patch_rows=720 is not divisible by domain=32" in refused.reasons
    refused = make_plan(ModelShape(**SIZES["10 B"]), Layout(2, 1, 1), StepOptions(batch=2), h200)
    assert isinstance(refused, Refusal)
    assert "needs 224.5 GB per device (moments 79.7, activations 40.1, ...), h200 has 129.7" in refused.reasons[0]
    assert isinstance(make_plan(ModelShape(**SIZES["10 B"]), Layout(1, 4, 1), StepOptions(batch=1), h200), Plan)


def test_fixed_batch_refuses_more_instances_than_samples():
    plans, refusals = plan_meshes(ModelShape(), 16, StepOptions(batch=8), find_hardware("h200"))
    assert plans and all(plan.layout.data <= 8 and plan.batch == 8 for plan in plans)
    assert ("batch=8 is not divisible by data=16",) in [refusal.reasons for refusal in refusals]

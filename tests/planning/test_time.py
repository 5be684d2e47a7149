"""The machines' table and the predicted step, against hand-made figures and measurements."""

import dataclasses

import pytest

from weathermixer.planning.hardware import HARDWARE, find_device, find_hardware
from weathermixer.planning.meshes import Layout, StepOptions, executed_flops
from weathermixer.planning.time import MEASURED, step_time, transfer_seconds
from weathermixer.planning.time import MODEL_SHAPE as BIG
from weathermixer.planning.traffic import Group, Transfer
from weathermixer.planning.work import parameters


def test_predictions_are_near_what_was_measured():
    for case in MEASURED:
        step = step_time(BIG, case.layout, case.options, find_hardware(case.device))
        assert 1e3 * step.total == pytest.approx(case.step_ms, rel=0.1), case


def test_parts_of_a_step_by_hand():
    """Products at the share of peak, Adam's seven passes and the norm's, the cast to 16 bits, and the gaps."""
    h200 = find_hardware("h200", achieved_products=0.5, achieved_copies=0.5, achieved_elementwise=0.25, gap_seconds=1)
    step = step_time(BIG, Layout(1, 1, 1), StepOptions(batch=1), h200)
    blend = 3 * 2 * 144 * 72 * 720 * 1440
    others = executed_flops(BIG, StepOptions(batch=1)) - blend
    assert step.products == pytest.approx(others / 494.5e12 + blend / 247.25e12)
    assert step.optimizer == pytest.approx(parameters(BIG) * (8 * 4 + 6) / 2.4e12)
    assert step.exchange_hidden == step.exchange_exposed == 0
    assert step.total == pytest.approx(step.products + step.optimizer + step.elementwise) and step.elementwise > 1


def test_transfers_under_products_slow_them():
    layout, options = Layout(1, 1, 2), StepOptions(batch=1)
    free, dear = (step_time(BIG, layout, options, find_hardware("h200", contention=c)) for c in (0, 0.5))
    assert dear.exchange_hidden == free.exchange_hidden > 0
    assert dear.total - free.total == pytest.approx(0.5 * dear.exchange_hidden)


def test_products_divide_over_devices():
    h200 = find_hardware("h200")
    one = step_time(BIG, Layout(1, 1, 1), StepOptions(batch=1), h200)
    two = step_time(BIG, Layout(1, 2, 1), StepOptions(batch=1), h200)
    assert two.products == pytest.approx(one.products / 2)
    assert two.exchange_hidden > 0
    plain = step_time(BIG, Layout(1, 2, 1), StepOptions(batch=1, schedule="scatter"), h200)
    assert plain.exchange_exposed > two.exchange_exposed


def test_slow_storage_is_exposed():
    slow = find_hardware("h200", read_rate=1e9)
    step = step_time(BIG, Layout(1, 1, 1), StepOptions(batch=1), slow)
    reading = 2 * 69 * 720 * 1440 * 2 / 1e9
    assert step.read_hidden + step.read_exposed == pytest.approx(reading)
    assert step.total == pytest.approx(reading)


def test_a_transfer_takes_its_slowest_link():
    machine = dataclasses.replace(
        HARDWARE["h200"], node_rate=100.0, network_rate=10.0, achieved_links=1.0, latency_seconds=1.0
    )
    assert transfer_seconds(Transfer("x", Group(8, 1), 1000.0, 3), machine) == pytest.approx(10 + 3)
    assert transfer_seconds(Transfer("x", Group(2, 8), 1000.0, 0), machine) == pytest.approx(100)
    assert transfer_seconds(Transfer("x", Group(16, 1), 1000.0, 0), machine) == pytest.approx(1000 / 8 / 10)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"device='v100' is not in the hardware table, choose one of \['a100'"):
        find_hardware("v100")
    with pytest.raises(ValueError, match=r"hardware has no field \['speed'\]"):
        find_hardware("h200", speed=1.0)
    with pytest.raises(ValueError, match="compute_dtype='int8' has no peak"):
        find_hardware("h200").peak("int8")
    assert find_hardware("h200", node_size=4).node_size == 4


def test_devices_are_found_by_the_name_jax_gives():
    names = {
        "NVIDIA H200": "h200",
        "NVIDIA H100 80GB HBM3": "h100",
        "NVIDIA A100-SXM4-80GB": "a100",
        "NVIDIA B200": "b200",
    }
    assert {kind: find_device(kind).name for kind in names} == names
    assert find_device("cpu") is None and find_device("Tesla V100-SXM2-16GB") is None

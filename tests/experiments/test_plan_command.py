"""The planner's program: how long a run takes and what it costs, of the data that there are."""

import json

import pytest

from experiments.plan import main


def plans(tmp_path, *options):
    main([f"--json={tmp_path / 'plans.json'}", *options])
    return json.loads((tmp_path / "plans.json").read_text())["plans"]


def test_hours_and_costs_are_those_of_all_samples(tmp_path, capsys):
    options = ["--config=reference", "--config.training.epochs=2", "--config.data.train=('2000-01-01','2000-12-31')"]
    (one,) = plans(tmp_path, *options, "--price=3")
    samples = 2 * 4 * 366
    assert f"run: {samples:,} samples, 2 epochs of 1,464;" in capsys.readouterr().out
    assert one["run_hours"] == pytest.approx(samples / one["samples_per_s"] / 3600, rel=1e-6)
    assert one["cost"] == pytest.approx(3 * one["device_hours"])
    for plan in plans(tmp_path, *options, "--devices=8"):
        assert plan["device_hours"] == pytest.approx(8 * plan["run_hours"]) and "cost" not in plan


def test_an_archive_tells_its_starts(make_archive, tmp_path, capsys):
    archive = make_archive(times=40, missing=[7])
    periods = {"train": ("2000-01-01", "2000-01-09"), "validation": ("2000-01-10",) * 2, "test": ("2000-01-10",) * 2}
    dates = [f"--config.data.{name}={period}" for name, period in periods.items()]
    sizes = ["--config.model.patch=(1,4)", "--config.training.steps=17", "--config.training.batch_size=3"]
    plans(tmp_path, "--config=reference", f"--data={archive.path}", *dates, *sizes)
    assert "run: 51 samples, 1.55 epochs of 33;" in capsys.readouterr().out  # 35 pairs, two of them across a gap


def test_a_machine_of_ones_own(tmp_path):
    own = "--hardware=memory_bytes=30e9,read_rate=100e9"
    two = plans(tmp_path, "--config=reference", "--devices=2", "--device=gh200", own)
    assert all(plan["memory_gb"] < 0.92 * 30 and plan["read_exposed_ms"] == 0 for plan in two)

"""Exports and foreign weights open as runs do, far from what trained them."""

import shutil

import numpy as np
import pytest

from experiments import export
from tests.runs.test_run import START, assert_same, weather
from weathermixer.parallel.mesh import make_mesh
from weathermixer.runs.export import export_run, import_weights
from weathermixer.runs.run import open_run


@pytest.fixture(scope="module")
def run(whole):
    """A run that was trained on an archive, kept a moving average, and is open."""
    return open_run(whole[0])


def test_an_export_forecasts_the_same_elsewhere_without_the_archive(run, tmp_path, capsys):
    expected = run.forecast(weather(), starts=START, hours=18)
    export.main([str(run.path), str(tmp_path / "export")])
    assert "step 2 of" in capsys.readouterr().out
    shutil.move(tmp_path / "export", tmp_path / "moved")
    hidden = shutil.move(run.path.parent, tmp_path / "hidden")
    try:
        moved = open_run(tmp_path / "moved")
        assert_same(moved.forecast(weather(), starts=START, hours=18), expected)
        with pytest.raises(ValueError, match="has no data of its own: give --data=ARCHIVE"):
            moved.forecast(starts=START, hours=6)
        sizes = [
            sum(f.stat().st_size for f in (p / "checkpoints").rglob("*")) for p in (moved.path, tmp_path / "hidden/run")
        ]
        assert sizes[0] < sizes[1] / 2
        assert not any(str(run.path.parent) in f.read_text() for f in moved.path.glob("*.json"))
    finally:
        shutil.move(hidden, run.path.parent)
    with pytest.raises(ValueError, match="moved exists: delete it or choose another name"):
        export_run(run, tmp_path / "moved")


def test_weights_are_written_and_read_back_bit_equal(run, tmp_path):
    np.savez(tmp_path / "weights.npz", **run.weights())
    with np.load(tmp_path / "weights.npz") as mapping:
        path = import_weights(mapping, tmp_path / "imported", settings=run.settings, reference=run.reference)
    imported = open_run(path, mesh=make_mesh(1, 2, 2))
    assert imported.step == 0 and list(imported.weights()) == list(run.weights())
    for name, values in run.weights().items():
        np.testing.assert_array_equal(imported.weights()[name], values)
    expected = run.forecast(weather(), starts=START, hours=12)
    assert_same(open_run(path).forecast(weather(), starts=START, hours=12), expected)


def test_weights_that_do_not_fit_are_all_named(run, tmp_path):
    mapping = run.weights()
    mapping["encode/bias"] = mapping["encode/bias"][:-1]
    mapping["speed"] = mapping.pop("norm/scale")
    with pytest.raises(
        ValueError,
        match=r"encode/bias is float32\[15\] there, float32\[16\] here; norm/scale is not there, .*; speed is",
    ):
        import_weights(mapping, tmp_path / "imported", settings=run.settings, reference=run.reference)
    assert not (tmp_path / "imported").exists()

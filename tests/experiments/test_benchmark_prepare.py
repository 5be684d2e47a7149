"""Prepare's benchmark on a small grid: its table is consistent, and what it made is gone."""

import os
import tempfile

import pytest

from experiments.benchmark import prepare
from experiments.benchmark.__main__ import main


@pytest.mark.parametrize("workers", ["1", pytest.param("1,2", marks=pytest.mark.slow)])
def test_rows_and_table(tmp_path, capsys, monkeypatch, workers):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    rows = prepare.main(["--grid=16,32", "--frames=10", f"--workers={workers}"])
    best = rows["CPU s/GB"].min()
    for row in rows.to_dict("records"):
        assert row["frames"] == (8 if row["workers"] == 1 else 10)
        assert row["cores"] == pytest.approx(1000 * row["workers"] / best)
        assert row["share"] == pytest.approx(row["MB/s"] / min(row["disk"], row["cores"]))
        assert 0 <= row["peak MB"] <= row["stated MB"]  # a single one is this process, which may have had the room
    printed = capsys.readouterr().out
    assert "10 frames of 0 MB" in printed
    assert len(printed.split("stated MB\n")[1].splitlines()) == len(rows)
    assert os.listdir(tmp_path) == []


def test_it_is_named_among_the_benchmarks(capsys):
    with pytest.raises(SystemExit):
        main(["prepare", "--help"])
    assert "python -m experiments.benchmark prepare" in capsys.readouterr().out

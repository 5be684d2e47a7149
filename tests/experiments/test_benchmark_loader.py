"""The loader's benchmark on a small grid: every source reads, the table and the file say the same."""

import csv

import pytest

from experiments.benchmark import loader
from experiments.benchmark.__main__ import main


def test_rows_and_file(tmp_path, capsys):
    path = tmp_path / "rows.csv"
    options = ["--grid=16,32", "--channels=8", "--meshes=2,2", "--processes=1", "--seconds=0.02", "--rounds=1"]
    rows = loader.main([*options, "--made_for=2,2", f"--folder={tmp_path}", f"--csv={path}", "--no_amplification"])
    sources = ["archive, none", "its bytes, none", "archive, zstd", "its bytes, zstd", "xarray", "xarray, dask"]
    assert [row["source"] for row in rows] == sources
    for row in rows:
        assert (row["domain"], row["tensor"], row["processes"], row["page_cache"]) == (2, 2, 1, "warm")
        # two frames of 8 x 16 x 32 16-bit values, a quarter of each
        assert row["megabytes_per_second"] == pytest.approx(row["samples_per_second"] * 2 * 8 * 16 * 32 * 2 / 4 / 1e6)
    assert rows[0]["of_raw"] == pytest.approx(rows[0]["samples_per_second"] / rows[1]["samples_per_second"])
    with path.open() as file:
        written = list(csv.DictReader(file))
    assert [float(row["samples_per_second"]) for row in written] == [row["samples_per_second"] for row in rows]
    assert "archive, zstd" in capsys.readouterr().out
    assert [file.name for file in tmp_path.iterdir()] == ["rows.csv"]  # the stores are gone


def test_amplification_table(tmp_path, capsys):
    loader.report_amplification(loader.parse(["--grid=16,32", "--channels=8", f"--folder={tmp_path}"]))
    table = {line[:24].strip(): line[24:].split() for line in capsys.readouterr().out.splitlines()}
    assert table["2 x 2 x 2"] == ["4.00", "2.00", "1.00", "1.00", "2.00"]
    assert table["1 x 8 x 1"] == ["8.00", "1.00", "2.00", "1.00", "8.00"]
    assert table["8 x 1 x 1"] == ["1.00"] * 5


def test_unknown_benchmark_is_named():
    with pytest.raises(SystemExit, match="no benchmark 'speed'; there are loader, train, scaling"):
        main(["speed"])

"""The loader's benchmark on a small grid: every source reads, the table and the file say the same."""

import csv

import pytest

from experiments.benchmark import loader
from experiments.benchmark.__main__ import main
from weathermixer.archive.layout import COMPRESSORS


@pytest.mark.slow
def test_rows_and_file(tmp_path, capsys):
    path = tmp_path / "rows.csv"
    options = ["--grid=64,512", "--channels=8", "--meshes=2,2:1,1", "--compressed=2,2", "--cold=2,2:1,1"]
    options += [
        "--processes=2",
        "--seconds=0.02",
        "--rounds=1",
        "--made-for=2,2",
        f"--folder={tmp_path}",
        f"--csv={path}",
    ]
    rows = loader.main([*options, "--without-amplification"])
    ours = [f"{what}, {compressor}" for compressor in COMPRESSORS for what in ("archive", "its bytes")]
    sources = {2: [*ours, "xarray", "xarray, dask"], 1: [*ours[:2], "xarray", "xarray, dask"]}
    cases = [(2, 2, 2, "warm"), (2, 2, 1, "cold"), (1, 1, 1, "cold")]
    found = [((row["domain"], row["tensor"], row["processes"], row["page_cache"]), row["source"]) for row in rows]
    assert found == [(case, source) for case in cases for source in sources[case[0]]]
    for row in rows:
        # two frames of 8 x 64 x 512 16-bit values, a quarter of each
        needed = 2 * 8 * 64 * 512 * 2 / (row["domain"] * row["tensor"])
        assert row["megabytes_per_second"] == pytest.approx(row["samples_per_second"] * needed / 1e6)
        # all that the mesh was made for is read, and nothing else: chunks' checksums, and an index where it is new
        if row["source"] == "archive, none":
            checksums, indices = 2 * 4 * 4 / (row["domain"] * row["tensor"]), 2 * (4 * 16 + 4)
            assert 1 + checksums / needed <= row["read_over_needed"] <= 1 + (checksums + indices) / needed
    assert rows[0]["of_raw"] == pytest.approx(rows[0]["samples_per_second"] / rows[1]["samples_per_second"])
    with path.open() as file:
        written = list(csv.DictReader(file))
    assert [float(row["samples_per_second"]) for row in written] == [row["samples_per_second"] for row in rows]
    assert "archive, zstd" in capsys.readouterr().out
    assert [file.name for file in tmp_path.iterdir()] == ["rows.csv"]  # the stores are gone


def test_amplification_table(tmp_path, capsys):
    loader.report_amplification(
        loader.make_parser().parse_args(["--grid=128,2048", "--channels=8", f"--folder={tmp_path}"])
    )
    table = {line[:24].strip(): line[24:].split() for line in capsys.readouterr().out.splitlines()}
    # chunks of a globe have two channels each, for their size
    assert table["2 x 2 x 2"] == ["2.00", "2.00", "1.00", "1.00", "2.00"]
    assert table["1 x 8 x 1"] == ["8.00", "1.00", "2.00", "1.00", "8.00"]
    assert table["8 x 1 x 1"] == ["1.00"] * 5


def test_unknown_benchmark_is_named(capsys):
    with pytest.raises(SystemExit):
        main(["speed"])
    assert "'speed' (choose from" in capsys.readouterr().err

"""The loader's benchmark on a small grid: every source reads, the table and the file say the same."""

import pandas as pd
import pytest

from experiments.benchmark import loader, weather
from experiments.benchmark.__main__ import main
from weathermixer.archive.layout import COMPRESSORS


@pytest.mark.slow
def test_rows_and_file(tmp_path, capsys):
    options = ["--grid=64,512", "--channels=8", "--meshes=2,2:1,1", "--processes=2", "--seconds=0.02", "--rounds=1"]
    path = tmp_path / "rows.csv"
    rows = loader.main([*options, "--made-for=2,2", f"--folder={tmp_path}", f"--csv={path}"])
    sources = [*(name for one in COMPRESSORS for name in (one, f"{one}, raw")), "xarray", "xarray, dask"]
    cases = [(2, 2, 2, "warm"), (2, 2, 1, "cold"), (1, 1, 1, "cold")]
    found = rows[["domain", "tensor", "processes", "cache", "source"]].itertuples(index=False, name=None)
    assert list(found) == [(*case, source) for case in cases for source in sources]
    # all that the mesh was made for is read, and nothing else: chunks' checksums, and an index where it is new
    for row in rows[rows.source == "none"].itertuples():
        needed = 2 * 8 * 64 * 512 * 2 / (row.domain * row.tensor)  # two frames of 8 x 64 x 512 16-bit values
        checksums, indices = 2 * 4 * 4 / (row.domain * row.tensor), 2 * (4 * 16 + 4)
        assert 1 + checksums / needed <= row.read <= 1 + (checksums + indices) / needed
    assert rows["of raw"].iloc[0] == pytest.approx(rows["MB/s"].iloc[0] / rows["MB/s"].iloc[1])
    pd.testing.assert_frame_equal(pd.read_csv(path, keep_default_na=False, na_values=[""]), rows.reset_index(drop=True))
    assert "none, raw" in capsys.readouterr().out
    assert [file.name for file in tmp_path.iterdir()] == ["rows.csv"]  # the stores are gone


def test_amplification_table(tmp_path):
    frames, channels = list(weather.make_frames(1, 8, (128, 2048))), weather.make_channels(8)
    table = loader.report_amplification(tmp_path, frames, channels).splitlines()
    rows = {line[:9]: line[9:].split() for line in table[1:]}
    # for 1 x 1, 8 x 1, 4 x 2, 8 x 8, and of a globe; chunks of the first have two channels each, for their size
    assert rows["2 x 2 x 2"] == ["2.00", "2.00", "1.00", "1.00", "2.00"]
    assert rows["1 x 8 x 1"] == ["8.00", "1.00", "2.00", "1.00", "8.00"]
    assert rows["8 x 1 x 1"] == ["1.00"] * 5


def test_made_up_channels():
    assert [channel.name for channel in weather.make_channels(4)][:2] == ["mean_sea_level_pressure", "surface_pressure"]
    era5 = weather.make_channels(69)
    assert {channel.variable for channel in era5 if channel.level_hpa} == set(weather.UPPER) and len(era5) == 69
    assert weather.find_extents(weather.make_channels(72))["geopotential"] == (7, 20)


def test_unknown_benchmark_is_named(capsys):
    with pytest.raises(SystemExit):
        main(["speed"])
    assert "'speed' (choose from" in capsys.readouterr().err

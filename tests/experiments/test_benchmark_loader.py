"""The loader's benchmark on a small grid: every source reads, what is read is what is needed."""

import tempfile

import numpy as np
import pytest
from numcodecs import Blosc

from experiments.benchmark import loader, weather
from experiments.benchmark.__main__ import main
from weathermixer.archive.layout import COMPRESSORS
from weathermixer.sources.sources import open_source


@pytest.mark.slow
def test_every_source_reads(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(loader, "MESHES", ((2, 2), (1, 1)))
    monkeypatch.setattr(loader, "MADE_FOR", (2, 2))
    monkeypatch.setattr(loader, "MADE_FOR_OTHERS", ((1, 1),))
    monkeypatch.setattr(loader, "SECONDS", 0.02)
    monkeypatch.setattr(loader, "ROUNDS", 1)
    monkeypatch.setattr(weather, "CHANNELS", weather.CHANNELS[:8])
    monkeypatch.setattr(loader, "PROCESSES", (2,))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    rows = loader.main(["--grid=64,512"])
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
    assert "none, raw" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())  # the stores are gone


def test_amplification_table(tmp_path):
    weather.write_zarr(tmp_path / "globe", weather.make_frames(2, 8, (128, 2048)), weather.CHANNELS[:8], Blosc("lz4"))
    table = loader.report_amplification(open_source(tmp_path / "globe"), tmp_path).splitlines()
    rows = {line[:9]: line[9:].split() for line in table[1:]}
    # for 1 x 1, 8 x 1, 4 x 2, 8 x 8, and of a globe; chunks of the first have two channels each, for their size
    assert rows["2 x 2 x 2"] == ["2.00", "2.00", "1.00", "1.00", "2.00"]
    assert rows["1 x 8 x 1"] == ["8.00", "1.00", "2.00", "1.00", "8.00"]
    assert rows["8 x 1 x 1"] == ["1.00"] * 5


def test_made_up_weather(tmp_path):
    assert len(weather.CHANNELS) == 72 and len({channel.name for channel in weather.CHANNELS}) == 72
    frames = list(weather.make_frames(9, 2, (8, 16)))
    assert all(frame.shape == (2, 8, 16) for frame in frames) and np.array_equal(frames[0], frames[8])
    assert not np.array_equal(frames[0], frames[1])


def test_unknown_benchmark_is_named(capsys):
    with pytest.raises(SystemExit):
        main(["speed"])
    assert "'speed' (choose from" in capsys.readouterr().err

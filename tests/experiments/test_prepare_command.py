"""The command that makes archives: what it prints, what it refuses, and its exit status."""

import pathlib

import numpy as np
import pytest

from experiments import ends
from experiments.prepare import main
from tests.sources.written_sources import make_dataset, write_zarr
from weathermixer.archive.archive import open_archive


@pytest.fixture
def source(tmp_path) -> pathlib.Path:
    return write_zarr(make_dataset(lat=9, poles=True), tmp_path / "source.zarr")


@pytest.mark.parametrize(
    "options, size",
    [
        # 20 frames of 4 chunks, of 3 x 2 x 12 values and a checksum; an index of 16 bytes for each chunk and a checksum
        ([], "float16, 13.1 kB without compression"),
        (["--compressor=lz4"], "float16, 13.1 kB before lz4, about 10.2 kB after it"),
        (["--compressor=zstd"], "float16, 13.1 kB before zstd, about 8.79 kB after it"),
        (["--dtype=float32"], "float32, 24.6 kB without compression"),
    ],
)
def test_dry_run_writes_nothing(tmp_path, source, capsys, options, size):
    command = [str(source), str(tmp_path / "a"), "--dry-run", "--crop-south-pole", "--domain=4", "--levels=500"]
    assert main([*command, *options]) == 0
    printed = capsys.readouterr().out
    assert "20, 2019-12-30T00 to 2020-01-03T18" in printed
    assert "grid      8 x 12" in printed
    assert "geopotential on 500 hPa" in printed
    assert size in printed
    assert "chunks of 1 x 3 x 2 x 12" in printed
    assert [path.name for path in tmp_path.iterdir()] == ["source.zarr"]


def test_prepare_then_verify(tmp_path, source, capsys):
    command = [str(source), str(tmp_path / "a"), "--variables=temperature_850,2m_temperature", "--dtype=int16"]
    command += ["--period=2019-12-31,2020-01-02", "--statistics-period=2019-12-31,2020-01-01", "--static="]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "published" in printed
    assert "temperature_850" in printed
    assert "rounding / 6 h std, %" in printed
    archive = open_archive(tmp_path / "a")
    assert len(archive.times) == 12
    assert archive.static == {}
    assert main([*command, "--verify"]) == 0
    assert "every value is as it was prepared" in capsys.readouterr().out
    with pytest.raises(ValueError, match="exists: delete it"):
        main(command)
    (shard,) = (tmp_path / "a" / "fields" / "c").rglob("0/0/0/0")
    content = bytearray(shard.read_bytes())
    content[40] ^= 4
    shard.write_bytes(content)
    assert main([*command, "--verify"]) == 1
    assert "temperature_850" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options, message",
    [
        (["--variables=vertical_velocity"], "no variable 'vertical_velocity'"),
        (["--domain=4"], "latitude=9 is not divisible by domain=4; --crop-south-pole drops the last row"),
        (["--channels=era5"], "no variable 'mean_sea_level_pressure'"),
        (["--climatology=yes"], "the record is too short, or lacks a season (--climatology=no)"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path, source, options, message, capsys):
    assert ends.call(main, [str(source), str(tmp_path / "a"), *options]) == 1
    error = capsys.readouterr().err
    assert error.startswith("prepare: ") and message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    "options, message",
    [
        (["--coarsen=0"], "--coarsen: '0': give an integer of at least 1"),
        (["--exclude=yesterday"], "--exclude: 'yesterday': give times"),
        (["--exclude=2020-02-30"], "--exclude: '2020-02-30': give times"),
        (["--select=number"], "--select: 'number' is not NAME=VALUE"),
        (["--select=number=1,number=2"], "has number twice"),
        (["--period=2020,2019"], "the last date is before the first"),
        (["--channels=era5", "--levels=500"], "--channels is a set of variables, levels and static fields"),
        (["--days=3"], "--days is of `simulated`"),
        (["--anonymous"], "--anonymous is of s3:// and gs:// sources"),
    ],
)
def test_options_that_make_no_sense_are_named(tmp_path, source, options, message, capsys):
    assert ends.call(main, [str(source), str(tmp_path / "a"), *options]) in (1, 2)
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["source.zarr"]


@pytest.mark.parametrize(
    "dest, message",
    [
        ("full", "a folder with something in it"),
        ("source.zarr", "source.zarr exists"),
        ("file", "file is a file"),
        ("file/a", "file is not a folder"),
    ],
)
def test_a_destination_that_cannot_be_is_refused_before_work(tmp_path, source, dest, message, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("")
    assert ends.call(main, [str(tmp_path / "nothing.zarr"), str(tmp_path / dest)]) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("*.partial"))


def test_the_account_is_printed_and_kept(tmp_path, capsys):
    """Two sources in one command: one variable lacks a time, one day is left out, one time is off the hour."""
    dataset = make_dataset()
    times = dataset.time.values.copy()
    times[3] += np.timedelta64(12, "s")
    first = dataset[["temperature"]].assign_coords(time=times)
    first.to_netcdf(tmp_path / "a.nc")
    write_zarr(dataset[["geopotential"]].drop_isel(time=[8]), tmp_path / "b.zarr")
    assert main([f"{tmp_path}/a.nc", f"{tmp_path}/b.zarr", f"{tmp_path}/o", "--exclude=2020-01-02"]) == 0
    printed = capsys.readouterr().out
    account = open_archive(tmp_path / "o").attributes["account"]
    assert account == [
        f"times up to 3 minutes off a whole hour are taken as that hour: {tmp_path}/a.nc",
        "found: 20, 2019-12-30T00 to 2020-01-03T18, in steps of 6 h (19)",
        "left out, excluded by 2020-01-02: 4, 2020-01-02T00 to 2020-01-02T18",
        "left out, geopotential lacks them: 1, 2020-01-01T00",
        "taken: 15, 2019-12-30T00 to 2020-01-03T18, every 6 h",
        "missing between: 5, 2020-01-01T00 to 2020-01-02T18",
        "no unit is given of geopotential, temperature: taken to be in SI (--units says otherwise)",
    ]
    for line in account:
        assert f"account   {line}" in printed


def test_help_names_the_sources(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    assert "python -m experiments.prepare SOURCE [SOURCE ...] DEST" in printed
    assert "simulated" in printed

"""An archive holds what the source does, however it was cut, killed or resumed; nothing faulty or half is published."""

import json
import os
import shutil

import numpy as np
import pytest
import xarray as xr

import weathermixer
from tests.sources.written_sources import TIMES, frames_of, make_dataset, write_zarr
from weathermixer.archive.archive import open_archive
from weathermixer.archive.layout import COMPRESSORS
from weathermixer.archive.verify import verify_archive
from weathermixer.prepare import shards
from weathermixer.prepare.prepare import prepare_archive
from weathermixer.prepare.sizes import plan_archive
from weathermixer.prepare.writer import Journal
from weathermixer.sources.sources import Source, open_source


@pytest.fixture
def source(tmp_path) -> Source:
    return open_source(write_zarr(make_dataset(), tmp_path / "source.zarr"), levels_hpa=[850, 500, 50])


def physical(archive) -> np.ndarray:
    stored = archive.store.read().result().astype(np.float64)
    return stored * archive.scale[:, None, None] + archive.offset[:, None, None]


@pytest.mark.parametrize("dtype, error", [("float16", 5e-4), ("int16", 3e-4), ("float32", 0)])
@pytest.mark.parametrize("domain, tensor", [(1, 1), (4, 2)])
def test_archive_holds_the_source(tmp_path, source, dtype, error, domain, tensor):
    archive = prepare_archive(source, tmp_path / "a", dtype=dtype, domain=domain, tensor=tensor, times_per_shard=6)
    exact = frames_of(make_dataset(), source.channels).astype(np.float64)
    difference = np.abs(physical(archive) - exact).max(axis=(0, 2, 3))
    assert np.all(difference <= error * 4 * exact.std(axis=(0, 2, 3)))
    np.testing.assert_array_equal(archive.times, TIMES)
    assert archive.channels == source.channels
    assert list(archive.static) == ["land_sea_mask", "geopotential_at_surface"]
    statistics = archive.statistics
    np.testing.assert_allclose(statistics.mean, exact.mean(axis=(0, 2, 3)), rtol=1e-8)
    np.testing.assert_allclose(statistics.std, exact.std(axis=(0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(statistics.tendency_std, np.diff(exact, axis=0).std(axis=(0, 2, 3)), rtol=1e-6)
    np.testing.assert_array_equal(statistics.minimum, exact.min(axis=(0, 2, 3)))
    np.testing.assert_array_equal(statistics.maximum, exact.max(axis=(0, 2, 3)))
    attributes = archive.attributes
    assert attributes["tendency_hours"] == 6
    assert attributes["missing_times"] == attributes["faults"] == []
    assert sorted(os.listdir(tmp_path)) == ["a", "source.zarr"]
    assert not os.path.exists(tmp_path / "a" / ".prepare")


def test_compression_changes_bytes_alone(tmp_path, source):
    archives = {name: prepare_archive(source, tmp_path / name, compressor=name) for name in COMPRESSORS}
    assert [archive.attributes["compressor"] for archive in archives.values()] == list(COMPRESSORS)
    assert len({archive.attributes["checksum"] for archive in archives.values()}) == 1
    for archive in archives.values():
        np.testing.assert_array_equal(physical(archive), physical(archives["none"]))
    assert prepare_archive(source, tmp_path / "default").attributes["compressor"] == "none"
    with pytest.raises(ValueError, match="compressor='gzip' must be one of .*zstd"):
        prepare_archive(source, tmp_path / "other", compressor="gzip")


@pytest.mark.parametrize("changes", [{}, dict(domain=4, tensor=2, times_per_shard=6), dict(tensor=3, dtype="int16")])
def test_the_size_on_disk_is_known_beforehand(tmp_path, source, changes):
    options = {"dtype": "float16", "domain": 1, "tensor": 1} | changes
    archive = prepare_archive(source, tmp_path / "a", **options)
    files = [path for path in (tmp_path / "a" / "fields" / "c").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) == plan_archive(source, **options).layout.total_bytes
    assert len(files) == plan_archive(source, **options).layout.shards
    assert archive.store.chunk_layout.read_chunk.shape == plan_archive(source, **options).layout.chunk


def test_xarray_opens_it(tmp_path, source):
    prepare_archive(source, tmp_path / "a")
    with xr.open_zarr(tmp_path / "a", chunks=None) as opened:
        fields = opened.fields * opened.scale + opened.offset
        assert fields.dims == ("time", "channel", "latitude", "longitude")
        temperature = fields.sel(channel="2m_temperature", time="2020-01-01T06").values
    np.testing.assert_allclose(temperature, make_dataset()["2m_temperature"].values[9], atol=0.05)


def test_values_do_not_depend_on_the_cut(tmp_path, source):
    options = [{}, {"times_per_shard": 1}, {"times_per_shard": 7, "domain": 8, "tensor": 4}]
    archives = [prepare_archive(source, tmp_path / str(n), **option) for n, option in enumerate(options)]
    sums = [archive.attributes["manifest"]["checksum"] for archive in archives]
    assert sums == [sums[0]] * 3
    for archive in archives[1:]:
        np.testing.assert_allclose(archive.statistics.std, archives[0].statistics.std, rtol=1e-12)
        np.testing.assert_allclose(archive.statistics.tendency_std, archives[0].statistics.tendency_std, rtol=1e-12)


def test_pairs_never_span_a_gap_and_hours_may_be_finer(tmp_path):
    times = np.datetime64("2020-01-01T00", "ns") + np.arange(30) * np.timedelta64(1, "h")
    dataset = make_dataset(times=times).drop_isel(time=[10, 11, 12, 20])
    source = open_source(dataset, step_hours=1)
    archive = prepare_archive(source, tmp_path / "a", times_per_shard=4)
    exact = frames_of(dataset, source.channels).astype(np.float64)
    hours = ((source.times - times[0]) / np.timedelta64(1, "h")).astype(int).tolist()
    pairs = [exact[hours.index(h)] - exact[hours.index(h - 6)] for h in hours if h - 6 in hours]
    assert len(pairs) == 16
    np.testing.assert_allclose(archive.statistics.tendency_std, np.std(pairs, axis=(0, 2, 3)), rtol=1e-6)
    assert archive.attributes["missing_times"] == ["2020-01-01T10", "2020-01-01T11", "2020-01-01T12", "2020-01-01T20"]
    assert archive.step_hours == 1


def test_statistics_of_a_period(tmp_path, source):
    archive = prepare_archive(source, tmp_path / "a", statistics_period=("2019-12-31", "2020-01-01"), times_per_shard=3)
    exact = frames_of(make_dataset(), source.channels).astype(np.float64)[4:12]
    np.testing.assert_allclose(archive.statistics.mean, exact.mean(axis=(0, 2, 3)), rtol=1e-8)
    np.testing.assert_allclose(archive.statistics.tendency_std, np.diff(exact, axis=0).std(axis=(0, 2, 3)), rtol=1e-6)
    year = prepare_archive(source, tmp_path / "year", statistics_period=("2020", "2020"))
    exact = frames_of(make_dataset(), source.channels).astype(np.float64)[8:]
    np.testing.assert_allclose(year.statistics.mean, exact.mean(axis=(0, 2, 3)), rtol=1e-8)
    with pytest.raises(ValueError, match="no time of the source lies in --statistics-period=1999-01-01,1999-02-01: it"):
        prepare_archive(source, tmp_path / "b", statistics_period=("1999-01-01", "1999-02-01"))


class Stopped(Exception):
    """Stands for whatever stops a prepare."""


def stop_after(monkeypatch, count: int) -> list[int]:
    """Lets a prepare stop when it makes shard number `count`; returns the list of first times of shards it makes."""
    made, make_shard = [], shards._make_shard

    def counting(task, times, blocks, earlier):
        if len(made) == count:
            raise Stopped
        made.append(task.first + times.start)
        return make_shard(task, times, blocks, earlier)

    monkeypatch.setattr(shards, "_make_shard", counting)
    return made


def test_it_goes_on_where_it_stopped(tmp_path, source, monkeypatch):
    whole = prepare_archive(source, tmp_path / "whole", times_per_shard=3)
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_after(patch, 3)
        prepare_archive(source, tmp_path / "a", times_per_shard=3)
    assert not os.path.exists(tmp_path / "a")
    with pytest.raises(ValueError, match="incomplete.*run prepare again"):
        open_archive(tmp_path / "a")
    made = stop_after(monkeypatch, 99)
    read, original = [], Source.read

    def reading(self, times, **options):
        read.append(self.times[times])
        return original(self, times, **options)

    monkeypatch.setattr(Source, "read", reading)
    archive = prepare_archive(source, tmp_path / "a", times_per_shard=3)
    # two are in the journal: the third was being written when the fourth stopped. Of what is finished two times alone
    # are read again: the first, for what is missing then, and the one that the first pair needs
    assert made == [6, 9, 12, 15, 18]
    np.testing.assert_array_equal(np.unique(np.concatenate(read)), source.times[[0, *range(5, 20)]])
    assert archive.attributes["checksum"] == whole.attributes["checksum"]


@pytest.mark.parametrize(
    "remedy, again",
    [
        ({"exclude": ["2020-01-02T00"]}, [12, 15, 18]),  # a time that is not in the sample of which packing is chosen
        ({"period": ("2019-12-30", "2020-01-01")}, [0, 3, 6, 9]),
        ({"period": ("2019-12-31", "2020-01-01")}, [0, 3, 6]),
        ({"keep_faults": True}, [12, 15, 18]),
    ],
)
def test_what_was_begun_goes_on_with_the_remedies_that_are_printed(tmp_path, monkeypatch, remedy, again):
    """--exclude, --period and --keep-faults at a fault: shards of the same times are not made again."""
    dataset = make_dataset()
    dataset["temperature"].values[12, 2, 3, 4] = np.nan
    taken = {name: value for name, value in remedy.items() if name != "keep_faults"}
    options = dict(times_per_shard=3, dtype="float32", keep_faults="keep_faults" in remedy)
    whole = prepare_archive(open_source(dataset, **taken), tmp_path / "whole", **options)
    with pytest.raises(ValueError, match=r"2020-01-02T00:00: 1 missing(.|\n)*--exclude=TIME,... or another --period"):
        prepare_archive(open_source(dataset), tmp_path / "a", **options | {"keep_faults": False})
    made = stop_after(monkeypatch, 99)
    archive = prepare_archive(open_source(dataset, **taken), tmp_path / "a", **options)
    assert made == again
    np.testing.assert_array_equal(archive.times, whole.times)
    np.testing.assert_array_equal(physical(archive), physical(whole))
    np.testing.assert_allclose(archive.statistics.tendency_std, whole.statistics.tendency_std, rtol=1e-6)
    np.testing.assert_array_equal(archive.statistics.missing, whole.statistics.missing)
    assert archive.attributes["faults"] == whole.attributes["faults"]
    assert verify_archive(tmp_path / "a") == []
    files = [path for path in (tmp_path / "a" / "fields" / "c").rglob("*") if path.is_file()]
    assert len(files) == -(-len(archive.times) // 3)


def test_faults_that_were_kept_stop_it_where_they_are_not(tmp_path, monkeypatch):
    dataset = make_dataset()
    dataset["temperature"].values[1, 2, 3, 4] = np.nan
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_after(patch, 4)
        prepare_archive(open_source(dataset), tmp_path / "a", times_per_shard=3, keep_faults=True)
    with pytest.raises(ValueError, match="2019-12-30T06:00: 1 missing"):
        prepare_archive(open_source(dataset), tmp_path / "a", times_per_shard=3)


def test_other_options_do_not_go_on(tmp_path, source, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_after(patch, 1)
        prepare_archive(source, tmp_path / "a", times_per_shard=3)
    with pytest.raises(ValueError, match=r"\(area_weighted: False, not True; dtype: 'float16', not 'float32'\): give"):
        prepare_archive(source, tmp_path / "a", times_per_shard=3, dtype="float32", area_weighted=True)
    coarse = open_source(make_dataset(), levels_hpa=[850, 500, 50], coarsen=2)
    with pytest.raises(
        ValueError, match=r"another source \(latitude: \[[^;]+\], not \[[^;]+\]; longitude: .* to start"
    ):
        prepare_archive(coarse, tmp_path / "a", times_per_shard=3)


def test_what_another_version_began_is_refused_with_a_remedy_that_works(tmp_path, source, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_after(patch, 3)
        prepare_archive(source, tmp_path / "a", times_per_shard=3)
    file = tmp_path / "a.partial" / ".prepare" / "recipe.json"
    recipe = json.loads(file.read_text())
    del recipe["plan"]["latitude"]
    file.write_text(json.dumps(recipe))
    message = rf"a.partial was begun by another version \(weathermixer {weathermixer.__version__}, 20.*: delete it, and"
    with pytest.raises(ValueError, match=message):
        prepare_archive(source, tmp_path / "a", times_per_shard=3)
    shutil.rmtree(tmp_path / "a.partial")
    assert len(prepare_archive(source, tmp_path / "a", times_per_shard=3).times) == 20


def test_a_damaged_journal_is_refused(tmp_path, source, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_after(patch, 3)
        prepare_archive(source, tmp_path / "a", times_per_shard=3)
    (entry, *_) = sorted((tmp_path / "a.partial" / ".prepare").glob("shard-*"))
    content = bytearray(entry.read_bytes())
    content[100] ^= 1
    entry.write_bytes(content)
    with pytest.raises(ValueError, match="shard-00000000 is damaged: delete it"):
        prepare_archive(source, tmp_path / "a", times_per_shard=3)
    entry.unlink()
    assert len(prepare_archive(source, tmp_path / "a", times_per_shard=3).times) == 20


def test_a_journal_is_not_held_at_once(tmp_path):
    """An entry is some 8 kB for 69 channels, and there may be 90,000."""
    journal, reads = Journal(str(tmp_path)), []
    for shard in range(300):
        journal.write_entry(shard, number=np.array(shard))

    class Folder:
        def read(self, key):
            reads.append(key)
            return folder.read(key)

    folder, journal.folder = journal.folder, Folder()
    entries = journal.read_entries(range(300))
    assert next(entries)["number"] == 0 and len(reads) < 300
    assert [int(entry["number"]) for entry in entries] == list(range(1, 300)) and len(reads) == 300


def test_two_at_once_are_refused(tmp_path, source, monkeypatch):
    def again(*_):
        prepare_archive(source, tmp_path / "a")

    monkeypatch.setattr(shards, "_make_shard", again)
    with pytest.raises(ValueError, match="another prepare is writing .*a.partial"):
        prepare_archive(source, tmp_path / "a")


@pytest.mark.parametrize(
    "value, fault",
    [
        (np.nan, "temperature_850 at 2020-01-01T12:00: 1 missing \\(NaN\\) of 96 values"),
        (np.inf, "temperature_850 at 2020-01-01T12:00: 1 infinite of 96 values"),
        (None, "temperature_850 at 2020-01-01T12:00: constant, every value is 277.0"),
    ],
)
def test_faulty_fields_stop_it_and_are_named(tmp_path, value, fault):
    dataset = make_dataset()
    field = dataset["temperature"].values[10, 2]
    if value is None:
        field[:] = 277
    else:
        field[3, 4] = value
    source = open_source(dataset)
    with pytest.raises(ValueError, match=fault):
        prepare_archive(source, tmp_path / "a", times_per_shard=4)
    assert not os.path.exists(tmp_path / "a")
    archive = prepare_archive(source, tmp_path / "kept", times_per_shard=4, keep_faults=True)
    assert len(archive.attributes["faults"]) == 1
    index = archive.channel_indices(["temperature_850"])[0]
    assert archive.statistics.missing[index] == (value is not None)
    assert archive.statistics.missing.sum() == (value is not None)
    kept = open_source(dataset, exclude=["2020-01-01T12"])
    archive = prepare_archive(kept, tmp_path / "left_out", times_per_shard=4)
    assert archive.attributes["missing_times"] == ["2020-01-01T12"]


def test_missing_values_do_not_fit_int16(tmp_path):
    dataset = make_dataset()
    dataset["temperature"].values[10, 2, 3, 4] = np.nan
    with pytest.raises(ValueError, match="temperature_850 at 2020-01-01T12.*cannot be stored as int16"):
        prepare_archive(open_source(dataset), tmp_path / "a", dtype="int16", keep_faults=True)


def test_a_corrupt_source_stops_it_and_it_goes_on_when_mended(tmp_path):
    path = write_zarr(make_dataset(), tmp_path / "source.zarr", time_chunk=3)
    chunk = path / "temperature" / "c" / "4" / "0" / "0" / "0"
    sound = chunk.read_bytes()
    chunk.write_bytes(sound[: len(sound) // 2])
    with pytest.raises(ValueError, match="temperature at 2020-01-02T.* cannot be read"):
        prepare_archive(open_source(path), tmp_path / "a", times_per_shard=3)
    assert not os.path.exists(tmp_path / "a")
    chunk.write_bytes(sound)
    archive = prepare_archive(open_source(path), tmp_path / "a", times_per_shard=3)
    clean = prepare_archive(open_source(path), tmp_path / "b", times_per_shard=3)
    assert archive.attributes["checksum"] == clean.attributes["checksum"]


def test_an_absent_source_chunk_is_found(tmp_path):
    path = write_zarr(make_dataset(), tmp_path / "source.zarr", time_chunk=3)
    (path / "2m_temperature" / "c" / "2" / "0" / "0").unlink()
    with pytest.raises(ValueError, match="2m_temperature at 2019-12-31T12:00: 96 missing"):
        prepare_archive(open_source(path), tmp_path / "a")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"dtype": "float64"}, "dtype='float64' must be one of"),
        ({"domain": 3}, "latitude=8 is not divisible by domain=3"),
        ({"domain": 7}, "latitude=8 is not divisible by domain=7; --crop-south-pole drops the last row"),
        ({"tensor": 0}, "must be at least 1"),
    ],
)
def test_what_does_not_fit_is_refused_before_reading(tmp_path, source, options, message):
    with pytest.raises(ValueError, match=message):
        prepare_archive(source, tmp_path / "a", **options)
    assert os.listdir(tmp_path) == ["source.zarr"]


def test_destinations_that_will_not_do(tmp_path, source):
    prepare_archive(source, tmp_path / "a")
    with pytest.raises(ValueError, match="a exists: delete it"):
        prepare_archive(source, tmp_path / "a")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file/a cannot be made: .*file is not a folder that can be written"):
        prepare_archive(source, tmp_path / "file" / "a")
    shutil.rmtree(tmp_path / "a")
    assert len(prepare_archive(source, tmp_path / "a").times) == 20


def test_a_failing_write_is_named_and_resumable(tmp_path, source):
    in_the_way = tmp_path / "a.partial" / "fields" / "c" / "2" / "0" / "0" / "0"
    in_the_way.mkdir(parents=True)
    with pytest.raises(ValueError, match="a.partial cannot be written: .*\n.*the same command goes on"):
        prepare_archive(source, tmp_path / "a", times_per_shard=4)
    assert not os.path.exists(tmp_path / "a")
    in_the_way.rmdir()
    archive = prepare_archive(source, tmp_path / "a", times_per_shard=4)
    whole = prepare_archive(source, tmp_path / "b", times_per_shard=4)
    assert archive.attributes["checksum"] == whole.attributes["checksum"]


def test_one_time_makes_an_archive_without_tendency(tmp_path):
    archive = prepare_archive(open_source(make_dataset().isel(time=3)), tmp_path / "a")
    assert archive.store.shape[0] == 1
    assert np.all(np.isnan(archive.statistics.tendency_std))


def test_rounding_is_recorded_in_physical_units(tmp_path, source):
    rounding = prepare_archive(source, tmp_path / "a").attributes["rounding"]
    assert rounding["float32"] == [0.0] * 7
    exact = frames_of(make_dataset(), source.channels)
    relative = np.array(rounding["float16"]) / exact.std(axis=(0, 2, 3))
    assert np.all((relative > 1e-5) & (relative < 5e-4))

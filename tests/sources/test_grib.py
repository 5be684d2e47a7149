"""GRIB files of every kind: steps, starts, members and control, several variables and files, names without a suffix."""

import numpy as np
import pytest
import xarray as xr

from tests.sources.written_sources import frames_of, make_dataset, write_grib
from weathermixer.sources.sources import Source, open_source

pytest.importorskip("cfgrib", reason="no cfgrib: pip install 'weathermixer[grib]'")
HOUR = np.timedelta64(1, "h")
START = np.datetime64("2020-01-01T00", "ns")


@pytest.fixture(scope="module")
def truth() -> xr.Dataset:
    times = START + np.arange(6) * 6 * HOUR
    return make_dataset(times=times, lat=9, poles=True, levels=(500, 850)).drop_vars(
        ["land_sea_mask", "geopotential_at_surface"]
    )


def write(path, truth: xr.Dataset, fields, **options) -> None:
    """Writes fields (short name, index of the truth's time, level, time of the start, more keys)."""
    names = {"t": "temperature", "z": "geopotential", "2t": "2m_temperature", "sst": "2m_temperature"}
    made = []
    for short, index, level, start, more in fields:
        field = truth[names[short]].isel(time=index)
        values = (field if level is None else field.sel(level=level)).values + more.get("added", 0)
        made.append((short, values, start, level, {key: value for key, value in more.items() if key != "added"}))
    latitude, longitude = truth.latitude.values, truth.longitude.values
    write_grib(path, made, latitude=latitude, longitude=longitude, **options)


def check(source: Source, truth: xr.Dataset, added: float = 0) -> None:
    expected = frames_of(truth.sel(time=source.times), source.channels) + added
    assert np.abs(source.read(slice(None)) - expected).max() < 1e-5 * expected.std(axis=(0, 2, 3)).max()


def hours(source: Source) -> list[int]:
    return ((source.times - START) / HOUR).astype(int).tolist()


def both_levels(short: str, index: int, start, **more):
    return [(short, index, level, start, more) for level in (850, 500)]


@pytest.mark.parametrize("edition", [1, 2])
@pytest.mark.parametrize("name", ["a.grib2", "gfs.t00z.pgrb2.0p25.f006", "analysis", "wrong.nc"])
def test_a_file_of_any_name(tmp_path, truth, edition, name):
    fields = [field for n in range(6) for field in both_levels("t", n, truth.time.values[n])]
    fields += [("2t", n, None, truth.time.values[n], {}) for n in range(6)]
    write(tmp_path / name, truth, fields, edition=edition)
    source = open_source(tmp_path / name)
    assert [c.name for c in source.channels] == ["2m_temperature", "temperature_850", "temperature_500"]
    check(source, truth)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_bulletin_header_before_the_first_message(tmp_path, truth):
    write(tmp_path / "a", truth, both_levels("t", 0, START))
    content = (tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(b"\x01\r\r\n000 \r\r\nHTXX11 KWBC 010000\r\r\n" + content)
    check(open_source(tmp_path / "a"), truth)


def test_one_start_and_many_steps_are_a_series(tmp_path, truth):
    steps = [field for n in range(6) for field in both_levels("t", n, START, step=6 * n, type="fc")]
    write(tmp_path / "a", truth, steps)
    source = open_source(tmp_path / "a")
    assert hours(source) == [0, 6, 12, 18, 24, 30]
    check(source, truth)
    source = open_source(tmp_path / "a", select={"step": 6})
    assert hours(source) == [6]
    check(source, truth)
    with pytest.raises(ValueError, match="select step=7: there is no such step; it has 0h, 6h, 12h, 18h"):
        open_source(tmp_path / "a", select={"step": 7})


def test_starts_with_different_steps(tmp_path, truth):
    """Steps 6 and 12 of one start, 6 alone of the next: no field stands for one that is not there."""
    fields = []
    for start, step in ((0, 6), (0, 12), (12, 6), (12, 12), (24, 6)):
        fields += both_levels("t", (start + step) // 6, START + start * HOUR, step=step, type="fc")
    write(tmp_path / "a", truth, fields)
    source = open_source(tmp_path / "a")
    assert hours(source) == [6, 12, 18, 24, 30]
    check(source, truth)
    assert hours(open_source(tmp_path / "a", select={"step": "12h"})) == [12, 24]
    fields += both_levels("t", 4, START + 6 * HOUR, step=18, type="fc", added=1)
    write(tmp_path / "b", truth, fields)
    with pytest.raises(
        ValueError, match=r"temperature at 2020-01-02T00:00 lies twice.*of step 12h and 18h: choose one"
    ):
        open_source(tmp_path / "b")
    check(open_source(tmp_path / "b", select={"step": 18}), truth, added=1)


def test_control_and_members(tmp_path, truth):
    fields = []
    for n in range(3):
        fields += both_levels("t", n, truth.time.values[n], type="cf", number=0)
        for number in (1, 2):
            fields += both_levels("t", n, truth.time.values[n], type="pf", number=number, added=number)
    write(tmp_path / "a", truth, fields)
    for number in (0, 1, 2):
        source = open_source(tmp_path / "a", select={"number": number})
        assert hours(source) == [0, 6, 12]
        check(source, truth, added=number)
    with pytest.raises(ValueError, match="number=3: there is no such number; it has 0, 1, 2"):
        open_source(tmp_path / "a", select={"number": 3})
    with pytest.raises(ValueError, match="temperature is there with number 1, 2 in .*a, and beside: --select=number=V"):
        open_source(tmp_path / "a")


def test_analyses_and_forecasts_in_one_file(tmp_path, truth):
    fields = [field for n in range(4) for field in both_levels("t", n, truth.time.values[n])]
    fields += both_levels("t", 1, START, step=6, type="fc", added=2)
    write(tmp_path / "a", truth, fields)
    with pytest.raises(ValueError, match=r"lies twice.*of step 0h and 6h: choose one \(--select=step=0h\)"):
        open_source(tmp_path / "a")
    check(open_source(tmp_path / "a", select={"step": "0h"}), truth)
    check(open_source(tmp_path / "a", select={"dataType": "an"}), truth)
    check(open_source(tmp_path / "a", select={"dataType": "fc"}), truth, added=2)


def test_one_file_for_each_variable_and_one_of_something_else(tmp_path, truth):
    for short in ("t", "z"):
        fields = [field for n in range(4) for field in both_levels(short, n, truth.time.values[n])]
        write(tmp_path / f"{short}.grib", truth, fields)
    check(open_source(tmp_path / "*.grib", variables=["temperature"]), truth)
    write(tmp_path / "sst.grib", truth, [("sst", n, None, truth.time.values[n], {}) for n in range(4)])
    source = open_source(tmp_path / "*.grib")
    assert [c.name for c in source.channels][:2] == ["geopotential_850", "geopotential_500"]
    check(source, truth)
    assert any("sst (surface)" in line and "sst.grib" in line for line in source.account)


def test_the_same_fields_twice(tmp_path, truth):
    fields = [field for n in range(3) for field in both_levels("t", n, truth.time.values[n])]
    write(tmp_path / "a", truth, fields + fields[2:4])
    check(open_source(tmp_path / "a"), truth)
    write(tmp_path / "b", truth, fields + both_levels("t", 1, truth.time.values[1], added=1))
    with pytest.raises(
        ValueError, match="b cannot be read as GRIB: .*t at level 850, 20200101 0600, step 0 lies there t"
    ):
        open_source(tmp_path / "b")


@pytest.mark.parametrize("left", [-50, 30])
def test_cut_off(tmp_path, truth, left, caplog):
    write(tmp_path / "a.grib", truth, both_levels("t", 0, START) + both_levels("t", 1, START, step=6, type="fc"))
    (tmp_path / "a.grib").write_bytes((tmp_path / "a.grib").read_bytes()[:left])
    with pytest.raises(ValueError, match="a.grib cannot be read as GRIB") as error:
        open_source(tmp_path / "a.grib")
    assert "\n" not in str(error.value)
    assert not caplog.records  # cfgrib logs tracebacks


def test_a_message_that_is_lost_is_missing(tmp_path, truth):
    """No other field stands in its place."""
    write(tmp_path / "a.grib", truth, [field for n in range(3) for field in both_levels("t", n, truth.time.values[n])])
    content = (tmp_path / "a.grib").read_bytes()
    message = len(content) // 6
    (tmp_path / "a.grib").write_bytes(content[: 2 * message] + bytes(message) + content[3 * message :])
    frames = open_source(tmp_path / "a.grib").read(slice(None))
    assert np.isnan(frames[1, 0]).all() and np.isfinite(np.delete(frames.reshape(6, -1), 2, axis=0)).all()

"""The simulated record: what it holds, what a killed one leaves, what it refuses."""

import os
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from weathermixer.archive.sampling import valid_starts
from weathermixer.fields.variables import VARIABLES
from weathermixer.simulation import simulate as simulation
from weathermixer.simulation.simulate import simulate
from weathermixer.sources.sources import open_source

RADIUS, ROTATION, GAS_CONSTANT = 6.37122e6, 7.292e-5, 287.0
# 500 and 505 hPa lie between the same two layers of the model: temperature is linear in log-pressure between them
TINY = {
    "days": 40,
    "spin_up_days": 5,
    "members": 2,
    "longitudes": 32,
    "latitudes": 16,
    "levels_hpa": (300, 500, 505, 850),
    "truncation": 10,
}
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A tiny record, asked for by two threads at once as two processes of a run would."""
    path = tmp_path_factory.mktemp("simulation") / "tiny.zarr"
    with ThreadPoolExecutor(2) as pool:
        made = [pool.submit(simulate, path, **TINY, progress=False) for _ in range(2)]
    assert [future.result() for future in made] == [str(path)] * 2
    return path


@pytest.fixture(scope="module")
def record(path):
    return xr.open_zarr(path, chunks=None).load()


@pytest.mark.slow
def test_the_record_is_as_weatherbench_2_has_it(record, path):
    assert os.listdir(path.parent) == [path.name]
    upper = ("geopotential", "temperature", "u_component_of_wind", "v_component_of_wind")
    assert set(record.data_vars) == {*upper, "surface_pressure"}
    for name in upper:
        assert record[name].dims == ("time", "level", "latitude", "longitude")
    assert record.surface_pressure.dims == ("time", "latitude", "longitude")
    for name, array in record.data_vars.items():
        assert array.dtype == np.float32
        assert array.attrs["units"] == VARIABLES[name].units
        assert array.attrs["standard_name"] == VARIABLES[name].standard_name
    np.testing.assert_allclose(record.latitude, np.linspace(-84.375, 84.375, 16))
    np.testing.assert_allclose(record.longitude, np.arange(32) * 11.25)
    assert record.level.values.tolist() == [300, 500, 505, 850]
    assert record.level.attrs["units"] == "hPa"
    assert record.attrs["simulation"]["members"] == 2


@pytest.mark.slow
def test_times_are_six_hourly_with_a_gap_between_members(record, path):
    times = record.time.values
    assert times[0] == np.datetime64("2000-01-01T00")
    steps = np.diff(times) / np.timedelta64(1, "h")
    assert (steps == 6).sum() == 158
    assert steps[79] == 30
    starts = valid_starts(times, ("2000", "2000"), 24, step_hours=6)
    assert starts.tolist() == [*range(76), *range(80, 156)]
    source = open_source(path)
    assert len(source.missing_times) == 4
    assert len(source.channels) == 17


@pytest.mark.slow
def test_values_are_those_of_an_atmosphere(record):
    for array in record.data_vars.values():
        assert np.isfinite(array).all()
    assert 180 < record.temperature.min() < 230
    assert 290 < record.temperature.max() < 330
    assert record.geopotential.sel(level=500).mean() == pytest.approx(5.5e4, rel=0.05)
    jets = record.u_component_of_wind.sel(level=300).mean(("time", "longitude"))
    assert 10 < jets.max() < 60
    assert abs(record.v_component_of_wind.mean()) < 0.5
    # members start from other noise
    first, second = record.surface_pressure[:80], record.surface_pressure[80:]
    assert np.std(first.values - second.values) > 100


@pytest.mark.slow
def test_mass_is_conserved(record):
    weights = np.cos(np.deg2rad(record.latitude))
    mass = record.surface_pressure.weighted(weights).mean(("latitude", "longitude"))
    np.testing.assert_allclose(mass, 1e5, rtol=2e-3)
    assert mass.std() < 20  # Pa; surface pressure itself varies by a hundred times that


@pytest.mark.slow
def test_geopotential_and_temperature_are_hydrostatic(record):
    """Phi(500) - Phi(505) = R T ln(505 / 500), with T the mean of the layer."""
    upper, lower = (record.sel(level=level) for level in (500, 505))
    thickness = upper.geopotential - lower.geopotential
    mean = (upper.temperature + lower.temperature) / 2
    np.testing.assert_allclose(thickness, GAS_CONSTANT * mean * np.log(505 / 500), rtol=1e-3)
    deep = record.sel(level=300).geopotential - record.sel(level=850).geopotential
    mean = record.sel(level=[300, 500, 850]).temperature.mean("level")
    np.testing.assert_allclose(deep, GAS_CONSTANT * mean * np.log(850 / 300), rtol=0.03)


@pytest.mark.slow
def test_winds_are_nearly_geostrophic_in_both_hemispheres(record):
    """f v = d(Phi)/dx and f u = -d(Phi)/dy: wrong signs, units or a turned axis would show."""
    middle = record.sel(level=500)
    lat = np.deg2rad(record.latitude)
    f = 2 * ROTATION * np.sin(lat)
    zonal = (np.roll(middle.geopotential, -1, -1) - np.roll(middle.geopotential, 1, -1)) / (4 * np.pi / 32)
    v = zonal / (f * RADIUS * np.cos(lat)).values[:, None]
    u = -np.gradient(middle.geopotential, np.pi / 16, axis=1) / (f * RADIUS).values[:, None]
    for rows in (slice(2, 6), slice(10, 14)):
        for wind, balanced in ((middle.v_component_of_wind, v), (middle.u_component_of_wind, u)):
            assert np.corrcoef(wind.values[:, rows].ravel(), balanced[:, rows].ravel())[0, 1] > 0.8
            slope = np.polyfit(balanced[:, rows].ravel(), wind.values[:, rows].ravel(), 1)[0]
            assert 0.6 < slope < 1.4


@pytest.mark.slow
def test_fields_are_synthesized_from_the_spectrum(record):
    """Nothing lies beyond the model's largest wavenumber: no interpolation in between."""
    spectrum = np.abs(np.fft.rfft(np.log(record.surface_pressure.values.astype(np.float64)), axis=-1))
    assert spectrum[..., 11:].max() < 2e-3 * spectrum[..., 1:11].max()


@pytest.mark.slow
def test_a_killed_one_leaves_nothing_that_is_taken_for_whole(record, tmp_path):
    path = tmp_path / "killed.zarr"
    alone = TINY | {"days": 20, "members": 1}  # the tiny record's first member
    code = f"from weathermixer.simulation.simulate import simulate\nsimulate({str(path)!r}, **{alone!r})"
    # settings of JAX that a training run may have must not reach the simulation
    settings = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_ENABLE_X64": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", code], env=os.environ | settings)
    begun = Path(f"{path}.partial/surface_pressure")
    wait_until(lambda: begun.exists() and begun.stat().st_size)
    assert process.poll() is None
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    members = [int(pid) for pid in children.read_text().split()] if children.exists() else []
    process.kill()
    process.wait()
    assert not path.exists()
    simulate(path, **alone, progress=False)
    assert not any(map(_runs, members))  # a member ends with the process that started it
    again = xr.open_zarr(path, chunks=None).load()
    for name, array in record.isel(time=slice(80)).items():
        np.testing.assert_array_equal(again[name], array)
    assert os.listdir(tmp_path) == ["killed.zarr"]


def wait_until(condition, seconds: float = 100) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_a_complete_record_is_used_again(path, monkeypatch):
    monkeypatch.setattr(simulation.subprocess, "Popen", None)
    before = os.stat(path).st_mtime_ns
    assert simulate(path, **TINY) == str(path)
    assert simulate(f"{path}/", **TINY) == str(path)
    assert os.stat(path).st_mtime_ns == before


@pytest.mark.slow
def test_other_settings_are_refused(path):
    with pytest.raises(ValueError, match=r"seed=0 there, 1 wanted; .*step_minutes=60 there, 30 wanted.*another path"):
        simulate(path, **TINY, seed=1, step_minutes=30)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"days": 41}, "days=41 is not divisible by members=2"),
        ({"days": 0}, "days=0 must be at least 1"),
        ({"spin_up_days": -1}, "spin_up_days=-1"),
        ({"step_minutes": 50}, "step_minutes=50 does not divide"),
        ({"levels_hpa": (500, 500)}, "must be distinct"),
        ({"levels_hpa": ()}, "must be distinct"),
    ],
)
def test_settings_that_cannot_be_are_refused(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        simulate(tmp_path / "record.zarr", **TINY | options)
    assert not os.listdir(tmp_path)


def test_places_that_cannot_be_used_are_refused(tmp_path, make_archive):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ValueError, match="file exists and is no simulation"):
        simulate(file, **TINY)
    with pytest.raises(ValueError, match="cannot write the simulation to .*file/record.zarr.*choose another folder"):
        simulate(file / "record.zarr", **TINY)
    with pytest.raises(ValueError, match="exists and is no simulation"):
        simulate(make_archive().path, **TINY)


def test_says_why_a_member_stopped(tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\n[ $4 = 1 ] && exec sleep 100\necho 'OSError: No space left on device' >&2\nexit 7\n")
    python.chmod(0o755)
    monkeypatch.setattr(simulation.sys, "executable", str(python))
    start = time.monotonic()
    with pytest.raises(ChildProcessError, match="member 0 .* status 7: OSError: No space left.*\nWhat it said last"):
        simulate(tmp_path / "record.zarr", **TINY)
    assert time.monotonic() - start < 20  # the other member was not waited for


def test_importing_it_imports_neither_jax_nor_dinosaur():
    code = """
        import sys, weathermixer.simulation.simulate
        found = {"jax", "dinosaur"} & set(sys.modules)
        assert not found, found
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, check=True)

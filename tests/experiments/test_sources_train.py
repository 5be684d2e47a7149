"""An archive made from each kind of real source trains, whichever way its latitudes run and however it is stored."""

import importlib.util
import json
import os
import pathlib

import numpy as np
import pytest

from experiments import train
from tests.sources.written_sources import write_netcdf_parts
from tests.tiny_training import quick_compilation, tiny_settings
from weathermixer.prepare.prepare import prepare_archive
from weathermixer.sources.sources import open_source

pytestmark = [
    pytest.mark.skipif(
        "WEATHERMIXER_REAL_DATA" not in os.environ, reason="WEATHERMIXER_REAL_DATA: no folder of real data"
    ),
    pytest.mark.skipif(
        importlib.util.find_spec("cfgrib") is None, reason="no cfgrib: pip install 'weathermixer[grib]'"
    ),
]
ROOT = pathlib.Path(os.environ.get("WEATHERMIXER_REAL_DATA", ""))
STEPS = 2


def zarr(folder):
    """WeatherBench 2's form, latitudes ascending, with a missing time in these days."""
    spec = ROOT / "gfs_10mwind_6h_2026_dev_64x32.zarr"
    return dict(spec=spec, period=("2026-04-06", "2026-04-09")), (15, 2, 32, 64)


def icon_zarr(folder):
    """Upper air and surface every 12 h, with poles and orography."""
    options = dict(variables=["geopotential", "specific_humidity", "mean_sea_level_pressure"], levels_hpa=[500, 250])
    spec = ROOT / "icon_fc_2022040100_12h_1deg.zarr"
    return dict(spec=spec, crop_south_pole=True, coarsen=4, **options), (16, 5, 45, 90)


def netcdf_glob(folder):
    """A file for each time, dimensions in another order."""
    write_netcdf_parts(ROOT, folder)
    return dict(spec=folder / "part*.nc"), (4, 4, 32, 64)


def grib_members(folder):
    """ERA5's ensemble every 12 h, one member of ten."""
    spec = ROOT / "io" / "cfgrib_era5-levels-members.grib"
    return dict(spec=spec, select={"number": 0}, crop_south_pole=True), (4, 4, 60, 120)


def south_to_north_grib(folder):
    """Rows from the south pole up. The real file has one time: the next two are that, turned eastward."""
    import eccodes

    with open(ROOT / "io" / "cfgrib_scanning_mode_64.grib", "rb") as file:
        message = eccodes.codes_grib_new_from_file(file)
    rows, columns = (eccodes.codes_get(message, name) for name in ("Nj", "Ni"))
    first = eccodes.codes_get_values(message).reshape(rows, columns)
    for number, (date, hour) in enumerate([(20171018, 1200), (20171018, 1800), (20171019, 0)]):
        eccodes.codes_set(message, "dataDate", date)
        eccodes.codes_set(message, "dataTime", hour)
        eccodes.codes_set_values(message, np.roll(first, number, axis=1).ravel())
        with open(folder / f"skt{number}.grib", "wb") as file:
            eccodes.codes_write(message, file)
    eccodes.codes_release(message)
    np.save(folder / "first.npy", first)
    return dict(spec=folder / "skt*.grib", variables=["skt"], crop_south_pole=True), (3, 1, 36, 72)


@pytest.mark.parametrize(
    "kind",
    [
        south_to_north_grib,
        *(pytest.param(k, marks=pytest.mark.slow) for k in (zarr, icon_zarr, netcdf_glob, grib_members)),
    ],
)
def test_it_trains(tmp_path, kind):
    (tmp_path / "source").mkdir()
    options, shape = kind(tmp_path / "source")
    archive = prepare_archive(open_source(**options), tmp_path / "archive")
    assert archive.store.shape == shape
    assert np.all(np.diff(archive.grid.latitude) < 0)
    if kind is south_to_north_grib:
        stored = archive.store.read().result().astype(np.float64)[:, 0] * archive.scale[0] + archive.offset[0]
        first = np.load(tmp_path / "source" / "first.npy")
        # the file's last row is the north pole, its first the south pole, which was cropped
        exact = np.stack([np.roll(first, number, axis=1)[:0:-1] for number in range(3)])
        np.testing.assert_allclose(stored, exact, atol=1e-3 * exact.std())
        assert exact[0, -1].mean() < exact[0, 18].mean() - 20  # the far south is colder than the equator

    settings = tiny_settings(patch=(1, shape[3] // 2), token_hidden=shape[2] * 2, data=1)
    everything = (str(archive.times[0])[:10], str(archive.times[-1])[:10])
    data = dict(channels=(), static=("*",), train=everything, validation=everything, test=everything)
    training = dict(batch_size=1, steps=STEPS, log_every=1, checkpoint_every=STEPS)
    changes = {f"data.{name}": value for name, value in data.items()}
    changes |= {f"training.{name}": value for name, value in training.items()}
    settings = settings.replace(changes | {"evaluation.every": 0})
    with quick_compilation():
        run = train.train(settings, tmp_path / "run", archive.path)
    assert run.step == STEPS
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [record["loss"] for record in records if "loss" in record]
    assert len(losses) == STEPS and np.all(np.isfinite(losses))

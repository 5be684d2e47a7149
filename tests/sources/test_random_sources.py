"""Sources drawn at random, in every order, name, unit and packing: what prepare makes of them equals numpy's values."""

import pathlib

import numpy as np
import pytest
import xarray as xr

from tests.sources.written_sources import LEVELS, TIMES, make_dataset
from weathermixer.fields.units import GRAVITY
from weathermixer.prepare.prepare import prepare_archive
from weathermixer.sources.sources import open_source

# what a file may call a variable, and the units it may give it in: value in file = (value - shift) / factor
NAMES = {
    "geopotential": ["geopotential", "z", "zg"],
    "temperature": ["temperature", "t", "ta"],
    "2m_temperature": ["2m_temperature", "t2m", "tas"],
}
KELVIN = {"K": (1, 0), "degC": (1, 273.15), "deg C": (1, 273.15), "Kelvin": (1, 0), "degF": (5 / 9, 459.67 * 5 / 9)}
UNITS = {
    "geopotential": {"m**2 s**-2": (1, 0), "m2/s2": (1, 0), "gpm": (GRAVITY, 0), "dam": (10 * GRAVITY, 0)},
    "temperature": KELVIN,
    "2m_temperature": KELVIN,
}
LEVEL_UNITS = {"hPa": 1, "Pa": 100, "millibars": 1, "kPa": 0.1}


def draw_file(rng: np.random.Generator, dataset: xr.Dataset, path: pathlib.Path) -> float:
    """Writes a dataset in an order, names, units and a packing of its own; the largest packing step, in spreads."""
    step, out, encoding = 0.0, {}, {}
    for name in rng.permutation(list(dataset.data_vars)):
        unit = str(rng.choice(list(UNITS[name])))
        factor, shift = UNITS[name][unit]
        values = (dataset[name].astype(np.float64) - shift) / factor
        given = str(rng.choice(NAMES[name]))
        out[given] = values.astype(rng.choice([np.float32, np.float64])).transpose(*rng.permutation(values.dims))
        out[given].attrs["units"] = unit
        if rng.random() < 0.4:
            low, high = float(values.min()), float(values.max())
            scale = (high - low) / 60000
            encoding[given] = {"dtype": "int16", "scale_factor": scale, "add_offset": (low + high) / 2}
            encoding[given]["_FillValue"] = -32767
            step = max(step, scale * factor / float(dataset[name].std()))
    turned = xr.Dataset(out)
    for dim in ("latitude", "level", "time"):
        if dim in turned.dims and rng.random() < 0.5:
            order = rng.permutation(turned.sizes[dim]) if dim == "level" else slice(None, None, -1)
            turned = turned.isel({dim: order})
    if rng.random() < 0.5:
        turned = turned.assign_coords(longitude=(turned.longitude + 180) % 360 - 180).sortby("longitude")
    if "level" in turned.dims:
        unit = str(rng.choice(list(LEVEL_UNITS)))
        name = str(rng.choice(["level", "plev", "isobaric1", "pressure"]))
        turned = turned.assign_coords(level=("level", turned.level.values * LEVEL_UNITS[unit], {"units": unit}))
        turned = turned.rename(level=name)
    if rng.random() < 0.5:
        turned = turned.rename(latitude="lat", longitude="lon")
    turned.to_netcdf(path, encoding=encoding)
    return step


def check_draw(seed: int, folder: pathlib.Path) -> None:
    rng = np.random.default_rng(seed)
    lat, lon = int(rng.integers(4, 9)) * 2, int(rng.integers(4, 9)) * 2
    levels = sorted(rng.choice(LEVELS, rng.integers(1, len(LEVELS) + 1), replace=False).tolist())
    dataset = make_dataset(lat=lat, lon=lon, levels=levels, poles=bool(rng.random() < 0.5), seed=seed)
    dataset = dataset[list(rng.choice(list(NAMES), rng.integers(1, 4), replace=False))]
    if rng.random() < 0.5:
        gaps = rng.choice(np.arange(1, len(TIMES) - 1), rng.integers(1, 4), replace=False)
        dataset = dataset.drop_isel(time=gaps)
    step, number = 0.0, 0
    for names in ([[name] for name in dataset.data_vars], [list(dataset.data_vars)])[int(rng.integers(2))]:
        cut = int(rng.integers(1, dataset.sizes["time"]))
        for part in (slice(0, cut), slice(cut, None)):
            some = dataset[names].isel(time=part)
            one_level = (
                [some.sel(level=[level]) for level in levels] if rng.random() < 0.3 and "level" in some.dims else [some]
            )
            for n, piece in enumerate(one_level):
                piece = piece if n == 0 else piece.drop_vars("2m_temperature", errors="ignore")
                step = max(step, draw_file(rng, piece, folder / f"{number:02}.nc"))
                number += 1
    dtype = str(rng.choice(["float32", "float16"]))
    archive = prepare_archive(open_source(folder / "*.nc"), folder / "archive", dtype=dtype)
    values = archive.store.read().result() * archive.scale[:, None, None] + archive.offset[:, None, None]
    np.testing.assert_array_equal(archive.times, dataset.time.values)
    assert len(archive.channels) == sum(len(levels) if "level" in array.dims else 1 for array in dataset.values())
    for index, channel in enumerate(archive.channels):
        exact = dataset[channel.variable]
        exact = (exact if channel.level_hpa is None else exact.sel(level=channel.level_hpa)).values.astype(np.float64)
        # float32 of a large value less a small unit, the packing's half step, and float16's rounding of deviations
        allowed = 2e-6 * np.abs(exact).max() + 0.6 * step * dataset[channel.variable].values.std()
        allowed += (2e-3 if dtype == "float16" else 0) * exact.std()
        assert np.abs(values[:, index] - exact).max() <= allowed, (seed, channel.name)
        assert archive.statistics.mean[index] == pytest.approx(exact.mean(), abs=allowed)


@pytest.mark.parametrize("seed", range(8))
def test_a_drawn_source_equals_numpy(tmp_path, seed):
    check_draw(seed, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8, 320))
def test_three_hundred_more(tmp_path, seed):
    check_draw(seed, tmp_path)

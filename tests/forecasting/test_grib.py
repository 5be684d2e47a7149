"""GRIB files hold the forecasts, as cfgrib and our own sources read them."""

import numpy as np
import pytest
import xarray as xr

from tests.forecasting.test_forecasts import GRID, LEADS, TIMES, describe, make_fields, stream, write
from weathermixer.fields.variables import ChannelSet
from weathermixer.forecasting.forecasts import collect_forecast
from weathermixer.forecasting.grib import write_grib
from weathermixer.sources.sources import open_source

pytest.importorskip("cfgrib", reason="no cfgrib: pip install 'weathermixer[grib]'")
CHANNELS = ChannelSet.from_names(
    ["2m_temperature", "10m_u_component_of_wind", "geopotential_500", "geopotential_850", "temperature_850"]
)


def collect(fields, channels=CHANNELS):
    return collect_forecast(stream(fields, channels=channels), describe(len(fields), channels), channels.dynamic)


def test_a_forecast_is_read_back_by_our_own_source(tmp_path):
    fields = make_fields(1, value=300.0)
    write(tmp_path / "f.grib2", fields, channels=CHANNELS)
    assert [entry.name for entry in tmp_path.iterdir()] == ["f.grib2"]
    source = open_source(tmp_path / "f.grib2", variables=CHANNELS.names, step_hours=0)
    np.testing.assert_array_equal(source.times, TIMES[0] + np.array(LEADS, "timedelta64[h]"))
    np.testing.assert_allclose(source.grid.latitude, GRID.latitude)
    found = source.read(slice(None))[:, [[c.name for c in source.channels].index(name) for name in CHANNELS.names]]
    np.testing.assert_allclose(found, fields[0], atol=1e-6 * np.ptp(fields))


def test_missing_values_stay_missing(tmp_path):
    channels = ChannelSet.from_names(["sea_surface_temperature"])
    fields = make_fields(1, value=300.0)[:, :, :1]
    fields[..., 2, 3] = np.nan
    write_grib(collect(fields, channels), tmp_path / "f.grib2")
    with xr.open_dataset(tmp_path / "f.grib2", engine="cfgrib", indexpath="") as found:
        np.testing.assert_allclose(found["sst"], fields[0, :, 0], atol=1e-5)


def test_what_grib_cannot_hold_is_named(tmp_path):
    forecasts = collect(make_fields(1))
    with pytest.raises(ValueError, match=r"GRIB has no name for \['snow'\]; write .zarr or .nc"):
        write_grib(forecasts.rename({"2m_temperature": "snow"}), tmp_path / "f.grib2")
    uneven = forecasts.assign_coords(latitude=forecasts.latitude.values + [0, 0, 0, 1, 0, 0, 0, 0])
    with pytest.raises(ValueError, match="are not equally spaced, which GRIB would need"):
        write_grib(uneven, tmp_path / "f.grib2")
    assert not (tmp_path / "f.grib2").exists()

"""The benchmark of forecasts writes the forecast that it times, and says how long each part took."""

import pytest
import xarray as xr

from experiments.benchmark import forecast

SMALL = dict(embed=16, token_hidden=8, embed_hidden=16, blocks=1, patch="(2,4)")


@pytest.mark.slow
def test_a_small_forecast_is_timed_and_written(tmp_path, capsys):
    sizes = [f"--config.model.{name}={value}" for name, value in SMALL.items()]
    seconds = forecast.main(
        ["--config=quickstart", "--grid=16,32", *sizes, "--hours=12", f"--output={tmp_path / 'f.zarr'}",
         "--config.mesh.data=1"]
    )  # fmt: skip
    assert list(seconds) == ["first step, with compilation", "compute", "forecast", "raw"]
    with xr.open_zarr(tmp_path / "f.zarr", chunks=None) as written:
        assert written.sizes["prediction_timedelta"] == 2 and written.sizes["level"] == 13
        assert written.temperature.notnull().all() and "2m_temperature" in written
    assert "12 h, 0.00 GB" in capsys.readouterr().out
    assert [entry.name for entry in tmp_path.iterdir()] == ["f.zarr"]

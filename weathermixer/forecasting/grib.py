"""Forecasts as GRIB 2, a message for each field, by eccodes: for programs that read nothing else."""

import os
import pathlib

import numpy as np
import xarray as xr

from weathermixer.fields.variables import VARIABLES

BITS = 24  # of a value between a field's least and largest: 1 m2/s2 in 2 million
MISSING = 9999.0
# GRIB's short names where they are not ours
SHORT_NAMES = {"u10": "10u", "v10": "10v", "t2m": "2t", "tp6h": "tp", "orog": "z"}


def write_grib(forecasts: xr.Dataset, path: str | os.PathLike) -> None:
    """Writes forecasts (see forecasts.py) to a GRIB 2 file, whole or not at all, without levels that are all missing.

    Raises ValueError for variables that GRIB has no name for, latitudes that are not equally spaced, and where eccodes
    is not installed.
    """
    try:
        import eccodes
    except ImportError as error:
        raise ValueError(f"{path}: GRIB needs eccodes ({error}): pip install 'weathermixer[grib]'") from None
    if unknown := [name for name in forecasts.data_vars if name not in VARIABLES]:
        raise ValueError(f"{path}: GRIB has no name for {unknown}; write .zarr or .nc")
    grid = _describe_grid(forecasts.latitude.values, forecasts.longitude.values)
    path = pathlib.Path(path)
    partial = path.with_name(path.name + ".partial.grib2")
    with open(partial, "wb") as file:
        for index in np.ndindex(forecasts.sizes["time"], forecasts.sizes["prediction_timedelta"]):
            frame = forecasts.isel(time=index[0], prediction_timedelta=index[1])
            start = frame.time.values.astype("datetime64[s]").item()
            when = {"dataDate": int(f"{start:%Y%m%d}"), "dataTime": int(f"{start:%H%M}")}
            when["step"] = int(frame.prediction_timedelta.values / np.timedelta64(1, "h"))
            for name, array in frame.data_vars.items():
                levels = [None] if "level" not in array.dims else array.level.values.tolist()
                for level in levels:
                    values = (array if level is None else array.sel(level=level)).values.astype(np.float64)
                    if not np.isnan(values).all():
                        _write_message(eccodes, file, name, level, values, when | grid)
    partial.replace(path)


def _describe_grid(latitude: np.ndarray, longitude: np.ndarray) -> dict[str, int | float]:
    steps = np.diff(latitude)
    if not np.allclose(steps, steps[0], rtol=1e-3):
        raise ValueError(
            f"latitudes {latitude[:3]} ... are not equally spaced, which GRIB would need: write .zarr or .nc"
        )
    ends = {f"{what}OfFirstGridPointInDegrees": v[0] for what, v in (("latitude", latitude), ("longitude", longitude))}
    ends |= {f"{what}OfLastGridPointInDegrees": v[-1] for what, v in (("latitude", latitude), ("longitude", longitude))}
    increments = {
        "iDirectionIncrementInDegrees": longitude[1] - longitude[0],
        "jDirectionIncrementInDegrees": -steps[0],
    }
    sizes = {"Ni": len(longitude), "Nj": len(latitude)}
    return sizes | {key: float(value) for key, value in (ends | increments).items()}


def _write_message(
    eccodes, file, name: str, level: float | int | None, values: np.ndarray, keys: dict[str, int | float]
) -> None:
    message = eccodes.codes_grib_new_from_samples(f"regular_ll_{'sfc' if level is None else 'pl'}_grib2")
    try:
        short = VARIABLES[name].short
        for key, value in keys.items():
            eccodes.codes_set(message, key, value)
        eccodes.codes_set(message, "shortName", SHORT_NAMES.get(short, short))
        if level is not None:
            eccodes.codes_set(message, "level", level)
        eccodes.codes_set(message, "bitsPerValue", BITS)
        missing = np.isnan(values)
        if missing.any():
            eccodes.codes_set(message, "bitmapPresent", 1)
            eccodes.codes_set(message, "missingValue", MISSING)
        eccodes.codes_set_values(message, np.where(missing, MISSING, values).ravel())
        eccodes.codes_write(message, file)
    except eccodes.CodesInternalError as error:
        raise ValueError(f"{name} cannot be written as GRIB: {error}; write .zarr or .nc") from None
    finally:
        eccodes.codes_release(message)

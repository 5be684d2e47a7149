"""Forecasts as GRIB 2, a message for each field, by eccodes: for programs that read nothing else."""

import itertools
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
    lat, lon = forecasts.latitude.values, forecasts.longitude.values
    if not np.allclose(np.diff(lat), lat[1] - lat[0], rtol=1e-3):
        raise ValueError(f"latitudes {lat[:3]} ... are not equally spaced, which GRIB would need: write .zarr or .nc")
    grid = {"Ni": len(lon), "Nj": len(lat)}
    for what, direction, values in (("latitude", "j", lat), ("longitude", "i", lon)):
        grid[f"{what}OfFirstGridPointInDegrees"], grid[f"{what}OfLastGridPointInDegrees"] = map(float, values[[0, -1]])
        grid[f"{direction}DirectionIncrementInDegrees"] = abs(float(values[1] - values[0]))
    path = pathlib.Path(path)
    partial = path.with_name(path.name + ".partial.grib2")
    with open(partial, "wb") as file:
        for time, lead, name in itertools.product(forecasts.time, forecasts.prediction_timedelta, forecasts.data_vars):
            array = forecasts[name].sel(time=time, prediction_timedelta=lead)
            short = VARIABLES[name].short
            keys = {
                "dataDate": int(time.dt.strftime("%Y%m%d")),
                "dataTime": int(time.dt.strftime("%H%M")),
                "step": int(lead / np.timedelta64(1, "h")),
                "shortName": SHORT_NAMES.get(short, short),
                "bitsPerValue": BITS,
                "missingValue": MISSING,
            }
            for field in array.transpose("level", ...) if "level" in array.dims else [array]:
                missing = field.isnull()
                if missing.all():
                    continue
                more = {"level": int(field.level)} if "level" in array.dims else {}
                more["bitmapPresent"] = int(missing.any())
                try:
                    message = eccodes.GRIBMessage.from_samples(f"regular_ll_{'pl' if 'level' in more else 'sfc'}_grib2")
                    message.set(grid | keys | more, check_values=False)
                    message.set_array("values", field.fillna(MISSING).values.astype(np.float64).ravel())
                    message.write_to(file)
                except (KeyError, eccodes.CodesInternalError) as error:
                    raise ValueError(f"{name} cannot be written as GRIB: {error}; write .zarr or .nc") from None
    partial.replace(path)

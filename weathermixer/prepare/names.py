"""What sources call things: names of variables and dimensions, units, and their translation to WeatherBench 2 and SI.

WeatherBench 2, ARCO-ERA5, the Copernicus climate data store, GRIB through cfgrib and common netCDF files are known.
"""

import re

import numpy as np
import xarray as xr

from weathermixer.fields.variables import VARIABLES

GRAVITY = 9.80665  # m s-2, the standard one, which turns geopotential metres into geopotential

DIMENSIONS = {
    "time": ("time", "valid_time"),
    "level": ("level", "isobaricInhPa", "isobaricInPa", "pressure_level", "plev", "isobaric", "lev"),
    "latitude": ("latitude", "lat"),
    "longitude": ("longitude", "lon"),
}

# WeatherBench 2 name -> what else it is called; a name shared by surface and upper-air fields is told by its levels
ALIASES = {
    "mean_sea_level_pressure": ("msl", "prmsl", "mslet", "psl"),
    "surface_pressure": ("sp", "ps"),
    "10m_u_component_of_wind": ("u10", "10u", "uas"),
    "10m_v_component_of_wind": ("v10", "10v", "vas"),
    "2m_temperature": ("t2m", "2t", "tas"),
    "geopotential": ("z", "gh", "geopotential_height", "zg"),
    "specific_humidity": ("q", "hus"),
    "temperature": ("t", "ta", "air_temperature"),
    "u_component_of_wind": ("u", "ua"),
    "v_component_of_wind": ("v", "va"),
    "vertical_velocity": ("w", "wap", "omega"),
    "land_sea_mask": ("lsm", "land_binary_mask", "sftlf"),
    "soil_type": ("slt",),
    "geopotential_at_surface": ("orography", "orog", "hsurf", "z", "surface_geopotential", "z_surface"),
}
STATIC = ("land_sea_mask", "soil_type", "geopotential_at_surface")
SURFACE = tuple(name for name in VARIABLES if name not in STATIC and (name[0].isdigit() or "pressure" in name))
_HEIGHTS = ("gh", "geopotential_height", "zg", "orography", "orog", "hsurf")  # in metres where units are not given

# (units as written, units wanted) -> factor, shift
_CONVERSIONS = {
    ("m", "m**2 s**-2"): (GRAVITY, 0.0),
    ("gpm", "m**2 s**-2"): (GRAVITY, 0.0),
    ("hPa", "Pa"): (100.0, 0.0),
    ("mbar", "Pa"): (100.0, 0.0),
    ("millibars", "Pa"): (100.0, 0.0),
    ("degC", "K"): (1.0, 273.15),
    ("celsius", "K"): (1.0, 273.15),
    ("g kg**-1", "kg kg**-1"): (1e-3, 0.0),
    ("%", "1"): (1e-2, 0.0),
}
_SAME_UNITS = {"m s-1": "m s**-1", "m/s": "m s**-1", "kg/kg": "kg kg**-1", "kg kg-1": "kg kg**-1"}
_SAME_UNITS |= {"m2 s-2": "m**2 s**-2", "m2/s2": "m**2 s**-2", "m^2 s^-2": "m**2 s**-2", "Pa s-1": "Pa s**-1"}
_SAME_UNITS |= {"Pa/s": "Pa s**-1", "g/kg": "g kg**-1", "Kelvin": "K", "kelvin": "K", "K": "K", "1 1": "1", "": ""}
_SAME_UNITS |= {"(0 - 1)": "1", "~": "1", "-": "1", "meter": "m", "metre": "m", "meters": "m"}


def find_variable(dataset: xr.Dataset, name: str) -> str | None:
    """The name under which a dataset holds a WeatherBench 2 variable, None where it does not."""
    surface = name in SURFACE or name in STATIC
    for candidate in (name, *ALIASES.get(name, ())):
        if candidate not in dataset:
            continue
        has_level = "level" in dataset[candidate].dims
        if candidate == name or (has_level != surface and ("time" in dataset[candidate].dims or name in STATIC)):
            return candidate
    return None


def conversion(array: xr.DataArray, name: str) -> tuple[float, float]:
    """(factor, shift) that turn an array, called `array.name` in its source, into the units of variable `name`.

    Raises ValueError for units that are known not to be those wanted and have no conversion.
    """
    if name not in VARIABLES:
        return 1.0, 0.0
    wanted = VARIABLES[name].units
    units = str(array.attrs.get("units", "")).strip()
    units = _SAME_UNITS.get(units, units)
    if not units:
        return (GRAVITY, 0.0) if array.name in _HEIGHTS else (1.0, 0.0)
    if units == wanted:
        return 1.0, 0.0
    if (units, wanted) in _CONVERSIONS:
        return _CONVERSIONS[units, wanted]
    known = {variable.units for variable in VARIABLES.values()} | {pair[0] for pair in _CONVERSIONS}
    if units in known and wanted != "1":
        raise ValueError(f"variable {array.name!r} is in {units!r}, {name} is kept in {wanted!r}: convert it first")
    return 1.0, 0.0


def rename_dimensions(dataset: xr.Dataset, *, source: str) -> xr.Dataset:
    """The dataset with dimensions called time, level (hPa), latitude and longitude, and a time dimension.

    Raises ValueError for grids that are not regular in latitude and longitude.
    """
    _refuse_other_grids(dataset, source)
    new = {}
    for canonical, names in DIMENSIONS.items():
        found = [name for name in names if name in dataset.dims or name in dataset.coords]
        if found and found[0] != canonical:
            new[found[0]] = canonical
    dataset = dataset.rename(new)
    for name in ("latitude", "longitude"):
        if name not in dataset.dims:
            raise ValueError(f"{source} has no {name} dimension; it has {dict(dataset.sizes)}")
    if "level" in dataset.coords:
        dataset = _levels_in_hpa(dataset)
    if "time" in dataset.coords and "time" not in dataset.dims:
        dataset = _spread_over_time(dataset)
    return dataset


def _refuse_other_grids(dataset: xr.Dataset, source: str) -> None:
    kinds = {array.attrs.get("GRIB_gridType", "regular_ll") for array in dataset.data_vars.values()}
    remedy = "interpolate it to a regular latitude-longitude grid first, with `cdo remapbil` or ECMWF's `mir`"
    reasons = {"sh": "spherical harmonics", "reduced_gg": "a reduced Gaussian grid", "reduced_ll": "a reduced grid"}
    for kind in kinds - {"regular_ll", "regular_gg"}:
        raise ValueError(f"{source} is on {reasons.get(kind, 'another grid')} (gridType {kind}): {remedy}")
    latitude = next((name for name in DIMENSIONS["latitude"] if name in dataset.variables), None)
    if latitude is not None and dataset[latitude].ndim == 2:
        raise ValueError(f"{source} has two-dimensional latitudes: {remedy}")
    if "values" in dataset.dims or "cell" in dataset.dims or "ncells" in dataset.dims:
        raise ValueError(f"{source} is not on a regular latitude-longitude grid: {remedy}")


def _levels_in_hpa(dataset: xr.Dataset) -> xr.Dataset:
    values = np.atleast_1d(dataset["level"].values).astype(np.float64)
    if re.fullmatch("Pa|pascal", str(dataset["level"].attrs.get("units", ""))) or values.max() > 2000:
        values = values / 100
    dims = dataset["level"].dims
    dataset = dataset.assign_coords(level=(dims, values) if dims else values[0])
    if dims:
        return dataset
    return dataset.map(lambda array: array if _is_surface(array) else array.expand_dims("level"))


def _is_surface(array: xr.DataArray) -> bool:
    return array.name in SURFACE + STATIC or any(array.name in ALIASES.get(name, ()) for name in SURFACE)


def _spread_over_time(dataset: xr.Dataset) -> xr.Dataset:
    static = {name for canonical in STATIC for name in (canonical, *ALIASES[canonical]) if name != "z"}
    return dataset.map(lambda array: array if array.name in static else array.expand_dims("time"))

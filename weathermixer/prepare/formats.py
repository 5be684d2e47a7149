"""Opens what a source is made of: a Zarr store, netCDF files or GRIB files, local or remote, as lazy xarray datasets.

Nothing is loaded and nothing is merged here: a source is a list of pieces, one per file (and variable of a GRIB file).
"""

import glob
import os
import tempfile
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from weathermixer.prepare.names import ALIASES, STATIC, SURFACE, rename_dimensions

GRIB_SUFFIXES = (".grib", ".grib1", ".grib2", ".grb", ".grb2", ".grib.bz2")
NETCDF_SUFFIXES = (".nc", ".nc4", ".netcdf", ".cdf", ".h5")
_SURFACE_LEVELS = ("surface", "meanSea", "heightAboveGround")
_UPPER_LEVELS = ("isobaricInhPa", "isobaricInPa")


def open_pieces(
    spec: str | os.PathLike,
    *,
    variables: Sequence[str] | None = None,
    select: Mapping[str, Any] | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> list[xr.Dataset]:
    """Opens a source's pieces lazily, with dimensions (time[, level], latitude, longitude) in any order.

    A source is a Zarr store (a folder or an s3://, gs:// or http(s):// address), or netCDF or GRIB files (a glob).
    `variables` are WeatherBench 2 names, or names in a GRIB file beyond those. `select` picks one entry of other
    dimensions, {"number": 0}. Raises ValueError for a source that is absent, unreadable or not on a regular grid.
    """
    spec = os.fspath(spec)
    suffix = spec.rstrip("/*").lower()
    if suffix.endswith(GRIB_SUFFIXES):
        pieces = [piece for path in _files(spec) for piece in _open_grib(path, variables)]
    elif suffix.endswith(NETCDF_SUFFIXES):
        pieces = [_open_netcdf(path) for path in _files(spec)]
    elif "://" not in spec and not os.path.isdir(spec):
        _files(spec)  # raises where there is none
        raise ValueError(f"{spec}: not a folder (Zarr), and its suffix is none of {NETCDF_SUFFIXES + GRIB_SUFFIXES}")
    else:
        pieces = [open_zarr(spec, storage_options=storage_options)]
    return [make_canonical(piece, source=piece.encoding.get("source", spec), select=select) for piece in pieces]


def make_canonical(dataset: xr.Dataset, *, source: str, select: Mapping[str, Any] | None = None) -> xr.Dataset:
    """The dataset with the project's names of dimensions, and no other dimensions but those (see `names`)."""
    select = {name: value for name, value in (select or {}).items() if name in dataset.dims}
    for name, value in select.items():
        try:
            dataset = dataset.sel({name: value}) if name in dataset.coords else dataset.isel({name: int(value)})
        except KeyError:
            raise ValueError(f"{source} has no {name}={value}; it has {dataset[name].values.tolist()}") from None
    dataset = rename_dimensions(dataset, source=source)
    known = {"time", "level", "latitude", "longitude"}
    return dataset.squeeze([name for name, size in dataset.sizes.items() if size == 1 and name not in known])


def open_zarr(path: str, *, storage_options: Mapping[str, Any] | None = None) -> xr.Dataset:
    """Opens a Zarr store, version 2 or 3, consolidated or not, without dask."""
    try:
        with warnings.catch_warnings():
            # stores without consolidated metadata are slower to open, and otherwise as good
            warnings.filterwarnings("ignore", category=RuntimeWarning)
            dataset = xr.open_zarr(path, chunks=None, storage_options=dict(storage_options or {}) or None)
    except ImportError as error:
        raise ValueError(f"{path} needs fsspec for its protocol ({error}): pip install 'weathermixer[cloud]'") from None
    except Exception as error:
        raise ValueError(f"{path} cannot be opened as a Zarr store: {type(error).__name__}: {error}") from error
    dataset.encoding["source"] = path
    return dataset


def _open_netcdf(path: str) -> xr.Dataset:
    try:
        return xr.open_dataset(path, chunks=None)
    except Exception as error:
        raise ValueError(f"{path} cannot be opened as netCDF: {type(error).__name__}: {error}") from error


def _files(pattern: str) -> list[str]:
    if "://" in pattern:
        raise ValueError(f"{pattern}: remote sources are Zarr stores; copy netCDF and GRIB files to a local disk first")
    files = sorted(glob.glob(pattern))
    if not files:
        raise ValueError(f"no file at {pattern}")
    return files


def _open_grib(path: str, variables: Sequence[str] | None) -> Iterable[xr.Dataset]:
    """One piece per variable: a GRIB file may hold fields of many shapes under one name, so each is taken out alone."""
    try:
        import cfgrib
    except ImportError as error:
        raise ValueError(f"{path}: GRIB needs cfgrib and eccodes ({error}): pip install 'weathermixer[grib]'") from None
    wanted = variables if variables is not None else (*SURFACE, *(set(ALIASES) - set(SURFACE) - set(STATIC)))
    with tempfile.TemporaryDirectory() as folder:
        # one scan of the file serves all variables, and nothing is written beside the source
        options = {"indexpath": f"{folder}/{{short_hash}}.idx", "errors": "raise"}
        keys = sorted({*cfgrib.dataset.compute_index_keys(("time", "step")), "shortName", "typeOfLevel"})
        try:
            index = cfgrib.dataset.open_fileindex(cfgrib.FileStream(path, errors="raise"), options["indexpath"], keys)
        except Exception as error:
            raise ValueError(f"{path} cannot be read as GRIB: {type(error).__name__}: {error}") from error
        present = {(message["shortName"], message["typeOfLevel"]) for message in _headers(index)}
        if not present:
            raise ValueError(f"{path} holds no GRIB messages")
        found = 0
        for name in dict.fromkeys((*wanted, *STATIC)):
            kinds = _SURFACE_LEVELS if name in SURFACE + STATIC else _UPPER_LEVELS
            for short in (name, *ALIASES.get(name, ())):
                levels = kinds if name in ALIASES else (*_UPPER_LEVELS, *_SURFACE_LEVELS)
                level = next((level for level in levels if (short, level) in present), None)
                if level is None:
                    continue
                filters = {"shortName": short, "typeOfLevel": level}
                piece = xr.open_dataset(path, engine="cfgrib", backend_kwargs=options | {"filter_by_keys": filters})
                yield _rename_field(piece, name if name in ALIASES else short)
                found += 1
                break
        if not found:
            raise ValueError(f"{path} has none of {list(wanted)}; it has {sorted(present)}")


def _headers(index) -> Iterable[dict[str, Any]]:
    names = [key.split(":")[0] for key in index.index_keys]
    for values, _ in index.field_ids_index:
        yield dict(zip(names, values))


def _rename_field(piece: xr.Dataset, name: str) -> xr.Dataset:
    (field,) = piece.data_vars
    if np.ndim(piece.coords.get("step", 0)):
        leads = (piece["step"].values / np.timedelta64(1, "h")).tolist()
        raise ValueError(f"{piece.encoding.get('source')}: {name} has forecast steps {leads} h: select one, step=HOURS")
    # gh comes in geopotential metres: its units say so, and are converted when read
    return piece.rename({field: name})

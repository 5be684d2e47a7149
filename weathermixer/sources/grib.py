"""GRIB files as pieces: a file may hold fields of many shapes under one name, so each kind is taken out alone."""

import pickle
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from weathermixer.sources.names import ALIASES, STATIC, SURFACE

LEFT_OUT_SHOWN = 12
_SURFACE_LEVELS = ("surface", "meanSea", "heightAboveGround")
_UPPER_LEVELS = ("isobaricInhPa", "isobaricInPa")
_KIND = ("shortName", "typeOfLevel", "dataType", "stepType", "md5GridSection")  # what fields of one piece share


def is_grib(head: bytes) -> bool:
    """Whether a file begins as GRIB does, perhaps after a bulletin's header."""
    return re.search(rb"GRIB...[\x01\x02]", head, re.DOTALL) is not None


def open_grib(path: str, variables: Sequence[str] | None) -> tuple[list[xr.Dataset], str]:
    """A GRIB file's pieces of the variables (None: those known) and of static fields, and the fields it has besides.

    Pieces of data types (control and members, analyses and forecasts) and of step types are apart, and so are the steps
    where there are several starts; a piece says which it is by scalar coordinates. Raises ValueError for a file that
    cannot be read, and for different fields under the same keys.
    """
    try:
        import cfgrib
    except ImportError as error:
        raise ValueError(f"{path}: GRIB needs cfgrib and eccodes ({error}): pip install 'weathermixer[grib]'") from None
    keys = sorted({*cfgrib.dataset.compute_index_keys(("time", "step")), *_KIND})
    try:
        stream = cfgrib.FileStream(path, errors="raise")
        index = cfgrib.messages.FileIndex.from_fieldset(stream, keys, cfgrib.dataset.cfmessage.COMPUTED_KEYS)
        kinds = _group_fields(index)
        chosen, left_out = _choose_kinds(kinds, variables)
        for _, kind in chosen:
            _check_repeats(index, kinds[kind])
        with tempfile.TemporaryDirectory() as folder:
            # one scan of the file serves all variables, and nothing is written beside the source
            with open(f"{folder}/index", "wb") as file:
                pickle.dump(index, file)
            options = {"indexpath": f"{folder}/index", "errors": "raise"}
            pieces = [
                _open_kind(path, name, filters, options)
                for name, kind in chosen
                for filters in _split_steps(dict(zip(_KIND, kind)), kinds[kind])
            ]
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} cannot be read as GRIB: {type(error).__name__}: {reason}") from error
    return pieces, left_out


def _group_fields(index) -> dict[tuple[str, ...], list[dict[str, Any]]]:
    """The headers of a file's fields, with the offsets where they lie, by what the fields of a piece share."""
    names = [key.split(":")[0] for key in index.index_keys]
    kinds = defaultdict(list)
    for values, offsets in index.field_ids_index:
        header = dict(zip(names, values)) | {"offsets": offsets}
        kinds[tuple(header[key] for key in _KIND)].append(header)
    return kinds


def _check_repeats(index, headers: Sequence[Mapping[str, Any]]) -> None:
    """ValueError for fields of the same headers with different values: cfgrib reads the first."""
    for header in headers:
        if len(header["offsets"]) == 1:
            continue
        first, *others = (index.get_field(offset)["values"] for offset in header["offsets"])
        if any(not np.array_equal(field, first) for field in others):
            where = f"level {header['level']:g}, {header['dataDate']} {header['dataTime']:04}, step {header['step']:g}"
            raise ValueError(f"{header['shortName']} at {where} lies there twice, with different values")


def _choose_kinds(kinds: Iterable[tuple[str, ...]], variables: Sequence[str] | None):
    """([(variable, kind)], the kinds that are not chosen, in words)."""
    wanted = variables if variables is not None else (*SURFACE, *(set(ALIASES) - set(SURFACE) - set(STATIC)))
    present = dict.fromkeys(kind[:2] for kind in kinds)
    names = {}
    for name in dict.fromkeys((*wanted, *STATIC)):
        levels = _SURFACE_LEVELS if name in SURFACE + STATIC else _UPPER_LEVELS
        levels = levels if name in ALIASES else (*_UPPER_LEVELS, *_SURFACE_LEVELS)
        shorts = (name, *ALIASES.get(name, ()))
        found = next(((short, level) for short in shorts for level in levels if (short, level) in present), None)
        if found:
            names[found] = name if name in ALIASES else found[0]
    others = [f"{short} ({level})" for short, level in present if (short, level) not in names]
    left_out = ", ".join(others[:LEFT_OUT_SHOWN]) + f" and {len(others) - LEFT_OUT_SHOWN} more" * (
        len(others) > LEFT_OUT_SHOWN
    )
    return [(names[kind[:2]], kind) for kind in kinds if kind[:2] in names], left_out


def _split_steps(filters: dict[str, Any], headers: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One set of filters, or one for each step where there are several starts: not all starts may have all steps."""
    steps = {header["step"] for header in headers}
    if len(steps) == 1 or len({header["time"] for header in headers}) == 1:
        return [filters]
    return [filters | {"step": step} for step in sorted(steps)]


def _open_kind(path: str, name: str, filters: Mapping[str, Any], options: Mapping[str, Any]) -> xr.Dataset:
    options = {**options, "filter_by_keys": dict(filters)}
    piece = xr.open_dataset(path, engine="cfgrib", backend_kwargs=options, chunks=None)
    (field,) = piece.data_vars
    # gh comes in geopotential metres: its units say so, and are converted when read
    return piece.rename({field: name}).assign_coords({key: filters[key] for key in ("dataType", "stepType")})

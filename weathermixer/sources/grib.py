"""GRIB files as pieces: a file may hold fields of many shapes under one name, so each kind is taken out alone."""

import pickle
import re
import tempfile
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from weathermixer.sources.names import ALIASES, STATIC, SURFACE
from weathermixer.sources.parts import Note

_SURFACE_LEVELS = ("surface", "meanSea", "heightAboveGround")
_UPPER_LEVELS = ("isobaricInhPa", "isobaricInPa")
_KIND = ("shortName", "typeOfLevel", "dataType", "stepType", "md5GridSection")  # what fields of one piece share


def is_grib(head: bytes) -> bool:
    """Whether a file begins as GRIB does, perhaps after a bulletin's header."""
    return re.search(rb"GRIB...[\x01\x02]", head, re.DOTALL) is not None


def open_grib(path: str, name: str, variables: Sequence[str] | None, notes: list[Note]) -> list[xr.Dataset]:
    """A GRIB file's pieces of the variables (None: those known) and of static fields; what it has besides is noted.

    Pieces of data types (control and members, analyses and forecasts) and of step types are apart, and so are the steps
    where there are several starts, for not all may have all steps; a piece says which it is by scalar coordinates.
    `name` is what the file is called. Raises ValueError for a file that cannot be read, and for different fields under
    the same keys.
    """
    try:
        import cfgrib
    except ImportError as error:
        raise ValueError(f"{name}: GRIB needs cfgrib and eccodes ({error}): pip install 'weathermixer[grib]'") from None
    keys = sorted({*cfgrib.dataset.compute_index_keys(("time", "step")), *_KIND})
    pieces = []
    try:
        stream = cfgrib.FileStream(path, errors="raise")
        index = cfgrib.messages.FileIndex.from_fieldset(stream, keys, cfgrib.dataset.cfmessage.COMPUTED_KEYS)
        kinds = defaultdict(list)  # the headers of fields, and where these lie, by what those of a piece share
        for values, offsets in index.field_ids_index:
            header = dict(zip([key.split(":")[0] for key in index.index_keys], values))
            kinds[tuple(header[key] for key in _KIND)].append(header | {"offsets": offsets})
        present = dict.fromkeys(kind[:2] for kind in kinds)
        names = _choose_names(present, variables)
        others = [f"{short} ({level})" for short, level in present if (short, level) not in names]
        notes += [Note("not asked for or not known", name, other) for other in others]
        with tempfile.TemporaryDirectory() as folder:
            # one scan of the file serves all variables, and nothing is written beside the source
            with open(f"{folder}/index", "wb") as file:
                pickle.dump(index, file)
            for kind, headers in kinds.items():
                if kind[:2] not in names:
                    continue
                _check_repeats(index, headers)
                steps, starts = ({header[key] for header in headers} for key in ("step", "time"))
                for step in sorted(steps) if len(steps) > 1 and len(starts) > 1 else [None]:
                    filters = dict(zip(_KIND, kind)) | ({} if step is None else {"step": step})
                    options = {"indexpath": f"{folder}/index", "errors": "raise", "filter_by_keys": filters}
                    piece = xr.open_dataset(path, engine="cfgrib", backend_kwargs=options, chunks=None)
                    (field,) = piece.data_vars
                    # gh comes in geopotential metres: its units say so, and are converted when read
                    piece = piece.rename({field: names[kind[:2]]})
                    piece.encoding["source"] = name
                    pieces.append(piece.assign_coords({key: filters[key] for key in ("dataType", "stepType")}))
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{name} cannot be read as GRIB: {type(error).__name__}: {reason}") from error
    return pieces


def _check_repeats(index, headers: Sequence[Mapping[str, Any]]) -> None:
    """ValueError for fields of the same headers with different values: cfgrib reads the first."""
    for header in headers:
        first, *others = header["offsets"]
        values = index.get_field(first)["values"] if others else None
        if any(not np.array_equal(index.get_field(offset)["values"], values) for offset in others):
            where = f"level {header['level']:g}, {header['dataDate']} {header['dataTime']:04}, step {header['step']:g}"
            raise ValueError(f"{header['shortName']} at {where} lies there twice, with different values")


def _choose_names(present: Collection[tuple[str, str]], variables: Sequence[str] | None) -> dict[tuple[str, str], str]:
    """{(short name, type of level): variable} of the variables, and of static fields, that are present."""
    wanted = variables if variables is not None else (*SURFACE, *(set(ALIASES) - set(SURFACE) - set(STATIC)))
    names = {}
    for name in dict.fromkeys((*wanted, *STATIC)):
        levels = _SURFACE_LEVELS if name in SURFACE + STATIC else _UPPER_LEVELS
        levels = levels if name in ALIASES else (*_UPPER_LEVELS, *_SURFACE_LEVELS)
        shorts = (name, *ALIASES.get(name, ()))
        found = next(((short, level) for short in shorts for level in levels if (short, level) in present), None)
        if found:
            names[found] = name if name in ALIASES else found[0]
    return names

"""Reads a part of a file: slices where there can be, again where a remote read failed, and no fill for a value."""

import time
from collections.abc import Sequence

import numpy as np
import xarray as xr
from jaxtyping import Float

from weathermixer.sources.orientation import as_slice, take
from weathermixer.sources.parts import Part

RETRIES = 4  # of a remote read that failed, after 1, 2, 4 and 8 seconds
# of netCDF, where a file declares none, and the letter of the type in NCO
DEFAULT_FILLS = {"int8": (-127, "b"), "int16": (-32767, "s"), "int32": (-2147483647, "i")}


def read_part(
    part: Part, position: np.ndarray, levels: Sequence[int], *, gaps: bool
) -> Float[np.ndarray, "time channel latitude longitude"]:
    """Reads times and levels of a part, in the order asked for, rows and columns as they lie there.

    Where the part is remote, a read that fails is tried again, with a pause that doubles.
    """
    array, order = part.array, None
    if "time" in array.dims:
        array = array.isel(time=as_slice(position))
    if "level" in array.dims:
        wanted = [part.levels_hpa.index(level) for level in levels]
        unique = np.unique(wanted)
        if "chunksizes" in part.array.encoding:  # of netCDF's chunks each range of levels is decoded anew
            unique = np.arange(unique[0], unique[-1] + 1)
        array, order = array.isel(level=as_slice(unique)), np.searchsorted(unique, wanted)
    values = _load(array, remote="://" in part.file)
    values = _check_fill(part, values, gaps)
    axes = [array.dims.index(name) for name in ("time", "level", "latitude", "longitude") if name in array.dims]
    values = values.transpose(axes)
    if "time" not in array.dims:
        values = values[None]
    return values[:, None] if order is None else take(values, order, axis=1)


def _check_fill(part: Part, values: np.ndarray, gaps: bool) -> np.ndarray:
    """The values, those that are packed as netCDF's default fill missing where these are `gaps`.

    Else raises ValueError for them where the file declares no fill. A value that is so by chance is alone, and zero is
    the end of the range of many variables.
    """
    packing = part.array.encoding
    fill, kind = DEFAULT_FILLS.get(str(packing.get("dtype")), (None, ""))
    if fill is None or "scale_factor" not in packing or {"_FillValue", "missing_value"} & packing.keys():
        return values
    scale, offset = packing["scale_factor"], packing.get("add_offset", 0.0)
    mark = fill * scale + offset
    found = np.abs(values - mark) < abs(scale) / 4
    count = np.count_nonzero(found)
    if abs(mark) <= abs(scale) / 2 or not count or (count == 1 and not gaps):
        return values
    if gaps:
        return np.where(found, np.nan, values)
    # not _FillValue, which cannot be added to a netCDF 4 file
    raise ValueError(
        f"{count} of {values.size} values of {part.given} in {part.file} are {mark:g}, packed as {fill}, netCDF's mark "
        "of missing values, which the file does not declare: prepare takes them as missing with --keep-faults; or "
        f"declare what is missing, ncatted -a missing_value,{part.given},o,{kind},{fill} {part.file}, another value "
        "where these are no gaps"
    )


def _load(array: xr.DataArray, *, remote: bool) -> np.ndarray:
    for attempt in range(RETRIES if remote else 0):
        try:
            return array.to_numpy()
        except OSError:  # time-outs and broken connections among them
            time.sleep(2**attempt)
    return array.to_numpy()

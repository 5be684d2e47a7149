"""Opens what a source is made of: Zarr stores, netCDF and GRIB files, local or remote, as lazy xarray datasets.

Files are known by what they hold, not by their names. Nothing is loaded and nothing is merged here: a source is a list
of pieces, one per file, variable of a GRIB file and lead of a forecast, with notes of what was made of them.
"""

import contextlib
import glob
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import netCDF4
import xarray as xr
import zarr

from weathermixer.archive.storage import cache_folder, check_address
from weathermixer.sources.coordinates import rename_dimensions
from weathermixer.sources.grib import is_grib, open_grib
from weathermixer.sources.netcdf3 import check_length
from weathermixer.sources.parts import Note
from weathermixer.sources.selection import refuse_one_beside_many, select_entry
from weathermixer.sources.times import at_valid_times, with_dates

Spec = str | os.PathLike | xr.Dataset

FILE_SUFFIXES = (".nc", ".nc4", ".netcdf", ".cdf", ".h5", ".grib", ".grib1", ".grib2", ".grb", ".grb2")  # remote ones
_PACKED = {
    b"PK": "a zip archive, as the CDS sends some netCDF: unzip it",
    b"\x1f\x8b": "packed by gzip: gunzip it",
    b"BZh": "packed by bzip2: bunzip2 it",
    b"\xfd7zXZ": "packed by xz: unxz it",
    b"\x28\xb5\x2f\xfd": "packed by zstd: unzstd it",
}
_ZARR = ("zarr.json", ".zgroup", ".zmetadata", ".zarray")


def open_pieces(
    specs: Sequence[Spec],
    *,
    variables: Sequence[str] | None = None,
    select: Mapping[str, Any] | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> tuple[list[xr.Dataset], list[Note]]:
    """Opens a source's pieces lazily, with dimensions (time[, level], latitude, longitude) in any order, and notes.

    A spec is a Zarr store or a netCDF or GRIB file, local or behind s3://, gs:// or http(s)://, where files are known
    by their suffix and copied to the cache; a glob of files, a local folder, or a dataset that is open. `variables` are
    WeatherBench 2 names, or names in a GRIB file beyond those. `select` picks one entry of other dimensions,
    {"number": 0}. Raises ValueError for what is absent, unreadable, undated or not on a regular grid.
    """
    pieces, notes = open_raw(specs, variables=variables, storage_options=storage_options)
    for name, value in (select or {}).items():
        pieces = select_entry(pieces, name, str(value))
    refuse_one_beside_many(pieces)
    canonical = []
    for piece in pieces:
        source = str(piece.encoding.get("source", "dataset"))
        for part in at_valid_times(piece, notes, source=source):
            part = with_dates(rename_dimensions(part, source=source), notes, source=source)
            part.encoding["source"] = source
            canonical.append(part)
    return canonical, notes


def open_raw(
    specs: Sequence[Spec], *, variables: Sequence[str] | None = None, storage_options: Mapping[str, Any] | None = None
) -> tuple[list[xr.Dataset], list[Note]]:
    """A source's pieces as they lie in its files, and notes: open_pieces takes them as specs, to select of them."""
    pieces: list[xr.Dataset] = []
    notes: list[Note] = []
    for spec in specs:
        if isinstance(spec, xr.Dataset):
            pieces.append(spec)
            continue
        for path in find_paths(os.fspath(spec)):
            if "://" in path and urlsplit(path).path.lower().endswith(FILE_SUFFIXES):
                for name, copy in _fetch(path, storage_options).items():
                    notes.append(Note("read from a copy in the cache, fetched once", name))
                    pieces += _open_file(copy, name, variables, notes)
            elif "://" in path or os.path.isdir(path):
                pieces.append(open_zarr(path, storage_options=storage_options))
            else:
                pieces += _open_file(path, path, variables, notes)
    return pieces, notes


def find_paths(spec: str) -> list[str]:
    """The files and stores that a spec names: itself, the matches of a glob, what lies in a folder that is no store."""
    if "://" in spec:
        check_address(spec)
        return [spec]
    spec = os.path.expanduser(spec)
    if os.path.isdir(spec) and not any(os.path.exists(os.path.join(spec, name)) for name in _ZARR):
        entries = [os.path.join(spec, name) for name in sorted(os.listdir(spec)) if not name.startswith(".")]
        if not entries:
            raise ValueError(f"{spec} is an empty folder: neither a Zarr store nor a folder of files")
        return [path for entry in entries for path in find_paths(entry)]
    if os.path.lexists(spec):  # whatever its name is made of
        return [spec]
    folder = os.path.dirname(spec)
    while folder and not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    # folders that are there are taken by their names, brackets and all: what follows is the pattern
    names = sorted(glob.glob(spec[len(folder) :].lstrip("/"), root_dir=folder or None, recursive=True))
    if not names:
        braces = "; braces are the shell's to expand: leave out the quotes" if "{" in spec else ""
        raise ValueError(f"no file at {spec}{braces}")
    return [path for name in names for path in find_paths(os.path.join(folder, name))]


def _fetch(path: str, storage_options: Mapping[str, Any] | None) -> dict[str, str]:
    """The local copies of a remote file, or of a glob of them, by address: fetched once, by fsspec's cache of files.

    A copy is fetched anew after a week, and before where an object store says that the file is another. Raises
    ValueError where fsspec or what it needs for the protocol is not installed, and where there is no file.
    """
    protocol, folder = path.split("://")[0], str(cache_folder() / "remote")
    print(f"fetch: {path}, unless {folder} has it", file=sys.stderr, flush=True)
    options = {"filecache": {"cache_storage": folder, "check_files": True}, protocol: dict(storage_options or {})}
    try:
        import fsspec

        files = fsspec.open_files(f"filecache::{path}", "rb", expand="*" in path, **options)
        with files as opened:
            copies = [file.name for file in opened]
    except ImportError as error:
        raise ValueError(f"{path} needs fsspec for its protocol ({error}): pip install 'weathermixer[cloud]'") from None
    except Exception as error:
        raise ValueError(f"{path} cannot be fetched: {_in_a_line(error)}") from error
    if not copies:
        raise ValueError(f"no file at {path}")
    names = [file.path if "://" in file.path else f"{protocol}://{file.path}" for file in files]
    return dict(zip(names, copies, strict=True))


def _in_a_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _open_file(path: str, name: str, variables: Sequence[str] | None, notes: list[Note]) -> list[xr.Dataset]:
    """The pieces of a local file, which is called `name` in all that is said of it."""
    with open(path, "rb") as file:
        head = file.read(1024)
    if head.startswith((b"CDF", b"\x89HDF\r\n\x1a\n")):
        return [_open_netcdf(path, name)]
    if is_grib(head):
        return open_grib(path, name, variables, notes)
    text = head.decode("utf-8", "replace")[:60]
    if not head:
        what = "is empty: fetch it again"
    elif packed := next((packed for magic, packed in _PACKED.items() if head.startswith(magic)), None):
        what = f"is {packed}, and give what comes out"
    elif "\ufffd" not in text and all(letter.isprintable() or letter.isspace() for letter in text):
        what = f"is text, {' '.join(text.split())!r}, in the place of data: fetch it again"
    else:
        what = f"is neither netCDF nor GRIB: it begins with {head[:8]!r}"
    raise ValueError(f"{name} {what}")


@contextlib.contextmanager
def no_chunk_cache() -> Iterator[None]:
    """While files are opened in it, the netCDF library keeps no chunks of them: else 64 MiB for each variable and file.

    Nothing is decoded twice for want of them, as whole chunks are read.
    """
    before = netCDF4.get_chunk_cache()
    netCDF4.set_chunk_cache(0, 1, 0.75)
    try:
        yield
    finally:
        netCDF4.set_chunk_cache(*before)


@no_chunk_cache()
def _open_netcdf(path: str, name: str) -> xr.Dataset:
    try:
        check_length(path)
        dataset = xr.open_dataset(path, engine="netcdf4", chunks=None, decode_cf=False)
    except Exception as error:
        reason = _in_a_line(error)
        raise ValueError(f"{name} cannot be opened as netCDF: it is cut off or damaged ({reason})") from None
    return _decode(dataset, name)


def open_zarr(path: str, *, storage_options: Mapping[str, Any] | None = None) -> xr.Dataset:
    """Opens a Zarr store, version 2 or 3, consolidated or not, without dask."""
    try:
        with warnings.catch_warnings():
            # stores without consolidated metadata are slower to open, and otherwise as good
            warnings.filterwarnings("ignore", category=RuntimeWarning)
            options = dict(storage_options or {}) or None
            # xarray would cut a local path at a #
            store = path if "://" in path else zarr.storage.LocalStore(path, read_only=True)
            dataset = xr.open_zarr(store, chunks=None, storage_options=options, decode_cf=False)
    except ImportError as error:
        raise ValueError(f"{path} needs fsspec for its protocol ({error}): pip install 'weathermixer[cloud]'") from None
    except Exception as error:
        raise ValueError(f"{path} cannot be opened as a Zarr store: {_in_a_line(error)}") from error
    return _decode(dataset, path)


def _decode(dataset: xr.Dataset, name: str) -> xr.Dataset:
    dataset.encoding["source"] = name
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=xr.SerializationWarning)  # dates far away are refused below
            warnings.filterwarnings("ignore", "In a future version, xarray will not decode")  # as hours or not
            return xr.decode_cf(dataset)
    except Exception as error:
        reason = str(error).splitlines()[0].partition(" Try opening")[0].rstrip(".")
        raise ValueError(f"{name} cannot be decoded: {reason}; put its attributes right, as with ncatted") from None

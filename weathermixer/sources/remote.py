"""Remote files: copied to the cache once, through fsspec's own cache of whole files, and read from there."""

import sys
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from weathermixer.archive.storage import cache_folder

FILE_SUFFIXES = (".nc", ".nc4", ".netcdf", ".cdf", ".h5", ".grib", ".grib1", ".grib2", ".grb", ".grb2")


def is_remote_file(path: str) -> bool:
    """Whether an address is of a netCDF or GRIB file, by its suffix, and not of a Zarr store."""
    return "://" in path and urlsplit(path).path.lower().endswith(FILE_SUFFIXES)


def fetch_files(path: str, storage_options: Mapping[str, Any] | None) -> dict[str, str]:
    """The local copies of a remote file, or of a glob of them, by address; what is there already is not fetched again.

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
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"{path} cannot be fetched: {reason}") from error
    if not copies:
        raise ValueError(f"no file at {path}")
    names = [file.path if "://" in file.path else f"{protocol}://{file.path}" for file in files]
    return dict(zip(names, copies, strict=True))

"""Small Zarr v3 pieces in any store: paths made into TensorStore specs, arrays and JSON documents read whole.

One function, `kvstore_spec`, decides how a path is reached, so that a file, s3://, gs:// and http(s):// behave alike.
"""

import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import tensorstore as ts
from numcodecs import VLenUTF8

Spec = dict[str, Any]
Array = ts.TensorStore  # the rest of the project names its types through these
WriteFutures = ts.WriteFutures
# TensorStore waits for a dead connection for half an hour, unless told by these before its first request:
# fewer than 256 bytes per second for 30 s count as an error, which is retried
_STALLS = {
    "TENSORSTORE_CURL_CONNECT_TIMEOUT_SECONDS": "30",
    "TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS": "30",
    "TENSORSTORE_CURL_LOW_SPEED_LIMIT_BYTES": "256",
}
BYTES = {"name": "bytes", "configuration": {"endian": "little"}}


def kvstore_spec(path: str | os.PathLike) -> Spec:
    """The TensorStore key-value store spec of a folder: a file path, file://, s3://, gs:// or http(s)://.

    s3:// follows the usual environment: AWS_ENDPOINT_URL, AWS_REGION (or AWS_DEFAULT_REGION), AWS_NO_SIGN_REQUEST=YES
    for public buckets, and the standard chain of credentials otherwise. Requests to remote stores that fail for a
    reason that passes, or stall, are sent again after 1, 2, 4 ... 32 s, 32 times (TensorStore's *_request_retries).
    Raises ValueError for other schemes, without a bucket, and as `check_address` does.
    """
    path = os.fspath(path)
    check_address(path)
    if "://" not in path:
        return {"driver": "file", "path": os.path.abspath(os.path.expanduser(path)) + "/"}
    for name, value in _STALLS.items():
        os.environ.setdefault(name, value)
    try:
        spec = ts.KvStore.Spec(path.rstrip("/") + "/").to_json()
    except ValueError as error:
        raise ValueError(f"{path!r}: {error}; use a file path, s3://bucket/path, gs:// or http(s)://") from None
    if spec["driver"] == "s3":
        if region := os.environ.get("AWS_REGION", os.environ.get("AWS_DEFAULT_REGION")):
            spec["aws_region"] = region
        if endpoint := os.environ.get("AWS_ENDPOINT_URL_S3", os.environ.get("AWS_ENDPOINT_URL")):
            spec["endpoint"] = endpoint
        if os.environ.get("AWS_NO_SIGN_REQUEST", "").upper() in ("YES", "TRUE", "1"):
            spec["aws_credentials"] = {"type": "anonymous"}
    return spec


def check_address(path: str) -> None:
    """ValueError for an address with a password or a token in it: a run's log and checkpoints would keep them."""
    parts = urlsplit(path)
    if "://" in path and (parts.query or "@" in parts.netloc):
        raise ValueError(
            f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path} was given with a user, password or token: "
            "leave them out, and give them as AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, GOOGLE_APPLICATION_CREDENTIALS "
            "or in the files that these packages read; logs and checkpoints keep addresses"
        )


def cache_folder() -> pathlib.Path:
    """Where data that was made or fetched on first use is kept: $WEATHERMIXER_CACHE, or the user's cache folder."""
    default = pathlib.Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "weathermixer"
    return pathlib.Path(os.environ.get("WEATHERMIXER_CACHE", default)).expanduser()


def is_local(path: str | os.PathLike) -> bool:
    """Whether the path lies on a file system, where folders can be renamed."""
    return kvstore_spec(path)["driver"] == "file"


def join(path: str | os.PathLike, *names: str) -> str:
    """The path of a member of a folder, in any store."""
    return "/".join([os.fspath(path).rstrip("/"), *names])


def open_folder(path: str | os.PathLike) -> ts.KvStore:
    """Opens a folder as a key-value store: keys are paths below it."""
    return ts.KvStore.open(kvstore_spec(path)).result()


def read_json(folder: ts.KvStore, key: str) -> dict[str, Any] | None:
    """The JSON document under a key, None where there is none; ValueError where it cannot be parsed."""
    found = folder.read(key).result()
    if found.state != "value":
        return None
    try:
        return json.loads(found.value)
    except ValueError as error:
        raise ValueError(f"{key} in {folder.url} is not JSON: {error}") from None


def write_json(folder: ts.KvStore, key: str, document: Mapping[str, Any]) -> None:
    """Writes a JSON document under a key."""
    folder.write(key, json.dumps(document, indent=2).encode()).result()


def write_whole(path: pathlib.Path, text: str) -> None:
    """Writes a text file, whole or not at all: a kill leaves the one that was there or the new one."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def delete_folder(folder: ts.KvStore, name: str) -> None:
    """Deletes everything below a folder's member."""
    folder.delete_range(ts.KvStore.KeyRange(name + "/", name + "0")).result()


def as_slice(index: np.ndarray) -> slice | np.ndarray:
    """A slice where an ascending index has equal steps: lazy stores read slices quickest."""
    steps = np.diff(index)
    if len(index) > 1 and (steps[0] <= 0 or np.any(steps != steps[0])):
        return index
    return slice(int(index[0]), int(index[-1]) + 1, int(steps[0]) if len(steps) else 1)


def open_array(path: str | os.PathLike, *, write: bool = False) -> Array:
    """Opens a Zarr v3 array; to read, a chunk that is absent is an error, never fill values."""
    spec = {"driver": "zarr3", "kvstore": kvstore_spec(path), "fill_missing_data_reads": write}
    options = {"store_data_equal_to_fill_value": True} if write else {}
    return ts.open(spec | options, read=True, write=write or None).result()


def create_array(
    path: str | os.PathLike, metadata: Mapping[str, Any], *, replace: bool = False, sync: bool = True
) -> Array:
    """Creates a Zarr v3 array, or opens the one of the same metadata that is there; zeros are stored as data.

    Without `sync` a write to a file is done when the system has it, and may be lost with the system's power. Raises
    ValueError where an array of other metadata is there and is not to be replaced.
    """
    spec = {"driver": "zarr3", "kvstore": kvstore_spec(path), "metadata": dict(metadata)}
    spec |= {"store_data_equal_to_fill_value": True, "context": {"file_io_sync": sync}}
    return ts.open(spec, create=True, open=not replace, delete_existing=replace).result()


def array_metadata(
    shape: Sequence[int], chunk: Sequence[int], dtype: str, codecs: Sequence[Spec], **about: Any
) -> Spec:
    """The zarr.json of an array, a `chunk` to a file; `about` are fill_value, dimension_names and attributes."""
    return about | {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [max(size, 1) for size in chunk]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "codecs": list(codecs),
    }


def write_array(
    path: str | os.PathLike, values: np.ndarray, *, dimensions: Sequence[str], attributes: Mapping[str, Any] = {}
) -> None:
    """Writes a small numeric array as a Zarr v3 array of one chunk, replacing what was there."""
    values = np.asarray(values)
    about = {"fill_value": 0, "dimension_names": list(dimensions), "attributes": dict(attributes)}
    codecs = [BYTES, {"name": "zstd", "configuration": {"level": 3}}, {"name": "crc32c"}]
    metadata = array_metadata(values.shape, values.shape, values.dtype.name, codecs, **about)
    create_array(path, metadata, replace=True).write(values).result()


def read_array(path: str | os.PathLike) -> ts.Future:
    """Starts to read a whole Zarr v3 array; the future's result is a numpy array, an absent chunk is an error."""
    return open_array(path).read()


def write_text_array(path: str | os.PathLike, values: Sequence[str], *, dimension: str) -> None:
    """Writes a list of strings as a Zarr v3 array of type `string` (vlen-utf8), which TensorStore cannot write."""
    folder = open_folder(path)
    if values:
        folder.write("c/0", VLenUTF8().encode(np.array(values, object))).result()
    about = {"fill_value": "", "dimension_names": [dimension], "attributes": {}}
    codecs, shape = [{"name": "vlen-utf8", "configuration": {}}], [len(values)]
    write_json(folder, "zarr.json", array_metadata(shape, shape, "string", codecs, **about))


def read_text_array(path: str | os.PathLike) -> tuple[str, ...]:
    """Reads what `write_text_array` wrote; ValueError where it is absent or cut short."""
    folder = open_folder(path)
    metadata = read_json(folder, "zarr.json")
    if metadata is None:
        raise ValueError(f"no array at {path}")
    if metadata["shape"] == [0]:
        return ()
    chunk = bytes(folder.read("c/0").result().value)
    try:
        values = VLenUTF8().decode(chunk)
        if VLenUTF8().encode(values) != chunk or list(values.shape) != metadata["shape"]:
            raise ValueError(f"{len(chunk)} bytes hold {len(values)} values")
    except ValueError as error:
        raise ValueError(f"the strings at {path} are damaged: {error}") from None
    return tuple(values.tolist())


def bytes_read() -> int:
    """Bytes that this process has read from storage: by TensorStore's own counters."""
    counters = ts.experimental_collect_matching_metrics("/tensorstore/kvstore/")
    read = [counter["values"] for counter in counters if counter["name"].endswith("bytes_read")]
    return sum(entry["value"] for values in read for entry in values)

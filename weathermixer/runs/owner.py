"""One run, one owner: a file in the workdir that says whose it is, renewed for as long as the owner lives.

owner.json      host, process, since when, and a token; its first process renews it every few seconds

A lock of an owner that is dead holds nobody up: on the same machine its process is looked for, on another one the file
is watched until it is renewed, or for too long is not. Clocks are compared with no others' but the file system's own.
"""

import contextlib
import errno
import json
import os
import pathlib
import socket
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import jax

from weathermixer.parallel.distributed import exchange

OWNER_FILE = "owner.json"
RENEW_SECONDS = 10.0
DEAD_SECONDS = 120.0  # more than the minute for which a network file system may show an older state


@contextlib.contextmanager
def own_workdir(workdir: pathlib.Path, *, take_over: bool = False) -> Iterator[None]:
    """Holds a workdir for this run, all its processes together; given back at the end.

    Raises ValueError, on all of them, where it cannot be written or another run holds it. `take_over` takes it from
    that one, which ends without another word in the workdir as soon as it sees that.
    """
    token, path, problem = uuid.uuid4().hex, workdir / OWNER_FILE, ""
    if jax.process_index() == 0:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            held = take_over and path.exists()
            if not take_over:
                _wait_for_none(path)
                path.unlink(missing_ok=True)
            _take(path, token, mode="w" if take_over else "x")
            if held:
                time.sleep(RENEW_SECONDS)  # by then the other one has seen it
        except ValueError as error:
            problem = str(error)
        except OSError as error:
            problem = f"cannot write to workdir={workdir}: {error}; choose another"
    if problem := exchange("owner of the workdir", problem)[0]:
        raise ValueError(problem)
    if jax.process_index():
        yield
        return
    ended = threading.Event()
    renewing = threading.Thread(target=_renew, args=(path, token, ended), name="renews the owner", daemon=True)
    renewing.start()
    try:
        yield
    finally:
        ended.set()
        renewing.join()
        if (_read(path) or {}).get("token") == token:
            path.unlink(missing_ok=True)


def _take(path: pathlib.Path, token: str, *, mode: str = "x") -> None:
    """Writes the lock; OSError where mode is x and another has just made it."""
    since = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    about = {"host": socket.gethostname(), "machine": _machine(), "process": os.getpid(), "since": since}
    with open(path, mode, encoding="utf-8") as file:
        json.dump(about | {"token": token}, file)


def _renew(path: pathlib.Path, token: str, ended: threading.Event) -> None:
    """Touches the file until the end; ends this process where the file has become another's."""
    while not ended.wait(RENEW_SECONDS):
        with contextlib.suppress(OSError):  # a file system that is away for a while
            found = _read(path)
            if found is None:  # somebody cleaned up
                _take(path, token)
            elif found["token"] not in (None, token):
                print(f"{path.parent} was taken over by another run: this one ends, unsaved", file=sys.stderr)
                os._exit(1)
            else:
                os.utime(path)


def _wait_for_none(path: pathlib.Path) -> None:
    """Returns once nobody alive holds the lock; ValueError as soon as somebody does."""
    renewed = None
    while (found := _read(path)) is not None and (age := _age(path)) < DEAD_SECONDS:
        here, latest = found.get("machine") == _machine(), path.stat().st_mtime_ns
        if here and not _lives(found["process"]):
            return
        holder = "process {} on {} since {}".format(*(found.get(name, "?") for name in ("process", "host", "since")))
        if here or (renewed is not None and renewed != latest):
            raise ValueError(
                f"{path.parent} is in use by {holder}: wait for its end, choose another workdir, or end it there and "
                "say --take-over"
            )
        if renewed is None:
            print(f"whether {holder} is alive shows in {DEAD_SECONDS - age:.0f} s", file=sys.stderr, flush=True)
        renewed = latest
        time.sleep(RENEW_SECONDS)


def _age(path: pathlib.Path) -> float:
    """Seconds since a file was written, by the clock of its own file system."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}") as probe:
        return os.stat(probe.name).st_mtime - path.stat().st_mtime


def _read(path: pathlib.Path) -> dict[str, Any] | None:
    """What the lock says; None where there is none. One that is damaged says nothing, but is one."""
    try:
        return {"token": None} | json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        return {"token": None}


def _machine() -> str:
    """Where a process's number means this process: this boot of the kernel, and the container."""
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return f"{socket.gethostname()} {uuid.getnode()}"


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except OSError as error:
        return error.errno == errno.EPERM  # another user's
    return True

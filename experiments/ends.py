"""How a run ended, in its workdir: WORKDIR/ended.json, which is not there while it runs, and after a kill."""

import contextlib
import json
import pathlib
import socket
import time
import traceback
from collections.abc import Iterator
from typing import Any

import jax

from experiments import command_line
from weathermixer.parallel import distributed
from weathermixer.runs.record import write_document

ENDED_FILE = "ended.json"
_HOW = {distributed.FINISHED: "finished", distributed.PREEMPTED: "preempted"}


def write_end(workdir: pathlib.Path, status: int, why: str, **more: Any) -> None:
    """Writes how, status (parallel/distributed.py), why, and when and where that was."""
    document = {"how": _HOW.get(status, "failed"), "status": status, "why": why, "time": time.time()}
    place = {"process": jax.process_index(), "host": socket.gethostname()}
    write_document(document | place | more, workdir / ENDED_FILE)


def read_document(path: pathlib.Path) -> dict[str, Any] | None:
    """A JSON document; None where it is not there, or is being written."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None


@contextlib.contextmanager
def failing(workdir: pathlib.Path) -> Iterator[None]:
    """Records what raises within it. One of several processes says so, and ends at once with the others.

    Where that is left to whoever opened a checkpoint or a log, they wait in vain for the others first.
    """
    if jax.process_index() == 0:
        (workdir / ENDED_FILE).unlink(missing_ok=True)
    try:
        yield
    except Exception as error:
        trace = traceback.format_exc()

        def report(status: int, why: str) -> None:
            write_end(workdir, status, why, traceback=trace)

        if jax.process_count() > 1:
            distributed.leave(*command_line.explain(error, "train"), report)
        report(*command_line.judge(error))
        raise
    except KeyboardInterrupt:
        if jax.process_count() > 1:
            distributed.leave(130, "interrupted")
        raise

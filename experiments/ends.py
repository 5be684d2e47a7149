"""How programs end, with a status and a line, and how a run ended, in its workdir: WORKDIR/ended.json.

That is not there while it runs, and after a kill.
"""

import contextlib
import functools
import os
import pathlib
import select
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jax

from experiments import command_line
from weathermixer.parallel import distributed
from weathermixer.training.checksums import write_document

ENDED_FILE = "ended.json"
_HOW = {distributed.FINISHED: "finished", distributed.PREEMPTED: "preempted"}
UNREAD = 141  # as of a program that SIGPIPE ends
# said in one line; others are faults of ours
EXPECTED = (ValueError, OSError, ModuleNotFoundError, FloatingPointError, KeyboardInterrupt)


def run(main: Callable[[list[str] | None], int | None]) -> NoReturn:
    """Ends the process with the status of `call`, at once.

    An interpreter's own end would wait for the thread of a read that never returns, abort at one in C++ that several
    processes have, and free what two copies of one library share, as eccodes' and cartopy's PROJ.
    """
    distributed.end(call(main))


def call(main: Callable[[list[str] | None], int | None], arguments: list[str] | None = None) -> int:
    """main's status, or its parser's; what is wrong with its input is said in one line, and has status 1.

    Anything else is a fault, with a traceback and status 70. WEATHERMIXER_TRACEBACK=1 in the environment shows where
    everything was raised. Where nobody reads its output any more, as behind `| head`, it ends with 141 and no word.
    """
    spec = main.__globals__["__spec__"]  # None in a script
    program = command_line.short_name(spec.name if spec else sys.argv[0])
    try:
        try:
            status = main(arguments) or 0
        except SystemExit as asked:
            status = asked.code or 0
        print(end="", flush=True)
        return status
    except (Exception, KeyboardInterrupt) as error:
        status, line = explain(error, program)
    if jax.distributed.is_initialized():
        distributed.leave(status, line)
    return status


def explain(error: BaseException, program: str) -> tuple[int, str]:
    """`judge`, and says the line, or shows the traceback of what is no fault of the program's input."""
    status, line = judge(error)
    if not isinstance(error, EXPECTED) or os.environ.get("WEATHERMIXER_TRACEBACK"):
        traceback.print_exception(error)
    elif status != UNREAD:
        print(f"{program}: {line}", file=sys.stderr, flush=True)
    return status, line


def judge(error: BaseException) -> tuple[int, str]:
    """(status, line) of what ends a program: 1 where it would end so again, 130 of Ctrl-C, 141 unread, else 70."""
    if isinstance(error, KeyboardInterrupt):
        return 130, "interrupted"
    if isinstance(error, BrokenPipeError) and sys.__stdout__:  # which may be another pipe than that of the output
        output = select.poll()
        output.register(sys.__stdout__, 0)  # errors are told anyhow
        if output.poll(0):
            return UNREAD, "nobody reads its output any more"
    expected = isinstance(error, EXPECTED)
    line = " ".join((str(error) if expected else f"{type(error).__name__}: {error}").split("\n"))
    return distributed.FAILED if expected and not isinstance(error, TimeoutError) else distributed.FAULT, line


def write_end(workdir: pathlib.Path, status: int, why: str, **more: Any) -> None:
    """Writes how, status (parallel/distributed.py), why, and when and where that was."""
    document = {"how": _HOW.get(status, "failed"), "status": status, "why": why, "time": time.time()}
    place = {"process": jax.process_index(), "host": socket.gethostname()}
    write_document(document | place | more, workdir / ENDED_FILE)


@contextlib.contextmanager
def failing(workdir: pathlib.Path) -> Iterator[None]:
    """Records what raises within it, each process in a file of its own. One of several ends at once with the others.

    Where that is left to whoever opened a checkpoint or a log, they wait in vain for the others first.
    """
    if jax.process_index() == 0:
        (workdir / ENDED_FILE).unlink(missing_ok=True)
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        trace = traceback.format_exc()
        with contextlib.suppress(OSError), open(workdir / f"errors-{jax.process_index()}.txt", "a") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {socket.gethostname()}\n{trace}\n")
        report = functools.partial(write_end, workdir, traceback=trace)
        if jax.process_count() > 1:
            distributed.leave(*explain(error, "train"), report)
        report(*judge(error))
        raise

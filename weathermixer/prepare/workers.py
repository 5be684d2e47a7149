"""Where the pieces of a prepare are made: in this process, in several, or on the machines of a Dask cluster.

A piece is a task: a function of this package and an argument that holds all it needs. Tasks know nothing of each other,
so a task may be made anywhere, and again.
"""

import contextlib
import ctypes
import dataclasses
import functools
import multiprocessing
import os
import re
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.synchronize import Event
from typing import Any

from weathermixer.sources.formats import no_chunk_cache

AHEAD = 256  # tasks that wait for workers: enough for a cluster that grows to see what there is to do
GO_ON = "what is finished is kept, and the same command goes on"


@dataclasses.dataclass(frozen=True)
class Workers:
    """Processes that make tasks: an executor, and what counts those at work. Without one, tasks are made here."""

    executor: Executor | None = None
    at_work: Callable[[], int] = lambda: 1

    @property
    def count(self) -> int:
        """How many there are now, and one at least: a cluster's may come later, and go."""
        return max(1, self.at_work())

    def map(self, function: Callable[[Any], Any], tasks: Iterable[Any], *, ahead: int = AHEAD) -> Iterator[Any]:
        """function(task) of all tasks in their order, `ahead` of them under way beyond the one that is waited for."""
        if self.executor is None:
            return map(function, tasks)
        return in_order(self.executor, functools.partial(_make, function), tasks, ahead=ahead)


HERE = Workers()


def in_order(executor: Executor, function: Callable[[Any], Any], items: Iterable[Any], *, ahead: int) -> Iterator[Any]:
    """function(item) of all items in their order, `ahead` of them under way beyond the one that is waited for."""
    pending: deque[Future] = deque()
    try:
        for item in items:
            pending.append(executor.submit(function, item))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


@contextlib.contextmanager
def open_workers(count: int = 1, *, dask: str | None = None) -> Iterator[Workers]:
    """Workers that live as long as the context: `count` processes here, or those of a Dask cluster.

    `dask` is a scheduler's address, `tcp://host:8786`, or "local:N" for a cluster of N processes on this machine.
    Raises ValueError where there is no cluster, and where processes or a scheduler die while they are at work.
    """
    if dask is None and count == 1:
        yield HERE
        return
    with _open_dask(dask) if dask is not None else _open_processes(count) as workers:
        yield workers


@contextlib.contextmanager
def _open_processes(count: int) -> Iterator[Workers]:
    context = multiprocessing.get_context("spawn")  # what has threads must not be forked
    stop = context.Event()
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=_start_process, initargs=(stop,))
    try:
        yield Workers(pool, lambda: count)
    except BrokenProcessPool:
        raise ValueError(
            f"one of {count} processes was killed, for want of memory perhaps (fewer --workers take less): {GO_ON}"
        ) from None
    except BaseException:
        stop.set()  # what they are at is made again
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _start_process(stop: Event) -> None:
    """Lets a process of the pool leave interrupts to its parent, and end at once when that says so or ends itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def end_after(wait: Callable[[], Any]) -> None:
        wait()
        os._exit(1)

    for wait in (stop.wait, multiprocessing.parent_process().join):
        threading.Thread(target=end_after, args=(wait,), daemon=True).start()


@contextlib.contextmanager
def _open_dask(address: str) -> Iterator[Workers]:
    try:
        import distributed
    except ImportError as error:
        raise ValueError(f"--dask needs distributed ({error}): pip install 'weathermixer[dask]'") from None
    with contextlib.ExitStack() as stack:
        if address.startswith("local:"):
            if not re.fullmatch(r"local:[1-9]\d*", address):
                raise ValueError(f"{address}: give a number of processes, of at least 1, as local:4")
            # memory is bounded by how a prepare works; Dask's own bound would pause its workers
            options = {"threads_per_worker": 1, "memory_limit": 0, "dashboard_address": None}
            cluster = distributed.LocalCluster(n_workers=int(address.removeprefix("local:")), **options)
            address = stack.enter_context(cluster).scheduler_address
        try:
            # not the process's default: one that nobody answers would stay it, and xarray ask it for its locks
            client = stack.enter_context(distributed.Client(address, set_as_default=False))
        except (OSError, ValueError) as error:
            raise ValueError(f"no Dask scheduler answers at {address}: {error}") from None
        try:
            yield Workers(client.get_executor(pure=False), lambda: sum(client.ncores().values()))
        except distributed.KilledWorker as error:
            raise ValueError(f"workers of {address} died again and again ({error}): {GO_ON}") from None
        except (CancelledError, distributed.comm.CommClosedError):
            raise ValueError(f"the Dask scheduler at {address} is gone: {GO_ON}") from None


@no_chunk_cache()
def _make(function: Callable[[Any], Any], task: Any) -> Any:
    """function(task), in a process that keeps memory that it frees: fresh pages cost more than what is read to them.

    Reading 54 MB chunks took 1.6 s/GB without and 0.6 s/GB with it. Needs glibc; elsewhere it does nothing.
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
        for parameter, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_ARENA_MAX, 1)):
            mallopt(parameter, value)
    return function(task)

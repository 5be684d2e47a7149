"""Several processes as one run: they join, wait for each other, are asked to stop, and end together.

A run ends with one of these statuses, the same on all of its processes:

    0     finished
    1     failed, and would again: bad settings, bad data, values that are not finite
    70    failed by a fault that may not come again
    75    asked to stop (SIGTERM, SIGINT, SIGUSR1): saved, and the same command goes on
    124   stood still for too long (training/phases.py)

What processes tell each other goes through JAX's coordination service: it needs no device and waits for no step.
One file, as one thread and one lock see to all of this: whoever waits or stops minds that another one may have ended.
"""

import collections
import contextlib
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import jax
from jax._src.distributed import global_state  # the key-value store has no public name

from weathermixer.parallel.joining import Waiting, call_roll, check_devices, find_place, name_processes, say
from weathermixer.parallel.mesh import use_copy_engines

FINISHED, FAILED, FAULT, PREEMPTED, STUCK = 0, 1, 70, 75, 124
JOIN_SECONDS = 900
HEARTBEAT_SECONDS = 30  # where a process dies, the others stop after so long
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_ASKED, _STEPS, _LEFT = (f"weathermixer/{name}" for name in ("asked", "steps/", "left"))

_meetings: collections.Counter[str] = collections.Counter()
_lock = threading.Lock()  # held while processes agree on the step to stop at: none goes on meanwhile
_step = 0  # the last that was asked about
_stop_at: int | None = None
_interruptible = False


class Interrupted(Exception):
    """A wait was left because the run is asked to stop."""


def initialize() -> None:
    """Joins this process with the others of its run; to be called once, before anything that looks for devices.

    Raises ValueError where the environment contradicts itself, or where one sees no GPU that its job has; TimeoutError,
    with those that are missing.
    """
    place = find_place(os.environ)
    if place is None:
        use_copy_engines()
    else:
        say(f"process {place.process} of {place.processes} joins the run at {place.coordinator}")
        call_roll(place, seconds=JOIN_SECONDS)
        jax.config.update("jax_enable_preemption_service", False)  # it takes SIGTERM for itself; see mind_signals
        jax.distributed.initialize(
            place.coordinator,
            num_processes=place.processes,
            process_id=place.process,
            local_device_ids=place.devices,
            cluster_detection_method="deactivate",  # find_place has done it
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            initialization_timeout=JOIN_SECONDS,
        )
        threading.Thread(target=_follow, name="other processes", daemon=True).start()
    try:
        platform, local_devices = jax.default_backend(), jax.local_device_count()
    except (RuntimeError, AssertionError) as error:  # an assertion where no plugin of that name is installed
        reason = (str(error).splitlines() or ["JAX has no such platform"])[0]
        raise ValueError(
            f"JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')}: {reason}. Set JAX_PLATFORMS=cpu to do without; GPUs "
            "need a driver and the package's [gpu] extra"
        ) from None
    check_devices(os.environ, platform=platform, local_devices=local_devices, place=place)


def wait_for_all(what: str) -> None:
    """Waits until every process has come here, however long; every 30 s it says what for and who is missing."""
    exchange(what, "")


def exchange(what: str, text: str, *, given_up: Callable[[], bool] = lambda: False) -> list[str]:
    """What every process says, in their order, without the devices; all have to ask for `what` equally often.

    Waits however long; every 30 s it says what for and who is missing. Raises Interrupted once it is `given_up`.
    """
    if jax.process_count() == 1:
        return [text]
    client, number, mine = global_state.client, _meetings[what], f"{jax.process_index():06d}"
    _meetings[what] += 1
    client.key_value_set(f"weathermixer/{what}/{number}/{mine}", text)
    waiting = Waiting(f"process {jax.process_index()}")
    while True:  # asked for again and again: a barrier could not be left
        said = dict(client.key_value_dir_get(f"weathermixer/{what}/{number}/"))
        there = {int(name.rpartition("/")[2]) for name in said}
        if len(there) == jax.process_count():
            break
        if given_up():
            raise Interrupted
        missing = sorted(set(range(jax.process_count())) - there)
        time.sleep(min(0.25, 0.01 + waiting.go_on(f"{name_processes(missing)}: {what}") / 20))
    if number:  # everybody has read that one, having come here
        client.key_value_delete(f"weathermixer/{what}/{number - 1}/{mine}")
    return [said[name] for name in sorted(said)]


def check_same(facts: Mapping[str, object], what: str) -> None:
    """Raises ValueError, on every process, where they were told different things; it names the first that differs."""
    first, *others = (json.loads(text) for text in exchange(what, json.dumps(facts)))
    for process, other in enumerate(others, 1):
        for name in first | other:
            if first.get(name) != other.get(name):
                raise ValueError(
                    f"processes differ in {what}: {name} is {first.get(name)!r} on process 0, {other.get(name)!r} on "
                    f"process {process}; start all of them with the same command and software"
                )


def describe() -> str:
    """`process 0 of 2 on node1, 4 of 8 devices here (NVIDIA H200)`, for the log's first line."""
    kinds = ", ".join(sorted({device.device_kind for device in jax.devices()}))
    return (
        f"process {jax.process_index()} of {jax.process_count()} on {socket.gethostname()}, "
        f"{jax.local_device_count()} of {jax.device_count()} devices here ({kinds})"
    )


# Stopping because one is asked to.


def mind_signals() -> None:
    """From here on SIGTERM, SIGINT and SIGUSR1 ask the run to stop, as often as they come; a second Ctrl-C ends it.

    A thread takes them, so that they are noticed while the main thread compiles or waits. For the main thread to call.
    """
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    for number in SIGNALS:
        signal.signal(number, _handle)
    threading.Thread(target=_take_signals, args=(ours, theirs), name="signals", daemon=True).start()


def _handle(number: int, frame: Any) -> None:
    if number == signal.SIGINT:
        signal.signal(number, signal.default_int_handler)  # the second one ends it
    if _interruptible:
        raise Interrupted


def _take_signals(ours: socket.socket, _theirs: socket.socket) -> None:
    told = False
    while True:
        for number in ours.recv(64):
            if number in SIGNALS and not told:
                told = True
                ask(signal.Signals(number).name)


def ask(why: str) -> None:
    """Asks all processes of the run to stop, as a signal does."""
    global _stop_at
    say(f"process {jax.process_index()} was asked to stop ({why})")
    if jax.process_count() > 1:
        global_state.client.key_value_set(_ASKED, why, allow_overwrite=True)
        return
    with _lock:
        _stop_at = 0


def asked() -> bool:
    """Whether the run is asked to stop, as far as this process knows."""
    return _stop_at is not None


def preempted(step: int) -> bool:
    """True from the step on at which all processes should save and stop, because one of them was asked to.

    Every process has to ask at every step, with the same number: they agree on the step.
    """
    global _step
    with _lock:
        _step = step
        return _stop_at is not None and step >= _stop_at


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Within it a process that is alone and is asked to stop gets Interrupted."""
    global _interruptible
    _interruptible = jax.process_count() == 1
    try:
        if _interruptible and asked():
            raise Interrupted
        yield
    finally:
        _interruptible = False


def _agree(client: Any) -> None:
    """All processes stop at the step after the last that any of them has come to: all are on their way to that one."""
    global _stop_at
    with _lock:
        client.key_value_set(f"{_STEPS}{jax.process_index()}", str(_step))
        while len(steps := client.key_value_dir_get(_STEPS)) < jax.process_count():
            _leave_with_others(client)
            time.sleep(0.05)
        _stop_at = 1 + max(int(step) for _, step in steps)


# Ending at once.


def leave(status: int, why: str, report: Callable[[int, str], None] = lambda status, why: None) -> NoReturn:
    """Ends this process at once, from any thread, and with it the others of its run, with the same status.

    Nothing is waited for: not for saves, nor for the others, which may never come to where they would be met. `report`
    is told (status, why), unless another process was the first.
    """
    if jax.process_count() > 1:
        for _ in range(20 if status == FAULT else 1):  # a broken connection may be another one's end
            _leave_with_others(global_state.client)
            time.sleep(0.1)
    with contextlib.suppress(OSError):
        report(status, why)
    say(f"process {jax.process_index()} ends with status {status}: {why}")
    if jax.process_count() > 1:
        told = threading.Thread(target=_tell_others, args=(status, why), daemon=True)
        told.start()
        told.join(5)
    _exit(status)


def end(status: int) -> NoReturn:
    """Ends this process when the others have come here too, but waits for no thread of its own, as one that reads."""
    if jax.distributed.is_initialized():
        jax.distributed.shutdown()
    _exit(status)


def _exit(status: int) -> NoReturn:
    try:
        print(end="", flush=True)  # to whatever there is, which may be nothing
    except OSError:  # nobody reads any more, or there is no room
        status = status or 120  # as Python's own
    os._exit(status)


def _tell_others(status: int, why: str) -> None:
    told = json.dumps([jax.process_index(), status, f"process {jax.process_index()} on {socket.gethostname()}: {why}"])
    with contextlib.suppress(Exception):  # who was the first is heard; where the service is gone all end anyhow
        global_state.client.key_value_set(_LEFT, told)
        if jax.process_index() == 0:
            time.sleep(2)  # the service ends with this process


def _leave_with_others(client: Any) -> None:
    first, status, why = json.loads(_read(client, _LEFT) or "[null, 0, null]")
    if first not in (None, jax.process_index()):
        say(f"process {jax.process_index()} ends with status {status}, as {why}")
        os._exit(status)


def _follow() -> None:
    """Looks twice a second whether another process has left, or was asked to stop."""
    client = global_state.client
    while global_state.client is client:
        _leave_with_others(client)
        if not asked() and _read(client, _ASKED) is not None:
            _agree(client)
        time.sleep(0.5)


def _read(client: Any, key: str) -> str | None:
    try:
        return client.key_value_try_get(key)
    except jax.errors.JaxRuntimeError:  # there is no such key
        return None

"""Where a run stands, how its whole time was spent, and its end where it stands still.

    phases = Phases()
    with phases("compiling"):
        ...
    phases.alive()          # a sign of life: a step was done

Time is counted once: a phase within another one interrupts it. What devices idle between steps counts as "waiting",
and as "lost" all that a restart brings: the time since what the checkpoint's record accounts for. So the parts always
sum up to the time since the run's first start.
"""

import collections
import contextlib
import faulthandler
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import jax

from weathermixer.parallel import distributed

LOOK_SECONDS = 0.5
LEAVE_SECONDS = 10.0  # a wait in which a run that is asked to stop hangs is left after so long


class Phase(NamedTuple):
    """What a phase counts as, how many times the patience with a step it may take, and whether it may just be left."""

    counts_as: str
    patience: float | int
    leave: bool  # nothing is lost that the last checkpoint does not have


PHASES = {
    "starting": Phase("starting", 3, True),
    "making data": Phase("starting", float("inf"), True),  # which says itself how far it is
    "restoring": Phase("restoring", 3, True),
    "compiling": Phase("compiling", 6, True),
    "reading": Phase("computing", 1, False),
    "computing": Phase("computing", 1, False),
    "saving": Phase("saving", 3, False),
    "validation": Phase("evaluation", 6, False),  # of a step that is not saved
    "evaluation": Phase("evaluation", 6, True),
    "scoring": Phase("evaluation", 36, True),
}
PARTS = ("computing", "waiting", "compiling", "saving", "restoring", "evaluation", "starting", "lost")


class Phases:
    """The phases of this process; the main thread enters them. `saving`: whether a save is under way behind them."""

    saving: Callable[[], bool] = staticmethod(lambda: False)

    def __init__(self) -> None:
        self._name, self._since, self._alive = "starting", time.perf_counter(), time.monotonic()
        self._seconds = collections.Counter(dict.fromkeys(PARTS, 0.0))
        self._over = threading.Event()

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        before = self._enter(name)
        try:
            yield
        finally:
            self._enter(before)

    def _enter(self, name: str) -> str:
        before, now = self._name, time.perf_counter()
        self._seconds[PHASES[before].counts_as] += now - self._since
        self._name, self._since = name, now
        self.alive()
        return before

    def alive(self) -> None:
        self._alive = time.monotonic()

    def idle(self, seconds: float) -> None:
        """Tells that the devices idled between steps: data, or the log, was late."""
        self._seconds["computing"] -= seconds
        self._seconds["waiting"] += seconds

    def go_on(self, seconds: Mapping[str, float], until: float) -> None:
        """Counts what was spent before: by the parts until a time, of time.time(), and all that has passed since."""
        self._enter(self._name)
        spent = self._seconds.total()
        self._seconds.update(seconds)
        self._seconds["lost"] += max(0.0, time.time() - until - spent)

    def account(self) -> dict[str, float]:
        """Seconds by parts, since the run's first start; they sum up."""
        self._enter(self._name)
        return {part: round(seconds, 3) for part, seconds in self._seconds.items()}

    @contextlib.contextmanager
    def watched(self, patience: float | int, report: Callable[[int, str], None]) -> Iterator[None]:
        """Ends the process where a step takes longer than `patience` seconds, or a phase its multiple of that.

        `report` is told (status, why) before. All threads' stacks go to stderr. Where the run is asked to stop, phases
        that have nothing to save are left at once.
        """
        threading.Thread(target=self._watch, args=(patience, report), name="watchdog", daemon=True).start()
        try:
            yield
        finally:
            self._over.set()

    def _watch(self, patience: float | int, report: Callable[[int, str], None]) -> None:
        last, asked_since = time.monotonic(), None
        while not self._over.wait(LOOK_SECONDS):
            now = time.monotonic()
            if now - last > 20 * LOOK_SECONDS:  # this process was stopped itself
                self.alive()
            last, name = now, self._name
            phase, quiet = PHASES[name], now - self._alive
            if distributed.asked():
                asked_since = asked_since or now
                waits = now - max(asked_since, self._alive)
                first = jax.process_index() == 0  # which makes a save complete; others follow
                if (phase.leave and first and not self.saving()) or (name == "reading" and waits > LEAVE_SECONDS):
                    distributed.leave(distributed.PREEMPTED, f"asked to stop while {name}", report)
            leaving = asked_since is not None and now - asked_since < 2 * LEAVE_SECONDS  # here or in another process
            if quiet > patience * phase.patience and not leaving:
                faulthandler.dump_traceback(sys.stderr)
                why = f"no sign of life for {quiet:.0f} s while {name}; where each thread stands is above"
                distributed.leave(distributed.STUCK, why, report)


def format_account(seconds: Mapping[str, float]) -> str:
    """`of 1 h 03 min since the first start: 91.2 % computing, 5.1 % compiling, ...`, the parts that there are."""
    total = sum(seconds.values())
    parts = sorted(((value, part) for part, value in seconds.items() if value >= 0.0005 * total), reverse=True)
    shares = ", ".join(f"{value / total:.1%} {part}" for value, part in parts)
    return f"of {format_seconds(total)} since the first start: {shares}"


def format_seconds(seconds: float | int) -> str:
    """`41 s`, `12 min 05 s`, `3 h 07 min`, `2 d 04 h`."""
    seconds = round(seconds)
    for size, unit, below, name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if seconds >= size:
            return f"{seconds // size} {unit} {seconds % size // below:02d} {name}"
    return f"{seconds} s"

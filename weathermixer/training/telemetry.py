"""The log of a run: one readable line, a JSON record and the trackers' numbers for every so many steps and the last.

The host stays one step ahead: with a step sent, it waits for the one before, and writes that one's line while the
devices work on. What they idle all the same is in the line: from a step's end until the next one is called and its
batch is there, whatever was late, the data or the log itself. Process 0 writes; every process may call.

Records are one of three: a step's metrics, other numbers such as validation_loss, or how the run's time was spent.
One file, as line, record and numbers are the same values, taken at the one moment when that holds nobody up.
"""

import contextlib
import dataclasses
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
from tqdm import tqdm

from weathermixer.archive import storage
from weathermixer.parallel import distributed
from weathermixer.training.phases import Phases, format_account, format_seconds
from weathermixer.training.trackers import TRACKERS, TensorBoard, Tracker

METRICS_FILE = "metrics.jsonl"
LOG_FILE = "log.txt"
FIRST_IN_LINE = ("loss", "grad_norm", "learning_rate")
# how a line says a rate; other numbers stand behind their names
IN_WORDS = {
    "step_seconds": "{:.3g} s/step".format,
    "samples_per_second": "{:.4g} samples/s".format,
    "tflops_per_device": "{:.3g} TFLOP/s per device".format,
    "share_of_peak": "{:.1%} of peak".format,
    "idle_seconds": "idle {:.3g} s/step".format,
    "seconds_left": lambda seconds: f"{format_seconds(seconds)} left",
    "device_gigabytes": "{:.3g} GB of device memory at most".format,
    "gigabytes_needed": "{:.3g} GB needed".format,
    "gigabytes_read": "{:.3g} GB read".format,
    "gigabytes_read_per_second": "{:.3g} GB/s".format,
    "samples_skipped": "{:.0f} samples could not be read and were replaced".format,
}

Batch = TypeVar("Batch")


class Sent(NamedTuple):
    """A step that was sent: when it could begin, called and its batch there, and ended, what it gave, what was read."""

    step: int
    begin: Future
    end: Future
    metrics: Mapping[str, Any]
    read: Any


@dataclasses.dataclass(eq=False)
class RunLog(contextlib.AbstractContextManager):
    """Appends to WORKDIR/log.txt, metrics.jsonl and tensorboard/, without records of steps after `first_step`.

    with RunLog(workdir, Phases(), last_step=1000, every=50, batch_size=8) as log:
        log.begin_stage(flops_per_step=1e12)
        for step, batch in enumerate(log.watch(batches), 1):
            state, metrics = train_step(state, batch)
            log.step(step, metrics)
    """

    workdir: str | os.PathLike | None  # None: nothing is written, as in a benchmark
    phases: Phases  # go on from what the records say of the time until `first_step`
    _: dataclasses.KW_ONLY
    first_step: int = 0
    last_step: int | None = None
    every: int = 1  # steps per line
    batch_size: int = 1
    peak_flops: float | None = None  # of one device; None leaves the share of it out, as for a CPU
    trackers: Sequence[str] = ()  # of trackers.TRACKERS: they take the numbers as well, and the run's flat settings
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        self._flops, self._compiled = 0.0, False
        self._read: Any = None  # the loader's account, of the batch handed over last
        self._ends = ThreadPoolExecutor(1, thread_name_prefix="ends of steps")
        self._sent: Sent | None = None  # the step sent last
        self._begin: Future | None = None  # the next one's: its call, or its batch's arrival after that
        self._ended: float | None = None  # the step before; None where something else came between
        self._restart(self.first_step, time.perf_counter(), None)
        self._trackers: list[Tracker] = []
        self._files, self._writes = contextlib.ExitStack(), self.workdir is not None and jax.process_index() == 0
        if not self._writes:
            return
        workdir = Path(self.workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        # a resumed run computes the steps after its checkpoint again: their old records go
        kept = [record for record in read_records(workdir / METRICS_FILE) if record["step"] <= self.first_step]
        storage.write_whole(workdir / METRICS_FILE, "".join(json.dumps(record) + "\n" for record in kept))
        accounts = [record for record in kept if "seconds" in record]
        self._records, self._text = (
            self._files.enter_context(open(workdir / name, "a", encoding="utf-8")) for name in (METRICS_FILE, LOG_FILE)
        )
        # disable=None: a bar on a terminal, none in a file or a pipe
        bar = tqdm(total=self.last_step, initial=self.first_step, disable=None, unit="step", dynamic_ncols=True)
        self._bar = self._files.enter_context(bar)
        if accounts:
            self.phases.go_on(accounts[-1]["seconds"], until=accounts[-1]["time"])
        else:  # from here on time is accounted for, also where the run is killed
            accounts.append(self._append({"step": 0, "seconds": {}}))
        identity = f"{accounts[0]['time'] * 1e3:.0f}"  # the run's birth
        self._trackers += [TensorBoard(workdir, self.first_step)]
        self._trackers += [TRACKERS[name](workdir, identity, self.settings) for name in self.trackers]

    def __exit__(self, kind, *_) -> None:
        if kind is None:
            self.flush()
        self._ends.shutdown(wait=False)
        self._tell_trackers(lambda tracker: tracker.close())
        self._files.close()
        self._writes = False

    def begin_stage(self, *, flops_per_step: float) -> None:
        """Begins a part of the run whose step is compiled anew, of so many operations of all devices together."""
        self.flush()
        self._flops, self._compiled = flops_per_step / jax.device_count(), False

    def watch(self, batches: Iterable[Batch], *, account: Callable[[], Any] | None = None) -> Iterator[Batch]:
        """Yields the batches, noting when each is handed over, which is when its step is called.

        account: tells bytes_read, bytes_needed and skipped samples so far, as the loader's `Batches.account` does.
        """
        batches = iter(batches)
        while True:
            with self.phases("reading"), distributed.interruptible():
                try:
                    batch = next(batches)
                except StopIteration:
                    return
            if account is not None:
                self._read = account()
            self._begin = self._ends.submit(_arrival, batch, time.perf_counter())
            yield batch

    def step(self, step: int, metrics: Mapping[str, Any]) -> dict[str, float] | None:
        """Tells that `step` was sent; waits for the one before. If its line is due, writes and returns it."""
        if self._writes:
            self._bar.update(step - self._bar.n)
        begin, end = self._begin or self._ends.submit(time.perf_counter), self._ends.submit(_end, metrics)
        before, self._sent = self._sent, Sent(step, begin, end, metrics, self._read)
        if not self._compiled:
            self._ended = end.result()
            self.note(f"first step, with compilation: {self._ended - self._since:.1f} s")
            self._compiled = True
            self._restart(step, self._ended, self._read)
        return self._finish(before)

    def flush(self) -> dict[str, float] | None:
        """Waits for the step sent last: to be called where the loop stops for anything else. As `step`, of this one."""
        before, self._sent = self._sent, None
        values, self._ended = self._finish(before), None  # what comes between is accounted for as that
        return values

    def _finish(self, sent: Sent | None) -> dict[str, float] | None:
        if sent is None:
            return None
        ended = sent.end.result()
        if self._ended is not None:
            idle = max(0.0, sent.begin.result() - self._ended)
            self._idle += idle
            self.phases.idle(idle)
        self._ended = ended
        if sent.step % self.every and sent.step != self.last_step:
            return None
        values = {name: float(value) for name, value in jax.device_get(dict(sent.metrics)).items()}
        values |= self._rates(sent.step, ended, sent.read)
        self._write(sent.step, values)
        self._restart(sent.step, ended, sent.read)
        return values

    def record(self, step: int, values: Mapping[str, float]) -> None:
        """Writes numbers of another kind, such as scores; the time since the last line is left out of the rates."""
        self.flush()
        self._write(step, values)
        self._restart(step, time.perf_counter(), self._read)

    def account(self, step: int) -> None:
        """Writes how the time since the run's first start was spent: where a step is saved, and at the end."""
        self.flush()
        if self._writes:
            seconds = self.phases.account()
            self._append({"step": step, "seconds": seconds})
            self.note(f"step {step}: {format_account(seconds)}")

    def note(self, text: str) -> None:
        """Writes a line of text."""
        if self._writes:
            self._text.write(text + "\n")
            self._text.flush()
            self._bar.write(text, file=sys.stdout)
            sys.stdout.flush()

    def _restart(self, step: int, now: float, read: Any) -> None:
        """Rates are measured from here on."""
        self._since, self._since_step, self._idle = now, step, 0.0
        self._since_bytes = read.bytes_read if read else 0

    def _rates(self, step: int, now: float, read: Any) -> dict[str, float]:
        steps, seconds = step - self._since_step, now - self._since
        if not steps:
            return {}
        flops = self._flops * steps / seconds
        rates = {"step_seconds": seconds / steps, "samples_per_second": self.batch_size * steps / seconds}
        rates["tflops_per_device"] = flops / 1e12
        if self.peak_flops is not None:
            rates["share_of_peak"] = flops / self.peak_flops
        rates["idle_seconds"] = self._idle / steps
        if self.last_step is not None:
            rates["seconds_left"] = seconds / steps * (self.last_step - step)
        if memory := max((device.memory_stats() or {}).get("peak_bytes_in_use", 0) for device in jax.local_devices()):
            rates["device_gigabytes"] = memory / 1e9
        if read is not None:
            rates |= {"gigabytes_needed": read.bytes_needed / 1e9, "gigabytes_read": read.bytes_read / 1e9}
            rates["gigabytes_read_per_second"] = (read.bytes_read - self._since_bytes) / 1e9 / seconds
            if read.skipped:
                rates["samples_skipped"] = len(read.skipped)
        return rates

    def _write(self, step: int, values: Mapping[str, float]) -> None:
        if self._writes:
            self._append({"step": step} | {n: value if math.isfinite(value) else None for n, value in values.items()})
            self._tell_trackers(lambda tracker: tracker.write(step, values))
            self.note(format_line(step, values))

    def _tell_trackers(self, tell: Callable[[Tracker], None]) -> None:
        """A server that is down ends no run of a week: a tracker that fails is left out from there."""
        for tracker in self._trackers.copy():
            try:
                tell(tracker)
            except Exception as error:
                self._trackers.remove(tracker)
                self.note(f"{type(tracker).__name__} takes no more numbers of this start: {error}")

    def _append(self, record: dict[str, Any]) -> dict[str, Any]:
        record = record | {"time": round(time.time(), 3)}
        self._records.write(json.dumps(record) + "\n")
        self._records.flush()
        return record


def format_line(step: int, values: Mapping[str, float]) -> str:
    """`step 1200  loss 0.1234  grad_norm 0.81  learning_rate 0.0003  0.052 s/step  153 samples/s  41 TFLOP/s ...`"""
    ordered = {name: values[name] for name in FIRST_IN_LINE if name in values} | values
    ordered = {name: value for name, value in ordered.items() if "/" not in name}  # by channel are for the files alone
    words = (IN_WORDS.get(name, f"{name} {{:.4g}}".format)(value) for name, value in ordered.items())
    return "  ".join([f"step {step}", *words])


def _end(arrays: Any) -> float:
    """When arrays that are being made are there; the thread that waits for them keeps nobody else waiting."""
    jax.block_until_ready(arrays)
    return time.perf_counter()


def _arrival(batch: Any, called: float) -> float:
    """When a batch is there that a step was called with; later than the call only where it is not there by now."""
    there = all(leaf.is_ready() for leaf in jax.tree.leaves(batch) if hasattr(leaf, "is_ready"))
    return called if there else max(called, _end(batch))


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a run, without those that are damaged or written by half; none where there is no file."""
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            record = json.loads(line)
            records += [record] * isinstance(record["step"], int)
    return records

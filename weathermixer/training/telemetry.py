"""The log of a run: one readable line, a JSON record and the trackers' numbers for every so many steps and the last.

    with open_log(workdir, Phases(), first_step=0, last_step=1000, every=50, batch_size=8) as log:
        log.begin_stage(flops_per_step=1e12)
        for step, batch in enumerate(log.watch(batches), 1):
            state, metrics = train_step(state, batch)
            log.step(step, metrics)

The host stays one step ahead: with a step sent, it waits for the one before, and writes that one's line while the
devices work on. What they idle all the same is in the line: from a step's end until the next one is called and its
batch is there, whatever was late, the data or the log itself. Process 0 writes; every process may call.

Records are one of three: a step's metrics, other numbers such as validation_loss, or how the run's time was spent.
"""

import contextlib
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

from weathermixer.parallel import distributed
from weathermixer.training.phases import Phases, format_account, format_seconds
from weathermixer.training.trackers import TRACKERS, TensorBoard, Tracker

METRICS_FILE = "metrics.jsonl"
LOG_FILE = "log.txt"
FIRST_IN_LINE = ("loss", "grad_norm", "learning_rate")

Batch = TypeVar("Batch")


def open_log(
    workdir: str | os.PathLike,
    phases: Phases,
    *,
    first_step: int,
    last_step: int,
    every: int,
    batch_size: int,
    peak_flops: float | None = None,
    trackers: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
) -> "RunLog":
    """Opens WORKDIR/log.txt, metrics.jsonl and tensorboard/ to append; records after `first_step` are dropped.

    Args:
        phases: go on from what the records say of the time until `first_step`.
        every: steps per line.
        peak_flops: peak of one device; None leaves the share of it out, as for a CPU.
        trackers: names of training/trackers.py that take the numbers as well, and the run's flat `settings`.

    Raises ValueError where `workdir` cannot be written.
    """
    if every < 1:
        raise ValueError(f"log every={every} steps: must be at least 1")
    log = RunLog(phases, first_step, last_step, every, batch_size, peak_flops)
    if jax.process_index() == 0:
        try:
            log.open_files(Path(workdir), trackers, settings or {})
        except OSError as error:
            raise ValueError(f"cannot write the log to {workdir}: {error}; choose another workdir") from error
    return log


class Sent(NamedTuple):
    """A step that was sent to the devices: when it was called, its batch was there and it ended, and what it gave."""

    step: int
    called: float
    there: Future
    end: Future
    metrics: Mapping[str, Any]
    account: Any


class RunLog:
    """A run's log, as open_log returns it; close it, or use it in a `with` block."""

    def __init__(
        self,
        phases: Phases,
        first_step: int,
        last_step: int,
        every: int,
        batch_size: int,
        peak_flops: float | None,
    ):
        self._every, self._batch_size, self._peak_flops, self._flops = every, batch_size, peak_flops, 0.0
        self._phases, self._first_step, self._last_step = phases, first_step, last_step
        self._compiled = False
        self._account: Any = None
        self._files = None
        self._ends = ThreadPoolExecutor(1, thread_name_prefix="ends of steps")
        self._sent: Sent | None = None  # the step sent last
        self._called: tuple[float, Future] | None = None  # the next one's call, and its batch's arrival
        self._ended: float | None = None  # the step before; None where something else came between
        self._restart(first_step, time.perf_counter(), None)

    def open_files(self, workdir: Path, trackers: Sequence[str], settings: Mapping[str, Any]) -> None:
        """Starts writing: done on one process alone."""
        workdir.mkdir(parents=True, exist_ok=True)
        kept = _drop_records_after(workdir / METRICS_FILE, self._first_step)
        accounts = [record for record in kept if "seconds" in record]
        if accounts:
            self._phases.go_on(accounts[-1]["seconds"], until=accounts[-1]["time"])
        self._records = open(workdir / METRICS_FILE, "a", encoding="utf-8")
        self._text = open(workdir / LOG_FILE, "a", encoding="utf-8")
        # disable=None: a bar on a terminal, none in a file or a pipe
        self._bar = tqdm(total=self._last_step, initial=self._first_step, disable=None, unit="step", dynamic_ncols=True)
        if not accounts:  # from here on time is accounted for, also where the run is killed
            accounts.append(self._append({"step": 0, "seconds": {}}))
        identity = f"{accounts[0]['time'] * 1e3:.0f}"  # the run's birth
        self._trackers: list[Tracker] = [TensorBoard(workdir, self._first_step)]
        self._trackers += [TRACKERS[name](workdir, identity, settings) for name in trackers]
        self._files = (self._records, self._text, self._bar)

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, kind, *_) -> None:
        if kind is None:
            self.flush()
        self.close()

    def close(self) -> None:
        """Closes the files; a second call does nothing."""
        self._ends.shutdown(wait=False)
        for file in (*self._trackers, *self._files) if self._files else ():
            file.close()
        self._files = None

    def begin_stage(self, *, flops_per_step: float) -> None:
        """Begins a part of the run whose step is compiled anew, of so many operations of all devices together."""
        self.flush()
        self._flops, self._compiled = flops_per_step / jax.device_count(), False
        self._ended = None

    def watch(self, batches: Iterable[Batch], *, account: Callable[[], Any] | None = None) -> Iterator[Batch]:
        """Yields the batches, noting when each is handed over, which is when its step is called.

        account: tells bytes_read, bytes_needed and skipped samples so far, as the loader's `Batches.account` does.
        """
        batches = iter(batches)
        while True:
            with self._phases("reading"), distributed.interruptible():
                try:
                    batch = next(batches)
                except StopIteration:
                    return
            if account is not None:
                self._account = account()
            self._called = time.perf_counter(), self._ends.submit(_arrival, batch)
            yield batch

    def step(self, step: int, metrics: Mapping[str, Any]) -> dict[str, float] | None:
        """Tells that `step` was sent; waits for the one before. If its line is due, writes and returns it."""
        if self._files:
            self._bar.update(step - self._bar.n)
        called, there = self._called or (time.perf_counter(), self._ends.submit(time.perf_counter))
        end = self._ends.submit(_end, metrics)
        before, self._sent = self._sent, Sent(step, called, there, end, metrics, self._account)
        if not self._compiled:
            self._ended = end.result()
            self.note(f"first step, with compilation: {self._ended - self._since:.1f} s")
            self._compiled = True
            self._restart(step, self._ended, self._account)
        return self._finish(before) if before else None

    def flush(self) -> dict[str, float] | None:
        """Waits for the step sent last: to be called where the loop stops for anything else. As `step`, of this one."""
        before, self._sent = self._sent, None
        return self._finish(before) if before else None

    def _finish(self, sent: Sent) -> dict[str, float] | None:
        ended = sent.end.result()
        if self._ended is not None:
            idle = max(0.0, max(sent.called, sent.there.result()) - self._ended)
            self._idle += idle
            self._phases.idle(idle)
        self._ended = ended
        if sent.step % self._every and sent.step != self._last_step:
            return None
        values = {name: float(value) for name, value in jax.device_get(dict(sent.metrics)).items()}
        values |= self._rates(sent.step, ended, sent.account)
        self._write(sent.step, values, format_line(sent.step, values))
        self._restart(sent.step, ended, sent.account)
        return values

    def record(self, step: int, values: Mapping[str, float]) -> None:
        """Writes numbers of another kind, such as scores; the time since the last line is left out of the rates."""
        self.flush()
        values = {name: float(value) for name, value in values.items()}
        self._write(step, values, format_line(step, values))
        self._ended = None
        self._restart(step, time.perf_counter(), self._account)

    def account(self, step: int) -> None:
        """Writes how the time since the run's first start was spent: where a step is saved, and at the end."""
        self.flush()
        self._ended = None  # what a save took is accounted for as that
        seconds = self._phases.account()
        if self._files:
            self._append({"step": step, "seconds": seconds})
            self.note(f"step {step}: {format_account(seconds)}")

    def note(self, text: str) -> None:
        """Writes a line of text; nothing where it is empty."""
        if not self._files or not text:
            return
        self._text.write(text + "\n")
        self._text.flush()
        if self._bar.disable:
            print(text, flush=True)
        else:
            self._bar.write(text, file=sys.stdout)

    def _restart(self, step: int, now: float, account: Any) -> None:
        """Rates are measured from here on."""
        self._since, self._since_step, self._idle = now, step, 0.0
        self._since_bytes = account.bytes_read if account else 0

    def _rates(self, step: int, now: float, account: Any) -> dict[str, float]:
        steps = step - self._since_step
        if not steps:
            return {}
        seconds = now - self._since
        rates = {
            "step_seconds": seconds / steps,
            "seconds_left": seconds / steps * (self._last_step - step),
            "samples_per_second": self._batch_size * steps / seconds,
            "tflops_per_device": self._flops * steps / seconds / 1e12,
        }
        if self._peak_flops is not None:
            rates["share_of_peak"] = self._flops * steps / seconds / self._peak_flops
        rates["idle_seconds"] = self._idle / steps
        memory = [device.memory_stats() or {} for device in jax.local_devices()]
        if peaks := [stats["peak_bytes_in_use"] for stats in memory if "peak_bytes_in_use" in stats]:
            rates["device_gigabytes"] = max(peaks) / 1e9
        if account is not None:
            rates["gigabytes_needed"] = account.bytes_needed / 1e9
            rates["gigabytes_read"] = account.bytes_read / 1e9
            rates["gigabytes_read_per_second"] = (account.bytes_read - self._since_bytes) / 1e9 / seconds
            rates["samples_skipped"] = len(account.skipped)
        return rates

    def _write(self, step: int, values: Mapping[str, float], line: str) -> None:
        if not self._files:
            return
        self._append({"step": step} | {n: value if math.isfinite(value) else None for n, value in values.items()})
        for tracker in self._trackers.copy():
            try:
                tracker.write(step, values)
            except Exception as error:  # a server that is down ends no run of a week
                self._trackers.remove(tracker)
                self.note(f"{type(tracker).__name__} takes no more numbers of this start: {error}")
        self.note(line)

    def _append(self, record: dict[str, Any]) -> dict[str, Any]:
        record = record | {"time": round(time.time(), 3)}
        self._records.write(json.dumps(record) + "\n")
        self._records.flush()
        return record


def format_line(step: int, values: Mapping[str, float]) -> str:
    """`step 1200  loss 0.1234  grad_norm 0.81  learning_rate 0.0003  52 ms/step  153 samples/s  41 TFLOP/s ...`"""
    first = {name: values[name] for name in FIRST_IN_LINE if name in values}
    values = first | dict(values)
    rates = []
    if "step_seconds" in values:
        seconds, idle = values.pop("step_seconds"), values.pop("idle_seconds")
        rates.append(f"{_seconds(seconds)}/step")
        rates.append(f"{values.pop('samples_per_second'):.4g} samples/s")
        share = f" ({values.pop('share_of_peak'):.1%} of peak)" if "share_of_peak" in values else ""
        rates.append(f"{values.pop('tflops_per_device'):.3g} TFLOP/s per device{share}")
        rates.append(f"idle {_seconds(idle)} ({idle / seconds:.1%})")
    if left := values.pop("seconds_left", 0):
        rates.append(f"{format_seconds(left)} left")
    if "device_gigabytes" in values:
        rates.append(f"{values.pop('device_gigabytes'):.3g} GB of device memory at most")
    if "gigabytes_read" in values:
        read, needed, rate, skipped = (
            values.pop(name)
            for name in ("gigabytes_read", "gigabytes_needed", "gigabytes_read_per_second", "samples_skipped")
        )
        rates.append(f"read {read:.3g} GB for {needed:.3g} GB needed ({rate:.3g} GB/s)")
        if skipped:
            rates.append(f"{skipped:.0f} samples could not be read and were replaced")
    return "  ".join([f"step {step}", *(f"{name} {value:.4g}" for name, value in values.items()), *rates])


def _end(arrays: Any) -> float:
    """When arrays that are being made are there; the thread that waits for them keeps nobody else waiting."""
    jax.block_until_ready(arrays)
    return time.perf_counter()


def _arrival(batch: Any) -> float:
    """When a batch is there, if that is later than the end of the step before, which was waited for just now."""
    if all(leaf.is_ready() for leaf in jax.tree.leaves(batch) if hasattr(leaf, "is_ready")):
        return -math.inf
    return _end(batch)


def _seconds(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a run, without those that are damaged or written by half; none where there is no file."""
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            record = json.loads(line)
            records += [record] * isinstance(record["step"], int)
    return records


def _drop_records_after(path: Path, step: int) -> list[dict[str, Any]]:
    """A resumed run computes the steps after its checkpoint again: their old records go; those that stay."""
    kept = [record for record in read_records(path) if record["step"] <= step]
    if path.exists():
        partial = path.with_name(path.name + ".partial")
        partial.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
        partial.replace(path)  # a kill leaves the one or the other
    return kept

"""The log of a run: one readable line, a JSON record and TensorBoard scalars for every so many steps.

    with open_log(workdir, first_step=0, last_step=1000, every=50, batch_size=8, flops_per_step=1e12) as log:
        for step, batch in enumerate(log.watch(batches), 1):
            state, metrics = train_step(state, batch)
            log.step(step, metrics)

Steps are only waited for when a line is due, so that the devices never idle for the log. Process 0 writes; every
process may call.
"""

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
from tensorboardX import SummaryWriter
from tqdm import tqdm

METRICS_FILE = "metrics.jsonl"
LOG_FILE = "log.txt"
TENSORBOARD_DIRECTORY = "tensorboard"
FIRST_IN_LINE = ("loss", "grad_norm", "learning_rate")

Batch = TypeVar("Batch")


def open_log(
    workdir: str | os.PathLike,
    *,
    first_step: int,
    last_step: int,
    every: int,
    batch_size: int,
    flops_per_step: float,
    peak_flops: float | None = None,
) -> "RunLog":
    """Opens WORKDIR/log.txt, metrics.jsonl and tensorboard/ to append; records after `first_step` are dropped.

    Args:
        every: steps per line.
        flops_per_step: floating-point operations of a step, of all devices together.
        peak_flops: peak of one device; None leaves the share of it out, as for a CPU.

    Raises ValueError where `workdir` cannot be written.
    """
    if every < 1:
        raise ValueError(f"log every={every} steps: must be at least 1")
    log = RunLog(first_step, every, batch_size, flops_per_step / jax.device_count(), peak_flops)
    if jax.process_index() == 0:
        try:
            log.open_files(Path(workdir), last_step)
        except OSError as error:
            raise ValueError(f"cannot write the log to {workdir}: {error}; choose another workdir") from error
    return log


class RunLog:
    """A run's log, as open_log returns it; close it, or use it in a `with` block."""

    def __init__(self, first_step: int, every: int, batch_size: int, flops: float, peak_flops: float | None):
        self._every, self._batch_size, self._flops, self._peak_flops = every, batch_size, flops, peak_flops
        self._first_step = first_step
        self._compiled = False
        self._account: Any = None
        self._files = None
        self._restart(first_step)

    def open_files(self, workdir: Path, last_step: int) -> None:
        """Starts writing: done on one process alone."""
        workdir.mkdir(parents=True, exist_ok=True)
        _drop_records_after(workdir / METRICS_FILE, self._first_step)
        self._records = open(workdir / METRICS_FILE, "a", encoding="utf-8")
        self._text = open(workdir / LOG_FILE, "a", encoding="utf-8")
        self._scalars = SummaryWriter(str(workdir / TENSORBOARD_DIRECTORY), purge_step=self._first_step + 1)
        # disable=None: a bar on a terminal, none in a file or a pipe
        self._bar = tqdm(total=last_step, initial=self._first_step, disable=None, unit="step", dynamic_ncols=True)
        self._files = (self._records, self._text, self._scalars, self._bar)

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def close(self) -> None:
        """Closes the files; a second call does nothing."""
        for file in self._files or ():
            file.close()
        self._files = None

    def watch(self, batches: Iterable[Batch], *, account: Callable[[], Any] | None = None) -> Iterator[Batch]:
        """Yields the batches, counting the time that this process waits for them.

        account: tells bytes_read, bytes_needed and skipped samples so far, as the loader's `Batches.account` does.
        """
        batches = iter(batches)
        while True:
            before = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self._waited += time.perf_counter() - before
            if account is not None:
                self._account = account()
            yield batch

    def step(self, step: int, metrics: Mapping[str, jax.Array]) -> dict[str, float] | None:
        """Tells that `step` steps are done. Where a line is due, waits for this one, writes and returns the numbers."""
        if self._files:
            self._bar.update(step - self._bar.n)
        if not self._compiled:
            jax.block_until_ready(metrics)
            self.note(f"first step, with compilation: {time.perf_counter() - self._since:.1f} s")
            self._compiled = True
            self._restart(step)
            if step % self._every:
                return None
        elif step % self._every:
            return None
        values = {name: float(value) for name, value in jax.device_get(dict(metrics)).items()}
        values |= self._rates(step)
        self._write(step, values, format_line(step, values))
        self._restart(step)
        return values

    def record(self, step: int, values: Mapping[str, float]) -> None:
        """Writes numbers of another kind, such as scores; the time since the last line is left out of the rates."""
        values = {name: float(value) for name, value in values.items()}
        self._write(step, values, format_line(step, values))
        self._restart(step)

    def note(self, text: str) -> None:
        """Writes a line of text."""
        if not self._files:
            return
        self._text.write(text + "\n")
        self._text.flush()
        if self._bar.disable:
            print(text, flush=True)
        else:
            self._bar.write(text, file=sys.stdout)

    def _restart(self, step: int) -> None:
        """Rates are measured from here on."""
        self._since, self._since_step, self._waited = time.perf_counter(), step, 0.0
        self._since_bytes = self._account.bytes_read if self._account else 0

    def _rates(self, step: int) -> dict[str, float]:
        steps = step - self._since_step
        if not steps:
            return {}
        seconds = time.perf_counter() - self._since
        rates = {
            "step_seconds": seconds / steps,
            "samples_per_second": self._batch_size * steps / seconds,
            "tflops_per_device": self._flops * steps / seconds / 1e12,
        }
        if self._peak_flops is not None:
            rates["share_of_peak"] = self._flops * steps / seconds / self._peak_flops
        rates["data_wait_seconds"] = self._waited / steps
        if self._account is not None:
            rates["gigabytes_needed"] = self._account.bytes_needed / 1e9
            rates["gigabytes_read"] = self._account.bytes_read / 1e9
            rates["gigabytes_read_per_second"] = (self._account.bytes_read - self._since_bytes) / 1e9 / seconds
            rates["samples_skipped"] = len(self._account.skipped)
        return rates

    def _write(self, step: int, values: Mapping[str, float], line: str) -> None:
        if not self._files:
            return
        record: dict[str, Any] = {"step": step, "time": time.time()}
        record |= {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._records.write(json.dumps(record) + "\n")
        self._records.flush()
        for name, value in values.items():
            self._scalars.add_scalar(name, value, step)
        self._scalars.flush()
        self.note(line)


def format_line(step: int, values: Mapping[str, float]) -> str:
    """`step 1200  loss 0.1234  grad_norm 0.81  learning_rate 0.0003  52 ms/step  153 samples/s  41 TFLOP/s ...`"""
    first = {name: values[name] for name in FIRST_IN_LINE if name in values}
    values = first | dict(values)
    rates = []
    if "step_seconds" in values:
        seconds, wait = values.pop("step_seconds"), values.pop("data_wait_seconds")
        rates.append(f"{_seconds(seconds)}/step")
        rates.append(f"{values.pop('samples_per_second'):.4g} samples/s")
        share = f" ({values.pop('share_of_peak'):.1%} of peak)" if "share_of_peak" in values else ""
        rates.append(f"{values.pop('tflops_per_device'):.3g} TFLOP/s per device{share}")
        rates.append(f"waited {_seconds(wait)} ({wait / seconds:.0%}) for data")
    if "gigabytes_read" in values:
        read, needed, rate, skipped = (
            values.pop(name)
            for name in ("gigabytes_read", "gigabytes_needed", "gigabytes_read_per_second", "samples_skipped")
        )
        rates.append(f"read {read:.3g} GB for {needed:.3g} GB needed ({rate:.3g} GB/s)")
        if skipped:
            rates.append(f"{skipped:.0f} samples could not be read and were replaced")
    return "  ".join([f"step {step}", *(f"{name} {value:.4g}" for name, value in values.items()), *rates])


def _seconds(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def _drop_records_after(path: Path, step: int) -> None:
    """A resumed run computes the steps after its checkpoint again: their old records go, a half-written one too."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except json.JSONDecodeError:
            continue
    path.write_text("".join(kept), encoding="utf-8")

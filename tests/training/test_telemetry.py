"""The run's log: lines that a person reads, records that a program reads, rates that are true."""

import contextlib
import os
import subprocess
import sys
import termios
import threading
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from weathermixer.training import telemetry
from weathermixer.training.phases import Phases
from weathermixer.training.telemetry import RunLog, format_line, read_records


def records(workdir):
    """Those of steps."""
    return [record for record in read_records(workdir / "metrics.jsonl") if "seconds" not in record]


def open_small(workdir, *, first_step=0, last_step=6, every=2, **changes):
    settings = {"batch_size": 4, "peak_flops": 1e12} | changes
    log = RunLog(workdir, Phases(), first_step=first_step, last_step=last_step, every=every, **settings)
    log.begin_stage(flops_per_step=8e9)
    return log


def run(workdir, *, first_step=0, last_step=6, every=2):
    with open_small(workdir, first_step=first_step, last_step=last_step, every=every) as log:
        batches = (jnp.zeros((4, 1000), jnp.float32) for _ in range(last_step))
        for step, _ in enumerate(log.watch(batches), first_step + 1):
            if step > last_step:
                break
            log.step(step, {"loss": jnp.float32(1 / step), "learning_rate": jnp.float32(1e-3)})


def test_a_record_and_a_line_every_so_many_steps(tmp_path, capsys):
    run(tmp_path)
    got = records(tmp_path)
    assert [record["step"] for record in got] == [2, 4, 6]
    assert [record["loss"] for record in got] == [np.float32(1 / 2), np.float32(1 / 4), np.float32(1 / 6)]
    printed = capsys.readouterr().out
    assert printed == (tmp_path / "log.txt").read_text()  # no terminal: the same plain lines in both
    lines = printed.splitlines()
    assert lines[0].startswith("first step, with compilation: ")
    assert lines[1].startswith("step 2  loss 0.5  learning_rate 0.001  ")
    assert len(lines) == 4


@pytest.fixture
def clock(monkeypatch):
    """A clock that only moves when it is told to: clock.now += seconds."""
    clock = types.SimpleNamespace(now=100.0)
    fake = types.SimpleNamespace(perf_counter=lambda: clock.now, time=lambda: clock.now)
    monkeypatch.setattr(telemetry, "time", fake)
    return clock


def end_of_step(log):
    """Waits until the step sent last has ended, before the clock moves on."""
    log._sent.end.result()


def test_rates_are_those_of_the_steps_since_the_last_line(tmp_path, clock):
    """Steps of 0.5 s, 0.125 s of it idle for data; the first one, which compiles for a minute, is not counted."""

    def slow():
        for _ in range(3):
            clock.now += 0.125
            yield jnp.zeros((4, 250), jnp.float32)

    with open_small(tmp_path, every=3) as log:
        for step, _ in enumerate(log.watch(slow()), 1):
            clock.now += 60.0 if step == 1 else 0.375
            assert log.step(step, {"loss": jnp.float32(1)}) is None
            end_of_step(log)
        values = log.flush()
    assert values == {
        "loss": 1.0,
        "step_seconds": 0.5,
        "seconds_left": 1.5,  # three steps more
        "samples_per_second": 8.0,
        "tflops_per_device": 8e9 / jax.device_count() / 0.5 / 1e12,
        "share_of_peak": 8e9 / jax.device_count() / 0.5 / 1e12,
        "idle_seconds": 0.125,
    }
    assert (tmp_path / "log.txt").read_text().startswith("first step, with compilation: 60.1 s")


class Work:
    """Metrics of a step that ends when it is told to."""

    def __init__(self):
        self.over, self.asked = threading.Event(), threading.Event()

    def is_ready(self):
        ready = self.over.is_set()
        self.asked.set()
        return ready

    def block_until_ready(self):
        self.over.wait(10)
        return self


def test_the_host_is_one_step_ahead(tmp_path, clock):
    """It waits for the step before the last; devices idle from a step's end to the next one's call and its batch."""
    first, second, third = steps = [Work(), Work(), Work()]
    late = Work()
    first.over.set()
    second.over.set()
    with open_small(tmp_path, every=10) as log:
        batches = log.watch([0, 1, late])
        for step, metrics in enumerate(steps, 1):
            next(batches)
            log.step(step, {"loss": metrics})  # the third is sent, and is not waited for
            if step < 3:
                end_of_step(log)
            clock.now += 0.25
        assert not log._sent.end.done()
        clock.now += 1.0
        late.asked.wait(10)
        late.over.set()
        log._sent.begin.result()
        clock.now += 7.0
        third.over.set()
        log.flush()
        assert log._idle == 0.25 + 1.5


def test_a_loader_tells_what_it_read(tmp_path, clock):
    accounts = [types.SimpleNamespace(bytes_read=n * 10**9, bytes_needed=2 * n * 10**9, skipped=()) for n in (1, 2, 3)]
    accounts.append(types.SimpleNamespace(**vars(accounts[2]) | {"skipped": ("step 3, row 0: cannot read",)}))
    taken = iter(accounts)

    def batches():
        for _ in accounts:
            clock.now += 0.5
            yield jnp.zeros(4)

    with open_small(tmp_path, every=2) as log:
        for step, _ in enumerate(log.watch(batches(), account=lambda: next(taken)), 1):
            log.step(step, {"loss": jnp.float32(1)})
            end_of_step(log)
        values = log.flush()
    assert (values["gigabytes_read"], values["gigabytes_needed"], values["samples_skipped"]) == (3.0, 6.0, 1)
    assert values["gigabytes_read_per_second"] == 1 / 1.0
    line = format_line(4, values)
    assert line.endswith("6 GB needed  3 GB read  1 GB/s  1 samples could not be read and were replaced")


def test_the_time_of_an_evaluation_is_left_out(tmp_path, clock):
    with open_small(tmp_path, every=1) as log:
        log.step(1, {"loss": jnp.float32(1)})
        clock.now += 100.0
        log.record(1, {"rmse z500 24 h": 120.0})
        clock.now += 0.25
        log.step(2, {"loss": jnp.float32(1)})
        assert log.flush()["step_seconds"] == 0.25
    assert records(tmp_path)[1]["rmse z500 24 h"] == 120.0


def test_no_share_of_a_peak_that_is_not_known(tmp_path):
    with open_small(tmp_path, every=1, peak_flops=None) as log:
        log.step(1, {"loss": jnp.float32(1)})
        log.step(2, {"loss": jnp.float32(1)})
        assert "share_of_peak" not in log.flush()
    assert "peak" not in (tmp_path / "log.txt").read_text()


def test_a_resumed_run_replaces_the_steps_that_it_repeats(tmp_path):
    run(tmp_path, last_step=6)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 7, "lo')  # the process was killed while it wrote
    run(tmp_path, first_step=4, last_step=8)
    assert [record["step"] for record in records(tmp_path)] == [2, 4, 6, 8]


def test_a_number_that_is_not_finite_stays_readable_json(tmp_path):
    with open_small(tmp_path, every=1) as log:
        log.step(1, {"loss": jnp.float32(jnp.nan)})
        assert np.isnan(log.flush()["loss"])
    assert records(tmp_path)[0]["loss"] is None


def test_tensorboard_files_hold_the_scalars(tmp_path):
    run(tmp_path)
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"learning_rate" in events.read_bytes()


def test_the_line():
    values = {
        "loss": 0.12345678,
        "step_seconds": 0.0521,
        "samples_per_second": 153.2,
        "tflops_per_device": 412.0,
        "share_of_peak": 0.4166,
        "idle_seconds": 0.0005,
        "seconds_left": 5400.0,
        "gigabytes_read": 12.44,
        "gigabytes_needed": 20.0,
        "gigabytes_read_per_second": 2.31,
    }
    assert format_line(1200, values) == (
        "step 1200  loss 0.1235  0.0521 s/step  153.2 samples/s  412 TFLOP/s per device  41.7% of peak  "
        "idle 0.0005 s/step  1 h 30 min left  12.4 GB read  20 GB needed  2.31 GB/s"
    )


def test_a_progress_bar_on_a_terminal_alone(tmp_path):
    """Under a pseudo-terminal the program draws a bar; test_a_record_and_a_line shows that a pipe gets none."""
    program = (
        "from weathermixer.training.phases import Phases\n"
        "from weathermixer.training.telemetry import RunLog\n"
        "with RunLog('run', Phases(), last_step=2) as log:\n"
        "    log.step(1, {'loss': 1.0})\n"
        "    log.step(2, {'loss': 0.5})\n"
    )
    ours, theirs = os.openpty()
    termios.tcsetwinsize(ours, (24, 120))
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "JAX_PLATFORMS": "cpu"}
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=tmp_path, stdout=theirs, stderr=theirs, env=environment
    ) as process:
        os.close(theirs)
        screen = b""
        with contextlib.suppress(OSError):  # raised at the end, when the program closes its side
            while part := os.read(ours, 4096):
                screen += part
    os.close(ours)
    assert process.returncode == 0, screen.decode()
    assert b"2/2" in screen
    assert b"step 2  loss 0.5" in screen

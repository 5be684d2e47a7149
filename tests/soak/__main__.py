"""Faults against real runs, one after the other, and a table of what they cost.

  python -m tests.soak [--faults=60] [--seed=0] [--kinds=killed,asked]

Each trial is a run of its own that is disturbed once, at a random moment, and then started again until it ends. Its
losses, step by step, are compared with those of an undisturbed run: bit for bit on as many processes as that one had.
"""

import argparse
import contextlib
import dataclasses
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import numpy as np
import zarr

from tests.running import ROOT, make_data, read_until, train
from tests.servers import serve
from weathermixer.parallel import distributed
from weathermixer.training.telemetry import read_records

STEPS = 120
OPTIONS = [f"--config.training.steps={STEPS}", "--config.training.checkpoint_every=5", "--patience=0.2"]
END_SECONDS = 60.0  # in which a disturbed run has to have ended, all its processes


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a fault cost: how the run ended, steps done twice, losses that differ or are missing, seconds to the end."""

    fault: str
    processes: int
    status: int
    steps_lost: int
    values_lost: int
    seconds: float
    survived: bool


@dataclasses.dataclass(frozen=True)
class Trial:
    """A workdir, the data, and how to start there."""

    data: pathlib.Path
    workdir: pathlib.Path
    processes: int
    rng: random.Random
    stack: contextlib.ExitStack

    def start(self, *options: str, processes: int | None = None, **more):
        processes = processes or self.processes
        cut = [f"--config.mesh.domain={processes}"]
        return train(self.data, self.workdir, *OPTIONS, *cut, *options, processes=processes, **more)

    def pids(self) -> list[int]:
        """Of the training processes, in order."""
        found = {}
        for entry in pathlib.Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    words, variables = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes()
                except OSError:
                    continue
                if f"--workdir={self.workdir}".encode() in words and b"experiments.train" in words.split(b"\0"):
                    number = variables.partition(b"JAX_PROCESS_ID=")[2].partition(b"\0")[0] or b"0"
                    if b"launch/local.sh" not in words:
                        found[int(number)] = int(entry.name)
        return [found[number] for number in sorted(found)]

    def at_some_step(self, run) -> None:
        read_until(run, f"step {self.rng.randrange(5, STEPS // 2)} ")
        time.sleep(self.rng.random() / 2)


def killed(trial: Trial):
    """kill -9 of one process; saves are made so often that many are hit."""
    run = trial.start("--config.training.checkpoint_every=3")
    trial.at_some_step(run)
    os.kill(trial.rng.choice(trial.pids()), signal.SIGKILL)
    return run, None


def asked(trial: Trial):
    """One of the signals, to one process, twice."""
    run = trial.start()
    trial.at_some_step(run)
    pid, sent = trial.rng.choice(trial.pids()), trial.rng.choice([signal.SIGTERM, signal.SIGUSR1])
    for _ in range(2):
        os.kill(pid, sent)
    return run, distributed.PREEMPTED


def asked_early(trial: Trial):
    """SIGTERM at any moment after joining: restoring, compiling, first steps."""
    run = trial.start()
    read_until(run, "training pairs")
    time.sleep(3 * trial.rng.random())
    os.kill(trial.pids()[0], signal.SIGTERM)
    return run, distributed.PREEMPTED


def full_disk(trial: Trial):
    """The last process cannot write more than 4 kB to a file."""
    limit = f"if [[ ${{JAX_PROCESS_ID:-0}} == {trial.processes - 1} ]]; then ulimit -f 4; fi"
    return trial.start("--config.training.log_every=120", before=limit), None


def stopped(trial: Trial):
    """SIGSTOP of one process: it never reaches the others' collective."""
    run = trial.start("--patience=0.1")  # 6 s for a step, six times that to compile
    trial.at_some_step(run)
    pid = trial.pids()[-1]
    os.kill(pid, signal.SIGSTOP)
    time.sleep(8)
    os.kill(pid, signal.SIGCONT if trial.processes == 1 else signal.SIGKILL)
    return run, None


def other_processes(trial: Trial):
    """kill -9, and on with another number of processes."""
    run = trial.start()
    trial.at_some_step(run)
    for pid in trial.pids():
        os.kill(pid, signal.SIGKILL)
    return run, None


def unreadable(trial: Trial):
    """A file whose reads never return, and SIGTERM; then it is there again."""
    shard = trial.data / "archive/fields/c/1/0/0/0"
    kept = shard.read_bytes()
    shard.unlink()
    os.mkfifo(shard)
    run = trial.start()
    read_until(run, "parameters, steps")
    time.sleep(4)
    os.kill(trial.pids()[0], signal.SIGTERM)
    run.wait(END_SECONDS)
    shard.unlink()
    shard.write_bytes(kept)
    return run, distributed.PREEMPTED


def failing_store(trial: Trial):
    """An archive behind HTTP, of whose reads 5 % fail: the run goes on."""
    flaky = random.Random(trial.rng.random())
    mood = lambda path, times: 503 if flaky.random() < 0.05 else None  # noqa: E731
    url, _ = trial.stack.enter_context(serve(trial.data, mood))
    return trial.start(f"--data={url}/archive"), distributed.FINISHED


def missing_values(trial: Trial):
    """A frame whose values are missing ends the run before such a state is saved; then the frame is there again."""
    shard = trial.data / "archive/fields/c/1/0/0/0"
    kept = shard.read_bytes()
    fields = zarr.open_array(trial.data / "archive/fields", mode="r+")
    fields[trial.rng.randrange(10, 20), 0] = np.nan
    run = trial.start()
    said = run.communicate(timeout=END_SECONDS)[0]
    shard.write_bytes(kept)
    assert "2m_temperature" in said, said
    return run, 1


def clock_jumps(trial: Trial):
    """Two hours forward or back in mid-run, then kill -9: heartbeats, goodput and the owner's age use clocks."""
    folder = trial.workdir.with_name(f"{trial.workdir.name}-clock")
    folder.mkdir()
    jump = trial.rng.choice([-7200, 7200])
    (folder / "sitecustomize.py").write_text(
        "import time\n"
        "real, start = time.time, time.time()\n"
        f"time.time = lambda: real() + {jump} * (real() > start + 6)\n"
    )
    run = trial.start("--config.training.checkpoint_every=3", PYTHONPATH=f"{ROOT}:{folder}")
    with contextlib.suppress(AssertionError):  # a jump within a save is past Orbax's own limit, and ends the run
        trial.at_some_step(run)
        os.kill(trial.rng.choice(trial.pids()), signal.SIGKILL)
    return run, None


KINDS: dict[str, Callable] = {
    kind.__name__: kind
    for kind in (
        killed,
        asked,
        asked_early,
        full_disk,
        stopped,
        other_processes,
        unreadable,
        failing_store,
        missing_values,
        clock_jumps,
    )
}


def losses(workdir: pathlib.Path) -> dict[int, float]:
    return {r["step"]: r["loss"] for r in read_records(workdir / "metrics.jsonl") if r.get("loss") is not None}


def try_fault(kind: str, trial: Trial, expected: dict[int, dict[int, float]]) -> Outcome:
    """One disturbed run, to its end."""
    processes, workdir = trial.processes, trial.workdir
    run, status = KINDS[kind](trial)
    limit = 4 * END_SECONDS if status == distributed.FINISHED else END_SECONDS  # this one has all its steps to do
    since = time.monotonic()
    try:
        said = "" if run.stdout.closed else run.communicate(timeout=limit)[0]
        seconds = time.monotonic() - since
    except subprocess.TimeoutExpired:
        seconds = float("inf")
        for pid in trial.pids():
            os.kill(pid, signal.SIGKILL)
        said = run.communicate()[0]
    reached = max(losses(workdir), default=0)
    other = 3 - processes if kind == "other_processes" else processes
    with trial.start(processes=other) as again:
        more = again.communicate(timeout=4 * END_SECONDS)[0]
    first = int(more.partition("parameters, steps ")[2].partition(" to ")[0] or 0)
    found = losses(workdir)
    if other == processes:
        wrong = sum(found.get(step) != loss for step, loss in expected[processes].items())
    else:
        wrong = sum(
            not np.isclose(found.get(step, np.nan), loss, rtol=1e-2) for step, loss in expected[processes].items()
        )
    good = again.returncode == 0 and not wrong and seconds < limit and status in (None, run.returncode)
    if not good:
        print(
            f"--- {kind}, {processes} processes, {workdir}\n{said[-3000:]}\n--- again\n{more[-3000:]}", file=sys.stderr
        )
    return Outcome(kind, processes, run.returncode, max(0, reached - first), wrong, seconds, good)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=60, help="how many are tried")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default=",".join(KINDS))
    options = parser.parse_args()
    rng, outcomes = random.Random(options.seed), []
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        data, expected = make_data(folder / "data"), {}
        for number in range(options.faults):
            kind = options.kinds.split(",")[number % len(options.kinds.split(","))]
            processes = rng.choice((1, 2))
            if processes not in expected:
                trial = Trial(data, folder / f"undisturbed{processes}", processes, rng, contextlib.ExitStack())
                with trial.start() as run:
                    said = run.communicate()[0]
                assert run.returncode == 0, said
                expected[processes] = losses(trial.workdir)
                assert len(expected[processes]) == STEPS
            with contextlib.ExitStack() as stack:
                outcomes.append(try_fault(kind, Trial(data, folder / f"{number}", processes, rng, stack), expected))
            print(format_outcome(outcomes[-1]), flush=True)
            shutil.rmtree(folder / f"{number}")
    print(f"\n{format_summary(outcomes)}")
    return 0 if all(outcome.survived for outcome in outcomes) else 1


def format_outcome(o: Outcome) -> str:
    return (
        f"{o.fault:16} processes {o.processes}  {'survived' if o.survived else 'FAILED  '}  status {o.status:4}  "
        f"steps lost {o.steps_lost:3}  values lost {o.values_lost:3}  ended after {o.seconds:5.1f} s"
    )


def format_summary(outcomes: list[Outcome]) -> str:
    """A row per kind: tried, survived, most steps and values lost, longest until the end."""
    lines = [f"{'fault':16} tried survived  steps lost  values lost  seconds to the end"]
    for kind in dict.fromkeys(o.fault for o in outcomes):
        some = [o for o in outcomes if o.fault == kind]
        lines.append(
            f"{kind:16} {len(some):5} {sum(o.survived for o in some):8}  {max(o.steps_lost for o in some):10}  "
            f"{max(o.values_lost for o in some):11}  {max(o.seconds for o in some):18.1f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

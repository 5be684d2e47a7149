"""Where runs stand: progress, losses, rate, checkpoints, how time was spent, how they ended. Only reads files.

  python -m experiments.status RUN [RUN ...] [--watch]

RUN is a run's workdir, on this machine or seen from it; no accelerator is needed. One run is told in full, several are
rows of a table. Restarts and faults are those that the run's log tells of; times are those of the machine that ran it.

Examples:
  python -m experiments.status runs/quickstart
  python -m experiments.status runs/a runs/b runs/c --watch
"""

import dataclasses
import math
import pathlib
import re
import sys
import time
from collections.abc import Sequence
from typing import Any

from experiments import command_line, ends
from weathermixer.runs.owner import DEAD_SECONDS, OWNER_FILE
from weathermixer.runs.workdir import CHECKPOINTS, CONFIG_FILE
from weathermixer.training.phases import format_account, format_seconds
from weathermixer.training.telemetry import LOG_FILE, METRICS_FILE, read_records

BLOCKS = "▁▂▃▄▅▆▇█"
WIDTH = 48


@dataclasses.dataclass(frozen=True)
class Status:
    """What a workdir tells of its run."""

    workdir: pathlib.Path
    records: list[dict[str, Any]]
    log: str
    checkpoints: list[int]
    ended: dict[str, Any] | None
    owner: dict[str, Any] | None
    silent: float  # seconds since its owner renewed that it lives, or wrote anything

    @property
    def state(self) -> str:
        if self.ended:
            return self.ended["how"]
        if self.silent < DEAD_SECONDS:
            return "running"
        return "finished" if self.step == self.last_step > 0 else "silent"

    @property
    def step(self) -> int:
        return max((record["step"] for record in self.records), default=0)

    @property
    def last_step(self) -> int:
        """The run's length, as it said at its last start; 0 where it has not come so far."""
        return int((re.findall(r"parameters, steps \d+ to (\d+)", self.log) or ["0"])[-1])

    @property
    def seconds_left(self) -> float:
        rate = self.last("step_seconds")
        return (self.last_step - self.step) * rate if rate and self.last_step else math.nan

    def last(self, name: str) -> Any:
        """The last record's value of that name; None where no record has it."""
        return next((record[name] for record in reversed(self.records) if record.get(name) is not None), None)

    def starts(self) -> int:
        return len(re.findall(r"^process 0 of \d+", self.log, re.MULTILINE))

    def faults(self) -> int:
        """Starts that ended in no good way: neither stopped when asked to, nor at the end, nor are they under way."""
        good = len(re.findall("^asked to stop: ", self.log, re.MULTILINE))
        return max(0, self.starts() - good - (self.state in ("finished", "running")))


def read_status(workdir: pathlib.Path) -> Status:
    """ValueError where the workdir holds no run."""
    if not (workdir / CONFIG_FILE).exists():
        raise ValueError(f"{workdir} holds no run: it has no {CONFIG_FILE}")
    log = workdir / LOG_FILE
    steps = sorted(int(p.name) for p in (workdir / CHECKPOINTS).glob("*") if p.name.isdigit())
    owner = workdir / OWNER_FILE
    written = [path.stat().st_mtime for path in (owner, log, workdir / CONFIG_FILE) if path.exists()]
    return Status(
        workdir=workdir,
        records=read_records(workdir / METRICS_FILE),
        log=log.read_text(encoding="utf-8", errors="replace") if log.exists() else "",
        checkpoints=steps,
        ended=ends.read_document(workdir / ends.ENDED_FILE),
        owner=ends.read_document(owner),
        silent=time.time() - max(written),
    )


def draw_curve(values: Sequence[float], width: int = WIDTH) -> str:
    """Values as a curve of one line, of the means of equal parts; of positive ones in equal ratios."""
    size = max(1, math.ceil(len(values) / width))
    parts = [values[first : first + size] for first in range(0, len(values), size)]
    means = [sum(part) / len(part) for part in parts]
    means = list(map(math.log, means)) if min(means) > 0 else means
    low, high = min(means), max(means)
    levels = [(mean - low) / (high - low or 1) for mean in means]
    return "".join(BLOCKS[min(len(BLOCKS) - 1, int(level * len(BLOCKS)))] for level in levels)


def describe(status: Status) -> str:
    """A run in full, some ten lines."""
    share = f" of {status.last_step} ({status.step / status.last_step:.1%})" if status.last_step else ""
    lines = [f"{status.workdir}: {status.state}, step {status.step}{share}"]
    if status.state == "silent":
        lines.append(f"no sign of life for {format_seconds(status.silent)}: it was killed, or its machine is away")
    if status.owner:
        lines.append("owner {host}, process {process}, since {since}".format_map(status.owner))
    if status.ended:
        when = format_seconds(time.time() - status.ended["time"])
        lines.append(f"ended {when} ago with status {status.ended['status']}: {status.ended['why']}")
    for name in ("loss", "validation_loss"):
        values = [record[name] for record in status.records if record.get(name) is not None]
        if values:
            lines.append(f"{name} {values[0]:.4g} {draw_curve(values)} {values[-1]:.4g}, least {min(values):.4g}")
    if rate := status.last("step_seconds"):
        left = f", {format_seconds(status.seconds_left)} left" if status.step < status.last_step else ""
        lines.append(f"rate {rate:.3g} s/step, {status.last('samples_per_second'):.4g} samples/s{left}")
    saved = ", ".join(map(str, status.checkpoints)) or "none"
    lines.append(f"checkpoints {saved}")
    if seconds := status.last("seconds"):
        lines.append(f"time {format_account(seconds)}")
    lines.append(f"starts {status.starts()}, of which {status.faults()} ended by a fault or a kill")
    if memory := status.last("device_gigabytes"):
        lines.append(f"memory {memory:.3g} GB at most on a device")
    return "\n  ".join(lines)


def format_table(statuses: Sequence[Status]) -> str:
    """A row for each run."""
    rows = [["run", "state", "step", "of", "loss", "s/step", "left", "saved", "starts", "faults"]]
    for status in statuses:
        numbers = [status.last("loss"), status.last("step_seconds")]
        loss, rate = ("" if number is None else f"{number:.4g}" for number in numbers)
        going = status.step < status.last_step and math.isfinite(status.seconds_left)
        left = format_seconds(status.seconds_left) if going else ""
        row = [status.workdir, status.state, status.step, status.last_step or "", loss, rate, left]
        rows.append([str(v) for v in (*row, (status.checkpoints or [""])[-1], status.starts(), status.faults())])
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip() for row in rows)


def make_parser() -> command_line.Parser:
    """The command line's options."""
    parser = command_line.make_parser("experiments.status", __doc__)
    parser.add_argument("runs", nargs="+", type=pathlib.Path, metavar="RUN", help="workdirs of runs")
    parser.add_argument("--watch", action="store_true", help="look again every ten seconds, until Ctrl-C")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    options = make_parser().parse_args(arguments)
    while True:
        statuses = [read_status(path) for path in options.runs]
        text = describe(statuses[0]) if len(statuses) == 1 else format_table(statuses)
        sys.stdout.write("\033[H\033[2J" * options.watch + text + "\n")
        sys.stdout.flush()
        if not options.watch:
            return
        time.sleep(10)


if __name__ == "__main__":
    command_line.run(main)

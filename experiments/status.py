"""Where runs stand: progress, losses, rate, checkpoints, how time was spent, how they ended. Only reads files.

  python -m experiments.status RUN [RUN ...] [--watch]

RUN is a run's workdir, on this machine or seen from it; no accelerator is needed. One run is told in full, several are
rows of a table. Restarts and faults are those that the run's log tells of; times are those of the machine that ran it.

Examples:
  python -m experiments.status runs/quickstart
  python -m experiments.status runs/a runs/b runs/c --watch
"""

import json
import math
import pathlib
import re
import time
from collections.abc import Sequence
from typing import Any

import pandas as pd

from experiments import command_line, ends
from weathermixer.runs.owner import DEAD_SECONDS, OWNER_FILE
from weathermixer.runs.workdir import CHECKPOINTS, CONFIG_FILE
from weathermixer.training.checkpoint import saved_steps
from weathermixer.training.phases import format_account, format_seconds
from weathermixer.training.telemetry import LOG_FILE, METRICS_FILE, read_records

BLOCKS = "▁▂▃▄▅▆▇█"
WIDTH = 48
SHOWN = ("loss", "validation_loss", "step_seconds", "samples_per_second", "seconds", "device_gigabytes")
COLUMNS = ["run", "state", "step", "of", "loss", "s/step", "left", "saved", "starts", "faults"]


def read_status(workdir: pathlib.Path) -> dict[str, Any]:
    """What a workdir tells of its run; ValueError where it holds none."""
    if not (workdir / CONFIG_FILE).exists():
        raise ValueError(f"{workdir} holds no run: it has no {CONFIG_FILE}")
    log_file, owner_file = workdir / LOG_FILE, workdir / OWNER_FILE
    written = [path.stat().st_mtime for path in (owner_file, log_file, workdir / CONFIG_FILE) if path.exists()]
    silent = time.time() - max(written)  # seconds since its owner renewed that it lives, or wrote anything
    ended, records = _read(workdir / ends.ENDED_FILE), read_records(workdir / METRICS_FILE)
    log = log_file.read_text(encoding="utf-8", errors="replace") if log_file.exists() else ""

    step = max((record["step"] for record in records), default=0)
    of = int((re.findall(r"parameters, steps \d+ to (\d+)", log) or ["0"])[-1])  # as it said at its last start
    state = "running" if silent < DEAD_SECONDS else "finished" if step == of > 0 else "silent"
    state = ended.get("how", state)
    starts = len(re.findall(r"^process 0 of \d+", log, re.MULTILINE))
    good = len(re.findall("^asked to stop: ", log, re.MULTILINE)) + (state in ("finished", "running"))
    values = {name: [r[name] for r in records if r.get(name) is not None] for name in SHOWN}
    rate, saved = values["step_seconds"], saved_steps(workdir / CHECKPOINTS)
    return {
        "run": workdir,
        "state": state,
        "step": step,
        "of": of or "",
        "loss": f"{values['loss'][-1]:.4g}" if values["loss"] else "",
        "s/step": f"{rate[-1]:.4g}" if rate else "",
        "left": format_seconds((of - step) * rate[-1]) if rate and step < of else "",
        "saved": (saved or [""])[-1],
        "starts": starts,
        "faults": max(0, starts - good),  # ended neither when asked to, nor at the end, nor are they under way
        "silent": silent,
        "ended": ended,
        "owner": _read(owner_file),
        "values": values,
        "checkpoints": ", ".join(map(str, saved)) or "none",
    }


def _read(path: pathlib.Path) -> dict[str, Any]:
    """A JSON document; empty where it is not there, or is being written."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}


def draw_curve(values: Sequence[float], width: int = WIDTH) -> str:
    """Values as a curve of one line, of the means of equal parts; of positive ones in equal ratios."""
    size = max(1, math.ceil(len(values) / width))
    parts = [values[first : first + size] for first in range(0, len(values), size)]
    means = [sum(part) / len(part) for part in parts]
    means = list(map(math.log, means)) if min(means) > 0 else means
    low, high = min(means), max(means)
    levels = [(mean - low) / (high - low or 1) for mean in means]
    return "".join(BLOCKS[min(len(BLOCKS) - 1, int(level * len(BLOCKS)))] for level in levels)


def describe(status: dict[str, Any]) -> str:
    """A run in full, some ten lines."""
    values, ended = status["values"], status["ended"]
    share = f" of {status['of']} ({status['step'] / status['of']:.1%})" if status["of"] else ""
    lines = [f"{status['run']}: {status['state']}, step {status['step']}{share}"]
    if status["state"] == "silent":
        lines.append(f"no sign of life for {format_seconds(status['silent'])}: it was killed, or its machine is away")
    if status["owner"]:
        lines.append("owner {host}, process {process}, since {since}".format_map(status["owner"]))
    if ended:
        ago = format_seconds(time.time() - ended["time"])
        lines.append(f"ended {ago} ago with status {ended['status']}: {ended['why']}")
    for name in ("loss", "validation_loss"):
        if losses := values[name]:
            lines.append(f"{name} {losses[0]:.4g} {draw_curve(losses)} {losses[-1]:.4g}, least {min(losses):.4g}")
    if values["step_seconds"]:
        left = f", {status['left']} left" * bool(status["left"])
        rate = f"{values['step_seconds'][-1]:.3g} s/step, {values['samples_per_second'][-1]:.4g} samples/s"
        lines.append(f"rate {rate}{left}")
    lines.append(f"checkpoints {status['checkpoints']}")
    if values["seconds"]:
        lines.append(f"time {format_account(values['seconds'][-1])}")
    lines.append("starts {starts}, of which {faults} ended by a fault or a kill".format_map(status))
    if values["device_gigabytes"]:
        lines.append(f"memory {values['device_gigabytes'][-1]:.3g} GB at most on a device")
    return "\n  ".join(lines)


def make_parser() -> command_line.Parser:
    parser = command_line.make_parser("experiments.status", __doc__)
    parser.add_argument("runs", nargs="+", type=pathlib.Path, metavar="RUN", help="workdirs of runs")
    parser.add_argument("--watch", action="store_true", help="look again every ten seconds, until Ctrl-C")
    return parser


def main(arguments: list[str] | None = None) -> None:
    options = make_parser().parse_args(arguments)
    while True:
        statuses = [read_status(path) for path in options.runs]
        table = pd.DataFrame(statuses, columns=COLUMNS).to_string(index=False)
        text = describe(statuses[0]) if len(statuses) == 1 else table
        print("\033[H\033[2J" * options.watch + text, flush=True)
        if not options.watch:
            return
        time.sleep(10)


if __name__ == "__main__":
    ends.run(main)

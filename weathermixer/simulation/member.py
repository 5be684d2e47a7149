"""One member of a simulation, in a process of its own: integrates, writes its chunks of the record, keeps its state.

    python -m weathermixer.simulation.member FOLDER MEMBER            started by weathermixer.simulation.simulate

A state is kept whenever the chunk before it is written, so a member that was killed repeats at most one chunk, with the
same bits. Nothing here may import JAX before the process is pinned to a core.
"""

import os
import sys
import threading
from typing import Any

import numpy as np

from weathermixer.simulation.record import FRAMES_PER_DAY, SURFACE, UPPER, open_field, read_settings

RECORD = "record"
DAY_DONE = "day done"


def run_member(folder: str, member: int) -> None:
    """Integrates a member from its kept state, or from its start, to its end; says DAY_DONE after each day.

    Raises FloatingPointError, with the day, where the integration blows up.
    """
    from weathermixer.simulation.atmosphere import make_atmosphere

    record = os.path.join(folder, RECORD)
    settings = read_settings(record)
    atmosphere = make_atmosphere(
        truncation=settings.truncation,
        layers=settings.layers,
        step_minutes=settings.step_minutes,
        levels_hpa=settings.levels_hpa,
        latitudes=settings.latitudes,
        longitudes=settings.longitudes,
    )
    fields = {name: open_field(record, name) for name in UPPER + SURFACE}
    day, state = read_state(folder, member) or (0, atmosphere.initial_state([settings.seed, member]))
    frames: list[dict[str, np.ndarray]] = []
    while day < settings.spin_up_days + settings.member_days:
        state, frame = atmosphere.advance(state)
        day += 1
        kept = day - settings.spin_up_days
        if kept > 0:
            frames.append({name: np.asarray(values) for name, values in frame.items()})
        if kept % settings.chunk_days == 0:
            arrays = [np.asarray(array) for array in state.astuple()[:4]]
            if not all(np.isfinite(array).all() for array in arrays):
                raise FloatingPointError(
                    f"member {member} is not finite on day {day}: step_minutes={settings.step_minutes} is too long for "
                    f"truncation={settings.truncation}"
                )
            end = (member * settings.member_days + kept) * FRAMES_PER_DAY
            _write_chunk(fields, frames, end)
            write_state(folder, member, day, arrays)
            frames = []
        print(DAY_DONE, flush=True)


def _write_chunk(fields: dict[str, Any], frames: list[dict[str, np.ndarray]], end: int) -> None:
    start = end - len(frames) * FRAMES_PER_DAY
    if frames:
        values = {name: np.concatenate([frame[name] for frame in frames]) for name in fields}
        for write in [fields[name][start:end].write(array) for name, array in values.items()]:
            write.result()


def write_state(folder: str, member: int, day: int, arrays: list[np.ndarray]) -> None:
    """Keeps the state at the end of a day: whole or not at all."""
    path = _state_path(folder, member)
    with open(path + ".new", "wb") as file:
        np.savez(file, day=day, **{f"array{index}": array for index, array in enumerate(arrays)})
    os.replace(path + ".new", path)


def read_state(folder: str, member: int) -> tuple[int, Any] | None:
    """(day, state) that were kept, None at the first start."""
    from dinosaur.primitive_equations import State

    if not os.path.exists(_state_path(folder, member)):
        return None
    with np.load(_state_path(folder, member)) as kept:
        return int(kept["day"]), State(*(kept[f"array{index}"] for index in range(4)))


def read_day(folder: str, member: int) -> int:
    """How many days a member has behind it."""
    if not os.path.exists(_state_path(folder, member)):
        return 0
    with np.load(_state_path(folder, member)) as kept:
        return int(kept["day"])


def _state_path(folder: str, member: int) -> str:
    return os.path.join(folder, f"member-{member}.npz")


def _pin(member: int) -> None:
    """Keeps this process, whose threads do not exist yet, on one core: every member on another one."""
    if hasattr(os, "sched_setaffinity"):  # Linux; elsewhere XLA's flag alone has to do
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[member % len(cores)]})


def _stop_with_parent() -> None:
    """Ends this process when the one that started it is gone, however it went: its end of the pipe is closed then."""

    def wait():
        # not through sys.stdin, whose lock the interpreter wants when it ends
        while os.read(0, 1024):
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    _stop_with_parent()
    _pin(int(sys.argv[2]))
    run_member(sys.argv[1], int(sys.argv[2]))

"""One member of a simulation, in a process of its own: integrates, writes its chunks of the record, keeps its state.

    python -m weathermixer.simulation.member FOLDER MEMBER            started by weathermixer.simulation.simulate

A state is kept whenever the chunk before it is written, so a member that was killed repeats at most one chunk, with the
same bits. Nothing here may import JAX before the process is pinned to a core.
"""

import os
import pathlib
import sys
import threading

import numpy as np
import zarr

from weathermixer.simulation.record import FRAMES_PER_DAY, SURFACE, UPPER, read_settings

RECORD = "record"


def run_member(folder: pathlib.Path, member: int) -> None:
    """Integrates a member from its kept state, or from its start, to its end.

    Raises FloatingPointError, with the day, where the integration blows up.
    """
    from dinosaur.primitive_equations import State

    from weathermixer.simulation.atmosphere import make_atmosphere

    settings, fields = read_settings(folder / RECORD), zarr.open_group(folder / RECORD, mode="r+")
    atmosphere = make_atmosphere(settings)
    day, arrays = read_state(folder, member)
    state = State(*arrays) if day else atmosphere.initial_state([settings.seed, member])
    frames: list[dict[str, np.ndarray]] = []
    while day < settings.spin_up_days + settings.member_days:
        state, frame = atmosphere.advance(state)
        day += 1
        kept = day - settings.spin_up_days
        if kept > 0:
            frames.append({name: np.asarray(values) for name, values in frame.items()})
        if kept % settings.chunk_days:
            continue
        arrays = [np.asarray(array) for array in state.astuple()[:4]]
        if not all(np.isfinite(array).all() for array in arrays):
            raise FloatingPointError(
                f"member {member} is not finite on day {day}: step_minutes={settings.step_minutes} is too long for "
                f"truncation={settings.truncation}"
            )
        end = (member * settings.member_days + kept) * FRAMES_PER_DAY
        for name in UPPER + SURFACE if frames else ():
            fields[name][end - len(frames) * FRAMES_PER_DAY : end] = np.concatenate([frame[name] for frame in frames])
        write_state(folder, member, day, arrays)
        frames = []


def write_state(folder: pathlib.Path, member: int, day: int, arrays: list[np.ndarray]) -> None:
    """Keeps the state at the end of a day: whole or not at all."""
    new = folder / f"member-{member}.new.npz"
    np.savez(new, *arrays, day=day)
    new.rename(folder / f"member-{member}.npz")


def read_state(folder: pathlib.Path, member: int) -> tuple[int, list[np.ndarray]]:
    """How many days a member has behind it, and its state then: none at the first start."""
    path = folder / f"member-{member}.npz"
    if not path.exists():
        return 0, []
    with np.load(path) as kept:
        return int(kept["day"]), [kept[f"arr_{index}"] for index in range(4)]


def _stop_with_parent() -> None:
    """Ends this process when the one that started it is gone, however it went: its end of the pipe is closed then."""
    while os.read(0, 1024):  # not through sys.stdin, whose lock the interpreter wants when it ends
        pass
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    if hasattr(os, "sched_setaffinity"):  # Linux: every member on another core; elsewhere XLA's flag alone has to do
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(sys.argv[2]) % len(cores)]})
    run_member(pathlib.Path(sys.argv[1]), int(sys.argv[2]))

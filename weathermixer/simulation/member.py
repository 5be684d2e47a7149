"""One member of a simulation, in a process of its own: integrates, and writes its chunks of the record.

    python -m weathermixer.simulation.member RECORD MEMBER            started by weathermixer.simulation.simulate

Nothing here may import JAX before the process is pinned to a core.
"""

import os
import sys

import numpy as np
import zarr

from weathermixer.simulation.simulate import FIELDS, FRAMES_PER_DAY, Settings


def run_member(path: str, member: int) -> None:
    """Integrates a member to its end; ends too where the process that started it is gone.

    Raises FloatingPointError, with the day, where the integration blows up.
    """
    from weathermixer.simulation.atmosphere import make_atmosphere

    parent, record = os.getppid(), zarr.open_group(path, mode="r+")
    settings = Settings(**record.attrs["simulation"])
    initial_state, advance = make_atmosphere(settings)
    state, frames = initial_state([settings.seed, member]), []
    for day in range(1 - settings.spin_up_days, settings.member_days + 1):
        state, frame = advance(state)
        if os.getppid() != parent:
            sys.exit("the process that started this member is gone")
        if day < 1:
            continue
        frames.append({name: np.asarray(values) for name, values in frame.items()})
        if day % settings.chunk_days:
            continue
        end = (member * settings.member_days + day) * FRAMES_PER_DAY
        for name in FIELDS:
            values = np.concatenate([frame[name] for frame in frames])
            if not np.isfinite(values).all():
                raise FloatingPointError(
                    f"{name} is not finite by day {day}: step_minutes={settings.step_minutes} is too long for "
                    f"truncation={settings.truncation}"
                )
            record[name][end - len(values) : end] = values
        frames = []


if __name__ == "__main__":
    if hasattr(os, "sched_setaffinity"):  # Linux: every member on another core; elsewhere XLA's flag alone has to do
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(sys.argv[2]) % len(cores)]})
    run_member(sys.argv[1], int(sys.argv[2]))

"""One member of a simulation, in a process of its own: integrates, and writes its frames to standard output.

    python -m weathermixer.simulation.member SETTINGS MEMBER          started by weathermixer.simulation.simulate

Nothing here may import JAX before the process is pinned to a core.
"""

import json
import os
import sys
from typing import BinaryIO

import numpy as np

from weathermixer.simulation.simulate import FIELDS, Settings


def run_member(settings: Settings, member: int, out: BinaryIO) -> None:
    """Integrates a member to its end and writes the float32 of FIELDS, one after the other, of each day that is kept.

    Raises FloatingPointError, with the day, where the integration blows up; BrokenPipeError where nobody reads.
    """
    from weathermixer.simulation.atmosphere import make_atmosphere

    initial_state, advance = make_atmosphere(settings)
    state = initial_state([settings.seed, member])
    for day in range(1 - settings.spin_up_days, settings.member_days + 1):
        state, frames = advance(state)
        for name in FIELDS if day >= 1 else ():
            values = np.ascontiguousarray(frames[name])
            if not np.isfinite(values).all():
                raise FloatingPointError(
                    f"{name} is not finite by day {day}: step_minutes={settings.step_minutes} is too long for "
                    f"truncation={settings.truncation}"
                )
            out.write(values.data)


if __name__ == "__main__":
    number = int(sys.argv[2])
    if hasattr(os, "sched_setaffinity"):  # Linux: every member on another core; elsewhere XLA's flag alone has to do
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[number % len(cores)]})
    with os.fdopen(os.dup(1), "wb") as frames:
        os.dup2(2, 1)  # whatever else is printed is no frame
        run_member(Settings(**json.loads(sys.argv[1])), number, frames)

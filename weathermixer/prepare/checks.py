"""What is checked of frames on their way into an archive."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

FAULTS_SHOWN = 10


def check_frames(
    frames: Float[np.ndarray, "time channel lat lon"], times: np.ndarray, names: Sequence[str]
) -> list[str]:
    """Names each channel and time that holds missing or infinite values, or nothing but equal ones, with counts."""
    low, high = frames.min(axis=(2, 3)), frames.max(axis=(2, 3))
    faults = []
    for time, channel in np.argwhere(~(np.isfinite(low) & np.isfinite(high)) | (low == high)):
        where = f"{names[channel]} at {times[time].astype('datetime64[m]')}"
        values = frames[time, channel]
        missing, infinite = int(np.isnan(values).sum()), int(np.isinf(values).sum())
        if missing or infinite:
            counts = [f"{missing} missing (NaN)"] * bool(missing) + [f"{infinite} infinite"] * bool(infinite)
            faults.append(f"{where}: {' and '.join(counts)} of {values.size} values")
        else:
            faults.append(f"{where}: constant, every value is {values.flat[0]}")
    return faults


def describe_faults(faults: Sequence[str], path: str) -> str:
    """The message of a prepare that stops at faulty fields."""
    more = f"\n  and {len(faults) - FAULTS_SHOWN} more in these times" if len(faults) > FAULTS_SHOWN else ""
    shown = "\n  ".join(faults[:FAULTS_SHOWN])
    return (
        f"the source holds faulty fields, {path} is not published:\n  {shown}{more}\n"
        "leave these times out (--exclude=TIME,... or another --period) or the variable, or keep them (--keep_faults)"
    )

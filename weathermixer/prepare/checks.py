"""What is checked of fields on their way into an archive."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

FAULTS_SHOWN = 10


def check_fields(
    fields: Float[np.ndarray, "channel lat lon"],
    time: np.datetime64,
    names: Sequence[str],
    missing: Float[np.ndarray, " channel"],
    minimum: Float[np.ndarray, " channel"],
    maximum: Float[np.ndarray, " channel"],
) -> list[str]:
    """Names each channel that holds missing or infinite values, or nothing but equal ones, with counts.

    `missing` counts the values that are not finite; the range is that of the others.
    """
    faults = []
    for channel in np.flatnonzero((missing > 0) | (minimum == maximum)):
        where = f"{names[channel]} at {time.astype('datetime64[m]')}"
        values = fields[channel]
        if missing[channel]:
            nan, infinite = int(np.isnan(values).sum()), int(np.isinf(values).sum())
            counts = [f"{nan} missing (NaN)"] * bool(nan) + [f"{infinite} infinite"] * bool(infinite)
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

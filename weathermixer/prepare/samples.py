"""A sample of a source, from which packing is chosen before all of it is read."""

import functools
from typing import Any

import numpy as np
from jaxtyping import Float

from weathermixer.archive.packing import DTYPES, choose_packing, rounding_error
from weathermixer.prepare.checks import find_impossible
from weathermixer.prepare.workers import Workers
from weathermixer.sources.sources import Source

SAMPLE_TIMES = 16  # evenly over the record, from which scale and offset are chosen
SAMPLE_BYTES = 4 * 2**20  # of one variable


def measure_sample(source: Source, dtype: str, workers: Workers) -> tuple[dict[str, Any], list[str]]:
    """Chooses scale and offset from a sample, and measures what storage would cost in each type; and finds faults."""
    times = np.unique(np.linspace(0, len(source.times) - 1, SAMPLE_TIMES).round().astype(int))
    samples = (source.narrow(times, variables=[variable]) for variable in source.variables)
    found = list(workers.map(functools.partial(_measure_variable, dtype=dtype), samples))
    scale, offset, shift, *rounding = np.concatenate([rows for rows, _ in found], axis=1).tolist()
    rounding = dict(zip(DTYPES, rounding, strict=True))
    sampled = [str(time) for time in source.times[times]]
    measured = {"sampled": sampled, "scale": scale, "offset": offset, "shift": shift, "rounding": rounding}
    return measured, [fault for _, faults in found for fault in faults]


def _measure_variable(source: Source, dtype: str) -> tuple[Float[np.ndarray, "row channel"], list[str]]:
    """(scale, offset, shift, rounding error in each of DTYPES) per channel of one variable; and its impossible values.

    Frames are thinned on the grid where they would take too much memory. shift is near the mean, whatever the type.
    """
    lat, lon = source.grid.shape
    count = len(source.times)
    thin = int(np.ceil(np.sqrt(count * len(source.channels) * lat * lon * 4 / SAMPLE_BYTES)))
    sample = np.concatenate([source.read([n])[..., ::thin, ::thin] for n in range(count)])
    faults = []
    for n, fields in enumerate(sample):
        finite = np.isfinite(fields)
        low = np.where(finite, fields, np.inf).min(axis=(1, 2))
        high = np.where(finite, fields, -np.inf).max(axis=(1, 2))
        when = source.times[n].astype("datetime64[m]")
        for channel, fault in find_impossible(fields, source.channels, low, high).items():
            faults.append(f"{source.channels[channel].name} at {when}: {fault}")
    _, shift = choose_packing(sample, "float16")
    rows = [*choose_packing(sample, dtype), shift, *(rounding_error(sample, name) for name in DTYPES)]
    return np.stack(rows), faults

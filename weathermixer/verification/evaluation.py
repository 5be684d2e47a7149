"""Scores of a model's forecasts by channel and lead time, beside persistence and climatology on the same samples."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax.sharding import PartitionSpec, reshard
from jaxtyping import Array, Bool, Float, Int
from tqdm import tqdm

from weathermixer.archive.frames import Frames
from weathermixer.archive.inputs import find_missing
from weathermixer.archive.sampling import find_times
from weathermixer.archive.standardization import Standardization
from weathermixer.fields.grid import area_weights
from weathermixer.fields.variables import ChannelSet
from weathermixer.forecasting.rollout import Apply, batches, check_leads, make_advance, rollout, tell_what_is_held
from weathermixer.parallel.mesh import check_divides, use_mesh
from weathermixer.verification.climatologies import Climatology, Normals
from weathermixer.verification.metrics import LONG_NAMES, METRICS, STATISTICS, field_statistics

SOURCES = ("model", "persistence", "climatology")


def evaluate(
    apply: Apply,
    params: Any,
    frames: Frames,
    *,
    starts: Int[np.ndarray, " start"],
    lead_hours: Sequence[int],
    batch_size: int,
    climatology: Climatology | Normals | None,
    mode: str = "autoregressive",
    history: int = 1,
    prescribed: str = "analysis",
    leads: Sequence[int] = (1,),
    until: np.datetime64 | None = None,
    progress: bool = False,
) -> xr.Dataset:
    """Scores forecasts from the times `starts` of a data set against the data set, as WeatherBench 2 defines scores.

    A start counts at every lead whose valid time is in it and not after `until`; `samples` says how many did.
    `history` is how many frames the model sees: with 2, starts need the time a step before them. `leads` are the steps
    that it may take at once (rollout.rollout). `prescribed` says where input-only channels come from on the way
    (rollout.make_advance). Where a channel lacks values, points count that start, valid time and climatology have, the
    same for all sources, and samples that have such points. Without a climatology its own scores and the ACC are NaN.
    Only statistics leave the device. Raises ValueError before long work starts: no starts, a lead that is not a
    positive multiple of the step, a lead beyond the record, a batch that does not divide.

    Returns a Dataset with rmse, bias, acc [source, lead_hours, channel] in physical units, and samples [lead_hours].

    >>> run = weathermixer.open_run("runs/quickstart")
    >>> frames = run.open_frames("dry.archive")
    >>> climatology = weathermixer.make_climatology(frames, indices=np.arange(60), batch_size=20)
    >>> options = dict(starts=np.arange(60, 68), lead_hours=[6, 12], batch_size=4, climatology=climatology)
    >>> scores = weathermixer.evaluate(run.apply, run.params, frames, **options)
    >>> scores.rmse.dims, scores.samples.values.tolist()
    (('source', 'lead_hours', 'channel'), [8, 8])
    """
    lead_hours = sorted({int(lead) for lead in lead_hours})
    channel_set, step_hours = frames.reference.channel_set, frames.reference.step_hours
    check_leads(lead_hours, step_hours=step_hours * leads[0])
    check_divides(frames.mesh, batch_size=("batch", batch_size))
    times, standardization = frames.times, frames.standardization
    valid = valid_indices(times, starts, lead_hours=lead_hours, until=until)

    dynamic, area = len(channel_set.dynamic), area_weights(frames.reference.grid.latitude).astype(np.float32)
    sums = {name: np.zeros((len(SOURCES), len(lead_hours), dynamic)) for name in STATISTICS}
    counts, lead_steps = np.zeros((len(lead_hours), dynamic)), [lead // step_hours for lead in lead_hours]
    tell_what_is_held(frames, starts, last_step=lead_steps[-1], prescribed=prescribed)
    bar = tqdm(total=len(starts), desc="evaluate", unit="start", disable=not progress, leave=False)
    with use_mesh(frames.mesh), bar:
        for chosen, real in batches(len(starts), batch_size):
            state = frames.read(starts[chosen])
            x = frames.make_input(state, times[starts[chosen]])
            options = {
                "advance": make_advance(frames, state, starts[chosen], prescribed=prescribed),
                "previous": frames.read_previous(starts[chosen]) if history == 2 else None,
                "lead_steps": lead_steps,
                "mode": mode,
                "leads": leads,
            }
            forecasts = rollout(apply, params, x, **options)
            for lead, (_, prediction) in enumerate(forecasts):
                counted = real & (valid[lead, chosen] >= 0)
                # a sample without a target is given its own start in its place, and left out of the sums
                indices = np.where(counted, valid[lead, chosen], starts[chosen])
                target = frames.read(indices)
                normal = jnp.zeros_like(target) if climatology is None else climatology.at(times[indices], frames.mesh)
                statistics, some = _statistics(prediction, state, target, normal, standardization, area)
                some = np.asarray(some)[counted, :dynamic]
                counts[lead] += some.sum(axis=0)
                for name, values in statistics.items():
                    values = np.asarray(values, np.float64)[:, counted, :dynamic]
                    sums[name][:, lead] += np.where(some, values, 0).sum(axis=1)
            bar.update(int(real.sum()))

    samples = (valid >= 0).sum(axis=1)
    with np.errstate(invalid="ignore"):  # a channel without a single value has no score
        means = {name: values / counts for name, values in sums.items()}
    if climatology is None:
        for values in (*(mean[SOURCES.index("climatology")] for mean in means.values()), means["anomaly_correlation"]):
            values[:] = np.nan
    attributes = {
        "source": frames.source,
        "first_start": str(times[starts].min().astype("datetime64[h]")),
        "last_start": str(times[starts].max().astype("datetime64[h]")),
        "mode": mode,
        "step_hours": step_hours,
        "climatology": climatology.description if climatology else "none, the data holds no time to make it of",
        **({"input_only": prescribed} if channel_set.input_only else {}),
        "definitions": "WeatherBench 2 (Rasp et al. 2024): weights by cell area, square root after the mean over time",
    }
    return _to_dataset(means, samples, channel_set, lead_hours, attributes)


def valid_indices(
    times: np.ndarray,
    starts: Int[np.ndarray, " start"],
    *,
    lead_hours: Sequence[int],
    until: np.datetime64 | None = None,
) -> Int[np.ndarray, "lead start"]:
    """Indices of the times `lead_hours` after times[starts]; -1 where the record has none, or only after `until`.

    Raises ValueError where there are no starts, and for a lead that no start reaches.
    """
    if not len(starts):
        raise ValueError(f"no start to score: the period holds none of the archive's times {times[0]} to {times[-1]}")
    wanted = times[starts] + np.asarray(lead_hours)[:, None] * np.timedelta64(1, "h")
    last = times[-1] if until is None else np.datetime64(until, "ns")
    indices = np.where(wanted <= last, find_times(times, wanted), -1)
    missed = [lead for lead, row in zip(lead_hours, indices, strict=True) if (row < 0).all()]
    if missed:
        raise ValueError(
            f"lead_hours={missed}: no start from {times[starts].min()} to {times[starts].max()} has a valid time in "
            f"the archive until {min(last, times[-1])}; choose shorter leads or an earlier period"
        )
    return indices


@jax.jit
def _statistics(
    prediction: Array, state: Array, target: Array, climatology: Array, s: Standardization, area: Array
) -> tuple[dict[str, Float[Array, "source b n"]], Bool[Array, "b n"]]:
    """Statistics [source, b, n] of prediction, persistence and climatology, and where any point counts [b, n]."""
    masks = [find_missing(field, s) for field in (state, target, climatology)] if s.fill is not None else []
    missing = functools.reduce(jnp.logical_or, masks) if masks else None
    options = dict(area=area, scale=s.std, missing=missing)
    single = [field_statistics(field, target, climatology, **options) for field in (prediction, state, climatology)]
    statistics = {name: jnp.stack([source[name] for source in single]) for name in STATISTICS}
    some = jnp.ones(target.shape[:2], bool) if missing is None else ~missing.all((2, 3))
    # a few numbers per sample, replicated, so that every process can read them
    return jax.tree.map(lambda x: reshard(x, PartitionSpec()), (statistics, some))


def _to_dataset(
    means: Mapping[str, Float[np.ndarray, "source lead channel"]],
    samples: Int[np.ndarray, " lead"],
    channel_set: ChannelSet,
    lead_hours: Sequence[int],
    attributes: Mapping[str, object],
) -> xr.Dataset:
    channels = channel_set.dynamic
    dims = ("source", "lead_hours", "channel")
    scores = {name: (dims, metric(means), {"long_name": LONG_NAMES[name]}) for name, metric in METRICS.items()}
    coords = {
        "source": list(SOURCES),
        "lead_hours": list(lead_hours),
        "channel": list(channel_set.names),
        "short": ("channel", [channel.short for channel in channels]),
        "units": ("channel", [channel.units for channel in channels]),
        "variable": ("channel", [channel.variable for channel in channels]),
        "level_hpa": ("channel", [channel.level_hpa or np.nan for channel in channels]),
    }
    return xr.Dataset({**scores, "samples": ("lead_hours", samples)}, coords, dict(attributes))

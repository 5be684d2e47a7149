"""Statistics and scores of forecasts by channel and lead time, beside persistence and climatology on the same samples.

A forecaster is what gives forecasts: forecasting/rollout.py makes one of a model, runs/forecast_files.py one of a file.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax.sharding import PartitionSpec, reshard
from jaxtyping import Array, Float, Int
from tqdm import tqdm

from weathermixer.archive.frames import Frames
from weathermixer.archive.sampling import valid_indices
from weathermixer.archive.standardization import Standardization, find_missing, to_physical
from weathermixer.fields.grid import conservative_weights, equiangular_grid
from weathermixer.forecasting.rollout import Forecaster, batches
from weathermixer.parallel.mesh import check_divides, put, sharding, use_mesh
from weathermixer.verification import statistics
from weathermixer.verification.climatologies import Calendar, Climatology
from weathermixer.verification.metrics import compute_metrics
from weathermixer.verification.regions import region_names, region_weights
from weathermixer.verification.table import BANDS, Table

BASELINES = ("persistence", "climatology")


class Thresholds(NamedTuple):
    """Of SEEPS (statistics.seeps), by the time that is valid; NaN on channels that are no precipitation."""

    heavy: Calendar
    share: Float[Array, "n lat lon"]
    dry: Float[Array, " n"]


def evaluate(
    forecasters: Mapping[str, Forecaster],
    frames: Frames,
    *,
    starts: Int[np.ndarray, " start"],
    lead_hours: Sequence[int],
    batch_size: int,
    climatology: Climatology | Calendar | None,
    baselines: bool = True,
    regions: Sequence[str] | None = None,
    grids: Sequence[str] | None = None,
    spectra: bool = False,
    seeps: Thresholds | None = None,
    land: Float[np.ndarray, "lat lon"] | None = None,
    until: np.datetime64 | None = None,
    progress: bool = False,
) -> xr.Dataset:
    """Scores forecasts from the times `starts` of a data set against the data set, as WeatherBench 2 defines scores.

    Args:
      forecasters: name -> what forecasts at `lead_hours`, which ascend. An ensemble's mean has the scores of a single
        forecast, and those of ensembles beside.
      until: a start counts at every lead whose valid time is in the data and not after it; `samples` says how many did.
      climatology: None: its own scores and all of anomalies are NaN.
      baselines: whether persistence and climatology are scored too.
      regions: names and boxes (regions.py); None: the globe.
      grids: "native" and coarser ones such as "64x32" (latitudes last, as WeatherBench 2 names them), which forecasts
        and analyses are brought to conservatively; None: the native one.
      spectra: zonal power spectra of three latitude bands too.
      seeps: what precipitation is judged by for SEEPS, on the native grid (runs/data.py opens WeatherBench 2's).
      land: the land-sea mask, for regions with _land and _sea.

    Where a channel lacks values, points count that start, valid time and climatology have, the same for all sources,
    and samples that have such points. Only statistics leave the device.

    Returns a Dataset: the metrics [source, (grid, region,) lead_hours, channel] of metrics.METRICS that there are, in
    the units of each channel; the statistics that they are made of, [source, time, ...] by start; `counted`, which of
    these count; `samples` [lead_hours]. grid and region are dimensions where they were asked for. Raises ValueError
    before long work starts: no starts, a lead beyond the record, a batch that does not divide, an unknown region.

    >>> run = weathermixer.open_run("runs/quickstart")
    >>> frames = run.open_frames("dry.archive")
    >>> climatology = weathermixer.make_climatology(frames, indices=np.arange(60), batch_size=20)
    >>> model = weathermixer.model_forecaster(run.apply, run.params, frames, lead_hours=[6, 12])
    >>> options = dict(starts=np.arange(60, 68), lead_hours=[6, 12], batch_size=4, climatology=climatology)
    >>> scores = weathermixer.evaluate({"model": model}, frames, **options)
    >>> scores.rmse.dims, scores.samples.values.tolist()
    (('source', 'lead_hours', 'channel'), [8, 8])
    """
    check_divides(frames.mesh, batch_size=("batch", batch_size))
    times, channels = frames.times, frames.reference.channel_set.dynamic
    valid = valid_indices(times, starts, lead_hours=lead_hours, until=until)
    with use_mesh(frames.mesh):
        places = [_place_grid(frames, name, regions or ["global"], land) for name in grids or ["native"]]
        bands = jnp.asarray(region_weights(frames.reference.grid, BANDS).sum(2), jnp.float32) if spectra else None
    sources = (*forecasters, *BASELINES) if baselines else tuple(forecasters)
    coords = {"source": list(sources), "time": times[starts], "grid": list(grids or ["native"])}
    coords |= {"region": region_names(regions or ["global"]), "lead_hours": list(lead_hours)}
    table = Table(coords, channels)
    bar = tqdm(total=len(starts), desc="evaluate", unit="start", disable=not progress, leave=False)
    with use_mesh(frames.mesh), bar:
        for chosen, real in batches(len(starts), batch_size):
            state = frames.read(starts[chosen])
            streams = [forecaster(starts[chosen], state) for forecaster in forecasters.values()]
            for lead, predictions in enumerate(zip(*streams, strict=True)):
                counted = real & (valid[lead, chosen] >= 0)
                # a sample without a target is given its own start in its place, and does not count
                indices = np.where(counted, valid[lead, chosen], starts[chosen])
                target = frames.read(indices)
                normal = None if climatology is None else climatology.at(times[indices])
                if baselines:
                    predictions = (*predictions, state, normal)
                limits = seeps and seeps._replace(heavy=seeps.heavy.at(times[indices]))
                found = _statistics(predictions, state, target, normal, frames.standardization, places, bands, limits)
                table.put(chosen, lead, counted, jax.device_get(found))
            bar.update(int(real.sum()))
    attributes = {
        "source": frames.source,
        "first_start": str(times[starts].min().astype("datetime64[h]")),
        "last_start": str(times[starts].max().astype("datetime64[h]")),
        "step_hours": frames.reference.step_hours,
        "climatology": climatology.description if climatology else "none, the data holds no time to make it of",
        "definitions": "WeatherBench 2 (Rasp et al. 2024): weights by cell area, square root after the mean over time",
    }
    found = table.dataset().assign_attrs(attributes)
    single = {name: 0 for name, asked in (("grid", grids), ("region", regions)) if asked is None}
    return found.assign(compute_metrics(found)).isel(single, drop=True)


def _place_grid(frames: Frames, name: str, regions: Sequence[str], land: np.ndarray | None) -> tuple:
    """(matrices to a grid, None for the native one; its regions' weights), on the mesh."""
    grid = frames.reference.grid
    if name == "native":
        weights = region_weights(grid, regions, land=land).astype(np.float32)
        return None, put(weights, frames.mesh, None, "lat", None)
    longitudes, _, latitudes = name.partition("x")
    if not (longitudes.isdigit() and latitudes.isdigit()):
        raise ValueError(f"grid {name!r} is not known: give native, or longitudes x latitudes as 64x32 or 240x121")
    coarse = equiangular_grid(int(latitudes), int(longitudes))
    if coarse.shape[0] > grid.shape[0] or coarse.shape[1] > grid.shape[1]:
        raise ValueError(f"grid {name} is finer than the data's {grid.shape[1]}x{grid.shape[0]}: choose a coarser one")
    rows, columns = conservative_weights(grid, coarse)
    land = None if land is None else rows @ land @ columns.T
    arrays = (rows, columns, region_weights(coarse, regions, land=land))
    rows, columns, weights = (jnp.asarray(array, jnp.float32) for array in arrays)
    return (reshard(rows, PartitionSpec(None, sharding(frames.mesh, "lat").spec[0])), columns), weights


@jax.jit
def _statistics(predictions, state, target, climatology, s: Standardization, places, bands, seeps) -> dict:
    """Statistics by (name, source, grid), replicated; a prediction may be None. The target's spectrum is the last."""
    masks = [find_missing(x, s) for x in (state, target, climatology) if x is not None] if s.fill is not None else []
    missing = functools.reduce(jnp.logical_or, masks) if masks else None
    found, sources = {}, {number: x for number, x in enumerate(predictions) if x is not None}
    for grid, (matrices, weights) in enumerate(places):
        bring, gaps = lambda x: x, missing
        if matrices is not None:
            bring = functools.partial(statistics.coarsen, missing=missing, rows=matrices[0], columns=matrices[1])
            gaps = None if missing is None else jnp.isnan(bring(jnp.zeros_like(target)))
        valid = jnp.ones((*target.shape[:2], len(weights)))
        if gaps is not None:
            valid = statistics.Regions(weights).mean(jnp.where(gaps, 0.0, 1.0))
        found["counted", 0, grid] = valid > 0
        truth, normal = bring(target), None if climatology is None else bring(climatology)
        over = statistics.Regions(weights, gaps)
        for source, x in sources.items():
            for name, values in _source_statistics(x, bring, truth, normal, over=over, scale=s.std).items():
                found[name, source, grid] = values
            if seeps is not None and matrices is None:
                amounts = (to_physical(field, s) for field in (x if x.ndim == 4 else x.mean(axis=0), target))
                found["seeps", source, grid] = statistics.seeps(*amounts, **seeps._asdict(), over=over)
    if bands is not None:
        for source, x in {**sources, len(predictions): target}.items():
            found["spectrum", source, 0] = statistics.zonal_power(x[0] if x.ndim == 5 else x, bands, scale=s.std)
    # a few numbers per sample, replicated, so that every process can read them
    return jax.tree.map(lambda x: reshard(x, PartitionSpec()), found)


def _source_statistics(prediction, bring, truth, normal, **options) -> dict[str, Array]:
    if prediction.ndim == 4:
        return statistics.field_statistics(bring(prediction), truth, normal, **options)
    members = jnp.stack([bring(member) for member in prediction])
    found = statistics.field_statistics(members.mean(axis=0), truth, normal, **options)
    return found | statistics.ensemble_statistics(members, truth, **options)

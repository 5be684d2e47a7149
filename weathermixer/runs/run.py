"""A trained run, of its workdir or an export of it, on any mesh: forecasts and scores. One object, so one file."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import optax
import xarray as xr
from jax.sharding import Mesh
from jaxtyping import Int
from tqdm import tqdm

from weathermixer.archive.archive import Archive
from weathermixer.archive.frames import Frames
from weathermixer.archive.reference import Reference
from weathermixer.archive.sampling import find_times, in_period, spread, with_previous
from weathermixer.forecasting.ensembles import Members
from weathermixer.forecasting.files import ForecastWriter, check_output
from weathermixer.forecasting.forecasts import Forecast, collect_forecast, describe_forecasts, gather, make_forecast
from weathermixer.forecasting.rollout import Forecaster, check_leads, model_forecaster, tell_what_is_held
from weathermixer.parallel.mesh import make_mesh, use_mesh, ways
from weathermixer.runs import build
from weathermixer.runs.data import Data, choose_climatology, make_frames, open_data_set, open_training_data
from weathermixer.runs.settings import Settings
from weathermixer.runs.workdir import CHECKPOINTS, read_record, read_settings
from weathermixer.sources.sources import Source
from weathermixer.training.checkpoint import Checkpoints
from weathermixer.training.state import describe, name_leaves
from weathermixer.verification.evaluation import evaluate

MOST_STARTS_AT_A_TIME = 8


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained model with all that it needs; `archive` is where the one that trained it was, None: the settings' own.

    What a method is not given it takes from the settings. Data is matched by the names of channels, brought to SI units
    and standardized with the run's own statistics, whatever the data's are.

    >>> run = weathermixer.open_run("runs/quickstart")
    >>> forecast = run.forecast("dry.zarr", starts=[np.datetime64("2000-01-18")], hours=24)  # an xarray.Dataset
    >>> dict(forecast.temperature.sizes)
    {'time': 1, 'prediction_timedelta': 4, 'level': 2, 'latitude': 16, 'longitude': 32}
    >>> scores = run.evaluate("dry.archive", period=("2000-01-17", "2000-01-18"), lead_hours=[6])
    >>> scores.rmse.sel(source="model").dims
    ('lead_hours', 'channel')
    """

    path: pathlib.Path
    settings: Settings
    reference: Reference
    archive: str | None
    mesh: Mesh
    apply: Callable
    params: Any
    step: int

    def weights(self) -> dict[str, np.ndarray]:
        """The parameters that forecast, by name and whole, as `import_weights` takes them: {"encode/kernel": array}."""
        return {name: gather(leaf) for name, leaf in name_leaves(self.params).items()}

    def open_data(self, data: Data | None = None, *, scored: bool = False, **options: Any) -> Archive | Source:
        """Opens a data set for this run: an archive, a source, an xarray.Dataset; None: the archive that trained it.

        A source has all its times on whole hours and no output-only channels, or is to be `scored`; `options` are those
        of open_source, such as select={"number": 0}. Raises ValueError for one that is not there or lacks channels.
        """
        if data is not None:
            return open_data_set(data, self.reference, scored=scored, **options)
        try:
            return open_training_data(self.settings, self.archive)
        except ValueError as error:
            if not self.archive:
                raise
            raise ValueError(
                f"{self.path} was trained on {self.archive}, but {error}; say where it is now, or what else to use: "
                "--data=ARCHIVE"
            ) from None

    def open_frames(self, data: Data | None = None, *, regrid: str | None = None) -> Frames:
        """The frames of a data set as the model sees them, on the run's mesh.

        `regrid` is how a source on another grid is brought to the run's: "conservative", "linear" (fields.grid);
        None: that is refused. Raises ValueError for an archive on another grid.
        """
        return make_frames(self.open_data(data), self.reference, self.mesh, method=regrid)

    def forecast(
        self,
        data: Data | None = None,
        *,
        starts: Sequence[np.datetime64] | np.ndarray | None = None,
        hours: int | None = None,
        analysis: bool = False,
        mode: str | None = None,
        batch_size: int | None = None,
        members: int | None = None,
        perturbation: float = 0.0,
        perturbation_kind: str = "white",
        correlation_km: float = 1000.0,
        seed: int = 0,
        regrid: str | None = None,
        output: str | os.PathLike | None = None,
        progress: bool = False,
    ) -> xr.Dataset:
        """Forecasts of every step up to `hours`, in SI units and WeatherBench 2's form.

        Args:
          data: what holds the analyses; None: the archive that trained the run.
          starts: times to start from; None: all that `data` has.
          analysis: whether the state that a forecast starts from is its first, at lead 0. Output-only channels, such as
            precipitation, are not read from sources, and missing there.
          mode: "autoregressive" or "latent".
          batch_size: forecasts at a time.
          members: of an ensemble, whose forecasts have a dimension `number`; None: one forecast, without noise.
          perturbation: of the states that members start from, in parts of the channels' deviations.
          perturbation_kind: "white", noise on every point; "smooth", noise that is correlated over `correlation_km`;
            "analyses", in parts of a difference of two analyses in `data` (forecasting.ensembles); or "lagged", with
            perturbation 0: members start one step before the other, and are longer by that.
          seed: of the members' noise and perturbations.
          regrid: as in open_frames.
          output: a .zarr store to write to, frame by frame, or a .nc or .grib2 file, made from that at the end; None:
            all is returned in memory.

        Returns the forecasts, opened lazily where they were written. Raises ValueError, before long work starts, for
        data that does not fit the model, starts that are not there, hours that are no multiple of its step, members
        that would all be the same, and data without what their starts are made of.
        """
        output = output and check_output(output)
        if members is None and (perturbation or perturbation_kind != "white"):
            raise ValueError(f"{perturbation=}, {perturbation_kind=} are of an ensemble: give members, such as 10")
        if members is not None and output and output.suffix == ".grib2":
            raise ValueError(f"output={str(output)!r}: members of an ensemble are written to .zarr and .nc alone")
        frames, options = self.open_frames(data, regrid=regrid), self.settings.evaluation
        shortest = self.reference.step_hours * self.settings.training.leads[0]
        hours, mode = hours or options.forecast_hours, mode or options.mode
        check_leads([hours], step_hours=shortest)
        indices = self.find_starts(frames, starts)
        if not len(indices):
            raise ValueError(f"{frames.name}: no start to forecast from")
        lead_hours = list(range(0 if analysis else shortest, hours + 1, shortest))
        instances, channels = ways(self.mesh, "batch"), self.reference.channel_set.dynamic
        origins = indices.repeat(1 if members is None else members)  # what the rows, of (start, member), begin with
        rows, bases, ensemble = np.arange(len(origins)), frames.times[origins], None
        if members is not None:
            numbers, noise = rows % members, self.settings.model.noise
            ensemble = Members(numbers, noise, perturbation, seed, perturbation_kind, correlation_km)
            begins = ensemble.find_origins(frames, bases, step_hours=shortest)
            origins = self.find_starts(frames, begins)
        lags = (bases - frames.times[origins]) // np.timedelta64(1, "h")

        def make(rows: np.ndarray) -> Iterator[Forecast]:
            total = len(rows) * len(lead_hours)
            with tqdm(total=total, desc="forecast", unit="frame", disable=not progress, leave=False) as bar:
                for lag in np.unique(lags[rows]).tolist():  # of a lagged ensemble each member has leads of its own
                    mine = np.flatnonzero(lags[rows] == lag)
                    leads = [lag + lead for lead in lead_hours]
                    own = {"starts": origins[rows[mine]], "members": ensemble and ensemble.take(rows[mine])}
                    size = batch_size or -(-min(len(mine), MOST_STARTS_AT_A_TIME) // instances) * instances
                    model = self.forecaster(frames, [lead for lead in leads if lead], mode, starts=own["starts"])
                    for chosen, lead, fields in make_forecast(
                        model, frames, batch_size=size, analysis=0 in leads, **own
                    ):
                        yield mine[chosen], lead, fields
                        bar.update(len(chosen))

        about = {
            "title": f"forecasts of a WeatherMixer trained for {self.step} steps",
            "initial_conditions": frames.source,
            "rollout": mode,
        }
        times = frames.times[indices]
        description = describe_forecasts(times, lead_hours, self.reference.grid, channels, about, members)
        if output is None:
            return collect_forecast(make(rows), description, channels)
        with use_mesh(self.mesh):
            norm = jax.jit(optax.tree.norm)(self.params)  # tells one trained model from another
        band = self.reference.grid.shape[0] // ways(self.mesh, "lat")
        maker = [str(self.path.resolve()), frames.name, regrid, options.prescribed, f"{norm:.6g}"]
        maker += [perturbation, perturbation_kind, correlation_km, seed]
        writer = ForecastWriter(output, description, channels, rows=band, maker=maker)
        if len(writer.unfinished):
            writer.write(make(writer.unfinished), writer.unfinished)
        return writer.publish()

    def find_starts(
        self, frames: Frames, starts: Sequence[np.datetime64] | np.ndarray | None = None
    ) -> Int[np.ndarray, " start"]:
        """Indices of the times to start from; None: of all that can be started from.

        Raises ValueError for one that is not there, or lacks the frame before it that the model sees.
        """
        wanted = frames.times if starts is None else np.asarray(starts, "datetime64[ns]")
        indices = find_times(frames.times, wanted)
        if (indices < 0).any():
            start = wanted[indices < 0][0]
            nearest = frames.times[np.abs(frames.times - start).argmin()]
            raise ValueError(
                f"start={start:.13} is not in {frames.name}, which holds {frames.times[0]:.13} to "
                f"{frames.times[-1]:.13}; the nearest time is {nearest:.13}"
            )
        if self.settings.model.history == 1:
            return indices
        if starts is None:
            return with_previous(frames.times, indices, step_hours=self.reference.step_hours)
        frames.find_previous(indices)
        return indices

    def evaluate(
        self,
        data: Data | None = None,
        *,
        period: tuple[str, str] | None = None,
        lead_hours: Sequence[int] | None = None,
        mode: str | None = None,
        batch_size: int | None = None,
        max_starts: int | None = None,
        regrid: str | None = None,
        progress: bool = False,
        **options: Any,
    ) -> xr.Dataset:
        """RMSE, bias, ACC and more over a period of a data set, beside persistence and climatology (see verification).

        `options` are regions, grids and spectra of verification.evaluation.evaluate. The climatology is the archive's
        own where it has one of other times than those that are scored, else one fitted to what the data holds of the
        run's training period; where it holds nothing of that there is none. Raises ValueError for an empty period and
        for leads that do not fit.
        """
        data, settings = self.open_data(data, scored=True), self.settings.evaluation
        frames = self.open_frames(data, regrid=regrid)
        if frames.absent:
            raise ValueError(f"{frames.name} has no channels {list(frames.absent)}, which are to be scored")
        period = period or getattr(self.settings.data, settings.period)
        scored = np.flatnonzero(in_period(frames.times, period))
        if not len(scored):
            raise ValueError(
                f"period {period[0]} to {period[1]} is empty: {frames.name} holds times from {frames.times[0]:.13} to "
                f"{frames.times[-1]:.13}; choose other dates"
            )
        starts, until = np.intersect1d(scored, self.find_starts(frames)), frames.times[scored[-1]]
        training = np.flatnonzero(in_period(frames.times, self.settings.data.train))
        about = {"batch_size": batch_size or settings.batch_size, "progress": progress}
        climatology = choose_climatology(
            data, frames, frames.times[scored], training if len(training) else None, **about
        )
        lead_hours, mode = sorted(set(lead_hours or settings.lead_hours)), mode or settings.mode
        starts = spread(starts, settings.max_starts if max_starts is None else max_starts)
        model = self.forecaster(frames, lead_hours, mode, starts=starts)
        options |= {"lead_hours": lead_hours, "climatology": climatology, "until": until, **about}
        options |= {"land": self.reference.static.get("land_sea_mask")}
        scores = evaluate({"model": model}, frames, starts=starts, **options)
        about = {"mode": mode, "step": self.step, "notes": "\n".join(self.notes(lead_hours, mode))}
        held = {"input_only": settings.prescribed} if self.reference.channel_set.input_only else {}
        return scores.assign_attrs(about | held)

    def forecaster(
        self, frames: Frames, lead_hours: Sequence[int], mode: str, *, starts: Int[np.ndarray, " start"]
    ) -> Forecaster:
        """What forecasts from starts of frames; logs a line where input-only channels are held on the way."""
        last, prescribed = max(lead_hours) // self.reference.step_hours, self.settings.evaluation.prescribed
        tell_what_is_held(frames, starts, last_step=last, prescribed=prescribed)
        options = dict(history=self.settings.model.history, leads=self.settings.training.leads, prescribed=prescribed)
        return model_forecaster(self.apply, self.params, frames, lead_hours=lead_hours, mode=mode, **options)

    def notes(self, lead_hours: Sequence[int], mode: str) -> list[str]:
        """Lines about a question that the run was not trained or set up for."""
        settings = self.settings.training
        longest, usual = settings.longest_steps * self.reference.step_hours, self.settings.evaluation.mode
        beyond = [lead for lead in lead_hours if lead > longest]
        notes = [f"trained on leads up to {longest} h: {', '.join(map(str, beyond))} h are beyond"] if beyond else []
        if mode != usual:
            notes.append(f"{mode} forecasts of a run that is set up for {usual} ones")
        if mode == "latent" and settings.lead_steps == 1:
            notes.append("latent forecasts of a run that was not trained to repeat its blocks (training.lead_steps=1)")
        return notes


def open_run(path: str | os.PathLike, *, mesh: Mesh | None = None, step: int | None = None) -> Run:
    """Opens a trained run, with the moving average of its parameters where there is one.

    `mesh` is any; None: the one of its settings, or one device where there are too few for that. `step` is that of a
    checkpoint; None: the last. The archive that trained it is not looked at. Raises ValueError where the path holds no
    run or no checkpoint, and for runs of older software that kept no statistics.

    >>> run = weathermixer.open_run("runs/quickstart", mesh=weathermixer.make_mesh(1, 4, 2))  # trained on one device
    >>> run.step, run.reference.channel_set.names
    (2, ('temperature_850', 'temperature_500', 'geopotential_850', 'geopotential_500'))
    """
    path = pathlib.Path(path).expanduser()
    settings, archive = read_settings(path)
    reference = read_record(path).reference
    if mesh is None:
        try:
            mesh = make_mesh(settings.mesh.data, settings.mesh.domain, settings.mesh.tensor)
        except ValueError:  # another machine than the one that trained it
            mesh = make_mesh(1, 1, 1)
    with use_mesh(mesh), Checkpoints(path / CHECKPOINTS, on_damage=settings.training.on_damage) as checkpoints:
        make_params, apply = build.make_model(settings, reference)
        target = describe(jax.eval_shape(make_params, jax.random.key(0)), mesh)
        step = checkpoints.whole(step)
        part = "ema" if "ema" in checkpoints.parts(step) else "params"
        params = checkpoints.restore({part: target}, step, partial=True)[part]
    return Run(path, settings, reference, archive, mesh, apply, params, step)

"""Writes one page about one run or several: a single HTML file that needs no server and no network, and prints.

  python -m experiments.report RUN [RUN ...] [--output=report.html] [--data=DATA] [--channel=NAME]

What was trained on what, loss and speed, scores with intervals, scorecards (of each further run against the first),
spectra, maps of one channel, errors by lead, memory, the data's faults, settings and versions. Scores are those of
RUN/scores.nc, where experiments.evaluate left them; where it did not they are computed, as the run's config says. Each
section of the page is a function of this one file.

Examples:
  python -m experiments.report runs/quickstart --output=quickstart.html
  # a longer run against a shorter one, of the same name in other folders
  python -m experiments.report runs/short runs/long --output=compared.html --channel=temperature_850
"""

import base64
import html
import io
import json
import pathlib
import string
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.figure import Figure

from experiments import check, command_line, ends
from experiments.evaluate import SCORES_FILE
from experiments.forecast import DRAWN_FIRST, read_pair
from weathermixer import Archive, Run, open_run
from weathermixer.archive import storage
from weathermixer.archive.sampling import in_period, spread
from weathermixer.planning.work import parameters
from weathermixer.runs.build import make_model_shape
from weathermixer.runs.workdir import RECORD_FILE
from weathermixer.training.telemetry import LOG_FILE, METRICS_FILE, read_records
from weathermixer.verification import charts, figures
from weathermixer.verification.evaluation import BASELINES
from weathermixer.verification.metrics import compute_metrics
from weathermixer.verification.scores import count_samples, describe_scores, tabulate
from weathermixer.verification.significance import join_scores

REPORT_FILE = "report.html"
INTERVALS = "Intervals: 95 %, block bootstrap over starts; * where the paired t-test says p &lt; 0.05."
LOGGED = ["step", "loss", "validation_loss", "step_seconds", "samples_per_second"]
MAPS = 8  # forecasts of the test period that maps of errors are over
PLACE = (50.0, 10.0)  # degrees north and east, of the time series


def write_report(
    runs: Sequence[Run], output: pathlib.Path, *, data: str | None = None, channel: str | None = None
) -> None:
    """Writes the page of some runs; their names are their folders'.

    `data` is what is forecast from where it is not the runs' own; `channel` is what maps show.
    Raises ValueError where the runs have no starts, leads and channels in common, and for a channel that one lacks.
    """
    named = {run.path.resolve().name: run for run in runs}
    if len(named) < len(runs):
        raise ValueError(f"{[str(run.path) for run in runs]}: folders of the same name; rename one, or link to it")
    names = runs[0].reference.channel_set.names
    channel = channel or (DRAWN_FIRST if DRAWN_FIRST in names else names[0])
    for run in runs:
        if channel not in (names := run.reference.channel_set.names):
            raise ValueError(f"--channel={channel}: {run.path} does not predict it; it has {', '.join(names)}")
    scores = {name: _read_scores(run, data) for name, run in named.items()}
    records = {name: read_records(run.path / METRICS_FILE) for name, run in named.items()}  # none of an export
    logs = {
        name: pd.DataFrame(found, columns=LOGGED).set_index("step").astype(float) for name, found in records.items()
    }
    sections = {
        "Runs": table(_describe(name, run, logs[name]) for name, run in named.items()),
        "Training": _draw_logs(logs),
        "Scores": _compare(scores, channel),
    }
    for name, run in named.items():
        sections[f"Maps: {name}"] = _draw_maps(run, scores[name], data, channel)
        sections[f"What it ran on: {name}"] = _tell(run, data)
    body = "\n".join(f"<h2>{html.escape(head)}</h2>\n{text}" for head, text in sections.items())
    page = string.Template(pathlib.Path(__file__).with_suffix(".html").read_text(encoding="utf-8"))
    storage.write_whole(output, page.substitute(title=html.escape(", ".join(named)), body=body))


def table(rows: Iterable[Mapping[str, Any]] | pd.DataFrame) -> str:
    """A table whose columns sort, a row for each mapping."""
    with pd.option_context("display.max_colwidth", None):  # nothing is cut
        return f'<div class="wide">{pd.DataFrame(rows).to_html(index=False, border=0)}</div>'


def picture(figure: Figure, text: str) -> str:
    """A picture, as SVG, with its text."""
    figure.savefig(buffer := io.BytesIO(), format="svg")
    source, text = f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode()}", html.escape(text)
    return f'<figure><img src="{source}" alt="{text}"><figcaption>{text}</figcaption></figure>'


def fold(head: str, text: str) -> str:
    """Text as it is, to be unfolded."""
    return f"<details><summary>{html.escape(head)}</summary><pre>{html.escape(text)}</pre></details>"


def _read_scores(run: Run, data: str | None) -> xr.Dataset:
    path = (run.path / SCORES_FILE).with_suffix(".nc")
    if path.exists() and data is None:
        with xr.open_dataset(path) as scores:
            return scores.load()
    return run.evaluate(data, spectra=True)


def _describe(name: str, run: Run, log: pd.DataFrame) -> dict[str, Any]:
    """A row about a run: what was trained on what, how long, how fast."""
    settings, channels, grid = run.settings, run.reference.channel_set, run.reference.grid
    shape = make_model_shape(settings, grid.shape, channels)
    last, usual = log.ffill().tail(1).sum(min_count=1), log.median()
    return {
        "run": name,
        "trained on": pathlib.Path(run.archive or settings.data.source).name,
        "period": " to ".join(settings.data.train),
        "grid": f"{grid.shape[0]} x {grid.shape[1]}",
        "channels": len(channels.dynamic),
        "parameters": f"{parameters(shape):,}",
        "mesh": f"{settings.mesh.data}, {settings.mesh.domain}, {settings.mesh.tensor}",
        "steps": run.step,
        "batch": settings.training.batch_size,
        "loss": f"{last.loss:.4g}",
        "validation loss": f"{last.validation_loss:.4g}",
        "ms per step": f"{1e3 * usual.step_seconds:.4g}",
        "samples/s": f"{usual.samples_per_second:.4g}",
    }


def _draw_logs(logs: Mapping[str, pd.DataFrame]) -> str:
    figure = Figure(figsize=(9, 3), layout="constrained")
    losses, times = figure.subplots(1, 2)
    for number, name in enumerate(logs):
        style = {"color": f"C{number}"}
        losses.semilogy(logs[name].loss.dropna(), label=f"{name}, training", **style)
        losses.semilogy(logs[name].validation_loss.dropna(), label=f"{name}, validation", **style | {"ls": "--"})
        times.plot(1e3 * logs[name].step_seconds.dropna(), label=name, **style)
    losses.set(xlabel="step", ylabel="loss")
    times.set(xlabel="step", ylabel="ms per step", ylim=(0, None))
    for axis in (losses, times):
        axis.grid(alpha=0.25)
        axis.legend(fontsize=7, frameon=False)
    return picture(figure, "Loss in training and validation, and time per step, over the steps of training.")


def _compare(scores: Mapping[str, xr.Dataset], channel: str) -> str:
    """Scores of the runs on the starts that they share, beside the first one's baselines."""
    first, *others = scores
    kept = [name for name in BASELINES if name in scores[first].source]
    parts = [join_scores(scores), *(join_scores({name: scores[first]}, source=name) for name in kept)]
    options = dict(join="inner", data_vars="minimal", coords="minimal", compat="override", combine_attrs="override")
    whole = xr.concat(parts, "source", **options)
    joined = whole.isel({dim: 0 for dim in ("grid", "region") if dim in whole.dims})  # of these the first
    joined = joined.assign(compute_metrics(joined))
    against = "climatology" if "climatology" in kept else None
    about = ". ".join([*describe_scores(joined), count_samples(joined), ""])
    rows = tabulate(joined, against).reset_index()
    rows.columns = [": ".join(filter(None, column)) for column in rows.columns]
    text = [f"<p>{html.escape(about)}{INTERVALS}</p>", table(rows)]
    for one, other in [(other, first) for other in others] or [(first, against)] * bool(against):
        about = f"RMSE of {one} against {other}, by variable, level and lead: blue is better, hatched may be chance."
        text.append(picture(charts.draw_scorecard(whole, one, other), about))
    for metric in ("rmse", "acc"):
        about = f"{metric.upper()} over lead time: {', '.join(map(str, joined.source.values))}."
        if metric in joined:
            text.append(picture(charts.draw_scores(joined, metric=metric), about))
    if all("spectrum" in each for each in scores.values()):
        powers = [each.spectrum.sel(source=["model"]).assign_coords(source=[name]) for name, each in scores.items()]
        spectra = xr.concat(powers, "source", join="inner", coords="minimal", compat="override")
        spectra = spectra.to_dataset().assign(spectrum_truth=scores[first].spectrum_truth)
        lead = int(joined.lead_hours[-1])
        about = f"Zonal power spectra of {channel} at {lead} h: {', '.join(scores)} and the analyses."
        text.append(picture(charts.draw_spectra(spectra, channel=channel, lead_hours=lead), about))
    else:
        text.append("<p>No spectra: experiments.evaluate RUN --spectra --output=RUN/scores.json makes them.</p>")
    return "\n".join(text)


def _draw_maps(run: Run, scores: xr.Dataset, data: str | None, channel: str) -> str:
    """Maps of a channel: one forecast beside the analyses, its way, a place, and the error over some forecasts."""
    index, leads = run.reference.channel_set.names.index(channel), scores.lead_hours.values
    what, frames = run.reference.channel_set.dynamic[index], run.open_frames(data)
    starts = frames.times[run.find_starts(frames)]
    last = frames.times[-1] - np.timedelta64(int(leads[-1]), "h")
    starts = spread(starts[in_period(starts, run.settings.data.test) & (starts <= last)], MAPS)
    if not len(starts):
        return f"<p>No maps: {html.escape(frames.name)} has no forecast's start and end in the test period.</p>"
    pairs = []
    for start in starts:
        forecast = run.forecast(data, starts=[start], hours=int(leads[-1]), analysis=True)
        pairs.append(read_pair(run, frames, forecast.isel(time=0), index))
    start, (field, truth) = starts[0], pairs[0]
    hours = ((field.time.values - start) // np.timedelta64(1, "h")).tolist()
    at, name = np.searchsorted(hours, leads), f"{what.short} from {start:.13} UTC"
    options = dict(grid=run.reference.grid, channel=what, land=run.reference.static.get("land_sea_mask"))
    of_one, text = dict(options, start=start), []
    for lead in sorted({at[len(at) // 2], at[-1]}):
        figure = figures.draw_forecast(field.values[lead], truth.values[lead], lead_hours=hours[lead], **of_one)
        text.append(picture(figure, f"{name}, {hours[lead]} h ahead: forecast, analysis and their difference."))
    errors = np.sqrt(np.nanmean([(one - other).values[at] ** 2 for one, other in pairs], axis=0))
    about = f"RMSE of {what.short} over {len(starts)} forecasts, by lead; above each map the globe's."
    text.append(picture(figures.draw_errors(errors, lead_hours=leads.tolist(), **options), about))
    place, lines = dict(zip(("latitude", "longitude"), PLACE)), {"forecast": field, "analyses": truth}
    figure = charts.draw_series(lines, units=what.units, **place)
    text.append(picture(figure, f"{name} at the grid point next to {PLACE[0]}° N, {PLACE[1]}° E."))
    return "\n".join(text)


def _tell(run: Run, data: str | None) -> str:
    """Memory and speed, as the log accounts for them; what the data holds and its faults; settings and versions."""
    log, opened = run.path / LOG_FILE, run.open_data(data)
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else ["no log: an export has none"]
    steps = [line for line in lines if line.startswith("step ") and "/step" in line]
    account = "\n".join([line for line in lines if not line.startswith("step ")] + steps[-1:])
    if isinstance(opened, Archive):
        faults, held = check.find_faults(opened), check.describe(opened)
    else:
        faults, held = [], "\n".join(opened.account)
    found = "".join(f"<li>{html.escape(fault)}</li>" for fault in faults)
    software = json.loads((run.path / RECORD_FILE).read_text(encoding="utf-8"))["software"]
    versions = ", ".join(f"{name} {version}" for name, version in software.items())
    return (
        f"<pre>{html.escape(account)}</pre><p>Faults of the data: {len(faults) or 'none'}.</p><ul>{found}</ul>"
        + fold("what the data holds", held)
        + fold("every setting", json.dumps(run.settings.values(), indent=1))
        + f"<p>{html.escape(versions)}</p>"
    )


def make_parser() -> command_line.Parser:
    parser = command_line.make_parser("experiments.report", __doc__)
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="folders of trained runs, or of exports; the first is the reference")
    add("--output", type=command_line.output_file, metavar="FILE", help="default: report.html in the last RUN")
    about = "archive, or what experiments.prepare reads; default: the archives that trained the runs"
    add("--data", metavar="DATA", help=about)
    add("--channel", metavar="NAME", help=f"channel that maps show; default: {DRAWN_FIRST} or the first")
    return parser


def main(arguments: list[str] | None = None) -> None:
    options = make_parser().parse_args(arguments)
    runs = [open_run(path) for path in options.runs]
    output = options.output or runs[-1].path / REPORT_FILE
    write_report(runs, output, data=options.data, channel=options.channel)
    print(f"the report is {output} ({output.stat().st_size / 1e6:.1f} MB)", flush=True)


if __name__ == "__main__":
    ends.run(main)

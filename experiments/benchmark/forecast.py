"""Times forecasts from one analysis in memory to a file, beside computing and writing alone.

  python -m experiments.benchmark forecast --config=reference --hours=240 --output=forecast.zarr

Parameters and the analysis are random. `compute` leaves the forecasts on the devices, `raw` writes as many bytes from
one array with a thread per core, a file for each field. What takes long once, compiling, is done before and apart.
"""

import os
import pathlib
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import xarray as xr

from experiments import command_line, synthetic
from experiments.benchmark import weather
from weathermixer import Run, Settings, make_forecast, make_mesh
from weathermixer.parallel.mesh import use_copy_engines, use_mesh

START = np.datetime64("2020-01-01", "ns")
GRID = (720, 1440)


def make_parser() -> command_line.Parser:
    parser = command_line.make_parser("experiments.benchmark forecast", __doc__)
    command_line.add_config(parser)
    command_line.add_grid(parser, GRID)
    parser.add_argument("--hours", type=command_line.integer(6), default=240, metavar="H", help="default: 240")
    parser.add_argument("--output", type=pathlib.Path, required=True, metavar="FILE", help="a .zarr, .nc or .grib2")
    return parser


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Prints and returns the seconds of each part."""
    options = make_parser().parse_args(arguments)
    use_copy_engines()
    run = make_run(command_line.read_settings(options), options.grid, options.output.parent)
    stored, grid = run.reference.channel_set.stored, run.reference.grid
    frame = np.random.default_rng(0).standard_normal((len(stored), *grid.shape), np.float32)
    analysis = weather.make_dataset(frame, stored, grid, START)
    seconds = {"first step, with compilation": _time(run.forecast, analysis, hours=6)}
    seconds["compute"] = _time(_compute, run, analysis, options.hours)
    seconds["forecast"] = _time(run.forecast, analysis, hours=options.hours, output=options.output)
    fields = options.hours // 6 * len(run.reference.channel_set.dynamic)
    seconds["raw"] = _time(_write_raw, options.output.parent, fields, grid.shape)
    size = fields * np.prod(grid.shape) * 4 / 1e9
    print(f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores, {options.hours} h, {size:.2f} GB")
    for part, duration in seconds.items():
        rate = f"  {size / duration:6.2f} GB/s" if part in ("forecast", "raw") else ""
        print(f"{part:30}{duration:8.2f} s{rate}")
    return seconds


def make_run(settings: Settings, grid: tuple[int, int], path: pathlib.Path) -> Run:
    """A run of this config with random parameters, on ERA5's channels where it names none."""
    mesh = make_mesh(settings.mesh.data, settings.mesh.domain, settings.mesh.tensor)
    with use_mesh(mesh):
        problem = synthetic.make_problem(settings, mesh, grid=grid)
        params = jax.jit(lambda: problem.training.initial_state().params)()
    return Run(path, settings, problem.reference, None, mesh, problem.training.apply, params, step=0)


def _compute(run: Run, analysis: xr.Dataset, hours: int) -> None:
    frames, starts = run.open_frames(analysis), np.array([0])
    model = run.forecaster(frames, range(6, hours + 1, 6), run.settings.evaluation.mode, starts=starts)
    for _, _, fields in make_forecast(model, frames, starts=starts, batch_size=run.mesh.devices.shape[0]):
        jax.block_until_ready(fields)


def _write_raw(folder: pathlib.Path, fields: int, grid: tuple[int, int]) -> None:
    values = np.ones(grid, np.float32)
    with tempfile.TemporaryDirectory(dir=folder) as name, ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda number: pathlib.Path(name, str(number)).write_bytes(values.data), range(fields)))


def _time(function, *arguments, **options) -> float:
    start = time.perf_counter()
    function(*arguments, **options)
    return time.perf_counter() - start

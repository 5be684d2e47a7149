"""Prints how near this library's scores and regridding are to WeatherBench 2's definitions:

  python -m tests.verification.weatherbench

Each row is a metric: how many values (channels and regions, random fields, on one device and on 2 x 2 x 2), and the
largest difference. WeatherBench 2 is on no package index, so its formulae are written out in float64 numpy and xarray
(test_metrics.py, ../runs/test_comparison.py), after weatherbench2/metrics.py and regridding.py.
"""

import os

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from tests.runs.test_comparison import plain_seeps
from tests.verification import test_metrics as plain
from weathermixer.fields.grid import area_weights, conservative_weights, equiangular_grid
from weathermixer.parallel.mesh import make_mesh
from weathermixer.verification.metrics import METRICS
from weathermixer.verification.regions import region_weights
from weathermixer.verification.statistics import Regions, ensemble_statistics, field_statistics, seeps, zonal_power

MESHES = ((1, 1, 1), (2, 2, 2))
GRIDS = (((721, 1440), (32, 64)), ((721, 1440), (121, 240)), ((121, 240), (32, 64)))


def differences():
    """metric -> pairs (ours, the definition's) of arrays."""
    found = {}
    fields = plain.make_fields()
    members = fields[1] + np.random.default_rng(1).normal(size=(5, *plain.SHAPE)) + 1
    bands = region_weights(plain.GRID, ["tropics", "arctic"]).sum(axis=2)
    run = lambda x, over, scale: zonal_power(x, jnp.asarray(bands, jnp.float32), scale=scale)  # noqa: E731
    for shape in MESHES:
        mesh = make_mesh(*shape)
        single = plain.statistics_of(field_statistics, mesh, *fields)
        ours, of_members = plain.scores(single), plain.statistics_of(ensemble_statistics, mesh, members, fields[1])
        ours = ours.merge(plain.scores(of_members))
        for index, region in enumerate(plain.REGIONS):
            expected = plain.weatherbench(*fields, region)
            means = {n: x.mean("time") for n, x in plain.weatherbench_ensemble(members, fields[1], region).items()}
            for name in ("crps", "spread", "spread_skill", "energy_score"):
                expected[name] = METRICS[name].function(*(means[need] for need in METRICS[name].needs)).values
            for name, values in expected.items():
                found.setdefault(name, []).append((ours[name].isel(region=index).values, values))
            wind = single["squared_error"][:, :2, index].sum(1).mean()  # of two channels as the components
            components = xr.concat([plain.to_xarray(x)[:, :2] for x in fields[:2]], "which").diff("which")[0]
            exact = plain.spatial_average((components**2).sum("channel"), region).mean()
            found.setdefault("rmse of wind vectors", []).append((np.sqrt(wind), np.sqrt(exact)))
        power = np.abs(np.fft.rfft(plain.SCALE[:, None, None] * fields[0], norm="forward")) ** 2 * [1, 2, 2, 2, 2, 2]
        exact = np.einsum("bnik,ri->bnrk", power, bands)
        found.setdefault("spectrum", []).append((plain.statistics_of(run, mesh, fields[0]), exact))
    found["seeps"] = [seeps_pair()]
    for of, to in GRIDS:
        ours = conservative_weights(equiangular_grid(*of), equiangular_grid(*to))
        pairs = zip(ours, weatherbench_weights(equiangular_grid(*of), equiangular_grid(*to)))
        found[f"weights {of[1]}x{of[0]} to {to[1]}x{to[0]}"] = list(pairs)
    return found


def seeps_pair():
    dry, random = 1e-4, np.random.default_rng(0)
    weights = np.broadcast_to(area_weights(plain.GRID.latitude)[:, None], (8, 10))
    x, y = random.gamma(0.6, 2e-3, (2, 1, 1, 8, 10)) * (random.random((2, 1, 1, 8, 10)) < 0.6)
    heavy, share = random.uniform(1e-3, 4e-3, (1, 1, 8, 10)), random.uniform(0, 1, (1, 8, 10))
    arrays = [jnp.asarray(array, jnp.float32) for array in (x, y, heavy, share)]
    with jax.set_mesh(make_mesh(1, 1, 1)):
        region = jnp.asarray(weights[None] / weights.sum(), jnp.float32)
        ours = seeps(*arrays, dry=jnp.array([dry], jnp.float32), over=Regions(region))
    return np.asarray(ours).item(), plain_seeps(x[0, 0], y[0, 0], heavy[0, 0], share[0], weights, dry)


def weatherbench_weights(grid, target):
    """ConservativeRegridder's matrices, south first there: overlaps of sines of latitudes, and of longitudes."""

    def overlaps(to, of):
        lower, upper = np.maximum(to[:-1, None], of[None, :-1]), np.minimum(to[1:, None], of[None, 1:])
        return (upper > lower) * (np.sin(upper) - np.sin(lower))

    def bounds(latitude):
        points = np.deg2rad(latitude[::-1])
        return np.concatenate([[-np.pi / 2], (points[1:] + points[:-1]) / 2, [np.pi / 2]])

    def near(x, middle):
        return x + 2 * np.pi * (x < middle - np.pi) - 2 * np.pi * (x > middle + np.pi)

    def sides(longitude):
        points = np.deg2rad(longitude)
        return [(points + near(np.roll(points, shift), points)) / 2 for shift in (1, -1)]

    rows = overlaps(bounds(target.latitude), bounds(grid.latitude))[::-1, ::-1]
    (west, east), (left, right) = sides(target.longitude), sides(grid.longitude)
    west, east = west[:, None], east[:, None]
    columns = np.maximum(np.minimum(east, near(right, west)) - np.maximum(west, near(left, west)), 0)
    return [weights / weights.sum(axis=1, keepdims=True) for weights in (rows, columns)]


def table():
    """[(metric, values, largest difference in parts of the value, for signed ones and weights of the largest)]."""
    rows = []
    for name, pairs in differences().items():
        ours, exact = (np.concatenate([np.ravel(pair[n]) for pair in pairs]).astype(float) for n in (0, 1))
        whole = name == "bias" or name.startswith("weights") or name == "spectrum"
        size = np.abs(exact).max() if whole else np.abs(exact)
        rows.append((name, len(exact), np.max(np.abs(ours - exact) / size)))
    return rows


if __name__ == "__main__":
    print("| metric | values | largest difference |\n|---|---|---|")
    for name, count, most in table():
        print(f"| {name} | {count} | {most:.0e} |")

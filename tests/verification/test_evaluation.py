"""Scores of whole forecasts equal plain numpy; baselines do not depend on the mesh; bad input is named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.archives import make_archive, make_frames
from weathermixer.archive.sampling import valid_indices
from weathermixer.fields.grid import area_weights
from weathermixer.fields.variables import ChannelSet
from weathermixer.forecasting.rollout import batches, check_leads, model_forecaster
from weathermixer.parallel.mesh import make_mesh
from weathermixer.verification.climatologies import make_climatology
from weathermixer.verification.evaluation import evaluate

CHANNELS = ChannelSet.from_names(["2m_temperature", "geopotential_500"], ["land_sea_mask"], multiple=4)
HOURS = np.setdiff1d(np.arange(44), [29]) * 6  # one time is missing
TIMES = np.datetime64("2020-03-01T00", "ns") + HOURS * np.timedelta64(1, "h")
TRAINING, STARTS, LEADS = np.arange(20), np.arange(20, 43), (6, 24, 60)
PREDICTED = CHANNELS.predicted.astype(np.float32)[None, :, None, None]


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    random = np.random.default_rng(0)
    fields = np.cumsum(random.normal(size=(len(TIMES), 2, 8, 12)), axis=0)
    fields = fields * np.array([2.0, 800.0])[:, None, None] + np.array([280.0, 55_000.0])[:, None, None]
    static = {"land_sea_mask": (random.random((8, 12)) < 0.3).astype(np.float32)}
    path = tmp_path_factory.mktemp("evaluation") / "archive"
    return make_archive(path, fields.astype(np.float32), times=TIMES, channel_set=CHANNELS, static=static)


def damp(params, x, *, repeats=1, key=None):
    return params["keep"] ** repeats * x * PREDICTED


def run(archive, shape, *, batch_size=4, apply=damp, mode="autoregressive", **options):
    mesh = make_mesh(*shape)
    frames = make_frames(archive, CHANNELS, mesh)
    climatology = make_climatology(frames, indices=TRAINING, batch_size=4)
    options = {"starts": STARTS, "lead_hours": LEADS, "climatology": climatology, **options}
    model = model_forecaster(apply, {"keep": jnp.float32(0.95)}, frames, lead_hours=options["lead_hours"], mode=mode)
    return evaluate({"model": model}, frames, batch_size=batch_size, **options)


def expected_scores(archive, lead_hours):
    """The same scores [source, channel], sample after sample, in float64 numpy."""
    fields = np.asarray(archive.store.read().result(), np.float64)
    mean, std = (getattr(archive.statistics, name)[:, None, None] for name in ("mean", "std"))
    weights = area_weights(archive.grid.latitude)[:, None]
    hours = HOURS % 24
    normal = {hour: fields[TRAINING][hours[TRAINING] == hour].mean(axis=0) for hour in (0, 6, 12, 18)}
    rows = {"rmse": [], "bias": [], "acc": []}
    for start in STARTS:
        target = np.flatnonzero(HOURS[start] + lead_hours == HOURS)
        if not len(target):
            continue
        truth, clim = fields[target[0]], normal[hours[target[0]]]
        model = (fields[start] - mean) / std * 0.95 ** (lead_hours // 6) * std + mean
        sources = np.stack([model, fields[start], clim])
        rows["rmse"].append(np.mean(weights * (sources - truth) ** 2, axis=(-2, -1)))
        rows["bias"].append(np.mean(weights * (sources - truth), axis=(-2, -1)))
        f, t = sources[:2] - clim, truth - clim
        norms = np.mean(weights * f**2, axis=(-2, -1)) * np.mean(weights * t**2, axis=(-2, -1))
        rows["acc"].append(np.mean(weights * f * t, axis=(-2, -1)) / np.sqrt(norms))
    means = {name: np.mean(values, axis=0) for name, values in rows.items()}
    return {**means, "rmse": np.sqrt(means["rmse"])}, len(rows["rmse"])


@pytest.mark.parametrize(
    ("shape", "batch_size", "mode"),
    [((1, 1, 1), 5, "autoregressive"), ((2, 2, 2), 4, "autoregressive"), ((2, 4, 1), 2, "latent")],
)
def test_scores_equal_plain_numpy_on_any_mesh_and_batch(archive, shape, batch_size, mode):
    scores = run(archive, shape, batch_size=batch_size, mode=mode)
    assert list(scores.source.values) == ["model", "persistence", "climatology"]
    assert list(scores.channel.values) == ["2m_temperature", "geopotential_500"]
    assert list(scores.units.values) == ["K", "m**2 s**-2"]
    for lead in LEADS:
        expected, samples = expected_scores(archive, lead)
        found = scores.sel(lead_hours=lead)
        assert int(found.samples) == samples
        np.testing.assert_allclose(found.rmse, expected["rmse"], rtol=1e-5)
        # a bias is a difference of large numbers: measured by the size of the errors
        np.testing.assert_array_less(np.abs(found.bias.values - expected["bias"]) / expected["rmse"], 1e-5)
        np.testing.assert_allclose(found.acc[:2], expected["acc"], rtol=1e-4, atol=1e-5)
        assert np.isnan(found.acc.sel(source="climatology")).all()


def test_a_start_counts_where_its_valid_time_is_in_the_record(archive):
    # 23 starts before the last time: 6 h loses the one before the gap, 60 h also the last nine
    scores = run(archive, (1, 1, 1))
    assert scores.samples.values.tolist() == [expected_scores(archive, lead)[1] for lead in LEADS]
    until = run(archive, (1, 1, 1), until=TIMES[30])
    assert until.samples.values.tolist() == [int(np.sum(np.isin(HOURS[20:31], HOURS[20:43] + lead))) for lead in LEADS]


def test_a_perfect_model_has_no_error(archive):
    mesh = make_mesh(1, 1, 1)
    frames = make_frames(archive, CHANNELS, mesh)
    truth = frames.read(np.arange(len(TIMES))) * PREDICTED

    def oracle(table, x, *, repeats=1, key=None):
        found = jnp.argmin(jnp.sum((table[:-1] - x * PREDICTED) ** 2, axis=(1, 2, 3)))
        return jax.lax.dynamic_index_in_dim(table, found + 1, 0)

    climatology = make_climatology(frames, indices=TRAINING, batch_size=4)
    options = {"starts": np.arange(30, 40), "lead_hours": [6, 12], "batch_size": 1}
    model = model_forecaster(oracle, truth, frames, lead_hours=[6, 12])
    scores = evaluate({"model": model}, frames, climatology=climatology, **options).sel(source="model")
    np.testing.assert_array_equal(scores.rmse, 0)
    np.testing.assert_array_equal(scores.bias, 0)
    np.testing.assert_allclose(scores.acc, 1, rtol=1e-6)


@pytest.mark.parametrize("lead_hours", [[], [0, 6], [6, 9], [-6]])
def test_leads_that_are_no_multiples_of_the_step_are_refused(lead_hours):
    with pytest.raises(ValueError, match=r"lead_hours=.*multiples of 6"):
        check_leads(lead_hours, step_hours=6)


def test_a_lead_beyond_the_record_is_refused_before_anything_is_read(archive):
    def untouched(*_, **__):
        raise AssertionError("the model was run")

    with pytest.raises(ValueError, match=r"lead_hours=\[240\].*choose shorter leads"):
        run(archive, (1, 1, 1), apply=untouched, lead_hours=[6, 240])


def test_an_empty_period_is_refused():
    with pytest.raises(ValueError, match=r"no start to score.*2020-03-01"):
        valid_indices(TIMES, np.arange(0), lead_hours=[6])


def test_a_batch_that_does_not_divide_is_refused(archive):
    with pytest.raises(ValueError, match=r"batch_size=3 is not divisible by data=2"):
        run(archive, (2, 1, 1), batch_size=3, starts=STARTS[:4])


def test_batches_have_one_size_and_count_every_position_once():
    found = list(batches(5, 8)) + list(batches(8, 4))
    assert [len(positions) for positions, _ in found] == [8, 4, 4]
    assert [positions[real].tolist() for positions, real in found] == [[0, 1, 2, 3, 4], [0, 1, 2, 3], [4, 5, 6, 7]]


def test_regions_coarse_grids_spectra_and_ensembles_do_not_depend_on_the_mesh(archive):
    def scores(shape):
        frames = make_frames(archive, CHANNELS, make_mesh(*shape))
        model = model_forecaster(damp, {"keep": jnp.float32(0.95)}, frames, lead_hours=LEADS)

        def ensemble(members):
            def forecast(starts, state):
                for prediction in model(starts, state):
                    yield jnp.stack([prediction * (1 + 0.1 * n) for n in range(members)])

            return forecast

        about = {
            "regions": ["global", "northern-hemisphere", "global_land"],
            "grids": ["native", "6x4"],
            "spectra": True,
        }
        about |= {"land": archive.static["land_sea_mask"], "climatology": None, "batch_size": 4}
        sources = {"model": model, "ens": ensemble(3), "two": ensemble(2)}
        return evaluate(sources, frames, starts=STARTS, lead_hours=LEADS, **about)

    one, other = scores((1, 1, 1)), scores((2, 2, 2))
    assert one.rmse.dims == ("source", "grid", "region", "lead_hours", "channel")
    assert {"crps", "spread", "energy_score", "rank_histogram", "spectrum", "spectrum_truth"} <= set(one)
    assert np.isfinite(one.crps.sel(source="ens")).all() and np.isnan(one.crps.sel(source="model")).all()
    ranks = one.rank_histogram.sel(channel=list(CHANNELS.names), source=["ens", "two"])
    np.testing.assert_array_equal(
        np.isfinite(ranks).sum("rank").max(("grid", "region", "lead_hours", "channel")), [4, 3]
    )
    np.testing.assert_allclose(ranks.sum("rank"), 1, rtol=1e-5)
    size = one.rmse.max(("grid", "region", "source"))
    for name in one:
        scale = size if name in ("bias", "error") else 1
        a, b = one[name] / scale, other[name] / scale
        np.testing.assert_allclose(a.transpose(*b.dims), b, rtol=2e-4, atol=1e-5, equal_nan=True, err_msg=name)

"""The loss against its formula, the published form, and the bad options."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from weathermixer.archive.reference import Reference
from weathermixer.fields.grid import Grid, cosine_weights
from weathermixer.fields.variables import ERA5, ChannelSet
from weathermixer.parallel.mesh import make_mesh, put, use_mesh
from weathermixer.training.losses import fair_crps, make_loss_weights, weighted_mse

LATITUDE = np.array([67.5, 22.5, -22.5, -67.5])
CHANNELS = ChannelSet.from_names(("2m_temperature", "geopotential_50"), ("land_sea_mask",), multiple=4)
TENDENCY = (0.2, 0.1)


def weigh(form, channel_weights, *, channels=CHANNELS, tendency=TENDENCY, factors=None):
    """(area, channel) weights of channels with these 6 h tendencies."""
    zeros, grid = np.zeros(len(channels.dynamic)), Grid(LATITUDE, np.arange(0.0, 360.0, 60.0))
    reference = Reference(channels, grid, 6, zeros, zeros + 1, zeros + tendency, zeros, {})
    return make_loss_weights(reference, form=form, channel_weights=channel_weights, factors=factors or {})


def loss(form, channel_weights, prediction, target):
    area, channel = weigh(form, channel_weights)
    return float(weighted_mse(jnp.asarray(prediction), jnp.asarray(target), area=area, channel=channel))


@pytest.fixture
def fields():
    return np.random.default_rng(0).standard_normal((2, 3, 4, 4, 6)).astype(np.float32)


def test_published_form_has_its_weights_inside_the_square(fields):
    prediction, target = fields
    weights = np.array([3.0 * 4, 3.0 * 0.3])[None, :, None, None]
    area = cosine_weights(LATITUDE)[None, None, :, None]
    wanted = np.mean(((prediction - target)[:, :2] * area * weights) ** 2)
    assert loss("published", "published", prediction, target) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize(
    ("channel_weights", "weights"),
    [("uniform", [1, 1]), ("published", [12 / 6.45, 0.9 / 6.45]), ("tendency", [2 * 25 / 125, 2 * 100 / 125])],
)
def test_weights_outside_the_square_have_mean_one(fields, channel_weights, weights):
    prediction, target = fields
    area = cosine_weights(LATITUDE)[None, None, :, None]
    error = (prediction - target)[:, :2] ** 2 * area * np.array(weights)[None, :, None, None]
    assert loss("weighted_square", channel_weights, prediction, target) == pytest.approx(error.mean(), rel=1e-6)
    assert loss("weighted_square", channel_weights, prediction, prediction) == 0


@pytest.mark.parametrize("form", ["published", "weighted_square"])
def test_points_without_a_value_do_not_count(fields, form):
    """The mean over the others, by area, of each sample and channel; NaN reaches neither the loss nor its gradient."""
    prediction, target = fields
    missing = np.zeros(target.shape, bool)
    missing[:, 1, :2, 1:] = True  # a part that is the same in all samples...
    missing[0, 0] = True  # ...and a sample without any
    area, channel = weigh(form, "published")
    weights = np.broadcast_to(np.where(missing, 0, area[None, None, :, None]), target.shape)[:, :2]
    error = np.sum((prediction - target)[:, :2] ** 2 * weights, axis=(2, 3))
    there = np.sum(weights, axis=(2, 3)) / (area.mean() * weights[0, 0].size)
    means = np.divide(error / weights[0, 0].size, there, out=np.zeros_like(error), where=there > 0)
    wanted = np.mean(means * channel[:2])

    def loss(prediction, target):
        return weighted_mse(prediction, target, area=area, channel=channel, missing=jnp.asarray(missing))

    value, gradient = jax.value_and_grad(loss)(jnp.asarray(prediction), jnp.where(missing, jnp.nan, target))
    assert float(value) == pytest.approx(wanted, rel=1e-5)
    assert np.isfinite(gradient).all() and not np.asarray(gradient)[missing].any() and np.any(gradient[:, 1, 2:])
    # where nothing is missing it is the plain mean
    nothing, prediction, target = jnp.zeros(target.shape, bool), jnp.asarray(prediction), jnp.asarray(target)
    plain = weighted_mse(prediction, target, area=area, channel=channel)
    whole = weighted_mse(prediction, target, area=area, channel=channel, missing=nothing)
    assert float(whole) == pytest.approx(float(plain), rel=1e-6)


def test_weights_of_the_published_channels():
    _, channel = weigh("published", "published", channels=ERA5, tendency=1.0)
    by_name = dict(zip(ERA5.names, np.sqrt(channel), strict=False))
    assert by_name["mean_sea_level_pressure"] == pytest.approx(6.0)
    assert by_name["10m_u_component_of_wind"] == pytest.approx(3.08)
    assert by_name["specific_humidity_150"] == pytest.approx(0.6 * 0.5)
    assert np.count_nonzero(channel) == 69


@pytest.mark.parametrize("form", ["weighted_square", "published"])
def test_factors_are_of_channels_or_variables(form):
    channels = ChannelSet.from_names(("2m_temperature", "geopotential_50", "geopotential_500"), multiple=4)
    options = dict(channels=channels, tendency=1.0)
    _, plain = weigh(form, "published", **options)
    _, found = weigh(form, "published", **options, factors={"geopotential": 3.0, "geopotential_50": 0.0})
    power = 2 if form == "published" else 1
    assert found[2] / found[0] == pytest.approx(3**power * plain[2] / plain[0]) and found[1] == found[3] == 0
    if form == "weighted_square":  # the mean over channels that count, which the loss takes
        assert found[found > 0].mean() == pytest.approx(1)
    with pytest.raises(ValueError, match="'geopotential_100' is not among the channels"):
        weigh(form, "published", **options, factors={"geopotential_100": 2.0})
    with pytest.raises(ValueError, match="leave nothing to minimize"):
        weigh(form, "uniform", **options, factors={"geopotential": 0.0, "2m_temperature": 0.0})


def test_channels_that_never_change_are_named():
    with pytest.raises(ValueError, match="'2m_temperature', 'geopotential_50'.* have no 6 h tendency"):
        weigh("published", "tendency", tendency=0.0)


def crps(members, target, *, area=(1.0,) * 4, channel=(1.0,) * 4, missing=None, mesh=(1, 1, 1), spectral=0.0):
    """fair_crps of members [b, m, ...] and targets [b, ...]."""
    count, mesh = members.shape[1], make_mesh(*mesh)

    def place(rows):
        return put(rows.reshape(-1, *rows.shape[2:]), mesh, "batch", "channel", "lat", "lon")

    with use_mesh(mesh):
        rows = [place(x) for x in (members, np.repeat(target[:, None], count, 1))]
        if missing is not None:
            missing = place(np.repeat(missing[:, None], count, 1))
        options = dict(members=count, area=np.array(area), channel=np.array(channel))
        options |= dict(missing=missing, spectral=spectral)
        return jax.jit(jax.value_and_grad(lambda x: fair_crps(x, rows[1], **options)))(rows[0])


@pytest.mark.parametrize(
    ("error", "spread", "count"),
    [
        (0.0, 1.0, 2),
        (1.5, 0.5, 5),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in ((0, 1, 5), (1.5, 0.5, 2))),
    ],
)
def test_the_fair_crps_of_gaussian_members_is_the_closed_form_whatever_their_number(error, spread, count):
    """CRPS(N(mu, s), y) = s (z (2 Phi(z) - 1) + 2 phi(z) - 1/sqrt(pi)), z = (y - mu) / s  (Gneiting & Raftery 2007).

    Of 8 points in a row the coefficients of white noise are N(0, s) too, and all of a constant error is in the first.
    """

    def exact(error):
        z = error / spread
        return spread * (z * (2 * stats.norm.cdf(z) - 1) + 2 * stats.norm.pdf(z) - 1 / np.sqrt(np.pi))

    members = spread * np.random.default_rng(0).standard_normal((6000, count, 4, 4, 8), np.float32)
    given = members, np.full((6000, 4, 4, 8), error, np.float32)
    found, both = (float(crps(*given, spectral=spectral)[0]) for spectral in (0.0, 2.0))
    assert found == pytest.approx(exact(error), abs=3e-3)
    assert (both - found) / 2 == pytest.approx((exact(np.sqrt(8) * error) + 7 * exact(0.0)) / 8, abs=3e-3)


def test_the_fair_crps_is_that_of_sorted_members():
    """1/M sum |x - y| - sum_i (2 i - M - 1) x_(i) / (M (M - 1)), members in order: another way to the pairs."""
    rng = np.random.default_rng(1)
    members, target = rng.standard_normal((2, 4, 4, 4, 6)), rng.standard_normal((2, 4, 4, 6))
    area, channel = np.array([0.5, 1.5, 1.5, 0.5]), np.array([2.0, 1.0, 0.0, 0.0])
    order = (2 * np.arange(1, 5) - 5)[None, :, None, None, None]
    values = np.abs(members - target[:, None]).mean(1) - (order * np.sort(members, axis=1)).sum(1) / 12
    missing = rng.random(target.shape) < 0.3
    for lost in (None, missing):
        there = np.ones(target.shape, bool) if lost is None else ~lost
        weights = there * area[:, None]
        wanted = ((values * weights).sum((2, 3)) / weights.sum((2, 3)) * channel)[:, :2].mean()
        given = np.where(there, target, np.nan).astype(np.float32)
        found, slope = crps(members.astype(np.float32), given, area=area, channel=channel, missing=lost)
        assert float(found) == pytest.approx(wanted, rel=1e-5)
        assert np.isfinite(slope).all()


@pytest.mark.parametrize(
    ("lon", "lost"),
    [(8, False), (9, True), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((8, True), (9, False)))],
)
def test_the_spectral_crps_is_that_of_zonal_sines_and_cosines_on_any_mesh(lon, lost):
    rng = np.random.default_rng(2)
    members, target = rng.standard_normal((4, 3, 4, 4, lon)), rng.standard_normal((4, 4, 4, lon))
    area, channel = np.array([0.5, 1.5, 1.5, 0.5]), np.array([2.0, 1.0, 0.0, 0.0])
    missing = rng.random(target.shape) < 0.3 if lost else None
    there = np.ones(target.shape) if missing is None else 1.0 - missing
    place = 2 * np.pi * np.arange(lon) / lon
    waves = [np.full(lon, np.sqrt(1 / lon))]
    for k in range(1, (lon + 1) // 2):
        waves += [np.sqrt(2 / lon) * np.cos(k * place), np.sqrt(2 / lon) * np.sin(k * place)]
    if lon % 2 == 0:
        waves.append(np.sqrt(1 / lon) * np.cos(lon / 2 * place))
    x, y = (members * there[:, None]) @ np.transpose(waves), (target * there) @ np.transpose(waves)
    pairs = np.abs(x[:, :, None] - x[:, None]).sum((1, 2)) / 12
    values = (np.abs(x - y[:, None]).mean(1) - pairs).sum(-1)
    weights = there * area[:, None]
    wanted = ((values * area).sum(2) / weights.sum((2, 3)) * channel)[:, :2].mean()
    given = np.where(there > 0, target, np.nan).astype(np.float32)
    options = dict(area=area, channel=channel, missing=missing)
    points, _ = crps(members.astype(np.float32), given, **options)
    found, slope = crps(members.astype(np.float32), given, **options, spectral=0.5)
    assert 2 * float(found - points) == pytest.approx(wanted, rel=1e-5)
    assert np.isfinite(slope).all()
    for mesh in ((2, 2, 1), (2, 2, 2)):
        other, its_slope = crps(members.astype(np.float32), given, **options, spectral=0.5, mesh=mesh)
        assert float(other) == pytest.approx(float(found), rel=1e-6)
        np.testing.assert_allclose(its_slope, slope, rtol=1e-5, atol=1e-7)

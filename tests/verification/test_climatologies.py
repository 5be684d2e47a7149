"""The climatology equals the means it stands for, and recovers a seasonal cycle from two years."""

import numpy as np
import pytest

from tests.archives import make_archive, make_frames
from weathermixer.fields.variables import ChannelSet
from weathermixer.parallel.mesh import make_mesh, use_mesh
from weathermixer.verification.climatologies import climatology_terms, make_climatology

CHANNELS = ChannelSet.from_names(["2m_temperature", "10m_u_component_of_wind"])


def physical(archive, climatology, times, mesh):
    with use_mesh(mesh):
        fields = np.asarray(climatology.at(times), np.float64)
    statistics = archive.statistics
    return fields * statistics.std[:, None, None] + statistics.mean[:, None, None]


def fit(archive, mesh, *, indices, batch_size):
    return make_climatology(make_frames(archive, CHANNELS, mesh), indices=indices, batch_size=batch_size)


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 2, 2)])
def test_a_short_record_gives_the_mean_by_hour_of_day(tmp_path, shape):
    times = np.datetime64("2020-03-01T00", "ns") + np.arange(21) * np.timedelta64(6, "h")
    fields = 280 + 10 * np.random.default_rng(0).normal(size=(21, 2, 4, 6))
    archive = make_archive(tmp_path / "a", fields, times=times, channel_set=CHANNELS)
    mesh = make_mesh(*shape)
    # 15 frames in batches of 4: the last one is filled up, and what fills it must not count
    climatology = fit(archive, mesh, indices=np.arange(15), batch_size=4)
    assert climatology.harmonics == 0
    expected = np.stack([fields[:15][hour::4].mean(axis=0) for hour in range(4)])
    np.testing.assert_allclose(physical(archive, climatology, times[16:20], mesh), expected, rtol=1e-6)
    assert "hour" in climatology.description


def test_two_years_give_hour_of_day_and_day_of_year(tmp_path):
    times = np.datetime64("2001-01-01T00", "ns") + np.arange(2 * 366 * 4 + 40) * np.timedelta64(6, "h")
    days = (times - times.astype("datetime64[Y]")) / np.timedelta64(1, "D")
    season = np.cos(2 * np.pi * (days - 20) / 365.2425)[:, None, None, None]
    night = (np.arange(len(times)) % 4 == 0)[:, None, None, None]
    amplitude = np.random.default_rng(0).normal(size=(2, 4, 6))
    # the cycle is stronger at night: hour and season do not separate
    fields = 280 + amplitude * (season * (1 + night) + 3 * night)
    archive = make_archive(tmp_path / "a", fields, times=times, channel_set=CHANNELS)
    mesh = make_mesh(1, 1, 1)
    training = np.arange(2 * 366 * 4)
    climatology = fit(archive, mesh, indices=training, batch_size=488)
    assert climatology.harmonics > 0
    np.testing.assert_allclose(physical(archive, climatology, times[-40:], mesh), fields[-40:], atol=2e-3)
    one_year = fit(archive, mesh, indices=training[: 366 * 4], batch_size=488)
    assert one_year.harmonics == 0


def test_an_hour_the_period_does_not_have_is_refused():
    with pytest.raises(ValueError, match=r"hours \[6, 18\].*\[0, 12\]"):
        climatology_terms(
            np.datetime64("2020-01-01T00") + np.arange(4) * np.timedelta64(6, "h"), hours=(0, 12), harmonics=0
        )


def test_an_empty_period_is_refused(tmp_path):
    fields = np.random.default_rng(0).normal(size=(4, 2, 4, 6))
    times = np.datetime64("2020-03-01T00", "ns") + np.arange(4) * np.timedelta64(6, "h")
    archive = make_archive(tmp_path / "a", fields, times=times, channel_set=CHANNELS)
    with pytest.raises(ValueError, match="climatology's period holds no frame"):
        fit(archive, make_mesh(1, 1, 1), indices=np.arange(0), batch_size=4)

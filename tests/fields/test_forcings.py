"""The sun where it is, by formulae of others; every forcing by its definition; their scale."""

import numpy as np
import pytest

from tests.archives import make_grid
from weathermixer.fields.forcings import FORCINGS, SUN_MEAN, SUN_STD, TERMS, forcing_terms, sun

HOUR = np.timedelta64(1, "h")
YEARS = np.datetime64("1979-01-01T00", "ns") + np.arange(0, 44 * 8766, 487) * HOUR


def fields(names, times, grid, step_hours=6):
    """Forcings [time, channel, lat, lon] as their documentation writes them."""
    c = forcing_terms(names, times, step_hours=step_hours)[..., None, None]
    lat, lon = np.deg2rad(grid.latitude)[:, None], np.deg2rad(grid.longitude)
    parts = (
        1,
        np.sin(lat),
        np.cos(lat),
        np.cos(lon),
        np.cos(lat) * np.cos(lon),
        np.sin(lon),
        np.cos(lat) * np.sin(lon),
    )
    return np.maximum(c[:, :, TERMS - 1], sum(c[:, :, index] * part for index, part in enumerate(parts)))


def spencer(times):
    """Declination, equation of time (radians), inverse square of the distance, by day of year (Spencer 1971)."""
    a = 2 * np.pi * ((times - times.astype("datetime64[Y]")) / np.timedelta64(1, "D") - 0.5) / 365
    s, c = (lambda k: np.sin(k * a)), (lambda k: np.cos(k * a))
    declination = 0.006918 - 0.399912 * c(1) + 0.070257 * s(1) - 0.006758 * c(2) + 0.000907 * s(2)
    declination += -0.002697 * c(3) + 0.00148 * s(3)
    equation = 7.5e-5 + 0.001868 * c(1) - 0.032077 * s(1) - 0.014615 * c(2) - 0.040849 * s(2)
    return declination, equation, 1.00011 + 0.034221 * c(1) + 0.00128 * s(1) + 0.000719 * c(2) + 7.7e-5 * s(2)


def test_the_sun_is_where_spencers_series_has_it():
    direction, distance = sun(YEARS)
    declination, equation, inverse_square = spencer(YEARS)
    day = (YEARS - YEARS.astype("datetime64[D]")) / np.timedelta64(1, "D")
    noon = np.pi - 2 * np.pi * day - equation  # east longitude under the sun
    expected = [np.cos(declination) * np.cos(noon), np.cos(declination) * np.sin(noon), np.sin(declination)]
    np.testing.assert_allclose(np.linalg.norm(direction, axis=1), 1)
    angle = np.rad2deg(np.arccos(np.sum(direction * np.stack(expected, 1), axis=1)))
    # a series by day of the year cannot follow leap years: a day is 0.4 degrees at the equinoxes
    assert angle.max() < 0.6 and np.median(angle) < 0.2
    np.testing.assert_allclose(distance**-2, inverse_square, atol=1e-3)


@pytest.mark.parametrize(
    ("when", "declination"),
    [  # equinoxes and solstices as almanacs have them, to the minute
        ("2000-03-20T07:35", 0.0),
        ("2018-06-21T10:07", 23.435),
        ("2020-09-22T13:31", 0.0),
        ("1979-12-22T11:10", -23.441),
    ],
)
def test_seasons_turn_when_almanacs_say(when, declination):
    direction, _ = sun(np.array([when], "datetime64[ns]"))
    assert np.rad2deg(np.arcsin(direction[0, 2])) == pytest.approx(declination, abs=0.01)


def test_insolation_is_that_of_another_implementation():
    radiation = pytest.importorskip("dinosaur.radiation")
    grid = make_grid(16, 32)
    lon, lat = np.meshgrid(np.deg2rad(grid.longitude), np.deg2rad(grid.latitude))
    found = fields(["insolation"], YEARS, grid)[:, 0] * SUN_STD + SUN_MEAN
    for when, field in zip(YEARS[::80], found[::80], strict=True):
        year, day = ((when - when.astype(f"datetime64[{unit}]")) / np.timedelta64(1, "D") for unit in "YD")
        orbital = radiation.OrbitalTime(2 * np.pi * year / 365.25, 2 * np.pi * day)
        flux = radiation.get_radiation_flux(orbital, lon, lat, mean_irradiance=1.0, variation=47 / 1361)
        np.testing.assert_allclose(field, np.asarray(flux), atol=0.04)  # its orbit is a circle: two degrees
        assert np.corrcoef(field.ravel(), np.asarray(flux).ravel())[0, 1] > 0.998


def test_insolation_is_standardized_and_comes_a_step_ahead_too():
    grid = make_grid(64, 128)
    now, ahead = np.moveaxis(fields(["insolation", "insolation_ahead"], YEARS[:20], grid, step_hours=12), 1, 0)
    area = np.cos(np.deg2rad(grid.latitude))[:, None] / np.cos(np.deg2rad(grid.latitude)).mean()
    assert np.mean(area * now) == pytest.approx(0, abs=0.02) and np.mean(area * now**2) == pytest.approx(1, abs=0.03)
    np.testing.assert_allclose(ahead, fields(["insolation"], YEARS[:20] + 12 * HOUR, grid)[:, 0])
    night = now == now.min()
    assert 0.45 < night.mean() < 0.55 and (now[~night] > now.min()).all()


def test_other_forcings_are_sines_and_cosines():
    grid, times = make_grid(4, 8), np.array(["2000-01-01T00", "2001-07-02T12", "2004-12-31T18"], "datetime64[ns]")
    day, season = np.array([0, 0.5, 0.75]), np.array([0, 182.5 / 365, 365.75 / 366])
    lat, lon = np.deg2rad(grid.latitude)[:, None], np.deg2rad(grid.longitude)
    angles = {
        "time_of_day": 2 * np.pi * day[:, None, None],
        "local_time": 2 * np.pi * day[:, None, None] + lon,
        "time_of_year": 2 * np.pi * season[:, None, None],
        "latitude": lat,
        "longitude": lon,
    }
    for name, angle in angles.items():
        found = fields([name], times, grid)
        for channel, function in enumerate((np.sin, np.cos)):
            expected = np.broadcast_to(function(angle), found[:, channel].shape)
            np.testing.assert_allclose(found[:, channel], expected, atol=1e-12)
    every = forcing_terms(list(FORCINGS), times, step_hours=6)
    assert every.shape == (3, sum(FORCINGS.values()), TERMS)

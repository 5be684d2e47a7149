"""Forcings: input that time and place alone tell, such as the sun. Nothing is stored of them.

Each of their channels is a sum of few fields of the grid, clipped from below, so that a sample brings no more than the
sum's coefficients, found in float64, and the devices spread them over their own rows (archive/standardization.py):

    max(floor, c0 + c1 sin lat + c2 cos lat + (c3 + c4 cos lat) cos lon + (c5 + c6 cos lat) sin lon)

The sun is one of these, for the cosine of its zenith angle is the scalar product of two unit vectors: that to the sun,
and that of the place, (cos lat cos lon, cos lat sin lon, sin lat).
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

# name -> its channels
FORCINGS = {
    "insolation": 1,  # at the top of the atmosphere, at the time of the input
    "insolation_ahead": 1,  # the same a step later
    "time_of_day": 2,  # sine and cosine of the time of day in UTC
    "local_time": 2,  # the same at each longitude's mean solar time
    "time_of_year": 2,  # sine and cosine of the share of the year that is over
    "latitude": 2,  # sine and cosine
    "longitude": 2,
}
TERMS = 8  # the coefficients c0 to c6 and the floor, of each channel
(ONE, SIN_LAT, COS_LAT, COS_LON, COS_LAT_COS_LON, SIN_LON, COS_LAT_SIN_LON, FLOOR) = range(TERMS)
NO_FLOOR = -10.0  # all sums are far above
# of max(0, cosine of the zenith angle) over the sphere: 1/4, and sqrt(1/6 - 1/16)
SUN_MEAN, SUN_STD = 0.25, 0.3227486


def forcing_terms(
    names: Sequence[str], times: np.ndarray, *, step_hours: int
) -> Float[np.ndarray, "time channel term"]:
    """The coefficients of all channels of these forcings, in order, at these times.

    Insolation is in units of the solar constant, less its mean over the globe and over its standard deviation there.
    """
    times = np.asarray(times, "datetime64[ns]")
    year = times.astype("datetime64[Y]")
    start, past = (y.astype("datetime64[ns]") for y in (year, year + np.timedelta64(1, "Y")))
    season = 2 * np.pi * ((times - start) / (past - start))
    day = 2 * np.pi * ((times - times.astype("datetime64[D]")) / np.timedelta64(1, "D"))
    channels = {
        "insolation": [_insolation(times)],
        "insolation_ahead": [_insolation(times + np.timedelta64(step_hours, "h"))],
        "time_of_day": [{ONE: np.sin(day)}, {ONE: np.cos(day)}],
        "local_time": [  # sine and cosine of day + lon
            {COS_LON: np.sin(day), SIN_LON: np.cos(day)},
            {COS_LON: np.cos(day), SIN_LON: -np.sin(day)},
        ],
        "time_of_year": [{ONE: np.sin(season)}, {ONE: np.cos(season)}],
        "latitude": [{SIN_LAT: 1.0}, {COS_LAT: 1.0}],
        "longitude": [{SIN_LON: 1.0}, {COS_LON: 1.0}],
    }
    chosen = [channel for name in names for channel in channels[name]]
    terms = np.zeros((len(times), len(chosen), TERMS))
    for index, channel in enumerate(chosen):
        for term, values in ({FLOOR: NO_FLOOR} | channel).items():
            terms[:, index, term] = values
    return terms


def _insolation(times: np.ndarray) -> dict[int, np.ndarray | float]:
    direction, distance = sun(times)
    scale = 1 / (SUN_STD * distance**2)
    x, y, z = (scale[:, None] * direction).T
    floor = -SUN_MEAN / SUN_STD
    return {ONE: floor, COS_LAT_COS_LON: x, COS_LAT_SIN_LON: y, SIN_LAT: z, FLOOR: floor}


def sun(times: np.ndarray) -> tuple[Float[np.ndarray, "time 3"], Float[np.ndarray, " time"]]:
    """(unit vector to the sun, its distance in astronomical units); the vector's axes are 0 E, 90 E and the north pole.

    The Astronomical Almanac's formulae of low precision, 0.01 degrees from 1950 to 2050 (Michalsky 1988, Solar Energy
    40): ecliptic longitude from mean longitude and anomaly, turned by the ecliptic's tilt and by sidereal time.
    """
    days = (times - np.datetime64("2000-01-01T12", "ns")) / np.timedelta64(1, "D")
    anomaly = np.deg2rad(357.528 + 0.9856003 * days)
    longitude = np.deg2rad(280.460 + 0.9856474 * days + 1.915 * np.sin(anomaly) + 0.020 * np.sin(2 * anomaly))
    tilt = np.deg2rad(23.439 - 4e-7 * days)
    x, y = np.cos(longitude), np.cos(tilt) * np.sin(longitude)
    sidereal = np.deg2rad(15 * (18.697374558 + 24.06570982441908 * days))
    turned = (np.cos(sidereal) * x + np.sin(sidereal) * y, np.cos(sidereal) * y - np.sin(sidereal) * x)
    distance = 1.00014 - 0.01671 * np.cos(anomaly) - 0.00014 * np.cos(2 * anomaly)
    return np.stack([*turned, np.sin(tilt) * np.sin(longitude)], axis=-1), distance

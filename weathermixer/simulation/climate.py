"""The zonal-mean climate of the simulated atmosphere, from which it starts.

A start from rest, or from the temperatures alone, leaves jets and eddies drifting for 200 days; from the whole zonal
mean they are within their own variability after 20 days. Numbers are means over 1300 simulated days (T21, 8 layers)
and both hemispheres.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

# at latitudes 0, 10 ... 90; a row for each layer from the top, sigma = 1/16, 3/16 ... 15/16
ZONAL_WIND = (  # m s**-1
    (2.5, 3.7, 4.9, 11.0, 24.3, 26.3, 13.6, 4.1, 1.5, 0.0),
    (-0.2, 5.6, 12.7, 22.8, 32.1, 22.0, 8.1, 4.0, 3.0, 0.0),
    (-1.6, 3.1, 11.2, 23.5, 31.2, 17.9, 4.9, 3.1, 3.0, 0.0),
    (1.2, 3.3, 8.9, 19.8, 24.9, 13.3, 2.7, 1.4, 1.9, 0.0),
    (1.8, 3.4, 7.1, 15.1, 18.9, 10.0, 1.1, -0.1, 0.8, 0.0),
    (1.5, 2.6, 4.4, 9.7, 14.0, 7.8, -0.2, -1.3, -0.1, 0.0),
    (0.7, 0.7, -0.6, 4.5, 10.3, 6.1, -1.2, -2.3, -0.8, 0.0),
    (-1.3, -4.9, -6.2, 0.0, 7.6, 4.6, -2.2, -2.9, -1.3, 0.0),
)
TEMPERATURE = (  # K
    (195.8, 196.4, 198.1, 200.8, 203.6, 202.9, 200.0, 198.9, 199.4, 199.8),
    (200.6, 200.0, 199.8, 202.0, 205.8, 206.8, 204.1, 202.6, 203.2, 203.6),
    (229.5, 229.9, 229.5, 228.0, 224.0, 217.4, 212.9, 210.7, 209.6, 209.3),
    (250.8, 250.9, 250.5, 248.1, 241.4, 233.7, 229.6, 226.8, 223.8, 222.6),
    (268.2, 268.4, 268.2, 264.1, 254.9, 247.0, 243.2, 240.4, 237.7, 236.5),
    (283.1, 282.8, 281.0, 274.5, 264.8, 258.1, 254.8, 252.1, 249.6, 248.5),
    (296.4, 296.5, 292.0, 283.4, 274.6, 268.5, 264.8, 262.1, 259.6, 258.6),
    (306.2, 302.6, 295.0, 286.9, 279.5, 273.9, 269.8, 267.0, 264.9, 264.2),
)
SURFACE_PRESSURE = ((996.3, 997.8, 1002.5, 1006.9, 1002.9, 993.6, 993.3, 999.8, 1004.7, 1006.1),)  # hPa


def zonal_mean(
    table: Sequence[Sequence[float]], *, latitude: Float[np.ndarray, " lat"], sigma: Float[np.ndarray, " layer"]
) -> Float[np.ndarray, "layer lat"]:
    """Rows of a table at other latitudes (degrees), by a cosine series, and on other layers, linear in log(sigma).

    f(lat) = sum_k a_k cos(2 k lat),  k = 0 ... 9,  even about the equator and about the poles
    """
    rows = np.array(table)
    order = np.arange(rows.shape[1])
    known = np.cos(2 * np.deg2rad(10 * order)[:, None] * order)
    wanted = np.cos(2 * np.deg2rad(latitude)[:, None] * order)
    values = wanted @ np.linalg.solve(known, rows.T)
    layers = (np.arange(len(rows)) + 0.5) / len(rows)
    return np.stack([np.interp(np.log(sigma), np.log(layers), column) for column in values], axis=1)

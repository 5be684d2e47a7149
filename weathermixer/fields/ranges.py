"""The values that fields of the Earth's atmosphere can have.

Wide enough for every analysis, model and resolution, and narrow enough to tell kelvin from degrees Celsius, metres from
geopotential, and all of them from marks of missing values.
"""

import numpy as np

from weathermixer.fields.units import GRAVITY

# beyond it are marks of missing values that files do not declare: 9.97e36, 1e20, 1e15
LARGEST = 9e14
RANGES = {
    "mean_sea_level_pressure": (80e3, 115e3),
    "surface_pressure": (30e3, 115e3),
    "10m_u_component_of_wind": (-150.0, 150.0),
    "10m_v_component_of_wind": (-150.0, 150.0),
    "2m_temperature": (150.0, 350.0),
    "u_component_of_wind": (-300.0, 300.0),
    "v_component_of_wind": (-300.0, 300.0),
    "vertical_velocity": (-100.0, 100.0),
    "vorticity": (-1e-1, 1e-1),
    "divergence": (-1e-1, 1e-1),
    "total_precipitation_6hr": (-1e-2, 2.0),
    "sea_surface_temperature": (250.0, 320.0),
    "sea_ice_cover": (-0.1, 1.1),
    "land_sea_mask": (-0.1, 1.1),
    "soil_type": (0.0, 255.0),
    "geopotential_at_surface": (-10e3, 90e3),
}


def plausible_range(variable: str, level_hpa: int | None = None) -> tuple[float, float]:
    """(lowest, highest) value in SI units; -LARGEST and LARGEST for a variable that is not known."""
    if level_hpa is None or variable in RANGES:
        return RANGES.get(variable, (-LARGEST, LARGEST))
    if variable == "temperature":
        # the tropopause is nowhere as warm as the ground or the stratopause
        return 100.0, 350.0 if level_hpa >= 700 or level_hpa < 20 else 310.0 if level_hpa >= 400 else 290.0
    if variable == "geopotential":
        middle = GRAVITY * _standard_height(level_hpa)
        return middle - 8e3 - 0.15 * middle, middle + 8e3 + 0.15 * middle
    if variable == "specific_humidity":
        high = max(0.1 * (level_hpa / 1000) ** 2, 2e-4)
        return -high / 2, high
    return -LARGEST, LARGEST


def _standard_height(level_hpa: int) -> float:
    """Height of a pressure level in metres, in the standard atmosphere (ISO 2533), isothermal above 11 km."""
    if level_hpa > 226.32:
        return 288.15 / 0.0065 * (1 - (level_hpa / 1013.25) ** (0.0065 * 287.053 / GRAVITY))
    return 11e3 + 287.053 * 216.65 / GRAVITY * float(np.log(226.32 / level_hpa))

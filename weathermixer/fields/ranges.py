"""The values that fields of the Earth's atmosphere can have.

Wide enough for every analysis, model and resolution, and narrow enough to tell kelvin from degrees Celsius, metres from
geopotential, and all of them from marks of missing values.
"""

import numpy as np

from weathermixer.fields.units import GRAVITY
from weathermixer.fields.variables import VARIABLES

# beyond it are marks of missing values that files do not declare: 9.97e36, 1e20, 1e15
LARGEST = 9e14


def plausible_range(variable: str, level_hpa: int | None = None) -> tuple[float, float]:
    """(lowest, highest) value in SI units; -LARGEST and LARGEST for a variable that is not known."""
    if variable in VARIABLES and VARIABLES[variable].limits:
        return VARIABLES[variable].limits
    if level_hpa is None:
        return -LARGEST, LARGEST
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

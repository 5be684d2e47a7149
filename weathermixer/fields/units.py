"""Units as files write them, and the way from one to another: pint, with the spellings of CF and of meteorology.

A unit that is not understood, or is of another quantity, is an error; nothing is ever taken for a factor of one. Where
values are in another unit than their file says, the range of what there is on Earth tells: wide enough for every
analysis and model, and narrow enough to tell kelvin from degrees Celsius, and metres from geopotential.
"""

import functools
import re
import unicodedata
from typing import Any

import numpy as np
import pint

from weathermixer.fields.variables import VARIABLES

GRAVITY = 9.80665  # m s-2, the standard one, which turns geopotential metres into geopotential
WATER = 1000.0  # kg m-3: a kilogram of rain on a square metre stands a millimetre high
# beyond it are marks of missing values that files do not declare: 9.97e36, 1e20, 1e15
LARGEST = 9e14

# spellings of no unit: of masks, kinds and shares
_ONE = {"1", "1 1", "(0 - 1)", "(0-1)", "0 - 1", "0-1", "~", "-", "none", "unitless", "fraction", "proportion"}
_ONE |= {"dimensionless", "numeric", "index", "category", "categories", "boolean", "flag", "ratio"}
_TEMPERATURE = re.compile(r"(?:deg(?:ree)?s?\.?|°)?[ _.]*(c(?:elsius|entigrade)?|k(?:elvins?)?|f(?:ahrenheit)?)")
_SPELLINGS = (
    (re.compile(r"geopotential[ _]*(?:met(?:er|re)s?|m)\b", re.IGNORECASE), "gpm"),
    (re.compile(r"\s*(?:of )?water(?: equivalent)?$", re.IGNORECASE), ""),
    (re.compile(r"%"), " percent "),
    (re.compile(r"(?<=[A-Za-z0-9])[.·](?=[A-Za-z])"), " "),  # kg.m-2
    (re.compile(r"(?<=[A-Za-z])\+(?=\d)"), ""),  # m+2 s-2
    # powers as UDUNITS has them, m2 s-2, but not the exponent of 1e-3 (as cf_xarray and MetPy do it)
    (re.compile(r"(?<=[A-Za-z])(?![A-Za-z])(?<![0-9\-][eE])(?<![0-9\-])(?=[0-9\-])"), "**"),
)


def conversion(given: str, wanted: str, *, bridged: bool = False) -> tuple[float, float]:
    """(factor, shift) with value[wanted] = value[given] * factor + shift.

    `bridged` also takes heights for geopotential (m2 s-2, times GRAVITY) and kilograms of rain on a square metre for
    metres of it (over WATER). Raises ValueError for a unit that is not understood and for one of another quantity.
    """
    target = _parse(wanted)
    # HPA and Knots are meant as hpa and knots; as written comes first, for Mm is not mm
    spellings = [unit for unit in (_parse(given), _parse(given.lower())) if unit is not None]
    if not spellings or target is None:
        raise ValueError(f"unit {given if target else wanted!r} is not understood")
    bridges = ("1", f"{GRAVITY} m s**-2", f"{1 / WATER} m**3 kg**-1")[: 3 if bridged else 1]
    for factor, shift, unit in spellings:
        for constant, _, more in map(_parse, bridges):
            if unit * more == target[2]:
                factor, shift = factor * constant / target[0], (shift * constant - target[1]) / target[0]
                return float(f"{factor:.12g}"), float(f"{shift:.12g}")
    raise ValueError(f"unit {given!r} is of another quantity than {wanted!r}")


def is_pressure(text: str) -> bool:
    """Whether a unit is one of pressure."""
    try:
        return bool(conversion(text, "Pa"))
    except ValueError:
        return False


@functools.cache
def _registry() -> Any:  # a pint.UnitRegistry, whose own annotations no checker of types at run time understands
    registry = pint.UnitRegistry()
    # `mb` would be millibarns to pint, and `pa` picoyears
    for definition in ("@alias pascal = pa", "mb = 100 * pascal", "@alias meter = gpm", "gpdm = 10 * meter"):
        registry.define(definition)
    return registry


@functools.cache
def _parse(text: str) -> tuple[float, float, Any] | None:
    """(factor, shift, root unit) that give value[root unit] = value * factor + shift; None where it is not understood.

    Root units tell more than dimensions do: degrees of arc are radians there, and no share of one.
    """
    text = unicodedata.normalize("NFKC", re.sub("[º˚]", "°", text.strip())).replace("\N{MINUS SIGN}", "-")
    if text.lower() in _ONE or text.lower().lstrip("(").startswith("code"):
        text = "dimensionless"
    elif match := _TEMPERATURE.fullmatch(text.lower()):
        text = {"c": "degC", "k": "kelvin", "f": "degF"}[match[1][0]]
    for pattern, replacement in _SPELLINGS:
        text = pattern.sub(replacement, text)
    registry = _registry()
    try:
        unit = registry.Quantity(registry.parse_expression(text))  # 10 hPa and 1e-3 are units too
        if not 0 < unit.magnitude < float("inf"):
            return None
        zero, one = (registry.Quantity(value * unit.magnitude, unit.units).to_root_units() for value in (0.0, 1.0))
    except Exception:  # pint raises errors of a dozen kinds, of its own and of Python's, for text that is no unit
        return None
    return float(one.magnitude - zero.magnitude), float(zero.magnitude), one.units


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
        # of the standard atmosphere (ISO 2533), isothermal above 11 km
        height = 288.15 / 0.0065 * (1 - (level_hpa / 1013.25) ** (0.0065 * 287.053 / GRAVITY))
        if level_hpa <= 226.32:
            height = 11e3 + 287.053 * 216.65 / GRAVITY * float(np.log(226.32 / level_hpa))
        middle = GRAVITY * height
        return middle - 8e3 - 0.15 * middle, middle + 8e3 + 0.15 * middle
    if variable == "specific_humidity":
        high = max(0.1 * (level_hpa / 1000) ** 2, 2e-4)
        return -high / 2, high
    return -LARGEST, LARGEST

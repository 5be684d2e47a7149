"""Every spelling of a unit is converted to the same numbers; what is not understood, or of another quantity, is not."""

import pytest

from weathermixer.fields.units import conversion, is_pressure

SPELLINGS = {
    ("K", 1.0, 0.0): ["K", "k", "Kelvin", "kelvin", "degK", "deg_K", "degrees K", "Kelvins"],
    ("K", 1.0, 273.15): ["Celsius", "celsius", "C", "degC", "deg_C", "deg C", "deg. C", "degrees_C", "degree_C", "°C",
                         "℃", "º C", "degree_Celsius", "degrees Celsius", "Degrees C", "DegC", "centigrade"],
    ("K", 5 / 9, 273.15 - 32 * 5 / 9): ["degF", "Fahrenheit", "°F", "degree_Fahrenheit"],
    ("Pa", 1.0, 0.0): ["Pa", "pa", "PA", "Pascal", "pascals", "N m-2"],
    ("Pa", 100.0, 0.0): ["hPa", "hpa", "HPA", "mb", "mbar", "millibar", "millibars", "Millibars", "hectopascal"],
    ("Pa", 1000.0, 0.0): ["kPa", "10 hPa"],
    ("m s**-1", 1.0, 0.0): ["m s-1", "m/s", "m s**-1", "m.s-1", "m s^-1", "meters/second", "metres per second"],
    ("m s**-1", 1852 / 3600, 0.0): ["kt", "kts", "knot", "knots", "Knots"],
    ("m s**-1", 1 / 3.6, 0.0): ["km/h", "km h-1"],
    ("kg kg**-1", 1.0, 0.0): ["1", "kg/kg", "kg kg-1", "kg kg**-1", "kg kg^-1", "dimensionless"],
    ("kg kg**-1", 1e-3, 0.0): ["g/kg", "g kg-1", "g kg**-1", "1e-3", "0.001", "10^-3", "g.kg-1"],
    ("1", 1.0, 0.0): ["(0 - 1)", "0-1", "~", "-", "fraction", "Proportion", "unitless", "code table (4.217)"],
    ("1", 0.01, 0.0): ["%", "percent"],
    ("Pa s**-1", 0.1, 0.0): ["microbar/s", "ubar s-1", "µbar/s"],
}  # fmt: skip


@pytest.mark.parametrize("wanted, factor, shift", SPELLINGS)
def test_spellings(wanted, factor, shift):
    for given in SPELLINGS[wanted, factor, shift]:
        assert conversion(given, wanted) == pytest.approx((factor, shift)), given


@pytest.mark.parametrize(
    "wanted, given, factor",
    [
        ("m**2 s**-2", ["m", "gpm", "metres", "geopotential meter", "geopotential metres"], 9.80665),
        ("m**2 s**-2", ["dam", "gpdm", "10 m"], 98.0665),
        ("m**2 s**-2", ["m2 s-2", "m**2 s**-2", "m^2/s^2", "m²/s²", "m+2 s-2", "J kg-1"], 1.0),
        ("m", ["mm", "kg m-2", "kg m**-2", "kg/m^2", "mm of water equivalent"], 1e-3),
        ("m", ["m", "m of water equivalent"], 1.0),
    ],
)
def test_heights_are_geopotential_and_kilograms_of_rain_are_metres(wanted, given, factor):
    for unit in given:
        assert conversion(unit, wanted, bridged=True) == pytest.approx((factor, 0.0)), unit


def test_one_unit_of_a_file_to_that_of_another():
    assert conversion("K", "degC") == pytest.approx((1.0, -273.15))
    assert conversion("degF", "degC") == pytest.approx((5 / 9, -32 * 5 / 9))


@pytest.mark.parametrize(
    "given", ["gpm/s", "bogus", "level", "m of", "1/0", "(1,2)", "x[0]", "0", "-1", "1e400", "K K"]
)
def test_what_is_no_unit_is_an_error(given):
    with pytest.raises(ValueError, match="is not understood|of another quantity"):
        conversion(given, "K")


@pytest.mark.parametrize(
    "given, wanted",
    [("Pa", "K"), ("m", "m**2 s**-2"), ("kg m-2", "m"), ("degrees", "1"), ("ms-1", "m s**-1"), ("1", "K")],
)  # fmt: skip
def test_another_quantity_is_an_error(given, wanted):
    with pytest.raises(ValueError, match=f"unit '{given}' is of another quantity than"):
        conversion(given, wanted)


def test_pressures():
    assert all(is_pressure(unit) for unit in ("Pa", "hPa", "kPa", "mb", "millibars", "atm"))
    assert not any(is_pressure(unit) for unit in ("m", "1", "", "level", "K"))

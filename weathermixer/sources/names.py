"""What sources call variables, and their translation to WeatherBench 2's names.

WeatherBench 2, ARCO-ERA5, the Copernicus climate data store, GRIB through cfgrib and CMIP6 are known; names of other
sources are given with --rename, as MERRA-2's and NCEP's (`T=temperature`, `hgt=geopotential`).
"""

import re
from collections.abc import Collection, Mapping, Sequence

from weathermixer.fields.variables import ERA5_STATIC, ERA5_UPPER, VARIABLES, parse_channel

# WeatherBench 2 name -> what else it is called, the most usual first; a name shared by two is told by its levels
ALIASES = {
    "mean_sea_level_pressure": ("msl", "prmsl", "mslet", "psl"),
    "surface_pressure": ("sp", "ps"),
    "10m_u_component_of_wind": ("u10", "10u", "uas"),
    "10m_v_component_of_wind": ("v10", "10v", "vas"),
    "2m_temperature": ("t2m", "2t", "tas"),
    "geopotential": ("z", "gh", "geopotential_height", "zg"),
    "specific_humidity": ("q", "hus"),
    "temperature": ("t", "ta", "air_temperature"),
    "u_component_of_wind": ("u", "ua"),
    "v_component_of_wind": ("v", "va"),
    "vertical_velocity": ("w", "wap", "omega"),
    "vorticity": ("vo", "relative_vorticity"),
    "divergence": ("d",),
    "sea_surface_temperature": ("tos",),  # who asks for sst has a channel of that name
    "sea_ice_cover": ("siconc", "ci"),
    "land_sea_mask": ("lsm", "land_binary_mask", "sftlf"),
    "soil_type": ("slt",),
    "geopotential_at_surface": ("orography", "orog", "hsurf", "z", "surface_geopotential", "z_surface"),
}
AMOUNTS = {"total_precipitation": ("tp",)}  # per step of the source, of which sums such as ..._6hr are made
STATIC = ERA5_STATIC
UPPER = (*ERA5_UPPER, "vertical_velocity", "vorticity", "divergence")
SURFACE = tuple(name for name in VARIABLES if name not in (*STATIC, *UPPER))
# heights rather than geopotentials, perhaps with a level in the name: in metres where units are not given
HEIGHT = re.compile(r"(gh|geopotential_height|zg|orography|orog|hsurf)_?\d*")
_WITH_LEVEL = re.compile(r"(.*[A-Za-z])_?(\d{1,4})(?:_?(?:hPa|mb))?")
_LOWEST_IN_SHORT_NAME = 20  # t2 and q2 are 2 m above the ground, not on 2 hPa


def possible_names(variables: Sequence[str] | None, rename: Mapping[str, str]) -> list[str]:
    """What a source may call the variables that are asked for, without their levels; None: all that are known."""
    names = [name for name in VARIABLES if name not in STATIC] if variables is None else list(variables)
    for name in [*names]:
        names += [split_level(name)[0], parse_channel(name).variable, *amounts_of(name)[1]]
        names += [variable for variable, others in ALIASES.items() if name in others]
    return list(dict.fromkeys([*names, *rename]))


def amounts_of(name: str) -> tuple[int, tuple[str, ...]]:
    """(6, what sources call the amounts that are summed over 6 h) of total_precipitation_6hr; (0, ()) of no sum."""
    found = re.fullmatch(r"(.+)_(\d+)hr", name)
    return (int(found[2]), (found[1], *AMOUNTS.get(found[1], ()))) if found else (0, ())


def rank(variable: str, given: str) -> int:
    """Which of a variable's names comes first where a file has several: its own, then in the order of ALIASES."""
    names = (variable, *ALIASES.get(variable, ()))
    return names.index(given) if given in names else len(names)


def identify(name: str, *, levels: Sequence[float], beside: Collection[float]) -> tuple[str, float | None]:
    """(variable, level in hPa that its name or a scalar beside it tells) of what a source calls `name`.

    levels: of its own vertical dimension; beside: what stands beside it, which counts where it is one. Names that are
    not known stay. Raises ValueError with the reason why a known name is not taken for what it says.
    """
    scalar = next(iter(beside)) if len(beside) == 1 else None
    known = [name] if name in VARIABLES else [variable for variable, names in ALIASES.items() if name in names]
    for variable in known:
        if variable in UPPER and (levels or scalar):
            return variable, None if levels else scalar
        if variable not in UPPER and not levels:
            return variable, None
    if known and known[0] in UPPER:
        raise ValueError(f"no pressure level: name it if there is one, --rename {name}={known[0]}_500")
    if known:
        raise ValueError(f"it has pressure levels, and {known[0]} has none")
    base, level = split_level(name)
    if level is None:
        return name, None
    if levels or (scalar and scalar != level):
        raise ValueError(f"its name says {level:g} hPa, and its levels are {[*levels, *beside]}")
    if name in ("u100", "v100") and not scalar:
        wind = f"{name[0]}_component_of_wind"
        raise ValueError(f"100 m or 100 hPa? --rename {name}=100m_{wind} or --rename {name}={wind}_100")
    return base, level


def split_level(name: str) -> tuple[str, float | None]:
    """(variable, level in hPa) of a name such as z500, ta850 or geopotential_500; (name, None) where it is none."""
    match = _WITH_LEVEL.fullmatch(name)
    for variable in UPPER if match else ():
        short = match[1] != variable
        if not short or (match[1] in ALIASES[variable] and int(match[2]) >= _LOWEST_IN_SHORT_NAME):
            return variable, float(match[2])
    return name, None

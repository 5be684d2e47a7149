"""Variables, levels and channels: names, units, order, the published loss weights, and padding.

A channel is one variable on one level (or at the surface). A ChannelSet fixes the order in which channels lie along the
`channel` dimension of every array in the project, and what role each has:

    dynamic  |  input only  |  static  |  forcings  |  zeros up to a multiple

    dynamic      predicted; those that are output only, such as precipitation, are not shown to the model
    input only   prescribed by the archive at the time of each input, such as the sea's surface
    static       fields that never change, input too
    forcings     input that time and place alone tell, such as the sun (forcings.py)

All but the first are masked out of what the model predicts, exactly, so a set of any size divides over `tensor`.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float

from weathermixer.fields.forcings import FORCINGS


@dataclasses.dataclass(frozen=True)
class Variable:
    """A physical variable: WeatherBench 2's name, SI units, CF's standard name, the values it can have (see units.py;
    None where they depend on the level) and the published loss weight.
    """

    name: str
    units: str
    standard_name: str
    short: str
    limits: tuple[float, float] | None = None
    weight: float = 1.0


VARIABLES = {
    variable.name: variable
    for variable in (
        Variable("mean_sea_level_pressure", "Pa", "air_pressure_at_mean_sea_level", "msl", (80e3, 115e3), 1.5 * 4),
        Variable("surface_pressure", "Pa", "surface_air_pressure", "sp", (30e3, 115e3), 1.5 * 4),
        Variable("10m_u_component_of_wind", "m s**-1", "eastward_wind", "u10", (-150.0, 150.0), 0.77 * 4),
        Variable("10m_v_component_of_wind", "m s**-1", "northward_wind", "v10", (-150.0, 150.0), 0.77 * 4),
        Variable("2m_temperature", "K", "air_temperature", "t2m", (150.0, 350.0), 3.0 * 4),
        Variable("geopotential", "m**2 s**-2", "geopotential", "z", None, 3.0),
        Variable("specific_humidity", "kg kg**-1", "specific_humidity", "q", None, 0.6),
        Variable("temperature", "K", "air_temperature", "t", None, 1.5),
        Variable("u_component_of_wind", "m s**-1", "eastward_wind", "u", (-300.0, 300.0), 0.9),
        Variable("v_component_of_wind", "m s**-1", "northward_wind", "v", (-300.0, 300.0), 0.9),
        Variable("vertical_velocity", "Pa s**-1", "lagrangian_tendency_of_air_pressure", "w", (-100.0, 100.0)),
        Variable("vorticity", "s**-1", "atmosphere_relative_vorticity", "vo", (-0.1, 0.1)),
        Variable("divergence", "s**-1", "divergence_of_wind", "d", (-0.1, 0.1)),
        Variable("total_precipitation_6hr", "m", "lwe_thickness_of_precipitation_amount", "tp6h", (-0.01, 2.0)),
        Variable("total_precipitation_24hr", "m", "lwe_thickness_of_precipitation_amount", "tp24h", (-0.01, 5.0)),
        Variable("sea_surface_temperature", "K", "sea_surface_temperature", "sst", (250.0, 320.0)),
        Variable("sea_ice_cover", "1", "sea_ice_area_fraction", "ci", (-0.1, 1.1)),
        Variable("land_sea_mask", "1", "land_binary_mask", "lsm", (-0.1, 1.1)),
        Variable("soil_type", "1", "soil_type", "slt", (0.0, 255.0)),
        Variable("geopotential_at_surface", "m**2 s**-2", "surface_geopotential", "orog", (-10e3, 90e3)),
    )
}

LEVELS_HPA = (1000, 925, 850, 700, 600, 500, 400, 300, 250, 200, 150, 100, 50)
# loss weight of a pressure level: 1 from 1000 to 500 hPa, then falling (Jigsaw's published settings)
LEVEL_WEIGHTS = {400: 0.9, 300: 0.8, 250: 0.7, 200: 0.6, 150: 0.5, 100: 0.4, 50: 0.3}


@dataclasses.dataclass(frozen=True)
class Channel:
    """One variable on one pressure level, or at the surface where level_hpa is None.

    units are SI for a known variable, else what its source gives, "" where it gives none.

    >>> channel = weathermixer.Channel("geopotential", 500)
    >>> channel.name, channel.short, channel.units
    ('geopotential_500', 'z500', 'm**2 s**-2')
    """

    variable: str
    level_hpa: int | None = None
    units: str = dataclasses.field(default="", compare=False)

    def __post_init__(self):
        if self.variable in VARIABLES:
            object.__setattr__(self, "units", VARIABLES[self.variable].units)

    @property
    def name(self) -> str:
        """The name in archives and tables: `geopotential_500`, `2m_temperature`."""
        return self.variable if self.level_hpa is None else f"{self.variable}_{self.level_hpa}"

    @property
    def short(self) -> str:
        """The name in figures and logs: `z500`, `t2m`."""
        known = VARIABLES.get(self.variable)
        short = known.short if known else self.variable
        return short if self.level_hpa is None else f"{short}{self.level_hpa}"

    @property
    def weight(self) -> float:
        """The published loss weight (Jigsaw's settings): the variable's times the level's."""
        known = VARIABLES.get(self.variable)
        return (known.weight if known else 1.0) * LEVEL_WEIGHTS.get(self.level_hpa, 1.0)


@dataclasses.dataclass(frozen=True)
class ChannelSet:
    """The channels of a run in order, by role (see above); `output_only` are names of some of the dynamic ones.
    Raises ValueError for no dynamic channel, a name that is there twice, a multiple below 1 and unknown forcings.

    >>> channels = weathermixer.ChannelSet.from_names(["2m_temperature", "geopotential_500"], ["soil_type"], multiple=4)
    >>> channels.size, channels.predicted.tolist()
    (4, [True, True, False, False])
    """

    dynamic: tuple[Channel, ...]
    static: tuple[str, ...] = ()
    multiple: int = 1
    input_only: tuple[Channel, ...] = ()
    output_only: tuple[str, ...] = ()
    forcings: tuple[str, ...] = ()

    def __post_init__(self):
        if not self.dynamic:
            raise ValueError("a ChannelSet needs at least one dynamic channel")
        if self.multiple < 1:
            raise ValueError(f"channel multiple={self.multiple} must be at least 1")
        names = [*self.stored_names, *self.static, *self.forcings]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"channels named twice: {twice}")
        if unknown := sorted(set(self.forcings) - set(FORCINGS)):
            raise ValueError(f"forcings {unknown} are not known: choose among {', '.join(FORCINGS)}")
        if strange := sorted(set(self.output_only) - set(self.names)):
            raise ValueError(f"output-only channels {strange} are not among the predicted ones {list(self.names)}")
        if len(set(self.output_only)) == len(self.dynamic):
            raise ValueError("every predicted channel is output only: at least one has to be the model's input too")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the dynamic channels, in order."""
        return tuple(channel.name for channel in self.dynamic)

    @property
    def stored(self) -> tuple[Channel, ...]:
        """The channels that frames of an archive hold, the first of the `channel` dimension: dynamic and input only."""
        return self.dynamic + self.input_only

    @property
    def stored_names(self) -> tuple[str, ...]:
        """Names of the stored channels, in order."""
        return tuple(channel.name for channel in self.stored)

    @property
    def first_static(self) -> int:
        """Where the static fields begin."""
        return len(self.stored)

    @property
    def first_forcing(self) -> int:
        """Where the forcings' channels begin; a forcing may have several (FORCINGS)."""
        return self.first_static + len(self.static)

    @property
    def size(self) -> int:
        """Length of the `channel` dimension, padding included."""
        used = self.first_forcing + sum(FORCINGS[name] for name in self.forcings)
        return -(-used // self.multiple) * self.multiple

    @property
    def predicted(self) -> Bool[np.ndarray, " channel"]:
        """True where a channel is predicted, False for all that is input only, and padding."""
        return np.arange(self.size) < len(self.dynamic)

    def pad(self, values: Sequence[float] | np.ndarray, *, fill: float = 0.0) -> Float[np.ndarray, " channel"]:
        """Puts one value per dynamic channel, or one per stored channel, on the full `channel` dimension."""
        if len(values) not in (len(self.dynamic), len(self.stored)):
            raise ValueError(f"got {len(values)} values for {len(self.dynamic)} dynamic channels")
        return np.concatenate([np.asarray(values, np.float32), np.full(self.size - len(values), fill, np.float32)])

    @staticmethod
    def from_names(names: Sequence[str], static: Sequence[str] = (), multiple: int = 1, **roles) -> "ChannelSet":
        """The set of channels with these names, in the order of their roles; `roles` are from_channels'."""
        return ChannelSet.from_channels([parse_channel(name) for name in names], static, multiple, **roles)

    @staticmethod
    def from_channels(
        channels: Sequence[Channel],
        static: Sequence[str] = (),
        multiple: int = 1,
        *,
        input_only: Sequence[str] = (),
        output_only: Sequence[str] = (),
        forcings: Sequence[str] = (),
    ) -> "ChannelSet":
        """The set of these channels; names of `input_only` and `output_only` are of channels, or of whole variables."""
        given, diagnosed = (find_channels(channels, some) for some in (input_only, output_only))
        return ChannelSet(
            dynamic=tuple(channel for index, channel in enumerate(channels) if index not in given),
            static=tuple(static),
            multiple=multiple,
            input_only=tuple(channels[index] for index in given),
            output_only=tuple(channels[index].name for index in diagnosed),
            forcings=tuple(forcings),
        )


def find_channels(channels: Sequence[Channel], names: Iterable[str]) -> list[int]:
    """Positions of the channels that are meant by names of channels or of variables; ValueError for a name of none."""
    found = []
    for name in names:
        of = [index for index, channel in enumerate(channels) if name in (channel.name, channel.variable)]
        if not of:
            raise ValueError(f"{name!r} is not among the channels {[channel.name for channel in channels]}")
        found += of
    return found


def parse_channel(name: str) -> Channel:
    """The Channel of a name such as `geopotential_500` or `2m_temperature`."""
    variable, _, level = name.rpartition("_")
    if name not in VARIABLES and variable and level.isdigit():
        return Channel(variable, int(level))
    return Channel(name)


# The published set: 69 dynamic channels and 3 static fields (Jigsaw, section 4)
ERA5_SURFACE = ("mean_sea_level_pressure", "10m_u_component_of_wind", "10m_v_component_of_wind", "2m_temperature")
ERA5_UPPER = ("geopotential", "specific_humidity", "temperature", "u_component_of_wind", "v_component_of_wind")
ERA5_STATIC = ("land_sea_mask", "soil_type", "geopotential_at_surface")
ERA5 = ChannelSet.from_names(
    [*ERA5_SURFACE, *(f"{name}_{level}" for name in ERA5_UPPER for level in LEVELS_HPA)], ERA5_STATIC
)


def group_by_variable(channels: Sequence[Channel]) -> Mapping[str, list[int]]:
    """Indices of the channels of each variable, in order of first appearance."""
    groups: dict[str, list[int]] = {}
    for index, channel in enumerate(channels):
        groups.setdefault(channel.variable, []).append(index)
    return groups

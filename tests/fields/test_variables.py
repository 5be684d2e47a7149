"""Channels: names and back, the published set, padding."""

import numpy as np
import pytest

from weathermixer.fields.variables import ERA5, Channel, ChannelSet, group_by_variable, parse_channel


@pytest.mark.parametrize("channel", [Channel("2m_temperature"), Channel("geopotential", 500), Channel("my_field", 10)])
def test_names_are_read_back(channel):
    assert parse_channel(channel.name) == channel


def test_the_published_set():
    assert (len(ERA5.dynamic), ERA5.size, int(ERA5.predicted.sum())) == (69, 72, 69)
    assert ERA5.names[:5] == (
        "mean_sea_level_pressure", "10m_u_component_of_wind", "10m_v_component_of_wind", "2m_temperature",
        "geopotential_1000",
    )  # fmt: skip
    assert ERA5.names[-1] == "v_component_of_wind_50"
    assert [channel.short for channel in ERA5.dynamic[:5]] == ["msl", "u10", "v10", "t2m", "z1000"]


def test_padding_fills_up_to_the_multiple():
    channels = ChannelSet.from_names(
        ["2m_temperature", "geopotential_500", "geopotential_850"], ["land_sea_mask"], multiple=8
    )
    assert channels.size == 8
    np.testing.assert_array_equal(channels.pad([1.0, 2.0, 3.0], fill=9.0), [1, 2, 3, 9, 9, 9, 9, 9])
    assert channels.predicted.tolist() == [True] * 3 + [False] * 5
    assert group_by_variable(channels.dynamic) == {"2m_temperature": [0], "geopotential": [1, 2]}
    with pytest.raises(ValueError, match="got 2 values for 3 dynamic channels"):
        channels.pad([1.0, 2.0])


def test_sets_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="at least one dynamic channel"):
        ChannelSet(())
    with pytest.raises(ValueError, match=r"named twice: \['2m_temperature'\]"):
        ChannelSet.from_names(["2m_temperature", "2m_temperature"])
    with pytest.raises(ValueError, match="channel multiple=0"):
        ChannelSet.from_names(["2m_temperature"], multiple=0)


def test_roles_have_their_places():
    channels = ChannelSet.from_names(
        ["sea_surface_temperature", "geopotential_500", "total_precipitation_6hr", "geopotential_850"],
        ["land_sea_mask"],
        multiple=4,
        input_only=["sea_surface_temperature"],
        output_only=["total_precipitation_6hr"],
        forcings=["insolation", "time_of_day"],
    )
    assert channels.names == ("geopotential_500", "total_precipitation_6hr", "geopotential_850")
    assert channels.stored_names == (*channels.names, "sea_surface_temperature")
    assert (channels.first_static, channels.first_forcing, channels.size) == (4, 5, 8)
    assert channels.predicted.tolist() == [True] * 3 + [False] * 5
    assert channels.pad(np.arange(1, 5)).tolist() == [1, 2, 3, 4, 0, 0, 0, 0]
    # a variable's name stands for it on all its levels
    assert ChannelSet.from_names(["t_1", "q_1", "q_2"], output_only=["q"]).output_only == ("q_1", "q_2")


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        ({"input_only": ["sst"]}, r"'sst' is not among the channels \['2m_temperature', 'geopotential_500'\]"),
        ({"output_only": ["2m_temperature", "geopotential"]}, "every predicted channel is output only"),
        ({"input_only": ["geopotential"], "output_only": ["geopotential"]}, r"\['geopotential_500'\] are not among"),
        ({"input_only": ["2m_temperature", "geopotential"]}, "at least one dynamic channel"),
        ({"forcings": ["sun"]}, r"forcings \['sun'\] are not known: choose among insolation"),
        ({"forcings": ["insolation", "insolation"]}, r"named twice: \['insolation'\]"),
    ],
)
def test_roles_that_cannot_be_are_refused(roles, message):
    with pytest.raises(ValueError, match=message):
        ChannelSet.from_names(["2m_temperature", "geopotential_500"], **roles)

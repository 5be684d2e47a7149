"""Stored values to the model's input and back, equal on every mesh."""

import jax
import numpy as np
import pytest

from tests.archives import make_frames
from weathermixer.archive.archive import Statistics
from weathermixer.archive.loader import read_frames
from weathermixer.archive.reference import make_reference
from weathermixer.archive.standardization import make_input, make_standardization, standardize, to_physical
from weathermixer.fields.variables import ChannelSet
from weathermixer.parallel.mesh import make_mesh, spec, use_mesh


def channel_set(archive, multiple=4):
    return ChannelSet(archive.channels, tuple(archive.static), multiple)


@pytest.mark.parametrize("mesh_shape", [(1, 1, 1), (2, 2, 2), (1, 8, 1), (1, 2, 4)])
def test_round_trip(make_archive, mesh_shape):
    archive = make_archive()
    channels = channel_set(archive)
    assert channels.size == 8
    mesh = make_mesh(*mesh_shape)
    indices = np.array([3, 5])
    with use_mesh(mesh):
        s = make_frames(archive, channels, mesh).standardization
        standardized = jax.jit(standardize)(read_frames(archive, channels, mesh, indices), s)
        physical, seen = jax.jit(to_physical)(standardized, s), np.asarray(make_input(standardized, s))
        assert standardized.dtype == np.float32 and standardized.sharding.spec == spec("batch", "channel", "lat", "lon")
        assert s.static.sharding.spec == spec("channel", "lat", "lon")
    stored = archive.store[3:6:2].read().result().astype(np.float64)
    expected = stored * archive.scale[:, None, None] + archive.offset[:, None, None]
    np.testing.assert_allclose(np.asarray(physical)[:, :4], expected, rtol=2e-6)
    mean, std = archive.statistics.mean[:, None, None], archive.statistics.std[:, None, None]
    np.testing.assert_allclose(np.asarray(standardized)[:, :4], (expected - mean) / std, atol=2e-5)
    for index, field in enumerate(archive.static.values(), start=4):
        expected = (field - field.mean()) / field.std()
        np.testing.assert_allclose(seen[:, index], np.stack([expected] * 2), atol=1e-5)
    assert not np.asarray(standardized)[:, 4:].any() and not seen[:, 6:].any()
    np.testing.assert_allclose(np.asarray(s.tendency)[:4], archive.statistics.tendency_std / archive.statistics.std)
    assert not np.asarray(s.tendency)[4:].any()


def test_bad_channels_are_named(make_archive):
    archive = make_archive()
    with pytest.raises(ValueError, match="has no channels \\['geopotential_850'\\]; it has \\['2m_temperature'"):
        make_reference(archive, ChannelSet.from_names(["geopotential_850"]))
    with pytest.raises(ValueError, match="no static fields \\['soil_type'\\]; it has \\['land_sea_mask'"):
        make_reference(archive, ChannelSet(archive.channels, ("soil_type",)))
    broken = {name: value.copy() for name, value in vars(archive.statistics).items()}
    broken["std"][1] = 0.0
    object.__setattr__(archive, "statistics", Statistics(**broken))
    with pytest.raises(ValueError, match="channels \\['geopotential_500'\\].*constant"):
        make_reference(archive, channel_set(archive))


def test_mesh_that_does_not_divide_is_named(make_archive):
    archive = make_archive()
    with pytest.raises(ValueError, match="channels=6 is not divisible by tensor=4"):
        make_standardization(make_reference(archive, channel_set(archive, 1)), make_mesh(1, 1, 4))

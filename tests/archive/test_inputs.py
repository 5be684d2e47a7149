"""States to the model's input: what is missing, what is not shown, what time and place tell, on any mesh."""

import dataclasses

import jax
import numpy as np
import pytest

from experiments import synthetic
from tests.archives import make_archive, make_frames
from tests.fields.test_forcings import fields
from tests.tiny_training import lack_values
from weathermixer.archive.standardization import find_missing, make_input, make_standardization, place_terms
from weathermixer.fields.forcings import FORCINGS
from weathermixer.fields.variables import ChannelSet
from weathermixer.parallel.mesh import make_mesh, sharding, spec, use_mesh
from weathermixer.runs.settings import make_settings

GRID = (16, 32)
CHANNELS = ChannelSet.from_names(
    ["2m_temperature", "sea_surface_temperature", "total_precipitation_6hr", "sea_ice_cover"],
    ["land_sea_mask"],
    multiple=8,
    input_only=["sea_ice_cover"],
    output_only=["total_precipitation_6hr"],
    forcings=list(FORCINGS),
)
MISSING = ("sea_surface_temperature", "sea_ice_cover")
REFERENCE = lack_values(synthetic.make_reference(CHANNELS, GRID), MISSING)
TIMES = np.datetime64("2001-06-30T18", "ns") + np.arange(2) * np.timedelta64(18, "h")


def make_state(mesh):
    """Standard normal fields without values on a third of the points of MISSING."""
    settings = make_settings({"training": {"batch_size": 2}})
    values = np.array(synthetic.Problem(settings, REFERENCE, mesh, None).make_batch(0).inputs, np.float32)
    return jax.device_put(values, sharding(mesh, "batch", "channel", "lat", "lon")), values


@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 2, 2), (1, 1, 8), (1, 8, 1)])
def test_every_channel_gets_what_its_role_asks_for(sizes):
    mesh = make_mesh(*sizes)
    with use_mesh(mesh):
        s = make_standardization(REFERENCE, mesh)
        s = dataclasses.replace(s, fill=s.fill + 0.5)
        state, values = make_state(mesh)
        x = jax.jit(make_input)(state, s, place_terms(CHANNELS, TIMES, mesh, step_hours=6))
        missing = jax.jit(find_missing)(state, s)
        assert x.sharding.spec == spec("batch", "channel", "lat", "lon")
    x, lost = np.asarray(x), np.isnan(values)
    # temperatures, precipitation (not shown), sea ice (input only), land, forcings, padding
    np.testing.assert_array_equal(x[:, 0], values[:, 0])
    np.testing.assert_array_equal(x[:, 1], np.where(lost[:, 1], 0.5, values[:, 1]))
    assert not x[:, 2].any() and values[:, 2].any()
    np.testing.assert_array_equal(x[:, 3], np.where(lost[:, 3], 0.5, values[:, 3]))
    np.testing.assert_array_equal(x[:, 4], np.broadcast_to(np.asarray(s.static)[4], x[:, 4].shape))
    expected = fields(list(FORCINGS), TIMES, synthetic.make_grid(*GRID))
    np.testing.assert_allclose(x[:, 5 : 5 + expected.shape[1]], expected, atol=2e-6)
    assert not x[:, 5 + expected.shape[1] :].any() and x.shape[1] == 24
    np.testing.assert_array_equal(missing, lost)
    assert lost[:, 1].any() and not lost[:, 0].any()


@pytest.mark.parametrize("missing", [(), MISSING])
def test_what_no_statistics_know_of_is_named(tmp_path, missing):
    mesh, names = make_mesh(1, 2, 2), np.array(CHANNELS.stored_names)
    values = np.random.default_rng(0).standard_normal((2, len(names), *GRID)).astype(np.float32)
    values[:, np.isin(names, MISSING), ::3] = np.nan
    values[1, 0, 3, 4] = np.nan if missing else 0
    counts = np.isnan(values).sum((0, 2, 3)) * np.isin(names, missing)
    land = {"land_sea_mask": np.eye(*GRID, dtype=np.float32)}
    archive = make_archive(
        tmp_path / "a", values, times=TIMES, channel_set=CHANNELS, static=land, missing=counts.astype(np.int64)
    )
    with use_mesh(mesh):
        frames = make_frames(archive, CHANNELS, mesh)
        if missing:
            frames.read(np.array([0]))
        named = (
            "2m_temperature at 2001-07-01T12:00 has 1" if missing else "sea_surface_temperature at 2001-06-30T18:00 has"
        )
        with pytest.raises(ValueError, match=f"a: {named}.*of 512 values .*missing.* --exclude=2001"):
            frames.read(np.array([0, 1]))


def test_a_set_without_forcings_has_no_terms():
    assert place_terms(ChannelSet.from_names(["2m_temperature"]), TIMES, make_mesh(1, 1, 1), step_hours=6) is None

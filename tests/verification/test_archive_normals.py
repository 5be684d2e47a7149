"""An archive's climatology at the times of a batch equals what xarray finds in it, on any mesh."""

import numpy as np
import pytest
import xarray as xr

from tests.sources.written_sources import make_dataset
from weathermixer.archive.archive import open_archive
from weathermixer.archive.reference import make_reference
from weathermixer.fields.variables import ChannelSet
from weathermixer.parallel.mesh import make_mesh, use_mesh
from weathermixer.prepare.prepare import prepare_archive
from weathermixer.sources.sources import open_source
from weathermixer.verification.climatologies import open_normals

# any order and not all that the archive has; a static field and two channels of padding
CHANNELS = ChannelSet.from_names(
    ["temperature_850", "2m_temperature", "geopotential_500", "temperature_500", "geopotential_850"],
    ["land_sea_mask"],
    multiple=8,
)


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    times = np.arange(np.datetime64("2019-01-01T00", "ns"), np.datetime64("2020-07-01", "ns"), np.timedelta64(12, "h"))
    source = open_source(make_dataset(times=times, lat=4, lon=6, levels=(500, 850)), step_hours=12)
    path = tmp_path_factory.mktemp("data") / "a"
    return prepare_archive(source, path, climatology=True, statistics_period=("2019", "2020-06"))


@pytest.mark.parametrize("mesh_shape", [(1, 1, 1), (2, 2, 2), (1, 4, 2), (4, 1, 2)])
def test_it_is_what_the_archive_holds(archive, mesh_shape):
    times = np.array(["2019-01-01T00", "2020-02-29T12", "2020-12-31T12", "2031-07-04T00"], "datetime64[ns]")
    normals = open_normals(archive, make_reference(archive, CHANNELS), mesh := make_mesh(*mesh_shape))
    with use_mesh(mesh):
        fields = normals.at(times)
    assert fields.shape == (4, 8, 4, 6) and fields.dtype == np.float32
    values = np.asarray(fields)
    np.testing.assert_array_equal(values[:, 5:], 0)
    chosen = archive.channel_indices(CHANNELS.names)
    mean, std = archive.statistics.mean[chosen], archive.statistics.std[chosen]
    with xr.open_zarr(archive.path, group="climatology", chunks=None) as group:
        for row, (hour, day) in enumerate([(0, 1), (12, 60), (12, 366), (0, 185)]):
            for n, channel in enumerate(CHANNELS.dynamic):
                exact = group[channel.variable].sel(hour=hour, dayofyear=day)
                exact = exact if channel.level_hpa is None else exact.sel(level=channel.level_hpa)
                np.testing.assert_allclose(values[row, n], (exact.values - mean[n]) / std[n], rtol=1e-5, atol=1e-5)


def test_it_knows_which_times_it_is_the_mean_of(archive):
    normals = open_normals(archive, make_reference(archive, CHANNELS), make_mesh(1, 1, 1))
    assert normals.description.startswith("the archive's of 2019 to 2020-06, by hour")
    assert normals.period == ("2019", "2020-06")
    with pytest.raises(ValueError, match=r"climatology of .* has nothing for 2020-01-01T06: its hours are \[0, 12\]"):
        normals.at(np.array(["2020-01-01T06"], "datetime64[ns]"))


def test_an_archive_without_one(make_archive):
    archive = make_archive()
    reference = make_reference(archive, ChannelSet(archive.channels))
    assert open_normals(open_archive(archive.path), reference, make_mesh(1, 1, 1)) is None

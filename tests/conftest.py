"""Every test runs on eight simulated CPU devices, with shapes and types of `weathermixer`'s functions checked."""

import gc
import os
import sys
import urllib.request

# compiling is most of what tests do: code that is not optimized compiles in less than half the time
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0"

import jax
import numpy as np
import pytest
from jaxtyping import install_import_hook

# containers often forbid bytecode files: every worker, and every process that a test starts, would compile the sources
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

# jaxtyping signatures are checked at run time in the tests alone; must come before the first import of the package
install_import_hook("weathermixer", "beartype.beartype")


# a file's tests are one worker's, and for the last file the other workers wait
LONGEST = ("test_examples.py", "test_train.py", "test_run.py", "test_readme.py", "test_parity.py", "test_lowering.py")


def pytest_collection_modifyitems(items):
    """The longest files first; what was imported for all of them is left out of every later search for garbage."""
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


@pytest.fixture(autouse=True, scope="session")
def compiled_once(tmp_path_factory):
    """A program that several tests compile, or several workers, is compiled once."""
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    jax.config.update("jax_compilation_cache_dir", str(folder / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture(autouse=True)
def no_mesh_left_over():
    """A test that sets a mesh must not change what the next one sees."""
    before = jax.sharding.get_mesh() if hasattr(jax.sharding, "get_mesh") else None
    yield
    if before is not None:
        assert jax.sharding.get_mesh() == before, "this test left a mesh set: use `with use_mesh(mesh):`"


@pytest.fixture
def make_archive(tmp_path):
    """Makes a small published archive of smooth made-up weather: make_archive(times=..., shape=(lat, lon), ...)."""
    from weathermixer.archive import archive as archives
    from weathermixer.archive.layout import Layout
    from weathermixer.fields.grid import Grid
    from weathermixer.fields.variables import ChannelSet
    from weathermixer.prepare import writer

    def make(
        path=None,
        *,
        names=("2m_temperature", "geopotential_500", "temperature_850", "u_component_of_wind_850"),
        static=("land_sea_mask", "geopotential_at_surface"),
        times=16,
        missing=(),
        shape=(8, 16),
        seed=0,
        times_per_shard=4,
        **options,
    ):
        rng = np.random.default_rng(seed)
        lat, lon = shape
        grid = Grid(90 - (np.arange(lat) + 0.5) * 180 / lat, np.arange(lon) * 360 / lon)
        when = np.datetime64("2000-01-01T00", "ns") + np.arange(times) * np.timedelta64(6, "h")
        when = np.delete(when, list(missing))
        size = (len(when), len(names), lat, lon)
        wave = np.sin(0.3 * np.arange(len(when))[:, None, None, None] + np.arange(lon) * 2 * np.pi / lon)
        standardized = (wave + 0.3 * rng.standard_normal(size)).astype(np.float32)
        mean, std = np.linspace(200, 900, len(names)), np.linspace(5, 50, len(names))
        fields = {name: rng.random(shape).astype(np.float32) for name in static}
        path = str(path or tmp_path / f"archive{seed}")
        store = writer.create_archive(
            path, times=when, grid=grid, channels=ChannelSet.from_names(names).dynamic, static=fields, scale=std,
            offset=mean, attributes={"step_hours": 6},
            layout=Layout(shape=size, static=len(fields), times_per_shard=times_per_shard, **options),
        )  # fmt: skip
        values = standardized if store.dtype.numpy_dtype.kind == "f" else np.round(standardized)
        store.write(values.astype(store.dtype.numpy_dtype)).result()
        physical = standardized * std[:, None, None] + mean[:, None, None]
        tendency = np.diff(physical, axis=0).std(axis=(0, 2, 3))
        moments = dict(mean=physical.mean(axis=(0, 2, 3)), std=physical.std(axis=(0, 2, 3)), tendency_std=tendency)
        extent = dict(minimum=physical.min(axis=(0, 2, 3)), maximum=physical.max(axis=(0, 2, 3)))
        writer.write_statistics(path, archives.Statistics(**moments, **extent, missing=np.zeros(len(names), np.int64)))
        writer.publish(path)
        return archives.open_archive(path)

    return make


@pytest.fixture(scope="session")
def s3_server():
    """The address of an S3 server in this process (moto's), that lives as long as the tests."""
    server_module = pytest.importorskip("moto.server", reason="no moto: pip install 'weathermixer[test]'")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_bucket(s3_server, monkeypatch):
    """An empty bucket, s3://NAME, with the environment set so that every S3 client finds the server."""
    for name, value in {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    urllib.request.urlopen(urllib.request.Request(f"{s3_server}/moto-api/reset", method="POST")).close()
    urllib.request.urlopen(urllib.request.Request(f"{s3_server}/weather", method="PUT")).close()
    return "s3://weather"

"""Paths become the right stores; remote ones are waited for, asked again, and named when they fail for good."""

import logging
import os
import pathlib
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorstore as ts

from tests.servers import serve
from weathermixer.archive import reader, storage
from weathermixer.archive.archive import open_archive
from weathermixer.archive.layout import Layout
from weathermixer.archive.loader import Batches, read_frames
from weathermixer.archive.storage import kvstore_spec
from weathermixer.fields.variables import ChannelSet
from weathermixer.parallel.mesh import make_mesh
from weathermixer.prepare.writer import create_archive
from weathermixer.sources.sources import open_source

QUICK = {"http_request_retries": {"max_retries": 3, "initial_delay": "10ms", "max_delay": "20ms"}}
S3 = ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_NO_SIGN_REQUEST")


@pytest.fixture(autouse=True)
def no_cloud_settings(monkeypatch):
    for name in S3:
        monkeypatch.delenv(name, raising=False)


def test_specs(monkeypatch, tmp_path):
    assert kvstore_spec("gs://weatherbench2/a/b.zarr") == {
        "driver": "gcs",
        "bucket": "weatherbench2",
        "path": "a/b.zarr/",
    }
    assert kvstore_spec("gs://bucket") == {"driver": "gcs", "bucket": "bucket"}
    assert kvstore_spec("s3://bucket/a/") == {"driver": "s3", "bucket": "bucket", "path": "a/"}
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://localhost:9000")
    monkeypatch.setenv("AWS_NO_SIGN_REQUEST", "YES")
    assert kvstore_spec("s3://bucket/a") == {
        "driver": "s3",
        "bucket": "bucket",
        "path": "a/",
        "aws_region": "eu-central-1",
        "endpoint": "http://localhost:9000",
        "aws_credentials": {"type": "anonymous"},
    }
    assert kvstore_spec("https://x.org/a/b") == {"driver": "http", "base_url": "https://x.org", "path": "/a/b/"}
    assert kvstore_spec("file:///a/b") == kvstore_spec("/a/b/") == {"driver": "file", "path": "/a/b/"}
    monkeypatch.chdir(tmp_path)
    assert kvstore_spec("b") == kvstore_spec(pathlib.Path("b")) == {"driver": "file", "path": f"{tmp_path}/b/"}
    # TensorStore takes them: a spec is checked when it is parsed
    for path in ("gs://bucket/a", "s3://bucket/a", "https://x.org/a", "a"):
        assert ts.KvStore.Spec(kvstore_spec(path)).path.endswith("a/")


@pytest.mark.parametrize(
    ("path", "message"),
    [("ftp://x/y", "'ftp://x/y': .*scheme"), ("s3:///y", "Invalid S3 bucket name"), ("gs://", "s3://bucket/path")],
)
def test_bad_paths_are_named(path, message):
    with pytest.raises(ValueError, match=message):
        kvstore_spec(path)


def steps(archive, last_step=3, **options):
    return Batches(
        archive, ChannelSet(archive.channels), make_mesh(1, 2, 1), starts=np.arange(8), seed=0, batch_size=1,
        lead_hours=6, first_step=0, last_step=last_step, **options,
    )  # fmt: skip


def targets(batches):
    return [np.asarray(batch.targets) for batch in batches]


@pytest.fixture
def quick_retries(monkeypatch):
    monkeypatch.setattr(storage, "kvstore_spec", lambda path: kvstore_spec(path) | {"context": QUICK})


@pytest.mark.usefixtures("quick_retries")
def test_a_store_that_fails_now_and_then_is_asked_again(make_archive):
    local = make_archive()
    with steps(local) as batches:
        expected = targets(batches)

    def mood(path, times):
        # no request is unlucky more often than it is sent again
        return (503, 429, 500)[times - 1] if times <= 3 and ("/fields/c/" in path or "zarr.json" in path) else None

    with serve(pathlib.Path(local.path).parent, mood) as (url, asked):
        archive = open_archive(f"{url}/archive0")
        with steps(archive) as batches:
            np.testing.assert_array_equal(targets(batches), expected)
    assert len(asked) > 40


@pytest.mark.usefixtures("quick_retries")
def test_a_store_that_fails_for_good_is_named(make_archive):
    local = make_archive()
    with serve(pathlib.Path(local.path).parent, lambda path, times: 503 if "/fields/c/" in path else None) as (
        url,
        asked,
    ):
        archive = open_archive(f"{url}/archive0")
        with (
            pytest.raises(ValueError, match=r"archive0: cannot read time 2000-01-0\dT\d\d:00, channels 2m_t.*code 503"),
            steps(archive) as batches,
        ):
            next(batches)
        assert max(asked.count(path) for path in asked if "/fields/c/" in path) >= 4


def test_a_slow_store_is_named(make_archive, monkeypatch, caplog):
    local = make_archive()
    monkeypatch.setattr(reader, "SLOW_SECONDS", 0.1)
    with serve(pathlib.Path(local.path).parent, lambda path, times: 0.4 if "/fields/c/" in path else None) as (url, _):
        archive = open_archive(f"{url}/archive0")
        with caplog.at_level(logging.WARNING, reader.__name__), steps(archive, last_step=1) as batches:
            next(batches)
        assert f"{socket.gethostname()}: {url}/archive0: cannot read time 2000-01-0" in caplog.text
        assert " yet, after " in caplog.text


def test_closing_does_not_wait_for_a_store_that_hangs(make_archive):
    local = make_archive()
    with serve(pathlib.Path(local.path).parent, lambda path, times: 60.0 if "/fields/c/" in path else None) as (url, _):
        batches = steps(open_archive(f"{url}/archive0"))
        before = time.perf_counter()
        batches.close()
        assert time.perf_counter() - before < 10


STALL = """
import sys, numpy as np, jax
jax.config.update("jax_platforms", "cpu")
from weathermixer.archive.archive import open_archive
from weathermixer.archive.loader import read_frames
from weathermixer.parallel.mesh import make_mesh
from weathermixer.fields.variables import ChannelSet
from weathermixer.sources.sources import open_source
archive = open_archive(sys.argv[1])
frames = read_frames(archive, ChannelSet(archive.channels), make_mesh(1, 1, 1), np.array([2]))
print(float(np.asarray(frames).astype("float64").sum()))
"""


def test_a_stalled_request_is_sent_again(make_archive):
    local = make_archive()
    stalled = lambda path, times: 300.0 if "/fields/c/" in path and times == 1 else None  # noqa: E731
    with serve(pathlib.Path(local.path).parent, stalled) as (url, _):
        root = str(pathlib.Path(__file__).parents[2])
        found = subprocess.run(
            [sys.executable, "-c", STALL, f"{url}/archive0"], capture_output=True, text=True, timeout=100, check=True,
            env=os.environ | {"PYTHONPATH": root, "TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS": "1"},
        )  # fmt: skip
    assert float(found.stdout) == local.store[2].read().result().astype(np.float64).sum()


def test_an_archive_in_object_storage(make_archive, s3_bucket):
    path = f"{s3_bucket}/archives/one"
    local = make_archive(domain=2)
    create = dict(
        times=local.times, grid=local.grid, channels=local.channels, static={}, scale=np.ones(4), offset=np.ones(4),
        layout=Layout(shape=(16, 4, 8, 16), static=0, times_per_shard=4), attributes={"step_hours": 6},
    )  # fmt: skip
    create_archive(path, **create)
    with pytest.raises(ValueError, match="is incomplete"):
        open_archive(path)
    remote = make_archive(f"{s3_bucket}/archives/two", domain=2)
    assert remote.attributes["complete"] and list(remote.static) == list(local.static)
    np.testing.assert_array_equal(remote.times, local.times)
    with pytest.raises(ValueError, match="exists: delete it"):
        create_archive(remote.path, **create)
    with steps(local) as expected, steps(remote) as batches:
        np.testing.assert_array_equal(targets(batches), targets(expected))
        account = batches.account()
    assert account.bytes_read > 0 and account.bytes_needed == 2 * 3 * remote.store[0].size * 2
    frames = read_frames(remote, ChannelSet(remote.channels), make_mesh(2, 1, 1), np.array([0, 9]))
    np.testing.assert_array_equal(np.asarray(frames), local.store.read().result()[[0, 9]])


@pytest.mark.parametrize("path", ["s3://me:hidden@bucket/a", "https://host/a?X-Amz-Signature=hidden"])
def test_an_address_with_a_secret_is_refused_without_showing_it(path):
    with pytest.raises(ValueError, match=r"(bucket|host)/a was given with a user, password or token") as refused:
        kvstore_spec(path)
    assert "hidden" not in str(refused.value)
    with pytest.raises(ValueError, match="leave them out"):
        open_source(path)

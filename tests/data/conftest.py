"""An object store on this machine: tests of s3:// addresses speak the protocol to a server that they start."""

import urllib.request

import pytest


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

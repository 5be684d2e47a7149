"""One trained run for all tests of this room that only read it, or change a copy."""

import pytest

from experiments import train
from tests.runs.test_run import CONSTANT, prepare, settings, weather


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """(workdir, archive) of a run of two steps at a constant rate, both saved, with a moving average."""
    folder = tmp_path_factory.mktemp("whole")
    archive = prepare(weather(), folder / "archive").path
    train.train(settings(**CONSTANT), folder / "run", archive)
    return folder / "run", archive

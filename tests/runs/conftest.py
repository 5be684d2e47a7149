"""One trained run for all tests of this room that only read it, or change a copy."""

import pytest

from experiments import train
from tests.experiments.test_train import make_run_settings
from tests.runs.test_run import CHANNELS, prepare, weather

CONSTANT = dict(optimizer__schedule="constant", training__checkpoint_every=1, training__log_every=1)


def settings(**changes):
    """Of a run of two steps on four channels."""
    given = {"data__channels": CHANNELS, "training__steps": 2, "evaluation__every": 0, "model__head": "blend"}
    return make_run_settings(**given | changes)


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """(workdir, archive) of a run of two steps at a constant rate, both saved, with a moving average."""
    folder = tmp_path_factory.mktemp("whole")
    archive = prepare(weather(), folder / "archive").path
    train.train(settings(**CONSTANT), folder / "run", archive)
    return folder / "run", archive

"""Where a run's numbers go beside metrics.jsonl: TensorBoard; Weights & Biases and MLflow where a run asks for them.

Servers, keys and modes are told to those packages as they want it (WANDB_MODE=offline, MLFLOW_TRACKING_URI, ...) and
never to a run, which so keeps no secret. A run that is resumed goes on as the same one there.
"""

import importlib.util
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

TENSORBOARD_DIRECTORY = "tensorboard"
PROJECT = "weathermixer"


class Tracker(Protocol):
    """Takes the numbers of a step by their names; closed at the end."""

    def write(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Events in WORKDIR/tensorboard; those after `first_step` of an earlier start are purged."""

    def __init__(self, workdir: Path, first_step: int):
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(workdir / TENSORBOARD_DIRECTORY), purge_step=first_step + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of the project weathermixer; of steps that are computed twice it keeps the first numbers."""

    def __init__(self, workdir: Path, identity: str, settings: Mapping[str, Any]):
        import wandb

        # without git, program, command line and machine: what a run is, its settings say
        quiet = wandb.Settings(disable_git=True, disable_code=True, x_disable_meta=True, console="off", silent=True)
        about = dict(project=PROJECT, name=workdir.name, id=identity, dir=workdir, config=dict(settings))
        self._run = wandb.init(resume="allow", settings=quiet, **about)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """A run of the experiment weathermixer, found again by its tag of the same name."""

    def __init__(self, workdir: Path, identity: str, settings: Mapping[str, Any]):
        import mlflow

        self._client = client = mlflow.MlflowClient()
        experiment = client.get_experiment_by_name(PROJECT)
        number = experiment.experiment_id if experiment else client.create_experiment(PROJECT)
        found = client.search_runs([number], f"tags.{PROJECT} = '{identity}'")
        run = found[0] if found else client.create_run(number, tags={PROJECT: identity}, run_name=workdir.name)
        self._run = run.info.run_id
        parameters = [mlflow.entities.Param(name, str(value)) for name, value in settings.items()]
        client.log_batch(self._run, params=[] if found else parameters)
        self._metric, self._sent = mlflow.entities.Metric, None

    def write(self, step: int, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1e3)
        metrics = [self._metric(name, value, now, step) for name, value in values.items()]
        self._sent = self._client.log_batch(self._run, metrics=metrics, synchronous=False)  # by a thread of its own

    def close(self) -> None:
        if self._sent:
            self._sent.wait()
        self._client.set_terminated(self._run)


TRACKERS = {"wandb": WeightsAndBiases, "mlflow": MLflow}


def check_trackers(names: Sequence[str]) -> None:
    """ValueError for one of `TRACKERS` whose package is not there."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ValueError(
                f"config.training.trackers names {name!r}, which is missing: pip install 'weathermixer[trackers]'"
            )

"""Weights & Biases and MLflow, their own packages, offline: what they keep is what the log says, and no secret."""

import os
import pathlib
import struct
import time

import jax.numpy as jnp
import pytest
from tensorboardX import SummaryWriter

from weathermixer.training import trackers
from weathermixer.training.phases import Phases
from weathermixer.training.telemetry import RunLog, read_records

SECRET = "a-key-that-nobody-should-keep"
SETTINGS = {"seed": 1, "model.patch": (2, 4)}


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    variables = {"WANDB_MODE": "offline", "WANDB_API_KEY": SECRET + "0" * 20, "MLFLOW_ALLOW_FILE_STORE": "true"}
    for name, value in (variables | {"AWS_SECRET_ACCESS_KEY": SECRET}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())


def run(workdir, name, first_step=0, last_step=5):
    options = dict(first_step=first_step, last_step=last_step, every=2, batch_size=4)
    with RunLog(workdir, Phases(), **options, trackers=(name,), settings=SETTINGS) as log:
        log.begin_stage(flops_per_step=1e9)
        for step in range(first_step + 1, last_step + 1):
            log.step(step, {"loss": jnp.float32(1 / step)})


def kept_by_wandb(workdir):
    """(settings, {step: loss}) of a run's offline files, in the order of its starts."""
    from wandb.proto import wandb_internal_pb2  # here, as mlflow: a second to import, which every worker would take

    settings, losses = {}, {}
    for path in sorted(workdir.glob("wandb/offline-run-*/run-*.wandb")):
        data, at = path.read_bytes(), 7  # LevelDB's log format after a header: checksum, length and kind of each record
        while at < len(data):
            _, length, kind = struct.unpack_from("<IHB", data, at)
            assert kind == 1, "a whole record: these files are smaller than a block"
            record = wandb_internal_pb2.Record.FromString(data[at + 7 : at + 7 + length])
            at += 7 + length
            settings |= {item.key: item.value_json for item in record.run.config.update}
            items = {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
            if "loss" in items:
                losses[record.history.step.num] = float(items["loss"])
    return settings, losses


def kept_by_mlflow(workdir):
    import mlflow

    (experiment,) = [found for found in mlflow.search_experiments() if found.name == trackers.PROJECT]
    (found,) = mlflow.search_runs([experiment.experiment_id], output_format="list")
    history = mlflow.MlflowClient().get_metric_history(found.info.run_id, "loss")
    assert found.info.status == "FINISHED"
    assert found.info.run_name == workdir.name
    return found.data.params, {metric.step: metric.value for metric in history}


@pytest.mark.parametrize(("name", "kept"), [("wandb", kept_by_wandb), ("mlflow", kept_by_mlflow)])
def test_a_resumed_run_is_one_run_with_the_logs_numbers_and_the_last(name, kept, tmp_path):
    run(tmp_path / "run", name)
    run(tmp_path / "run", name, first_step=5, last_step=8)
    until = time.monotonic() + 20
    while len(kept(tmp_path / "run")[1]) < 5 and time.monotonic() < until:  # wandb's own process writes its files
        time.sleep(0.1)
    settings, losses = kept(tmp_path / "run")
    records = [record for record in read_records(tmp_path / "run" / "metrics.jsonl") if "loss" in record]
    assert losses == pytest.approx({record["step"]: record["loss"] for record in records})
    assert sorted(losses) == [2, 4, 5, 6, 8]
    assert settings == {"seed": "1", "model.patch": "[2,4]" if name == "wandb" else "(2, 4)"} | settings
    files = [path.read_bytes() for path in pathlib.Path(tmp_path).rglob("*") if path.is_file()]
    assert files
    assert not [content for content in files if SECRET.encode() in content]
    assert not [content for content in files if os.environ["PATH"].encode() in content]


@pytest.mark.parametrize("where", ["add_scalar", "close"])
def test_a_tracker_that_fails_is_left_out_with_a_line_and_the_run_goes_on(where, tmp_path, monkeypatch):
    def fail(*_):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(SummaryWriter, where, fail)
    with RunLog(tmp_path, Phases(), first_step=0, last_step=4, every=1, batch_size=4) as log:
        log.begin_stage(flops_per_step=1e9)
        for step in range(1, 5):
            log.step(step, {"loss": jnp.float32(1)})
    assert (tmp_path / "log.txt").read_text().count("TensorBoard takes no more numbers of this start: no route") == 1
    assert [record["step"] for record in read_records(tmp_path / "metrics.jsonl")] == [0, 1, 2, 3, 4]


def test_a_package_that_is_missing_is_named_with_what_to_install(monkeypatch):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"names 'mlflow', which is missing: pip install 'weathermixer\[trackers\]'"):
        trackers.check_trackers(("mlflow",))
    trackers.check_trackers(())

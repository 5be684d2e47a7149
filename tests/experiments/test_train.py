"""A run from config to checkpoint: stopped, resumed, on other meshes, on bad input, and when values are not finite."""

import dataclasses
import json
import pathlib
import re
import shutil

import jax
import numpy as np
import pytest

from experiments import train
from experiments.configs import base
from tests.archives import make_archive, make_frames
from tests.tiny_training import quick_compilation
from weathermixer.archive.archive import open_archive
from weathermixer.fields.variables import ChannelSet
from weathermixer.parallel import distributed
from weathermixer.parallel.mesh import make_mesh, use_mesh
from weathermixer.runs import run as runs
from weathermixer.runs.samples import Samples
from weathermixer.runs.settings import make_settings
from weathermixer.runs.workdir import Record
from weathermixer.training.checkpoint import saved_steps
from weathermixer.training.telemetry import read_records
from weathermixer.verification.evaluation import evaluate

STEPS = 6
CUT = dict(mesh__domain=2, mesh__tensor=2, model__head="blend")
LOOKS = dict(evaluation__validation_lead_hours=(6, 12))
TWELVE = dict(training__steps=12, evaluation__every=0)  # of two tests that so compile one program
CHANNELS = ChannelSet.from_names(
    ["2m_temperature", "geopotential_500", "geopotential_850", "temperature_500", "temperature_850"], ["land_sea_mask"]
)
TIMES = np.datetime64("2000-01-01T00", "ns") + np.arange(40) * np.timedelta64(6, "h")


@pytest.fixture(autouse=True, scope="module")
def compiled_quickly():
    with quick_compilation():
        yield


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("data") / "weather")
    rng = np.random.default_rng(0)
    fields = rng.standard_normal((40, len(CHANNELS.dynamic), 8, 16)).cumsum(axis=0).astype(np.float32)
    static = {"land_sea_mask": rng.random((8, 16)).astype(np.float32)}
    make_archive(path, fields, times=TIMES, channel_set=CHANNELS, static=static, dtype="float16")
    return path


def make_run_settings(**changes):
    """A run of a few seconds; changes are dotted fields with __ for the dot."""
    config = base.get_config()
    for period, dates in {
        "train": ("2000-01-01", "2000-01-07"),
        "validation": ("2000-01-08", "2000-01-09"),
        "test": ("2000-01-08", "2000-01-10"),
    }.items():
        config.data[period] = dates
    config.data.channel_multiple = 8
    config.mesh.data = 1
    config.model.update(patch=(1, 4), embed=16, token_hidden=16, embed_hidden=16, blocks=1, dropout_rate=0.1)
    config.model.head = "increment"  # which compiles faster
    config.training.update(batch_size=4, steps=STEPS, ema_decay=0.9, log_every=2, checkpoint_every=3)
    config.evaluation.update(every=4, batches=1, batch_size=4, lead_hours=(6, 24))
    for name, value in changes.items():
        config.update_from_flattened_dict({name.replace("__", "."): value})
    return make_settings(config.to_dict())


def records(workdir):
    """Those of steps."""
    return [record for record in read_records(workdir / "metrics.jsonl") if "seconds" not in record]


@pytest.fixture(scope="module")
def undisturbed(archive, tmp_path_factory):
    """(workdir, final parameters) of a run that nobody stopped, on domain x tensor = 2 x 2."""
    workdir = tmp_path_factory.mktemp("undisturbed")
    run = train.train(make_run_settings(**CUT, **LOOKS), workdir, archive)
    return workdir, jax.tree.map(np.asarray, run.params)


def test_a_run_leaves_its_config_log_records_and_checkpoints(undisturbed, archive):
    workdir, _ = undisturbed
    losses = [record["loss"] for record in records(workdir) if "loss" in record]
    assert len(losses) == STEPS // 2
    assert [record["step"] for record in records(workdir) if "validation_loss" in record] == [4, STEPS]
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()) == ["3", "6"]
    log = (workdir / "log.txt").read_text()
    assert "parameters" in log
    assert "of fair share" in log
    values = json.loads(json.dumps(make_run_settings(**CUT, **LOOKS).values()))
    kept = json.loads((workdir / "config.json").read_text())
    assert values | {"archive": archive, "crc32c": kept["crc32c"]} == kept
    record = json.loads((workdir / "run.json").read_text())
    assert [c["variable"] for c in record["channels"]] == [c.variable for c in CHANNELS.dynamic]
    assert record["archive"]["path"] == archive and record["step_hours"] == 6 and record["software"]["jax"]


def test_looks_at_the_validation_period_have_the_rmse_by_channel_and_what_it_cost(undisturbed, archive):
    """Over the mesh of the run the same as of its last parameters on one device; in TensorBoard, too."""
    workdir, params = undisturbed
    looks = [record for record in records(workdir) if "validation_loss" in record]
    assert all(look["scores_seconds"] > 0 for look in looks) and looks[0]["rmse_6h/z500"] != looks[1]["rmse_6h/z500"]
    log = (workdir / "log.txt").read_text()
    assert "scores_seconds" in log and "rmse" not in log  # channels are many
    run = runs.open_run(workdir, mesh=make_mesh(1, 1, 1))
    own, tree = jax.tree.flatten(run.params)
    last = [jax.device_put(x, there.sharding) for x, there in zip(jax.tree.leaves(params), own)]
    run = dataclasses.replace(run, params=tree.unflatten(last))
    frames, starts = run.open_frames(archive), np.array([28, 30, 32, 34])  # of the 7 pairs of the period, evenly
    model = run.forecaster(frames, lead_hours=(6, 12), mode="autoregressive", starts=starts)
    options = dict(starts=starts, lead_hours=(6, 12), batch_size=1, climatology=None, until=TIMES[35])
    rmse = evaluate({"model": model}, frames, **options).rmse.sel(source="model")
    for lead in (6, 12):
        for channel in CHANNELS.dynamic:
            expected = rmse.sel(lead_hours=lead, channel=channel.name)
            np.testing.assert_allclose(looks[1][f"rmse_{lead}h/{channel.short}"], expected, rtol=1e-4)
    events = b"".join(path.read_bytes() for path in (workdir / "tensorboard").iterdir())
    assert b"rmse_12h/t850" in events


def test_leads_of_looks_that_cannot_be_are_refused_before_the_run(archive, tmp_path):
    data = r" in config.data.validation: lead_hours=\[96\]: no start"
    for hours, why in (((7,), r"=\[7\]: .*multiples of 6"), ((96,), data)):
        settings = make_run_settings(**CUT, evaluation__validation_lead_hours=hours)
        with pytest.raises(ValueError, match=f"config.evaluation.validation_lead_hours{why}"):
            train.train(settings, tmp_path / "run", archive)
    assert not (tmp_path / "run" / "config.json").exists()


def test_stopped_and_resumed_is_bit_equal(undisturbed, archive, tmp_path, monkeypatch):
    """SIGTERM after step 4: data order, dropout, moments, moving average and learning rate all go on."""
    settings = make_run_settings(**CUT)
    monkeypatch.setattr(distributed, "preempted", lambda step: step == 4)
    with pytest.raises(SystemExit) as stopped:
        train.train(settings, tmp_path, archive)
    assert stopped.value.code == distributed.PREEMPTED
    monkeypatch.undo()
    run = train.train(settings, tmp_path, archive)
    jax.tree.map(np.testing.assert_array_equal, run.params, undisturbed[1])
    losses = [
        [(record["step"], record["loss"]) for record in records(path) if "loss" in record]
        for path in (tmp_path, undisturbed[0])
    ]
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_a_rollout_that_grows_is_resumed_in_its_middle_bit_for_bit(archive, tmp_path):
    """From step 4, as if what came after it was lost: in the middle of the second of two stages."""
    stages = dict(training__rollout=(1, 2), training__rollout_from=(0, 3), training__checkpoint_every=4)
    settings = make_run_settings(**stages, evaluation__every=0)
    whole = train.train(settings, tmp_path / "whole", archive)
    shutil.copytree(tmp_path / "whole", tmp_path / "lost")
    shutil.rmtree(tmp_path / "lost" / "checkpoints" / "6")
    run = train.train(settings, tmp_path / "lost", archive)
    jax.tree.map(np.testing.assert_array_equal, run.params, whole.params)
    log = (tmp_path / "lost" / "log.txt").read_text()
    assert "steps 0 to 3: forecasts of 1 x 6 h" in log and "steps 3 to 6: forecasts of 2 x 6 h" in log
    assert "steps 4 to 6: forecasts of 2 x 6 h" in log


@pytest.mark.slow
@pytest.mark.parametrize("zero", ["none", "parameters"])
def test_a_run_resumes_on_another_mesh_and_its_losses_agree(zero, undisturbed, archive, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed[0], workdir)
    shutil.rmtree(workdir / "checkpoints" / "6")
    changed = dict(mesh__domain=4, mesh__tensor=1, mesh__data=2, mesh__zero=zero)
    train.train(make_run_settings(**CUT | changed), workdir, archive)
    losses = [[record["loss"] for record in records(path) if "loss" in record] for path in (workdir, undisturbed[0])]
    assert len(losses[0]) == len(losses[1]) == STEPS // 2
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


def test_a_trained_run_opens_with_its_moving_average_and_the_archive_that_trained_it(undisturbed, archive):
    run = runs.open_run(undisturbed[0])
    assert run.step == STEPS and run.archive == archive
    jax.tree.map(np.testing.assert_array_equal, run.params, undisturbed[1])


def test_an_archive_that_moved_is_named_and_may_be_given_again(undisturbed, archive, tmp_path, monkeypatch):
    workdir, moved = tmp_path / "run", tmp_path / "moved"
    shutil.copytree(undisturbed[0], workdir)
    shutil.copytree(archive, moved)
    monkeypatch.chdir(tmp_path)
    train.train(make_run_settings(**CUT), workdir, "moved")  # has nothing left to train
    monkeypatch.chdir("/")
    assert runs.open_run(workdir).open_data().path == str(moved)
    shutil.rmtree(moved)
    run = runs.open_run(workdir)
    with pytest.raises(ValueError, match=rf"was trained on {moved}, .*no archive at .*now, .*: --data=ARCHIVE"):
        run.open_data()
    assert run.open_data(archive).path == archive


def test_values_that_are_not_finite_stop_the_run_and_name_the_last_good_checkpoint(archive, tmp_path):
    rates = dict(optimizer__peak_rate=1e30, optimizer__coder_peak_rate=1e30, optimizer__clip_norm=1e30)
    settings = make_run_settings(**rates, training__checkpoint_every=1, evaluation__every=0)
    with pytest.raises(FloatingPointError, match=r"step \d+: loss=.*last good checkpoint is step \d") as stopped:
        train.train(settings, tmp_path / "run", archive)
    bad = max(saved_steps(tmp_path / "run" / "checkpoints"))
    assert bad < STEPS
    # what it advises works, and is a part of the new run's history
    origin = re.search(
        r"--workdir=NEW --config.training.init_from=(\S+) --config.training.init_moments=True", str(stopped.value)
    )
    assert origin[1] == f"{tmp_path / 'run'}@{bad}"
    origin = f"{tmp_path / 'run'}@1"  # after the second step the parameters have the rate's 1e29
    advised = dict(training__init_from=origin, training__init_moments=True, **TWELVE)
    run = train.train(make_run_settings(**advised), tmp_path / "new", archive)
    assert run.step == 12
    history = json.loads((tmp_path / "new" / "run.json").read_text())["history"]
    assert history == [f"parameters and moments of step 1 of {tmp_path / 'run'}"]


def make_sea(path, *, land=(), faulty=None, **options):
    """An archive of two channels, the second of which lacks values on `land`, and one at the time `faulty`."""
    fields = np.random.default_rng(1).standard_normal((40, 2, 8, 16)).cumsum(axis=0).astype(np.float32)
    fields[:, 1, list(land)] = np.nan
    if faulty is not None:
        fields[faulty, 1, 2, 3] = np.nan
    channels = ChannelSet.from_names(["2m_temperature", "sea_surface_temperature"])
    return make_archive(str(path), fields, times=TIMES, channel_set=channels, **options).path


@pytest.mark.slow
def test_a_sea_that_lacks_land_trains_and_is_forecast_without_it(tmp_path, caplog):
    archive = make_sea(tmp_path / "a", land=(2, 5))
    changes = dict(data__forcings=("insolation",), data__fill_values={"sea_surface_temperature": -1.0})
    changes |= dict(loss__weights={"sea_surface_temperature": 2.0})
    run = train.train(make_run_settings(**changes, mesh__domain=2), tmp_path / "run", archive)
    assert all(np.isfinite(list(record.values())).all() for record in records(tmp_path / "run"))
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "forcings: insolation\nsea_surface_temperature lacks values: the input has -1 K there" in log
    forecast = runs.open_run(tmp_path / "run").forecast(archive, starts=TIMES[[30, 31]], hours=12)
    lacking = np.isnan(forecast.sea_surface_temperature).all(("time", "prediction_timedelta", "longitude"))
    assert np.flatnonzero(lacking).tolist() == [2, 5] and np.isnan(forecast.sea_surface_temperature).mean() == 0.25
    assert np.isfinite(forecast["2m_temperature"]).all()
    scores = run.evaluate(archive, lead_hours=[6])
    assert np.isfinite(scores.rmse).all()
    other = changes | {"loss__weights": {"sea_surface_temperature": 3.0}}
    with pytest.raises(ValueError, match=r"loss.weights.sea_surface_temperature=2.0, not 3.0"):
        train.train(make_run_settings(**other), tmp_path / "run", archive)


@pytest.mark.parametrize(
    ("time", "when"), [(9, "2000-01-03T06:00"), pytest.param(30, "2000-01-08T12:00", marks=pytest.mark.slow)]
)
def test_a_missing_value_that_stops_a_run_is_named(tmp_path, time, when):
    """In training, and in validation."""
    archive = make_sea(tmp_path / "a", faulty=time, missing=[0, 0])
    changes = dict(evaluation__every=2, evaluation__batches=2, training__epochs=1.0, training__steps=0)
    with pytest.raises(ValueError, match=f"sea_surface_temperature at {when} has 1 of 128 .*--exclude={when[:13]}"):
        train.train(make_run_settings(**changes), tmp_path / "run", archive)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            dict(lead_hours=(6, 9)),
            r"config.evaluation.lead_hours=\[6, 9\]: \[9\] cannot be forecast with a step of 6 h",
        ),
        (dict(lead_hours=(6, 240)), r"lead_hours in config.data.test: lead_hours=\[240\]: no start from 2000-01-08"),
        (dict(forecast_hours=27), r"config.evaluation.forecast_hours=\[27\]: \[27\] cannot be forecast"),
    ],
)
def test_an_end_that_cannot_be_is_refused_before_the_run(changes, message, archive, tmp_path):
    changes = {f"evaluation__{name}": value for name, value in changes.items()}
    with pytest.raises(ValueError, match=message):
        train.train(make_run_settings(evaluation__final=True, **changes), tmp_path, archive)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_missing_value_is_looked_for_in_every_target_of_a_rollout(tmp_path):
    archive = open_archive(make_sea(tmp_path / "a", faulty=9, missing=[0, 0]))
    settings = make_run_settings(training__batch_size=1)
    frames, starts = make_frames(archive, ChannelSet(archive.channels), make_mesh(1, 1, 1)), np.array([6])
    with use_mesh(frames.mesh):
        samples = Samples(settings, archive, Record(frames.reference, {}), frames.mesh, starts, starts)
        samples.check(starts, 1, rollout=2)  # which is as far as the fault is not
        with pytest.raises(ValueError, match="sea_surface_temperature at 2000-01-03T06:00 has 1 of 128"):
            samples.check(starts, 1, rollout=3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(data__channels=("2m_temperature", "snow_depth")), r"has no channels \['snow_depth'\]; it has"),
        (dict(data__static=("soil_type",)), r"has no static fields \['soil_type'\]"),
        (
            dict(data__train=("1990-01-01", "1990-12-31")),
            "config.data.train: no pair 6 h apart between 1990-01-01 and 1990-12-31",
        ),
        (dict(mesh__domain=3, mesh__tensor=1), "is not divisible by domain=3"),
        (dict(mesh__domain=16), "needs 16 devices, 8 are visible"),
        (dict(training__batch_size=3, mesh__data=2), "batch_size=3 is not divisible by data=2"),
        (dict(model__patch=(1, 5)), "longitude=16 is not divisible by the patch's 5"),
        (dict(model__head="sigmoid"), "head='sigmoid': input should be"),
        (dict(optimizer__kind="sgd"), "kind='sgd': input should be"),
    ],
)
def test_bad_configs_are_refused_with_the_numbers(changes, message, archive, tmp_path):
    with pytest.raises(ValueError, match=message):
        train.train(make_run_settings(**changes), tmp_path, archive)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_no_data_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(ValueError, match="give --data=ARCHIVE, made by python -m experiments.prepare"):
        train.train(make_run_settings(), tmp_path)
    with pytest.raises(ValueError, match="there is no archive at"):
        train.train(make_run_settings(), tmp_path, str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="environment variable in it is not set"):
        train.train(make_run_settings(data__source="$NO_SUCH_VARIABLE/file.zarr"), tmp_path)


def test_a_workdir_of_another_run_is_not_taken_over(undisturbed, archive):
    with pytest.raises(ValueError, match="holds a run with model.embed=16, not 32"):
        train.train(make_run_settings(**CUT, model__embed=32), undisturbed[0], archive)


def test_an_unwritable_workdir_is_named(archive, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot write to workdir="):
        train.train(make_run_settings(), tmp_path / "file" / "run", archive)


def test_a_corrupt_chunk_stops_the_run_with_its_time(archive, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(archive, broken)
    shard = max(
        path for path in pathlib.Path(broken, "fields").rglob("*") if path.is_file() and path.name != "zarr.json"
    )
    content = bytearray(shard.read_bytes())
    content[len(content) // 4] ^= 0xFF
    shard.write_bytes(content)
    settings = make_run_settings(data__train=("2000-01-01", "2000-01-10"), **TWELVE)
    with pytest.raises(ValueError, match=r"2000-01-\d\d"):
        train.train(settings, tmp_path / "run", str(broken))


def test_on_a_gpu_what_was_compiled_is_kept_in_the_workdir(monkeypatch, tmp_path):
    kept = jax.config.jax_compilation_cache_dir
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    try:
        for before, after in ((None, str(tmp_path / "run" / "compiled")), ("elsewhere", "elsewhere")):
            jax.config.update("jax_compilation_cache_dir", before)
            with pytest.raises(ValueError, match="no data of its own"):
                train.train(make_settings({}), tmp_path / "run")
            assert jax.config.jax_compilation_cache_dir == after
    finally:
        jax.config.update("jax_compilation_cache_dir", kept)

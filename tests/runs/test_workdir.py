"""What a workdir holds: what is damaged is named, and the run goes on from what is whole; what may change, and not."""

import json
import shutil

import jax
import numpy as np
import pytest

from experiments import train
from tests.runs.test_run import CONSTANT as RATES
from tests.runs.test_run import prepare, settings, weather
from weathermixer.runs.export import export_run
from weathermixer.runs.run import open_run
from weathermixer.training.checksums import read_document, write_document
from weathermixer.training.telemetry import read_records


@pytest.fixture
def workdir(whole, tmp_path):
    return shutil.copytree(whole[0], tmp_path / "run")


def delete(path):
    path.unlink()


def empty(path):
    path.write_bytes(b"")


def truncate(path):
    path.write_bytes(path.read_bytes()[:-9])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


others = [pytest.param(way, marks=pytest.mark.slow) for way in (empty, truncate)]
WAYS = pytest.mark.parametrize("damage", [delete, flip, *others])


def largest(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


@WAYS
@pytest.mark.parametrize("what", ["data", "state/_METADATA", "state/manifest.ocdbt", "meta/metadata", "checksums.json"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(workdir, damage, what, capsys):
    step = workdir / "checkpoints" / "2"
    path = largest(step) if what == "data" else step / what
    damage(path)
    run = open_run(workdir)
    assert run.step == 1
    said = capsys.readouterr().err
    assert said.startswith("the checkpoint of step 2 is damaged: ") and said.count("\n") == 1
    assert str(path.relative_to(workdir)) in said and "the one before is taken" in said
    with pytest.raises(ValueError, match=r"step 2 is damaged: .*; before it there are \[1\]"):
        open_run(workdir, step=2)


@WAYS
@pytest.mark.parametrize("what", ["config.json", "metrics.jsonl", "log.txt"])
def test_a_run_goes_on_without_what_is_written_again(workdir, whole, damage, what, capsys):
    damage(workdir / what)
    assert open_run(workdir).archive == whole[1]
    if what == "config.json":
        assert "config.json is damaged" in capsys.readouterr().err
    assert train.train(settings(**RATES), workdir, whole[1]).step == 2
    assert json.loads((workdir / "config.json").read_text()) == json.loads((whole[0] / "config.json").read_text())
    with pytest.raises(ValueError, match="holds a run with model.embed=16, not 32"):
        train.train(settings(**RATES, model__embed=32), workdir, whole[1])


@WAYS
@pytest.mark.parametrize("what", ["run.json", "static.zarr/latitude/c/0"])
def test_a_damaged_record_is_named_with_a_remedy_that_works(workdir, whole, damage, what):
    if (what, damage) == ("run.json", delete):
        match = "without run.json: call its training command once more"
    else:
        match = f"{what.partition('/')[0]} is damaged: .*: delete {workdir / 'run.json'} and call the run's training"
    damage(workdir / what)
    with pytest.raises(ValueError, match=match):
        open_run(workdir)
    (workdir / "run.json").unlink(missing_ok=True)
    train.train(settings(**RATES), workdir, whole[1])
    jax.tree.map(np.testing.assert_array_equal, open_run(workdir).params, open_run(whole[0]).params)


def test_a_run_of_which_only_moments_were_cut_over_instances_goes_on(workdir, whole):
    values = read_document(workdir / "config.json")
    write_document(values | {"mesh": values["mesh"] | {"zero": "moments"}}, workdir / "config.json")
    assert open_run(workdir).settings.mesh.zero == "parameters"
    assert train.train(settings(**RATES), workdir, whole[1]).step == 2
    with pytest.raises(ValueError, match="config.mesh.zero='moments': input should be 'none' or 'parameters'"):
        settings(mesh__zero="moments")


def test_strange_folders_beside_the_steps_are_no_checkpoints(workdir, whole, capsys):
    checkpoints = workdir / "checkpoints"
    for name in ("old", "2 (copy)", "2.aside-20260101T000000"):
        shutil.copytree(checkpoints / "2", checkpoints / name)
    (checkpoints / "5").write_text("")
    assert open_run(workdir).step == 2 and not capsys.readouterr().err
    (checkpoints / "7").mkdir()
    shutil.copytree(checkpoints / "1", checkpoints / "8")
    assert open_run(workdir).step == 2
    said = capsys.readouterr().err
    assert "checkpoints/8 holds step 1" in said and "7/checksums.json is damaged: [Errno 2] No such file" in said


def test_training_goes_on_from_the_one_before_bit_for_bit(workdir, whole):
    flip(largest(workdir / "checkpoints" / "2"))
    with pytest.raises(ValueError, match="step 2 is damaged"):
        train.train(settings(**RATES, training__on_damage="stop"), workdir, whole[1])
    run = train.train(settings(**RATES), workdir, whole[1])
    jax.tree.map(np.testing.assert_array_equal, run.params, open_run(whole[0]).params)
    log = (workdir / "log.txt").read_text()
    assert "step 2 is damaged" in log and "step 1: checksums of" in log and "2.aside-" in log
    assert [record["step"] for record in read_records(workdir / "metrics.jsonl") if "loss" in record] == [1, 2]
    assert open_run(workdir).step == 2


def test_a_run_of_which_nothing_is_whole_says_so(workdir, whole):
    for step in "12":
        flip(largest(workdir / "checkpoints" / step))
    with pytest.raises(ValueError, match=r"none of the checkpoints \[1, 2\] in .* is whole: begin again in a new"):
        train.train(settings(**RATES), workdir, whole[1])


def test_a_damaged_export_is_refused(workdir, tmp_path):
    path = export_run(open_run(workdir), tmp_path / "exported")
    assert open_run(path).step == 2
    flip(largest(path / "checkpoints"))
    with pytest.raises(ValueError, match="is damaged: .*exported.*none of the checkpoints|none of the checkpoints"):
        open_run(path)


@pytest.mark.slow
def test_a_chosen_step_is_gone_on_from(workdir, whole):
    run = train.train(settings(**RATES), workdir, whole[1], step=1)
    jax.tree.map(np.testing.assert_array_equal, run.params, open_run(whole[0]).params)
    assert len(list((workdir / "checkpoints").glob("2.aside-*"))) == 1 and open_run(workdir, step=1).step == 1
    with pytest.raises(ValueError, match=r"no checkpoint of step 7 in .*it has \[1, 2\]"):
        train.train(settings(**RATES), workdir, whole[1], step=7)


@pytest.mark.slow
def test_a_run_keeps_its_length_on_other_data_and_is_not_resumed_to_train_nothing(tmp_path):
    """Of the second archive 0.3 epochs are one step."""
    archive = prepare(weather(), tmp_path / "archive").path
    fewer = prepare(weather().isel(time=[*range(18), *range(27, 40)]), tmp_path / "fewer").path
    run = settings(training__steps=0, training__epochs=0.3, training__checkpoint_every=1)
    assert train.train(run, tmp_path / "run", archive).step == 2
    with pytest.raises(ValueError, match="has done all of its 2 steps: on .*fewer nothing is left to train; .*init_"):
        train.train(run, tmp_path / "run", fewer, accept_data=True)
    assert train.train(run, tmp_path / "run", fewer, accept_data=True, step=1).step == 2
    assert (tmp_path / "run" / "log.txt").read_text().count("parameters, steps 1 to 2") == 1


def test_fields_that_a_newer_version_added_count_as_their_defaults(workdir, whole):
    values = json.loads((workdir / "config.json").read_text())
    del values["training"]["keep_best"], values["data"]["forcings"], values["crc32c"]
    (workdir / "config.json").write_text(json.dumps(values))
    assert train.train(settings(**RATES), workdir, whole[1]).step == 2
    with pytest.raises(ValueError, match=r"data.forcings=\[\], not \['insolation'\]: .*--workdir=NEW --config"):
        train.train(settings(**RATES, data__forcings=("insolation",)), workdir, whole[1])


@pytest.mark.slow
def test_a_run_that_never_saved_may_change_everything(workdir, whole):
    shutil.rmtree(workdir / "checkpoints")
    run = train.train(settings(**RATES, model__embed=32), workdir, whole[1])
    assert run.step == 2 and open_run(workdir).settings.model.embed == 32


def test_64_bit_numbers_are_refused(workdir, whole):
    with jax.enable_x64(True), pytest.raises(ValueError, match="JAX_ENABLE_X64 is set, .*unset it"):
        train.train(settings(**RATES), workdir, whole[1])

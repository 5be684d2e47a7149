"""New runs from trained ones: the same forecasts at the start, added channels born fresh, longer runs, cooldowns."""

import shutil

import numpy as np
import pytest
import xarray as xr

from experiments import command_line, train
from tests.runs.test_run import CHANNELS, prepare, settings, weather
from weathermixer.runs.run import open_run
from weathermixer.training.optimizer import make_learning_rate


@pytest.fixture
def parent(whole):
    """(folder, archive) of a run of two steps at a constant rate."""
    return whole


def test_a_fork_begins_with_the_parents_average_and_statistics(parent, tmp_path):
    other = prepare(weather(seed=1), tmp_path / "other")
    still = dict(optimizer__peak_rate=1e-30, optimizer__coder_peak_rate=1e-30, optimizer__start_rate=0.0)
    still |= dict(optimizer__end_rate=0.0, training__steps=1, training__init_from=f"{parent[0]}@2")
    changed = settings(**still, mesh__domain=2, mesh__tensor=2)
    run = train.train(changed, tmp_path / "run", other.path)
    before = open_run(parent[0])
    for name, values in before.weights().items():
        np.testing.assert_array_equal(run.weights()[name], values)
    np.testing.assert_array_equal(run.reference.mean, before.reference.mean)
    assert f"starts from the moving average of step 2 of {parent[0]}" in (tmp_path / "run" / "log.txt").read_text()
    (tmp_path / "run" / "run.json").unlink()  # lost, and made again
    train.train(changed, tmp_path / "run", other.path)
    np.testing.assert_array_equal(open_run(tmp_path / "run").reference.mean, before.reference.mean)


@pytest.mark.slow
def test_added_channels_are_born_fresh_and_the_rest_is_kept(parent, tmp_path):
    names, parent = ("geopotential_850", *CHANNELS), (tmp_path / "parent", parent[1])
    train.train(settings(model__head="blend"), *parent)
    still = dict(optimizer__peak_rate=1e-30, optimizer__coder_peak_rate=1e-30, optimizer__start_rate=0.0)
    still |= dict(optimizer__end_rate=0.0, training__steps=1, training__init_from=str(parent[0]), data__channels=names)
    still |= dict(model__head="blend")
    run = train.train(settings(**still), tmp_path / "run", parent[1])
    old, new = open_run(parent[0]).weights(), run.weights()
    points = old["encode/kernel"].shape[0] // 8
    np.testing.assert_array_equal(new["encode/kernel"][points : 7 * points], old["encode/kernel"][: 6 * points])
    assert np.abs(new["encode/kernel"][:points]).max() > 0
    np.testing.assert_array_equal(new["head/kernel"][:, 1:5, 1:5], old["head/kernel"][:, :4, :4])
    np.testing.assert_array_equal(new["blocks/0/token_mlp/up/kernel"], old["blocks/0/token_mlp/up/kernel"])
    assert "born fresh: the rows of geopotential_850" in (tmp_path / "run" / "log.txt").read_text()


@pytest.mark.slow
def test_a_deterministic_run_is_carried_on_as_an_ensemble(parent, tmp_path):
    still = dict(optimizer__peak_rate=1e-30, optimizer__coder_peak_rate=1e-30, optimizer__start_rate=0.0)
    still |= dict(optimizer__end_rate=0.0, training__steps=1, training__init_from=str(parent[0]))
    ensemble = dict(model__noise=3, training__members=2, training__leads=(1, 2), mesh__tensor=2)
    ensemble |= dict(loss__spectral_crps=0.5)
    run = train.train(settings(**still, **ensemble), tmp_path / "run", parent[1])
    assert "born zero: what noise and leads change" in (tmp_path / "run" / "log.txt").read_text()
    before, options = open_run(parent[0]), dict(starts=run.open_frames().times[[30]], hours=12)
    found = run.forecast(members=2, **options)
    assert found.temperature.dims[:3] == ("time", "number", "prediction_timedelta")
    for member in (0, 1):  # no member differs yet; 12 h is one application here
        first = dict(number=member, prediction_timedelta=[0])
        xr.testing.assert_allclose(
            found.isel(first).drop_vars("number"), before.forecast(**options | {"hours": 6}), rtol=1e-5
        )
    taught = train.train(settings(**ensemble), tmp_path / "taught", parent[1])
    spread = taught.forecast(members=3, output=tmp_path / "f.zarr", **options).temperature.std("number")
    assert float(spread.max()) > 0
    with pytest.raises(ValueError, match="members of an ensemble are written to .zarr and .nc alone"):
        taught.forecast(members=3, output=tmp_path / "f.grib2", **options)
    with pytest.raises(ValueError, match="all members would be the same"):
        before.forecast(members=3, **options)
    with pytest.raises(ValueError, match="perturbation=0.1, perturbation_kind=.white. are of an ensemble"):
        before.forecast(perturbation=0.1, **options)
    assert float(before.forecast(members=3, perturbation=0.02, **options).temperature.std("number").max()) > 0


def test_moments_of_other_channels_are_refused(parent, tmp_path):
    options = dict(training__init_from=str(parent[0]), training__init_moments=True)
    with pytest.raises(ValueError, match=r"init_moments=True .* new \['geopotential_850'\], gone \[\]; with False"):
        changed = settings(**options, data__channels=("geopotential_850", *CHANNELS))
        train.train(changed, tmp_path / "run", parent[1])


@pytest.mark.slow
def test_another_grid_of_the_same_shape_keeps_its_own_static_fields(parent, tmp_path):
    turned = weather().assign_coords(longitude=weather().longitude + 5.0)
    other = prepare(turned, tmp_path / "other")
    run = train.train(settings(training__init_from=str(parent[0]), training__steps=1), tmp_path / "run", other.path)
    assert run.reference.grid.difference(open_run(parent[0]).reference.grid) is not None
    np.testing.assert_array_equal(run.reference.mean, open_run(parent[0]).reference.mean)


@pytest.mark.slow
def test_a_constant_run_goes_on_and_cools_down(parent, tmp_path):
    longer, workdir = settings(optimizer__schedule="constant", training__steps=3), tmp_path / "longer"
    shutil.copytree(parent[0], workdir)
    assert train.train(longer, workdir, parent[1]).step == 3
    with pytest.raises(ValueError, match="has done 3 steps: training.steps=2 are fewer"):
        train.train(settings(optimizer__schedule="constant"), workdir, parent[1])
    cool = dict(optimizer__schedule="cooldown", training__init_from=str(workdir), training__init_moments=True)
    run = train.train(settings(**cool), tmp_path / "cool", parent[1])
    assert run.step == 2
    assert "parameters and moments of step 3" in (tmp_path / "cool" / "log.txt").read_text()


@pytest.mark.slow
def test_a_finished_cosine_is_not_stretched(parent, tmp_path):
    train.train(settings(), tmp_path / "run", parent[1])
    with pytest.raises(ValueError, match=r"training.steps=2, not 4: .*--config.training.init_from="):
        train.train(settings(training__steps=4), tmp_path / "run", parent[1])
    with pytest.raises(ValueError, match="nowhere holds no run"):
        train.train(settings(training__init_from="nowhere"), tmp_path / "other", parent[1])
    with pytest.raises(ValueError, match=r"blocks/0/.* is \[.*\] in the run to start from|is another model"):
        train.train(settings(training__init_from=str(parent[0]), model__embed=32), tmp_path / "other", parent[1])


def test_rates_of_schedules():
    options = dict(start=0.0, peak=1.0, end=0.0, warmup_steps=4, total_steps=100)
    constant, cooldown = (make_learning_rate(**options, schedule=name) for name in ("constant", "cooldown"))
    assert [float(constant(step)) for step in (0, 2, 4, 1000)] == [0.0, 0.5, 1.0, 1.0]
    np.testing.assert_allclose([float(cooldown(step)) for step in (0, 25, 100)], [1.0, 0.5, 0.0], atol=1e-6)


def test_a_rate_of_ones_own():
    factors = [(1 - part) ** 2 for part in np.linspace(0, 1, 101)]
    options = dict(start=0.0, peak=2.0, end=0.0, warmup_steps=4, total_steps=104)
    rate = make_learning_rate(**options, schedule="factors", factors=factors)
    found = [float(rate(step)) for step in (0, 2, 4, 54, 104, 200)]
    np.testing.assert_allclose(found, [0.0, 1.0, 2.0, 0.5, 0.0, 0.0], atol=1e-6)


def test_a_config_file_with_a_rate_of_its_own(tmp_path):
    (tmp_path / "own.py").write_text(
        "from experiments.configs import quickstart\n\n\n"
        "def get_config():\n"
        "    config = quickstart.get_config()\n"
        "    config.optimizer.schedule = 'factors'\n"
        "    config.optimizer.factors = tuple((1 - n / 4) ** 2 for n in range(5))\n"
        "    return config\n"
    )
    options = train.make_parser().parse_args([f"--config={tmp_path}/own.py", "--workdir=unused"])
    assert command_line.read_settings(options).optimizer.factors == (1.0, 0.5625, 0.25, 0.0625, 0.0)
    with pytest.raises(ValueError, match='two or more factors go with schedule="factors"'):
        settings(optimizer__schedule="factors")

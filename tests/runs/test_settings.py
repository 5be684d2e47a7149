"""Every setting is checked: what it cannot be ends with its name, the value and what it can be."""

import json

import pytest

from weathermixer.runs.settings import Settings, check_period, make_settings


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("model.blocks", 0, "model.blocks=0: input should be greater than or equal to 1"),
        ("model.embed", 0, "model.embed=0: input should be greater than or equal to 1"),
        ("model.blocks", 2.0, "model.blocks=2.0: input should be a valid integer"),
        ("model.blocks", True, "model.blocks=True: input should be a valid integer"),
        ("model.patch", (0, 4), r"model.patch\[0\]=0: input should be greater than or equal to 1"),
        ("model.patch", (4,), r"model.patch=\[4\]: tuple should have at least 2 items"),
        ("model.patch", (1.0, 4), r"model.patch\[0\]=1.0: input should be a valid integer"),
        ("model.compute_dtype", "float8", "model.compute_dtype='float8': input should be 'auto', 'bfloat16'"),
        ("training.batch_size", 0, "training.batch_size=0: input should be greater than or equal to 1"),
        ("training.log_every", -1, "training.log_every=-1: input should be greater than or equal to 1"),
        ("training.ema_decay", 1.5, "training.ema_decay=1.5: input should be less than 1"),
        ("training.ema_decay", -0.1, "training.ema_decay=-0.1: input should be greater than or equal to 0"),
        ("training.epochs", float("nan"), "training.epochs=nan: input should be a finite number"),
        ("optimizer.clip_norm", -1, "optimizer.clip_norm=-1: input should be greater than or equal to 0"),
        ("optimizer.peak_rate", -1e-3, "optimizer.peak_rate=-0.001: input should be greater than 0"),
        ("optimizer.beta1", 1, "optimizer.beta1=1: input should be less than 1"),
        ("evaluation.every", -1, "evaluation.every=-1: input should be greater than or equal to 0"),
        ("evaluation.lead_hours", (), r"evaluation.lead_hours=\[\]: tuple should have at least 1 item"),
        ("evaluation.lead_hours", (6, 0), r"evaluation.lead_hours\[1\]=0: input should be greater than or equal to 1"),
        ("evaluation.final", "yes", "evaluation.final='yes': input should be a valid boolean"),
        ("data.train", ("2000-13-01", "2001"), r"data.train=.*: '2000-13-01,2001' is not a first and a last date"),
        ("data.test", ("2001", "2000"), r"data.test=.*: '2001,2000': the last date is before the first"),
        ("data.validation", (2000, 2001), r"data.validation\[0\]=2000: input should be a valid string"),
        ("data.channels", "geopotential_500", "data.channels='geopotential_500': input should be a valid array"),
        ("data.trian", ("2000", "2001"), "trian is not a field of a run's settings: did you mean config.data.train?"),
        ("modle", {}, "config.modle is not a field of a run's settings: did you mean config.model?"),
        ("loss.spectral_crps", 0.5, r"spectral_crps=0.5 is of ensembles, .*members=1: set 0, or training.members=2"),
        ("model", 3, "config.model=3: input should be an object"),
    ],
)  # fmt: skip
def test_what_a_setting_cannot_be_is_said(name, value, message):
    *groups, last = name.split(".")
    values = {last: value}
    for group in reversed(groups):
        values = {group: values}
    with pytest.raises(ValueError, match=message) as caught:
        make_settings(values)
    assert "\n" not in str(caught.value)


def test_json_gives_the_same_settings():
    settings = Settings().replace({"training.epochs": 3, "model.patch": [2, 4], "loss.weights": {"geopotential": 2}})
    assert settings.training.epochs == 3.0 and settings.model.patch == (2, 4)
    assert make_settings(json.loads(json.dumps(settings.values()))) == settings


@pytest.mark.parametrize("period", [(), ("2000",), ("", ""), ("NaT", "2001"), ("2000", "2001", "2002"), ("a", "b")])
def test_a_period_is_two_dates(period):
    with pytest.raises(ValueError, match="is not a first and a last date"):
        check_period(period)
    assert check_period(("2000", "2001-06-30T18")) == ("2000", "2001-06-30T18")

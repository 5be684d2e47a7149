"""The preflight: what an archive holds is printed, and what would stop or spoil a run is named."""

import numpy as np
import pytest

from experiments.check import find_gaps, main
from tests.sources.written_sources import make_dataset
from weathermixer.archive.archive import Archive
from weathermixer.prepare.prepare import prepare_archive
from weathermixer.sources.sources import open_source

TIMES = np.datetime64("2020-01-01T00", "ns") + np.arange(60) * np.timedelta64(6, "h")
PERIODS = {"train": "2020-01-01,2020-01-08", "validation": "2020-01-09,2020-01-11", "test": "2020-01-12,2020-01-15"}
FITS = {f"data.{name}": f"('{dates.replace(',', chr(39) + ',' + chr(39))}')" for name, dates in PERIODS.items()} | {
    "model.patch": "(1,4)", "evaluation.lead_hours": "(6,24)", "training.batch_size": "4", "mesh.domain": "4",
    "model.embed": "16", "model.token_hidden": "16", "model.embed_hidden": "16",
}  # fmt: skip


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Archive:
    source = open_source(make_dataset(times=TIMES), exclude=["2020-01-05", "2020-01-10T06"])
    statistics_period = tuple(PERIODS["train"].split(","))
    return prepare_archive(
        source, tmp_path_factory.mktemp("a") / "archive", domain=4, statistics_period=statistics_period
    )


def run(archive, **changes) -> int:
    fields = FITS | {name.replace("__", "."): value for name, value in changes.items()}
    return main([archive.path, "--config=reference", *(f"--config.{name}={value}" for name, value in fields.items())])


def test_what_an_archive_holds(archive, capsys, tmp_path):
    assert main([archive.path, f"--plot={tmp_path}/a.png"]) == 0
    printed = capsys.readouterr().out
    for line in (
        "times     55, 2020-01-01T00 to 2020-01-15T18, every 6 h",
        "gaps      2020-01-05T00 to 2020-01-05T18 (4), 2020-01-10T06",
        "account   left out, excluded by 2020-01-05: 4, 2020-01-05T00 to 2020-01-05T18",
        "geopotential_500",
        "nothing is wrong",
    ):
        assert line in printed
    assert [count for *_, count in find_gaps(archive)] == [4, 1]
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_a_config_that_fits(archive, capsys):
    assert run(archive) == 0
    printed = capsys.readouterr().out
    assert "train      2020-01-01 to 2020-01-08: 28 times, 26 pairs 6 h apart" in printed
    assert "statistics are also of" not in printed


@pytest.mark.parametrize(
    "changes, problem",
    [
        (
            {"data__test": "('2020-01-08','2020-01-15')"},
            "config.data.train and test overlap: 4 times, 2020-01-08T00 to",
        ),
        ({"data__test": "('2021','2021')"}, "config.data.test: no pair 6 h apart between 2021 and 2021"),
        ({"data__channels": "snow_depth"}, "has no channels ['snow_depth']"),
        ({"mesh__domain": "3"}, "patch_rows=8 is not divisible by domain=3"),
        ({"training__batch_size": "3", "mesh__data": "2"}, "batch=3 is not divisible by data=2"),
        ({"evaluation__lead_hours": "(6,9)"}, "config.evaluation.lead_hours=[6, 9]: [9] cannot be forecast"),
        (
            {"evaluation__validation_lead_hours": "(96,)"},
            "lead_hours in config.data.validation: lead_hours=[96]: no start",
        ),
    ],
)
def test_what_does_not_fit_is_named(archive, capsys, changes, problem):
    assert run(archive, **changes) == 1
    assert problem in capsys.readouterr().out


def test_faults_and_constant_channels_are_named(tmp_path, capsys):
    dataset = make_dataset()
    dataset["temperature"].values[:, 2] = 7
    dataset["temperature"].values[3, 1, 2, 4] = np.nan
    archive = prepare_archive(open_source(dataset), tmp_path / "a", keep_faults=True)
    assert main([archive.path]) == 1
    printed = capsys.readouterr().out
    assert "temperature_850 has the standard deviation 0: it cannot be standardized" in printed
    assert "temperature_500 at 2019-12-30T18:00: 1 missing (NaN) of 96 values (kept)" in printed

"""The table says the numbers of the Dataset in a form that people read; the JSON says all of them."""

import json

import numpy as np
import pytest
import xarray as xr

from weathermixer.fields.variables import ChannelSet
from weathermixer.verification.metrics import compute_metrics
from weathermixer.verification.scores import digits, format_scores, write_scores
from weathermixer.verification.table import Table

CHANNELS = ChannelSet.from_names(["10m_u_component_of_wind", "geopotential_500", "specific_humidity_500"])
LEADS = [6, 24, 72, 120]
ABOUT = {
    "mode": "autoregressive",
    "step_hours": 6,
    "climatology": "mean by hour of day",
    "first_start": "2020-01-01T00",
    "last_start": "2020-01-09T18",
    "notes": "trained on leads up to 6 h",
}


def make_scores(sources=("model", "persistence", "climatology"), starts=33):
    """Scores of errors that are the same at all starts; a lead has fewer samples the longer it is."""
    rmse = np.arange(1, 12 * len(sources) + 1).reshape(len(sources), 4, 3) * np.array([1.0, 100.0, 1e-4])
    acc = np.full(rmse.shape, 0.5)
    acc[2:] = np.nan
    times = np.datetime64("2020-01-01T00", "ns") + np.arange(starts) * np.timedelta64(6, "h")
    coords = {"source": list(sources), "time": times, "grid": ["native"], "region": ["global"], "lead_hours": LEADS}
    table = Table(coords, CHANNELS.dynamic)
    means = {"squared_error": rmse**2, "error": -rmse / 10, "anomaly_correlation": acc}
    for lead, samples in enumerate([33, 30, 22, 14]):
        found = {("counted", 0, 0): np.ones((starts, 3, 1), bool)}
        for name, x in means.items():
            found |= {(name, n, 0): np.repeat(x[None, n, lead, :, None], starts, 0) for n in range(len(sources))}
        table.put(np.arange(starts), lead, np.arange(starts) < samples, found)
    found = table.dataset().isel(grid=0, region=0, drop=True)
    return found.assign(compute_metrics(found)).assign_attrs(ABOUT)


@pytest.fixture(scope="module")
def scores():
    return make_scores()


def test_the_table_holds_each_sources_rmse_and_the_ratio_to_the_better_baseline(scores):
    table = format_scores(scores)
    assert max(map(len, table.splitlines())) <= 120
    rows = [line.replace("|", "").split() for line in table.splitlines()]
    u10 = next(row for row in rows if row[:1] == ["u10"])
    # at 6 h: model 1, persistence 13, climatology 25; at 24 h 4, 16, 28
    assert u10[:10] == ["u10", "m/s", "1.000", "13.00", "25.00", "0.08", "4.000", "16.00", "28.00", "0.25"]
    humidity = [row for row in rows if row[:1] == ["q500"]]
    assert humidity[0][1:4] == ["g/kg", "0.300", "1.500"]
    # RMSE of three leads, of the fourth, then bias and ACC of all
    assert humidity[2][:6] == ["q500", "g/kg", "-0.030", "0.500", "-0.060", "0.500"]
    assert "33 at 6 h, 30 at 24 h" in table and "2020-01-09T18" in table


def test_a_part_without_samples_has_a_line_and_no_empty_tables(scores):
    nothing = scores.where(scores.lead_hours > 120).assign(samples=0 * scores.samples)
    assert "samples: 0 at 6 h" in (table := format_scores(nothing)) and "Empty" not in table


def test_json_holds_every_score(scores, tmp_path):
    write_scores(scores, tmp_path / "scores.json")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["scores.json", "scores.nc"]
    with xr.open_dataset(tmp_path / "scores.nc", decode_timedelta=False) as same:
        xr.testing.assert_identical(same.load(), scores)
    found = json.loads((tmp_path / "scores.json").read_text())
    assert found["lead_hours"] == LEADS and found["samples"] == [33, 30, 22, 14] and found["mode"] == "autoregressive"
    assert found["units"]["geopotential_500"] == "m**2 s**-2"
    for metric in ("rmse", "bias", "acc"):
        for source in ("model", "persistence", "climatology"):
            for channel in CHANNELS.names:
                expected = scores[metric].sel(source=source, channel=channel).values
                if np.isnan(expected).all():
                    assert found[metric][source][channel] == [None] * 4
                else:
                    np.testing.assert_array_equal(found[metric][source][channel], expected)


def test_several_forecasts_are_compared_with_the_first():
    scores = make_scores(sources=("ours", "theirs", "persistence"))
    noise = np.random.default_rng(0).random(scores.squared_error.shape).astype(np.float32)
    table = format_scores(scores.assign(squared_error=scores.squared_error * (1 + 0.1 * noise)))
    assert max(map(len, table.splitlines())) <= 120
    assert "trained on leads up to 6 h" in table and "theirs, %" in table and "RMSE to ours" in table
    rows = [line.replace("|", " ").split() for line in table.splitlines() if line.startswith("u10")]
    # RMSE of two leads (of three sources; 4 leads), bias and ACC of both, the difference: 13 is 1200 % more than 1
    (row,) = [row for row in rows if row[2].startswith("+1228")]
    assert (
        row[3].startswith("[+1") and row[4].endswith("]*") and row[8].endswith("*")
    )  # 22 starts are too few for blocks


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.7123, "0.712"), (-45.234, "-45.23"), (123.456, "123.5"), (104321.4, "104321"), (np.nan, "nan")],
)
def test_numbers_keep_three_or_four_digits(value, text):
    assert digits(value) == text

"""The table says the numbers of the Dataset in a form that people read; the JSON says all of them."""

import json

import numpy as np
import pytest

from weathermixer.fields.variables import ChannelSet
from weathermixer.verification.evaluation import _to_dataset
from weathermixer.verification.scores import digits, format_scores, write_scores

CHANNELS = ChannelSet.make(["10m_u_component_of_wind"], ["geopotential", "specific_humidity"], [500])
LEADS = [6, 24, 72, 120]
ABOUT = {
    "mode": "autoregressive",
    "step_hours": 6,
    "climatology": "mean by hour of day",
    "first_start": "2020-01-01T00",
    "last_start": "2020-01-09T18",
}


@pytest.fixture
def scores():
    rmse = np.arange(1, 37).reshape(3, 4, 3) * np.array([1.0, 100.0, 1e-4])
    acc = np.full((3, 4, 3), 0.5)
    acc[2] = np.nan
    means = {"squared_error": rmse**2, "error": -rmse / 10, "anomaly_correlation": acc}
    return _to_dataset(means, np.array([33, 30, 22, 14]), CHANNELS, LEADS, ABOUT)


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
    assert "6 h (33 samples)" in table and "2020-01-09T18" in table


def test_json_holds_every_score(scores, tmp_path):
    write_scores(scores, tmp_path / "scores.json")
    assert [entry.name for entry in tmp_path.iterdir()] == ["scores.json"]
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


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.7123, "0.712"), (-45.234, "-45.23"), (123.456, "123.5"), (104321.4, "104321"), (np.nan, "nan")],
)
def test_numbers_keep_three_or_four_digits(value, text):
    assert digits(value) == text

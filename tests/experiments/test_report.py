"""The report is one file with everything in it; a real browser opens it, sorts its tables and prints it."""

import dataclasses
import json
import re
import shutil
from html.parser import HTMLParser

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.report import main, write_report
from tests.experiments.test_scores_and_forecasts import CHANNELS, TIMES, make_run
from tests.sources.written_sources import make_dataset
from weathermixer.parallel.mesh import make_mesh
from weathermixer.prepare.prepare import prepare_archive
from weathermixer.runs.workdir import Record, describe_archive, write_record
from weathermixer.sources.sources import open_source

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


class Page(HTMLParser):
    """The page's tags with their attributes."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs on one archive: `long` forecasts no change, `short` half as much again of all; only one has a log."""
    folder, random = tmp_path_factory.mktemp("report"), np.random.default_rng(0)
    weather = make_dataset(times=TIMES, lat=8, lon=12, levels=(500, 850))
    for name, step in (("geopotential", 50.0), ("temperature", 0.5), ("2m_temperature", 0.5)):
        walk = np.cumsum(random.normal(size=weather[name].shape), axis=0)
        weather[name] = weather[name].mean("time") + step * weather[name].copy(data=walk)
    archive = prepare_archive(open_source(weather), folder / "<archive>")
    found = []
    for name, factor in (("short", 1.5), ("long", 1.0)):
        run = make_run(folder / name, archive, CHANNELS, make_mesh(2, 2, 2))
        sizes = {"model.patch": (1, 4), "model.embed": 8, "model.token_hidden": 8, "model.embed_hidden": 8}
        run = dataclasses.replace(run, settings=run.settings.replace(sizes), params=jnp.float32(factor))
        write_record(Record(run.reference, describe_archive(archive)), run.path)
        found.append(run)
    steps = [{"step": 50 * n, "loss": 1 / n, "step_seconds": 0.1, "samples_per_second": 80} for n in range(1, 11)]
    steps.append({"step": 500, "validation_loss": 0.125})
    (found[1].path / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    (found[1].path / "log.txt").write_text("part  one instance  per device\nstep 50  loss 1  100 ms/step\n")
    return found


@pytest.fixture(scope="module")
def report(runs):
    output = runs[0].path.parent / "report.html"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("experiments.report.MAPS", 2)
        write_report(runs, output, channel="geopotential_850")
    return output


@pytest.mark.slow
def test_it_is_whole_and_says_what_was_trained_on_what(report):
    text = report.read_text(encoding="utf-8")
    page = Page(text)
    images = page.all("img")
    assert len(images) >= 10 and all(image["alt"] for image in images)
    assert {image["src"].partition(";")[0] for image in images} == {"data:image/svg+xml"}
    assert not page.all("link") and not page.all("iframe") and not any("src" in tag for tag in page.all("script"))
    plain = re.sub(r"<(script|style).*?</\1>|<[^>]*>", " ", text, flags=re.DOTALL)
    for words in ("short", "long", "&lt;archive&gt;", "2020-01-01 to 2020-01-08", "0.125", "100 ms/step", "jaxlib"):
        assert words in plain, words
    assert "RMSE of long against short" in plain and "z850 from 2020-01-09T00 UTC, 24 h ahead" in plain
    assert len(page.all("table")) == 2 and len(page.all("tr")) == (1 + 2) + (1 + 2 * 3)


@pytest.mark.slow
def test_differences_have_the_right_sign_and_intervals(report):
    rows = re.findall(r"([+-][\d.]+) \[([+-][\d.]+), ([+-][\d.]+)\]", report.read_text(encoding="utf-8"))
    assert len(rows) == 6
    for difference, low, high in np.array(rows, float):
        assert low <= difference <= high and difference < 0  # no change is the better forecast


@pytest.mark.slow
def test_what_a_run_lacks_is_refused(runs, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="--channel=sst: .*does not predict it; it has 2m_temperature"):
        write_report(runs, tmp_path / "report.html", channel="sst")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="holds no run"):
        main([str(tmp_path)])


@pytest.mark.slow  # starts a browser
def test_a_browser_opens_sorts_and_prints_it(report):
    playwright = pytest.importorskip("playwright.sync_api", reason="needs pip install playwright")
    browser_path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser_path is None:
        pytest.skip(f"needs a browser on PATH: one of {', '.join(BROWSERS)}")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=browser_path, args=QUIET)
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        said, asked = [], []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(report.as_uri())
        assert not said and [url for url in asked if not url.startswith("data:")] == [report.as_uri()]
        assert all(page.eval_on_selector_all("img", "all => all.map((one) => one.naturalWidth > 100)"))

        def column(number: int) -> list[str]:
            return page.locator("table").nth(1).locator(f"tbody td:nth-child({number})").all_inner_texts()

        head = page.locator("table").nth(1).locator("th").nth(4)
        before = list(map(float, column(5)))
        assert head.inner_text().startswith("RMSE") and before != sorted(before)
        head.get_by_role("button").click()
        assert list(map(float, column(5))) == sorted(before) and head.get_attribute("aria-sort") == "ascending"
        head.get_by_role("button").press("Enter")  # by the keyboard, too
        assert list(map(float, column(5))) == sorted(before, reverse=True)
        first = page.locator("table").nth(1).locator("th").nth(0)
        first.get_by_role("button").click()
        assert head.get_attribute("aria-sort") is None
        assert column(1) == sorted(column(1))
        printed = page.pdf(format="A4")
        assert printed[:4] == b"%PDF" and len(re.findall(rb"/Type\s*/Page\b", printed)) >= 3
        browser.close()
    assert not said

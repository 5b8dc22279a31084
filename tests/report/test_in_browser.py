"""Pages in a real browser: quiet, whole, at home on a phone and on paper."""

import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from stored import evaluation

from inkdrop.evaluation.record import keep_evaluation
from inkdrop.report.compare import compare
from inkdrop.report.page import write_report
from inkdrop.run import load

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PHONES = (320, 360, 400)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip(f"no browser is there: none of {', '.join(BROWSERS)}")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def pages(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The report of a run of which much is measured, and a comparison."""
    folder = tmp_path_factory.mktemp("shown")
    names = ("a-run", "a-run-of-a-long-name-that-has-nowhere-to-break_and_goes_on")
    runs = [Path(shutil.copytree(finished_run, folder / name)) for name in names]
    for distance, run in enumerate(runs, 20):
        step = load(run).step
        keep_evaluation(run, evaluation(distance, step=step))
        keep_evaluation(run, evaluation(distance + 9, step=step, timesteps=[10, 0]))
    report = write_report(load(runs[0]))
    found = compare(runs, n=8, steps=2)
    return {"report": report, "comparison": found.write(folder / "out") / "comparison.html"}


@pytest.mark.parametrize("name", ["report", "comparison"])
def test_a_page_is_quiet_whole_and_fits(browser: Any, pages: dict[str, Path], name: str) -> None:
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    address = pages[name].resolve().as_uri()
    page.goto(address)

    outside = [url for url in asked if not url.startswith("data:")]
    assert outside == [address]
    images = page.evaluate(
        "[...document.images].map(i => [i.alt, i.complete && i.naturalWidth > 0])"
    )
    assert len(images) >= 3
    assert all(alt.strip() and whole for alt, whole in images)
    headings = page.evaluate(
        "[...document.querySelectorAll('h1,h2,h3,h4,h5,h6')].map(h => Number(h.tagName[1]))"
    )
    assert headings[0] == 1
    assert headings.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(headings))
    for width in (*PHONES, 768, 1200):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    printed = page.pdf(format="A4")
    assert printed.startswith(b"%PDF")
    assert len(printed) > 10_000
    assert said == []
    page.close()


def test_a_table_that_is_too_wide_is_reached_with_the_keyboard(
    browser: Any, pages: dict[str, Path]
) -> None:
    page = browser.new_page(viewport={"width": 320, "height": 800})
    page.goto(pages["report"].resolve().as_uri())
    wide = page.evaluate(
        "[...document.querySelectorAll('*')].filter(e => e.scrollWidth > e.clientWidth + 1 &&"
        " getComputedStyle(e).overflowX == 'auto').map(e => [e.tabIndex, e.ariaLabel])"
    )
    assert wide
    assert all(index == 0 and label for index, label in wide)
    page.close()


def test_a_plain_report_of_a_run_just_begun_fits_a_phone(
    browser: Any, run: SimpleNamespace
) -> None:
    run.config.name = "a-name-without-any-place-to-break-it-in-two-or-three"
    run.metrics, run.example = [], torch.zeros(1, 8, 8, dtype=torch.uint8)
    page = browser.new_page(viewport={"width": 320, "height": 800})
    page.goto(write_report(run).resolve().as_uri())  # type: ignore[arg-type]
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    page.close()

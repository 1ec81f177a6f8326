"""The page in a real browser: headless Chromium, driven by playwright."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from anp_vs.report.page import write_report
from report.made_runs import make_run

pytestmark = pytest.mark.browser

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    program = next((found for name in PROGRAMS if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip("no Chromium is installed; on Debian: apt-get install chromium")
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--headless", "--disable-gpu"]
        )
        yield started
        started.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        make_run(root, "mnist-cpu/at", seed, row={"white_box_accuracy": 90.5 + seed}, suspicious=False)
    autoattack = {"autoattack_accuracy": 88.0, "autoattack_images": 1000}
    make_run(root, "mnist-cpu/anp-vs", row={"white_box_accuracy": 91.7, **autoattack}, suspicious=True)
    make_run(root, "cifar10/at", row={})
    return write_report([root], root / "report.html")


@pytest.fixture(params=[(1280, "light"), (360, "dark")], ids=["desktop", "phone"])
def page(request: pytest.FixtureRequest, browser: Any, report: Path) -> Iterator[Any]:
    width, scheme = request.param
    opened = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    opened.said = []
    opened.asked = []
    opened.on("console", lambda message: opened.said.append(message.text))
    opened.on("pageerror", lambda error: opened.said.append(str(error)))
    opened.on("request", lambda asked: opened.asked.append(asked.url))
    opened.goto(report.as_uri())
    opened.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    yield opened
    opened.close()


def test_it_opens_without_a_complaint_or_a_request(page: Any, report: Path) -> None:
    assert page.said == []
    assert [url for url in page.asked if not url.startswith("data:")] == [report.as_uri()]


def test_nothing_but_tables_in_their_boxes_is_wider_than_the_window(page: Any) -> None:
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    boxes = page.evaluate(
        "[...document.querySelectorAll('.scroll')].map(box => [box.scrollWidth > box.clientWidth, "
        "getComputedStyle(box).overflowX, box.getBoundingClientRect().right <= window.innerWidth])"
    )
    assert all(overflow == "auto" and inside for _, overflow, inside in boxes)
    if page.viewport_size["width"] < 400:
        assert any(wider for wider, _, _ in boxes)


def test_every_picture_is_visible_and_its_text_is_large_enough(page: Any) -> None:
    sizes = page.evaluate(
        "[...document.querySelectorAll('figure svg')].map(each => { const box = each.getBoundingClientRect(); "
        "return [box.width, box.height, box.width / each.viewBox.baseVal.width, each.querySelectorAll('path').length]; })"
    )
    assert len(sizes) >= 12
    for width, height, scale, drawn in sizes:
        assert width > 200
        assert height > 50
        assert scale > 0.85  # the text is 8.5 units high
        assert drawn > 5


def test_a_click_on_a_heading_sorts_and_another_one_turns_it_round(page: Any) -> None:
    table = page.locator("table.sortable").last  # MNIST

    def column(number: int) -> list[str]:
        cells = table.locator(f"tbody tr > :nth-child({number})")
        return [str(value) for value in cells.evaluate_all("cells => cells.map(cell => cell.dataset.value)")]

    white, autoattack, names = 3, 5, 1
    heading = table.get_by_role("button", name="white-box %")
    heading.click()
    down = [float(value) for value in column(white)]
    assert down == sorted(down, reverse=True)
    assert len(set(down)) > 5
    assert table.locator("th[aria-sort=descending]").count() == 1
    heading.click()
    assert [float(value) for value in column(white)] == down[::-1]
    assert table.locator("th[aria-sort=ascending]").inner_text().startswith("white-box")
    table.get_by_role("button", name="AutoAttack %").click()
    assert float(column(autoattack)[0]) == 88
    assert set(column(autoattack)[1:]) == {""}  # what was not measured comes last
    table.get_by_role("button", name="row").click()
    table.get_by_role("button", name="row").click()
    assert column(names) == sorted(column(names))


def test_colours_follow_the_scheme_and_can_be_read(page: Any) -> None:
    ink, paper = page.evaluate(
        "[getComputedStyle(document.querySelector('svg text')).fill, "
        "getComputedStyle(document.querySelector('figure.card')).backgroundColor]"
    )
    assert contrast(rgb(ink), rgb(paper)) > 4.5
    muted = page.evaluate("getComputedStyle(document.querySelector('.muted')).color")
    assert contrast(rgb(muted), rgb(paper)) > 4.5


def rgb(text: str) -> tuple[float, ...]:
    return tuple(float(part) / 255 for part in text[text.index("(") + 1 : -1].split(",")[:3])


def contrast(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """The ratio that the Web Content Accessibility Guidelines 2 define."""

    def luminance(colour: tuple[float, ...]) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)

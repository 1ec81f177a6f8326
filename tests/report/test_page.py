"""The page: nothing fetched, nothing left out, nothing passed off as what it is not."""

from __future__ import annotations

import itertools
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from anp_vs.errors import RunError
from anp_vs.report.page import render, write_report
from anp_vs.report.runs import find_runs, read_runs
from report.made_runs import make_run


class Page(HTMLParser):
    """What a reader of the page meets: elements with their attributes, and text by the element around it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.bold: list[str] = []
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if not self._open or self._open[-1] not in ("style", "script"):
            self.text += data
            if self._open and self._open[-1] == "strong":
                self.bold.append(data)


def made(*runs: Path) -> tuple[str, Page]:
    text = render(read_runs(runs))
    return text, Page(text)


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    return [
        make_run(tmp_path, "mnist-cpu/standard", row={"white_box_accuracy": 0.0}),
        make_run(tmp_path, "mnist-cpu/at", row={"white_box_accuracy": 90.5}, suspicious=False),
        make_run(
            tmp_path, "mnist-cpu/anp-vs", row={"white_box_accuracy": 91.75, "parameters": 31_222}, suspicious=True
        ),
    ]


def test_nothing_is_fetched_from_elsewhere(runs: list[Path]) -> None:
    text, page = made(*runs)
    for tag, attributes in page.elements:
        for name in ("src", "href", "srcset", "poster", "action"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), f"<{tag} {name}={attributes[name]}>"
    assert all(place.startswith(("#", "data:")) for place in re.findall(r"url\(([^)]*)\)", text))
    assert not re.search(r"https?://|@import|\bfetch\(|XMLHttpRequest|\bimport\(", text)
    assert "default-src 'none'" in text


def test_every_run_every_row_and_the_protocol_are_there(runs: list[Path]) -> None:
    _, page = made(*runs)
    for name in ("mnist-cpu/standard seed 0", "mnist-cpu/at seed 0", "mnist-cpu/anp-vs seed 0", "pixel-space"):
        assert name in page.text
    measured = [a for tag, a in page.elements if tag == "tr" and a.get("class") == "measured"]
    published = [a for tag, a in page.elements if tag == "tr" and a.get("class") == "published"]
    assert (len(measured), len(published)) == (3, 8)
    assert (
        "Rows of the published table that were not measured here: bp, at-bnn, pretrained-at, admm, trades." in page.text
    )
    assert page.text.count("not measured") >= 3  # AutoAttack, of each row


def test_the_best_is_bold_and_the_rest_is_not(runs: list[Path]) -> None:
    _, page = made(*runs)
    assert "91.75" in page.bold
    assert "31,222" in page.bold
    assert "90.50" not in page.bold
    assert "431,080" not in page.bold


def test_pixel_space_cifar_is_never_beside_the_published_figures_without_a_word(tmp_path: Path) -> None:
    text, page = made(make_run(tmp_path, "cifar10/at", row={}))
    measured, apart = text.split("Published, not to be compared with the table above")
    assert "56.21" not in measured
    assert "56.21" in apart
    assert "another protocol" in page.text


def test_released_code_figures_say_what_they_are(tmp_path: Path) -> None:
    _, page = made(make_run(tmp_path, "cifar10/at", row={"protocol": "released-code"}))
    assert "These figures say little about robustness" in " ".join(page.text.split())


def test_corruptions_and_certificates_are_told_where_they_were_measured(tmp_path: Path) -> None:
    table = {"mean": 61.5, "images": 250, "accuracy": {"jpeg": (90.0, 80.0), "contrast": (50.0, 26.0)}}
    run = make_run(tmp_path, "mnist-cpu/at", row={"corruptions": table})
    _, page = made(run)
    assert "61.5 % on average over 250 images; least under contrast, 38.0 %" in page.text
    assert "on average" not in made(make_run(tmp_path, "mnist-cpu/trades"))[1].text


def test_verdicts_come_with_their_reasons(runs: list[Path]) -> None:
    text, page = made(*runs)
    assert "1 of 2 checks: not to be trusted" in page.text
    assert "no sign in 2 checks" in page.text
    assert "accuracy 30 % at eps 1." in page.text
    assert "Not measured for mnist-cpu/standard seed 0;" in page.text
    row = next(part for part in text.split("<tr") if 'data-value="anp-vs"' in part and "measured" in part)
    assert "masked gradients" in row


def test_pictures_are_described_and_their_ids_are_their_own(runs: list[Path]) -> None:
    _, page = made(*runs)
    pictures = [attributes for tag, attributes in page.elements if tag == "svg"]
    assert len(pictures) >= 10
    assert all(a["role"] == "img" and len(a["aria-label"] or "") > 20 for a in pictures)
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    targets = {(a.get("href") or "")[1:] for _, a in page.elements if (a.get("href") or "").startswith("#")}
    assert targets <= set(ids)


def test_headings_descend_one_level_at_a_time(runs: list[Path]) -> None:
    _, page = made(*runs)
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_what_made_a_run_is_all_there(runs: list[Path]) -> None:
    _, page = made(*runs)
    for words in ("commit 0123abcd", "anp-vs evaluate RUN", "a processor, 2 threads", "torch 2.9", "gate_lr: 0.1"):
        assert words in page.text


def test_what_was_not_measured_is_said(tmp_path: Path) -> None:
    _, page = made(make_run(tmp_path, "mnist-cpu/anp-vs"))
    assert "No run has been evaluated" in page.text
    assert "Not measured: units left in each layer, vulnerability of the latent features" in page.text
    assert "Robust accuracy against cost is not measured" in page.text


def test_names_are_text_and_never_markup(tmp_path: Path) -> None:
    run = make_run(tmp_path, "mnist-cpu/at", row={"hardware": "<script>alert(1)</script>"}, source="<img src=x>")
    text, page = made(run)
    assert sum(tag == "script" for tag, _ in page.elements) == 1
    assert not any(tag == "img" for tag, _ in page.elements)
    assert "&lt;script&gt;alert(1)" in text


def test_runs_are_found_in_folders_and_bad_places_are_named(tmp_path: Path) -> None:
    first, second = make_run(tmp_path, "mnist-cpu/at"), make_run(tmp_path, "mnist-cpu/at", 1)
    assert find_runs([tmp_path]) == [first, second]
    assert find_runs([second, tmp_path]) == [second, first]
    (second / "network.safetensors").unlink()
    assert find_runs([tmp_path]) == [first]
    with pytest.raises(RunError, match=r"no finished run \(1 unfinished: anp-vs train"):
        find_runs([second])
    with pytest.raises(RunError, match="nowhere"):
        find_runs([tmp_path / "nowhere"])


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("evaluation.json", "{"),
        ("evaluation.json", "{}"),
        ("diagnosis.json", "[1]"),
        ("metrics.jsonl", "{]\n"),
        ("figures/maps.json", "\x00"),
        ("network.json", "[]"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, file: str, content: str) -> None:
    run = make_run(tmp_path, "mnist-cpu/at")
    (run / file).parent.mkdir(exist_ok=True)
    (run / file).write_text(content, encoding="utf-8")
    with pytest.raises(RunError, match=str(run)):
        write_report([run], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()

"""One self-contained HTML page from run directories: nothing in it is fetched from elsewhere."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from anp_vs import __version__, recipes
from anp_vs.errors import RunError
from anp_vs.evaluation.beyond import described
from anp_vs.evaluation.transfers import seen_and_attacked
from anp_vs.provenance import command
from anp_vs.report.group_pictures import of_group
from anp_vs.report.matrix import Matrix, matrix
from anp_vs.report.pictures import Picture
from anp_vs.report.rows import BETTER, Block, blocks
from anp_vs.report.run_pictures import of_run
from anp_vs.report.runs import RunRecord, find_runs, read_runs
from anp_vs.storage import write_atomically

HEADINGS = {
    "clean_accuracy": "clean %", "white_box_accuracy": "white-box %", "white_box_accuracy_strongest": "strongest PGD %",
    "autoattack_accuracy": "AutoAttack %", "black_box_accuracy": "black-box %", "white_box_vulnerability": "V white-box",
    "black_box_vulnerability": "V black-box", "memory_percent": "memory %", "flops_reduction": "FLOPs ×",
    "sparsity_percent": "sparsity %", "parameters": "parameters", "macs": "MACs",
}  # fmt: skip
NAMES = {
    "mnist": "MNIST", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "digits": "Digits",
    "lenet5-caffe": "LeNet-5-Caffe", "vgg16": "VGG-16", "vgg16-standardised": "VGG-16, images standardised",
}  # fmt: skip


@dataclass(frozen=True)
class Group:
    """Runs that share data and test attack, compared in pictures.

    Attributes:
        title: data and attack in words.
        runs: of the group.
        pictures: of the comparison.
        lacking: sentences about what was not measured.
        matrix: of transferred attacks.
    """

    title: str
    runs: list[RunRecord]
    pictures: list[Picture]
    lacking: list[str]
    matrix: Matrix


@dataclass(frozen=True)
class Chapter:
    """One run: its pictures and what made it.

    Attributes:
        run: as read.
        key: of its place in the page.
        pictures: drawn.
        absent: what was not measured.
        signs: of the diagnosis, suspicious ones first, checks that could not be made last.
        beyond: sentences on corruptions and certificates.
        facts: name -> value: path, command, commit, hardware, versions, training time.
        recipe: YAML.
    """

    run: RunRecord
    key: str
    pictures: list[Picture]
    absent: list[str]
    signs: list[dict[str, Any]]
    beyond: list[str]
    facts: dict[str, str]
    recipe: str


def write_report(places: Sequence[Path], out: Path) -> Path:
    """Write the page of some runs.

    Args:
        places: run directories, or folders that hold some; those below runs/ when empty.
        out: the HTML file.

    Returns:
        `out`.

    Raises:
        RunError: there is no finished run, a file of one is damaged, or `out` cannot be written.
    """
    page = render(read_runs(find_runs(places)))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{out.parent} cannot be made: {error.strerror}. Choose another place with --out.") from error
    write_atomically(out, page.encode("utf-8"))
    return out


def render(runs: Sequence[RunRecord]) -> str:
    """The page as text."""
    environment = Environment(
        loader=PackageLoader("anp_vs.report", "page"), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=StrictUndefined,
    )  # fmt: skip
    environment.filters["heat"] = _heat
    tables = blocks(runs)
    chapters = [_chapter(run, f"r{number}") for number, run in enumerate(runs)]
    diagnosed = [chapter for chapter in chapters if chapter.run.diagnosis is not None]
    return environment.get_template("report.html").render(
        runs=runs,
        data=", ".join(dict.fromkeys(title_of(run.recipe.data) for run in runs)),
        tables=[(block, table_title(block), conditions(block)) for block in tables],
        headings=HEADINGS,
        better=BETTER,
        unevaluated=[run for run in runs if not run.evaluations and run.row != "black-box-source"],
        diagnosed=sorted(diagnosed, key=lambda chapter: not any(sign["suspicious"] for sign in chapter.signs)),
        undiagnosed=[run for run in runs if run.diagnosis is None],
        groups=_groups(runs),
        chapters=chapters,
        made=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        command=command(),
        version=__version__,
    )


def title_of(name: str) -> str:
    """The name of a data set or network as people write it."""
    return NAMES.get(name, name)


def table_title(block: Block) -> str:
    """Heading of a table."""
    table = f", recipes {block.table}" if block.table else ""
    return f"{title_of(block.dataset)}, {title_of(block.network)}{table}: {block.conditions['protocol']}"


def conditions(block: Block) -> str:
    """What every measured row of a table was measured under."""
    known = block.conditions
    return (
        f"Protocol {known['protocol']}. White-box and black-box: PGD-{known['steps']}, norm {known['norm']}, eps "
        f"{known['eps']:.4g}, steps of {known['step']:.4g}. Strongest PGD: the worst of {known['restarts']} starts of it and "
        f"one run of at least 100 steps on the margin. The first {known['images']:,} test images. V: mean |z − z̃| "
        f"({known['reduction']}). Parameters and MACs are those of the network that is attacked; memory, FLOPs and sparsity "
        f"are counted as in the published tables."
    )


def _groups(runs: Sequence[RunRecord]) -> list[Group]:
    found: dict[tuple[Any, ...], list[RunRecord]] = {}
    for run in runs:
        found.setdefault(seen_and_attacked(run.recipe), []).append(run)
    groups = []
    for number, (key, members) in enumerate(found.items()):
        title = f"{title_of(key[0])}, eps {key[1].eps:.4g}" + (f", {key[2]}" if key[2] != "pixel-space" else "")
        drawn, lacking = of_group(members, f"g{number}", title)
        groups.append(Group(title, members, drawn, lacking, matrix(members)))
    return groups


def _chapter(run: RunRecord, key: str) -> Chapter:
    drawn, absent = of_run(run, key)
    signs = list(run.diagnosis["signs"]) if run.diagnosis else []
    recipe = yaml.safe_dump(recipes.to_dict(run.recipe), sort_keys=False)
    signs.sort(key=lambda s: (not s["suspicious"], not s["made"]))
    beyond = [sentence for row in run.evaluations for sentence in described(row)]
    return Chapter(run, key, drawn, absent, signs, beyond, facts(run), recipe)


def facts(run: RunRecord) -> dict[str, str]:
    """Where a run's figures come from: what was measured by the same command, on the same commit, as one."""
    found = {"directory": str(run.path), "network": f"sha256 {run.card['sha256'][:16]}…"}
    if run.card.get("train_seconds") is not None:
        found["training"] = f"{run.card['train_seconds']:,.0f} s; {_words(run.card.get('versions', {}))}"
    sources: list[tuple[str, Mapping[str, Any]]] = [
        *((f"evaluation, {row['protocol']}", row) for row in run.evaluations),
        *([("diagnosis", run.diagnosis)] if run.diagnosis else []),
        *((f"figures/{name}.json", data) for name, data in run.figures.items()),
    ]
    together: dict[str, list[str]] = {}
    for name, data in sources:
        words = (
            f"{data.get('command', 'unknown command')}; commit {data.get('commit') or 'unknown'}; "
            f"{data.get('hardware', 'unknown hardware')}; {_words(data.get('versions', {}))}"
        )
        together.setdefault(words, []).append(name)
    return found | {", ".join(names): words for words, names in together.items()}


def _words(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _heat(value: float) -> int:
    """How strongly a cell of the matrix is coloured: a percentage, at most 70 so that the figure stays readable."""
    return round(0.7 * max(0.0, min(100.0, value)))

"""The repository keeps its promises: nothing read can run code, and what the pages show works."""

import os
import re
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest
import yaml

from source_scan import unsafe

ROOT = Path(__file__).resolve().parent.parent
PAGES = [page for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))) if page.exists()]
FENCE = re.compile(r"^(?P<indent> *)```python[ \t]*\n(?P<code>.*?)^(?P=indent)```[ \t]*$", re.MULTILINE | re.DOTALL)
NOTEST = re.compile(r"<!-- notest: [^>]+ -->\s*\Z")


def examples(text: str) -> str:
    """The Python blocks of a page as one program, each on the lines it has there, where errors then point."""
    program: list[str] = []
    for block in FENCE.finditer(text):
        if NOTEST.search(text[: block.start()]):
            continue
        first = text[: block.start("code")].count("\n")
        program += [""] * (first - len(program))
        program += textwrap.dedent(block["code"]).splitlines()
    return "\n".join(program)


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", sorted((ROOT / "src").rglob("*.py")), ids=relative)
def test_no_source_file_can_run_code_from_what_it_reads(path: Path) -> None:
    assert unsafe(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "hostile",
    [
        "import pickle",
        "from joblib import load",
        "eval(text)",
        "import torch\ntorch.load(path)",
        "import torch\ntorch.load(path, weights_only=True)",
        "import torch\ntorch.save(state, path)",
        "from shelve import open",
        "import marshal",
        "from torch import load as read\nread(path)",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
        "import yaml\nyaml.load(text, Loader=yaml.Loader)",
        "import yaml\nyaml.load(text)",
        "import subprocess\nsubprocess.run(text, shell=True)",
        "archive.extractall(folder)",
    ],
)
def test_the_scan_sees_what_is_unsafe(hostile: str) -> None:
    assert len(unsafe(hostile)) == 1


@pytest.mark.parametrize(
    "harmless",
    [
        "network.eval()",
        "import numpy as np\nnp.load(path)\nnp.load(path, allow_pickle=False)",
        "import yaml\nyaml.safe_load(text)\nyaml.load(text, Loader=yaml.CSafeLoader)",
        "archive.extractall(folder, filter='data')",
        "from anp_vs import load\nload(path)",
    ],
)
def test_the_scan_leaves_the_rest_alone(harmless: str) -> None:
    assert unsafe(harmless) == []


def test_examples_keep_their_lines_and_leave_out_what_is_marked() -> None:
    first = "# A page\n\n```python\na = 1\n```\n"
    left_out = "<!-- notest: takes hours -->\n```python\na = 0\n```\n"
    indented = "  ```python\n  b = a\n  ```\n"
    expected = ["", "", "", "a = 1", *[""] * 6, "b = a"]
    assert examples(first + left_out + indented).splitlines() == expected


@pytest.mark.parametrize("page", [page for page in PAGES if examples(page.read_text(encoding="utf-8"))], ids=relative)
def test_the_examples_of_a_page_run(page: Path, tmp_path: Path) -> None:
    program = tmp_path / f"{page.stem}.py"
    program.write_text(examples(page.read_text(encoding="utf-8")), encoding="utf-8")
    search_path = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, program.name],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": search_path},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{relative(page)}, same line numbers:\n{done.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_links_inside_the_repository_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    targets = re.findall(r"\]\((?!\w+:|#)([^)#\s]+)", text)
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_the_version_is_one_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == project["version"]
    assert f"## {project['version']} " in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_pins_name_versions_that_anybody_can_install() -> None:
    """No local build suffix, no path, no address: only `name==version`."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9a-z.]*", line)] == []

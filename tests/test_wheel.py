"""The wheel builds, holds the package and no data set, and works in an environment of its own."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LARGEST = 8_000_000  # bytes; what is shipped are small networks, no data set is that small

pytestmark = pytest.mark.slow


def run(*words: object, at: Path) -> str:
    done = subprocess.run(list(map(str, words)), cwd=at, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", out, ROOT, at=out)
    (built,) = out.glob("anp_vs-*.whl")
    return built


def test_it_holds_every_file_of_the_package_and_nothing_else(wheel: Path) -> None:
    tracked = run("git", "ls-files", "src/anp_vs", at=ROOT).splitlines()
    with zipfile.ZipFile(wheel) as archive:
        entries = [entry for entry in archive.infolist() if ".dist-info/" not in entry.filename]
    assert {f"src/{entry.filename}" for entry in entries} == set(tracked)
    assert all(entry.file_size < LARGEST for entry in entries)
    kinds = {Path(entry.filename).suffix for entry in entries}
    assert kinds <= {".py", ".typed", ".html", ".css", ".js", ".csv", ".json", ".safetensors"}


def test_it_installs_and_runs_in_an_environment_of_its_own(wheel: Path, tmp_path: Path) -> None:
    """The dependencies are those of this environment: what they resolve to is tested by `make check` from nothing."""
    run(sys.executable, "-m", "venv", tmp_path / "venv", at=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", wheel, at=tmp_path)
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", at=tmp_path).strip())
    here = Path(pytest.__file__).resolve().parent.parent
    (site / "dependencies.pth").write_text(f"{here}\n")
    place = run(python, "-I", "-c", "import anp_vs; print(anp_vs.__file__)", at=tmp_path).strip()
    assert Path(place).is_relative_to(tmp_path)
    assert "digits/anp-vs" in run(tmp_path / "venv" / "bin" / "anp-vs", "recipes", at=tmp_path)

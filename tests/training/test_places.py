"""Where runs lie, what is read of them, and recipes that are handed over as objects."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from anp_vs.errors import InputError
from anp_vs.training import run
from anp_vs.training.run_directory import RunDirectory, root_of
from training.tiny import recipe

pytestmark = pytest.mark.usefixtures("tiny")


def test_a_finished_run_is_read_while_its_lock_is_held(path: Path) -> None:
    first = run.train(recipe(), out=path, quiet=True)
    with RunDirectory(path):
        again = run.train(recipe(), out=path, quiet=True)
        later = run.train(recipe(start=str(path)), out=path.parent / "later", quiet=True)
    assert again.metrics == first.metrics
    assert later.network is not None


@pytest.mark.parametrize(
    "wrong", [{"optimiser": "rmsprop"}, {"schedule": "linear"}, {"precision": "bf16"}, {"epochs": 2.5}]
)
def test_a_recipe_made_by_hand_is_looked_at_like_a_file(wrong: dict[str, Any], path: Path) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        run.train(dataclasses.replace(recipe(), **wrong), out=path, quiet=True)
    assert not path.exists()


def test_the_folder_of_all_runs_is_the_same_from_wherever_it_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = recipe(name="table/row")
    inside = tmp_path / "all/table/row/seed0"
    inside.mkdir(parents=True)
    for folder, spelled in (
        (tmp_path, "all/table/row/seed0"),
        (inside, "."),
        (inside.parent, "seed0"),
        (inside, "../seed0"),
    ):
        monkeypatch.chdir(folder)
        assert root_of(Path(spelled), asked).resolve() == tmp_path / "all"
    assert root_of(Path(), recipe(name="other/row")).resolve() == tmp_path / "all/table/row/runs"

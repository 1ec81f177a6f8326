"""Which images a step sees: each once before any again, generated ones in their share, the same whenever asked."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric

from anp_vs import recipes, serialization
from anp_vs.data import Split
from anp_vs.errors import DataError, InputError, RunError
from anp_vs.training import run
from anp_vs.training.batches import Batches
from anp_vs.training.loop import Trainer
from training.tiny import Asked, digits, patched, recipe, trainer


def numbered(count: int, first: int = 0) -> Split:
    """Images that are told apart by their label."""
    return Split(torch.zeros(count, 1, 2, 2, dtype=torch.uint8), torch.arange(first, first + count))


@pytest.mark.parametrize("share", [0.25, 0.7])
def test_a_share_of_every_batch_is_generated_and_nothing_comes_twice_before_all_came(share: float) -> None:
    asked = recipe("at", generated="g.npz", generated_share=share, batch_size=16)
    batches = Batches(asked, numbered(60), numbered(30, 100))
    added = round(16 * share)
    seen = torch.cat([batches.at(step)[1] for step in range(40)])
    assert torch.equal(
        seen, torch.cat([Batches(asked, numbered(60), numbered(30, 100)).at(step)[1] for step in range(40)])
    )
    assert ((seen.view(40, 16) >= 100).sum(1) == added).all()
    for own, size, total in ((seen[seen < 100], 16 - added, 60), (seen[seen >= 100], added, 30)):
        turns = own[: len(own) // (total // size * size) * (total // size * size)].view(-1, total // size * size)
        assert all(len(turn.unique()) == len(turn) for turn in turns)
        assert not torch.equal(turns[0], turns[1])


def test_without_generated_images_batches_are_what_they_were() -> None:
    """Figures of earlier runs hang on the order of images."""
    labels = Batches(recipe("at", batch_size=8, seed=0), numbered(20)).at(3)[1]
    assert labels.tolist() == [9, 5, 19, 6, 7, 4, 14, 18]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    images = np.random.default_rng(0).integers(0, 256, (50, 28, 28, 1), np.uint8)
    np.savez(tmp_path / "g.npz", image=images, label=np.arange(50) % 10)
    return tmp_path / "g.npz"


def test_a_trainer_sees_them_and_knows_them_again(file: Path) -> None:
    asked: dict[str, Any] = {"generated": str(file), "generated_share": 0.5}
    first = trainer("at", **asked)
    images, _ = first.batch()
    held = dict(np.load(file))
    stored = torch.from_numpy(held["image"]).permute(0, 3, 1, 2).float() / 255
    found = [(image == stored).flatten(1).all(1).any() for image in images]
    assert found == [False] * 8 + [True] * 8
    first.advance()
    state = first.state()
    trainer("at", **asked).load_state(state)
    for other in ({"label": (held["label"] + 1) % 10}, {"image": 255 - held["image"]}):
        np.savez(file, **held | other)
        with pytest.raises(RunError, match="does not hold the generated images that this run began with"):
            trainer("at", **asked).load_state(state)
    with pytest.raises(InputError, match=r"asks for the images of .*g\.npz; hand them over"):
        Trainer(first.recipe, digits(), Fabric(accelerator="cpu", devices=1))


def test_a_run_goes_on_when_the_file_has_moved_and_is_named_after_it_whoever_starts_or_learns_from_it(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {"generated": str(file), "generated_share": 0.25, "average": 0.0}
    with patched():
        with monkeypatch.context() as patch:
            patch.setattr("anp_vs.training.run.stop_asked", lambda: Asked(lambda: True))
            with pytest.raises(run.Stopped):
                run.train(recipe("at", **asked), out=tmp_path / "run", quiet=True)
        moved = file.rename(tmp_path / "moved.npz")
        run.train(recipe("at", **asked | {"generated": str(moved)}), out=tmp_path / "run", quiet=True)
        marks = [serialization.read_card(tmp_path / "run/network.safetensors")["extra_data"]]
        for name, behind in (
            ("start", {"start": str(tmp_path / "run")}),
            ("teacher", {"teacher": str(tmp_path / "run")}),
        ):
            run.train(recipe("trades", name=f"t/{name}", **behind), out=tmp_path / name, quiet=True)
            marks.append(serialization.read_card(tmp_path / name / "network.safetensors")["extra_data"])
    assert marks == [", 25 % generated images"] * 3


def test_a_file_that_is_not_there_is_said_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(recipes.RECIPES, "t/first", recipe("standard", name="t/first"))
    with patched(), pytest.raises(DataError, match=r"gone\.npz cannot be read"):
        run.train(recipe("at", start="t/first", generated="gone.npz"), out=tmp_path / "t/second/seed0", quiet=True)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_shares_and_files_that_cannot_be(file: Path) -> None:
    for share in (0.0, 1.0, 0.01, -1.0, float("nan")):
        with pytest.raises(InputError, match=f"generated_share is {share}"):
            recipe("at", generated=str(file), generated_share=share)
    np.savez(file, image=np.load(file)["image"][:5], label=np.arange(5))
    with pytest.raises(InputError, match="There are 5 generated images, and a batch takes 11; lower generated_share"):
        trainer("at", generated=str(file))

"""Publishing, without a network: folders there and back, and what would be uploaded."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from anp_vs import insert_gates, load, save
from anp_vs.errors import InputError, RunError
from anp_vs.networks import build

hub = pytest.importorskip("huggingface_hub")

CARD = {"classes": ["cat", "dog"], "threat_model": {"norm": "inf", "eps": 0.1, "space": "pixels in [0, 1]"}}


@pytest.fixture
def published(tmp_path: Path) -> Any:
    from anp_vs.deploy.hub import HubNetwork

    return HubNetwork(load(save(insert_gates(build("lenet5-caffe", 2)), tmp_path / "net", **CARD)))


def test_a_folder_there_and_back(published: Any, tmp_path: Path) -> None:
    published.save_pretrained(tmp_path / "folder")
    again = type(published).from_pretrained(tmp_path / "folder")
    images = torch.rand(2, 1, 28, 28)
    with torch.no_grad():
        assert torch.equal(again(images), published(images))
    assert not again.training
    assert again.card["classes"] == ["cat", "dog"]
    assert sorted(f.name for f in (tmp_path / "folder").iterdir()) == [
        "README.md", "config.json", "network.json", "network.safetensors",
    ]  # fmt: skip


def test_what_is_uploaded(published: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def upload(self: Any, *, repo_id: str, folder_path: str | Path, **_: Any) -> str:
        seen.update({f.name: f.read_bytes() for f in Path(folder_path).iterdir()}, repo_id=repo_id)
        return "done"

    monkeypatch.setattr(hub.HfApi, "create_repo", lambda self, repo_id, **_: type("R", (), {"repo_id": repo_id})())
    monkeypatch.setattr(hub.HfApi, "upload_folder", upload)
    published.push_to_hub("me/net")
    page = seen["README.md"].decode()
    for fact in (
        "library_name: anp-vs",
        "classes: cat, dog",
        "inf norm, eps 0.1",
        "what is attacked: pixels in [0, 1]",
        "1 x 28 x 28",
        "me/net",
    ):
        assert fact in page
    assert json.loads(seen["network.json"])["classes"] == ["cat", "dog"]
    assert seen["network.safetensors"] == (tmp_path / "net.safetensors").read_bytes()


def test_only_the_networks_files_are_downloaded(
    published: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published.save_pretrained(tmp_path / "folder")
    asked: list[Any] = []

    def download(repo: str, **options: Any) -> str:
        asked.append((repo, options["revision"], options["allow_patterns"]))
        return str(tmp_path / "folder")

    def offline(*_: Any, **__: Any) -> None:
        raise hub.errors.LocalEntryNotFoundError("no network")

    monkeypatch.setattr("anp_vs.deploy.hub.snapshot_download", download)
    monkeypatch.setattr("huggingface_hub.hub_mixin.hf_hub_download", lambda **_: str(tmp_path / "folder/config.json"))
    type(published).from_pretrained("me/net", revision="v1")
    assert asked == [("me/net", "v1", ["network.*"])]
    monkeypatch.setattr("anp_vs.deploy.hub.snapshot_download", offline)
    with pytest.raises(RunError, match="me/net could not be had"):
        type(published).from_pretrained("me/net")


def test_a_class_that_is_not_known_needs_an_instance(tmp_path: Path) -> None:
    from anp_vs.deploy.hub import HubNetwork

    own = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    HubNetwork(own).save_pretrained(tmp_path / "own")
    with pytest.raises(InputError, match="not built in"):
        HubNetwork.from_pretrained(tmp_path / "own")
    fresh = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    again = HubNetwork.from_pretrained(tmp_path / "own", network=fresh)
    assert torch.equal(again.network[1].weight, own[1].weight)

"""Saved networks: back as they were, whatever was done to them; and nothing in a stranger's file but our own error."""

import copy
import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from anp_vs import InputError, RunError, recipes
from anp_vs.errors import AnpVsError
from anp_vs.methods import METHODS
from anp_vs.networks import build
from anp_vs.networks.bayesian import bayesian_layers, make_bayesian
from anp_vs.pruning.compact import compact
from anp_vs.pruning.gate import gates
from anp_vs.pruning.insertion import insert_gates
from anp_vs.pruning.shrinking import shrink
from anp_vs.serialization import LARGEST_CARD, load, locate, read_card, save

IMAGES = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(1))


def gated() -> nn.Module:
    network = insert_gates(build("lenet5-caffe"))
    draws = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for gate in gates(network).values():
            gate.a_uc[torch.rand(gate.units, generator=draws) < 0.9] = -12.0
    return network.eval()


def shrunk() -> nn.Module:
    """With an index: the dense layer's gate loses inputs one by one, which the convolution before it cannot."""
    network = gated()
    shrink(network, {name: ~gate.alive() for name, gate in gates(network).items()})
    assert network.gate3.index is not None
    return network


def small() -> nn.Module:
    network = compact(gated())
    assert "Select" in {type(module).__name__ for module in network.modules()}
    return network


def bayesian() -> nn.Module:
    return make_bayesian(build("lenet5-caffe", 3), 0.25, -2.0).eval()


KINDS: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: build("lenet5-caffe", 7).eval(), "gated": gated, "shrunk": shrunk, "compact": small,
    "bayesian": bayesian,
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_comes_back_as_it_was(kind: str, tmp_path: Path) -> None:
    network = KINDS[kind]()
    path = save(network, tmp_path / "deep" / "network", classes=["a", "b"])
    loaded = load(path)
    assert not loaded.training
    state, held = network.state_dict(), loaded.state_dict()
    assert state.keys() == held.keys()
    assert all(torch.equal(value, held[name]) for name, value in state.items())
    for seed in (1, 2):  # a Bayesian network draws its weights
        torch.manual_seed(seed)
        expected = network(IMAGES)
        torch.manual_seed(seed)
        assert torch.equal(loaded(IMAGES), expected)
    assert {n: g.original_units for n, g in gates(loaded).items()} == {
        n: g.original_units for n, g in gates(network).items()
    }
    assert [layer.prior_sigma for layer in bayesian_layers(loaded).values()] == [0.25] * len(bayesian_layers(network))
    assert loaded.card["classes"] == ["a", "b"]
    assert loaded.card["parameters"] == sum(p.numel() for p in network.parameters())


def test_what_was_loaded_saves_to_the_same_bytes_and_keeps_its_card(tmp_path: Path) -> None:
    first = save(shrunk(), tmp_path / "first", note="kept")
    second = save(load(first), tmp_path / "second")
    assert first.read_bytes() == second.read_bytes()
    assert read_card(second) == read_card(first)


def test_every_part_of_a_vgg_comes_back(tmp_path: Path) -> None:
    network = insert_gates(build("vgg16", 5)).eval()
    with torch.no_grad():
        for gate in gates(network).values():
            gate.a_uc[gate.units // 8 :] = -12.0
    small = compact(network)
    loaded = load(save(small, tmp_path / "vgg"))
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(loaded(images), small(images))


class Own(nn.Module):
    """A network of the user's, with a tied weight."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.two(self.one(x.flatten(1)))
        return y


def test_a_users_network_needs_a_fresh_instance(tmp_path: Path) -> None:
    network = Own()
    path = save(network, tmp_path / "own.safetensors")
    with pytest.raises(InputError, match=r"Own', which is not built in; give a fresh one"):
        load(path)
    images = torch.rand(2, 1, 2, 2)
    assert torch.equal(load(path, Own())(images), network(images))
    with pytest.raises(InputError, match="no such layer"):
        load(path, nn.Sequential(nn.Linear(4, 4)))


class Scaled(nn.Module):
    """A layer of a user's own whose tensors have the names that a selection's have."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(4))
        self.register_buffer("index", torch.tensor([2, 0, 3, 1]))

    def forward(self, images: Tensor) -> Tensor:
        """Permute and scale the channels."""
        return images[:, self.index] * self.scale.view(-1, 1, 1)  # type: ignore[index]


def test_a_layer_with_a_scale_or_an_index_of_its_own_is_no_selection(tmp_path: Path) -> None:
    def fresh() -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 4, 3), Scaled(), nn.ReLU(), nn.Flatten(), nn.Linear(2704, 3)).eval()

    network = fresh()
    loaded = load(save(network, tmp_path / "own"), network=fresh())
    assert torch.equal(loaded(IMAGES), network(IMAGES))


def test_a_card_holds_only_plain_values(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="plain values"):
        save(build("lenet5-caffe"), tmp_path / "n", fact=object())
    assert not list(tmp_path.iterdir())


def test_a_run_directory_gives_its_compact_network_first(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no network yet"):
        locate(tmp_path)
    save(build("lenet5-caffe"), tmp_path / "network")
    assert locate(tmp_path).name == "network.safetensors"
    save(build("lenet5-caffe"), tmp_path / "compact")
    assert locate(tmp_path).name == "compact.safetensors"
    for missing in (tmp_path / "none", "no/such", tmp_path / "network.json", "", "a\0b"):
        with pytest.raises(RunError, match=r"no saved network|holds no network"):
            locate(missing)


# -- damage -----------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A small network's file, with its card beside it."""
    return save(small(), tmp_path / "network")


def test_a_file_cut_or_flipped_anywhere_is_refused(saved: Path) -> None:
    whole = saved.read_bytes()
    for place in range(0, len(whole), max(1, len(whole) // 50)):
        flipped = whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :]
        for content in (whole[:place], flipped):
            saved.unlink()
            saved.write_bytes(content)
            with pytest.raises(RunError, match="damaged or belongs to another card"):
                load(saved)


def test_a_card_cut_anywhere_is_refused(saved: Path) -> None:
    card = saved.with_suffix(".json")
    whole = card.read_bytes()
    for length in range(0, len(whole) - 1, 20):
        card.unlink()
        card.write_bytes(whole[:length])
        with pytest.raises(RunError, match="cannot be read"):
            load(saved)


def test_another_networks_card_and_a_missing_one_are_refused(saved: Path, tmp_path: Path) -> None:
    other = save(build("lenet5-caffe"), tmp_path / "other")
    saved.with_suffix(".json").write_bytes(other.with_suffix(".json").read_bytes())
    with pytest.raises(RunError, match="belongs to another card"):
        load(saved)
    saved.with_suffix(".json").unlink()
    with pytest.raises(RunError, match=r"card .* cannot be read"):
        load(saved)


@pytest.mark.parametrize(
    "text", ["", "[]", "3", "null", "{", "[" * 100_000, '{"a":' * 100_000, '{"format": 99}', "1" * 5000, "\ud800"]
)
def test_a_card_that_is_none_is_refused(text: str, saved: Path) -> None:
    saved.with_suffix(".json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(RunError, match="The card"):
        load(saved)


def test_a_huge_card_is_not_read(saved: Path) -> None:
    saved.with_suffix(".json").write_bytes(b" " * (LARGEST_CARD + 1))
    with pytest.raises(RunError, match="larger than 10,000,000 bytes"):
        load(saved)


# -- strangers' cards and tensors, with a checksum that fits ----------------------------------------------------


def changed(path: Path, **values: Any) -> Path:
    card = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps(card | values))
    return path


@pytest.mark.parametrize(
    "values",
    [
        *({"logits": value} for value in (-1, 0, 1, 11, 10**9, 10**400, True, None, "10", [10], {}, 10.0)),
        *({"architecture": value} for value in ("os:system", "resnet", "vgg16", None, 3, ["vgg16"], {"a": 1})),
        *({"original_units": value} for value in ([1], "gates", 3, {"gate1": -1}, {"gate1": "x"}, {"gate1": 10**30}, {"gate1": 2.5}, {"gate1": None})),
        *({"format": value} for value in (0, 2, "1", None, [1])),
        *({"sha256": value} for value in (None, 3, "", ["x"], {})),
    ],
    ids=str,
)  # fmt: skip
def test_a_hostile_card_is_refused(values: dict[str, Any], saved: Path) -> None:
    with pytest.raises(AnpVsError):
        load(changed(saved, **values))


@pytest.mark.parametrize("sigma", [0, -1, "x", None, [1], True, float("nan"), float("inf")])
def test_a_hostile_prior_is_refused(sigma: Any, tmp_path: Path) -> None:
    path = save(bayesian(), tmp_path / "b")
    with pytest.raises(RunError, match="prior_sigma"):
        load(changed(path, prior_sigma=sigma))


def test_what_else_is_in_a_card_does_not_matter(saved: Path) -> None:
    """A card of a later version, or with a recipe that this one would refuse, loads all the same."""
    recipe = recipes.to_dict(recipes.RECIPES["mnist/at"]) | {"later": 1}
    assert load(changed(saved, recipe=recipe, later=[1, {"x": None}])).card["later"] == [1, {"x": None}]


def replaced(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return changed(path, sha256=hashlib.sha256(content).hexdigest())


def state_of(path: Path) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in load(path).state_dict().items()}


Change = Callable[[dict[str, Tensor]], object]
CHANGES: dict[str, Change] = {
    "a layer too narrow": lambda s: s.update({"conv2.weight": s["conv2.weight"][:, :1].contiguous()}),
    "a layer too wide": lambda s: s.update({"conv1.weight": torch.zeros(300, 1, 5, 5), "conv1.bias": torch.zeros(300)}),
    "no logits": lambda s: s.update({"fc2.weight": s["fc2.weight"][:0], "fc2.bias": s["fc2.bias"][:0]}),
    "another rank": lambda s: s.update({"fc2.weight": s["fc2.weight"].flatten()}),
    "a scalar": lambda s: s.update({"fc1.bias": torch.tensor(1.0)}),
    "a missing layer": lambda s: s.pop("fc1.weight"),
    "a foreign layer": lambda s: s.update({"extra.weight": torch.zeros(2, 2)}),
    "no layer at all": lambda s: s.clear(),
    "nothing between the layers": lambda s: s.update({"fc1.weight": s["fc1.weight"][:0], "fc1.bias": s["fc1.bias"][:0], "fc2.weight": s["fc2.weight"][:, :0].contiguous()}),
    "an index beyond the input": lambda s: s.update({"gate3.index": s["gate3.index"] + 10**6}),
    "a negative index": lambda s: s.update({"gate3.index": s["gate3.index"] - 10**6}),
    "an index of floats": lambda s: s.update({"gate3.index": s["gate3.index"].float()}),
    "an index of two dimensions": lambda s: s.update({"gate3.index": s["gate3.index"][None]}),
    "a kernel too large": lambda s: s.update({"conv1.weight": torch.zeros(len(s["conv1.weight"]), 1, 60, 60)}),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_tensors_that_do_not_make_a_network_are_refused(change: str, saved: Path) -> None:
    state = state_of(saved)
    CHANGES[change](state)
    with pytest.raises(AnpVsError):
        load(replaced(saved, save_tensors(state)))


def header(text: bytes, body: bytes = b"") -> bytes:
    return struct.pack("<Q", len(text)) + text + body


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\0" * 8, struct.pack("<Q", 2**63), struct.pack("<Q", 100) + b"{}", header(b"{}"), header(b"[]"), header(b"{" * 3000),
        header(b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4]}}', b"\0" * 4),
        header(b'{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}'),
        header(b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}', b"\0" * 4),
        header(b'{"a":{"dtype":"Q9","shape":[1],"data_offsets":[0,4]}}', b"\0" * 4),
        header(b'{"a":{"dtype":"F32","shape":[1000000000,0],"data_offsets":[0,0]}}'),
        header(b'{"fc2.weight":{"dtype":"F32","shape":[1000000000,0],"data_offsets":[0,0]}}'),
        header(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}', b"\0" * 4),
        header(b'{"conv1":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', b"\0" * 4),
        header(b'{"":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', b"\0" * 4),
        header(b'{"__metadata__":{"a":3}}'),
    ],
    ids=lambda content: repr(content[8:60]),
)  # fmt: skip
def test_what_is_no_file_of_tensors_is_refused(content: bytes, saved: Path) -> None:
    with pytest.raises(AnpVsError):
        load(replaced(saved, content))


PLAIN = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=6)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)),
    max_leaves=8,
)
CARD_FIELDS = st.sampled_from(
    ["format", "architecture", "logits", "original_units", "prior_sigma", "sha256", "parameters", "recipe", "versions"]
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.dictionaries(CARD_FIELDS, PLAIN, min_size=1, max_size=3))
def test_any_card_gives_the_network_or_our_own_error(values: dict[str, Any], saved: Path) -> None:
    before = saved.with_suffix(".json").read_text()
    try:
        assert load(changed(saved, **values))(IMAGES).shape == (2, 10)
    except AnpVsError as error:
        assert len(str(error)) < 2000
    finally:
        saved.with_suffix(".json").write_text(before)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_under_a_fitting_checksum_gives_a_network_or_our_own_error(data: st.DataObject, saved: Path) -> None:
    whole = saved.read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    content = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, 8 + length - 1))] = data.draw(st.integers(0, 255))
    try:
        load(replaced(saved, bytes(content)))
    except AnpVsError as error:
        assert len(str(error)) < 3000
    finally:
        replaced(saved, whole)


def test_no_method_needs_its_recipe_to_load_its_network(tmp_path: Path) -> None:
    """What a method changes in a network is in the file, not in a recipe that a later version may read otherwise."""
    for method in METHODS.values():
        network = method().prepare(build("lenet5-caffe"))
        if method.gated:
            insert_gates(network)
        again = copy.deepcopy(network).eval()
        loaded = load(save(network, tmp_path / method.name))
        torch.manual_seed(3)
        expected = again(IMAGES)
        torch.manual_seed(3)
        assert torch.equal(loaded(IMAGES), expected), method.name

"""Recipes: through YAML and back, and every wrong value refused by name and range."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anp_vs import recipes
from anp_vs.errors import AnpVsError, InputError
from anp_vs.methods import ADMM, ANPVS, ATBNN, BP, METHODS
from anp_vs.recipes import LARGEST_FILE, RECIPES, Attack, Recipe, override

BASE = RECIPES["digits/anp-vs"]
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_survives_yaml(name: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(recipes.dump(RECIPES[name]))
    assert recipes.load(path) == RECIPES[name]
    assert RECIPES[name].name == name


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_every_method_survives_yaml(method: Any, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(recipes.dump(override(BASE, {"method": method()})))
    assert recipes.load(tmp_path / "r.yaml").method == method()


def test_every_start_and_black_box_source_is_a_recipe_of_the_same_network() -> None:
    for recipe in RECIPES.values():
        for name in filter(None, (recipe.start, recipe.black_box)):
            assert RECIPES[name].network == recipe.network


def test_yaml_as_people_write_it_is_understood(tmp_path: Path) -> None:
    """YAML 1.1 reads 1e-3 as text, whole numbers stand for floats, and what is left out has a default."""
    (tmp_path / "r.yaml").write_text(
        "name: mine\nsource: me\ndata: mnist\nnetwork: vgg16\nmethod: {name: bp, beta: 2}\nlr: 1e-3\nmilestones: [0.5, 1]\n"
    )
    recipe = recipes.load(tmp_path / "r.yaml")
    assert recipe.method == BP(beta=2.0)
    assert (recipe.lr, recipe.milestones, recipe.epochs) == (1e-3, (0.5, 1.0), 200)


# -- values out of range ----------------------------------------------------------------------------------------

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"nonsense": 1}, "has no field 'nonsense'; its fields are attack"),
    ({"method": {"name": "anp-vs", "gamma": 1}}, "Method anp-vs has no field 'gamma'"),
    ({"attack": {"radius": 1}}, "attack has no field 'radius'"),
    ({"attack": {"eps": -0.1}}, r"eps is -0\.1; it must lie in \[0, 1\]"),
    ({"attack": {"eps": 8}}, r"eps is 8\.0; it must lie in \[0, 1\]"),
    ({"attack": {"eps": NAN}}, "eps is nan"),
    ({"attack": {"step": 0}}, r"step is 0\.0; it must lie in \(0, 1\]"),
    ({"attack": {"step": INF}}, "step is inf"),
    ({"attack": {"steps": 0}}, "has 0 steps; it needs 1 to 1,000,000"),
    ({"attack": {"steps": 2.5}}, "steps is 2.5"),
    ({"attack": {"steps": True}}, "steps is True; give int"),
    ({"attack": None}, "attack must hold eps, step and steps; got None"),
    ({"test_attack": [0.3]}, r"test_attack must hold eps, step and steps; got \[0\.3\]"),
    *(({name: 0}, f"{name} is 0; it must lie in 1 to 1,000,000") for name in ("epochs", "batch_size", "restarts")),
    ({"epochs": 10**400}, "epochs is 1000.*; it must lie in 1 to 1,000,000"),
    ({"epochs": "many"}, "epochs is 'many'"),
    ({"epochs": True}, "epochs is True; give int"),
    ({"epochs": None}, "epochs is None"),
    *(({"lr": value}, "lr is .*; it must be positive and finite") for value in (0, -1, NAN, INF)),
    ({"gate_lr": NAN}, "gate_lr is nan"),
    *(({"weight_decay": value}, "weight_decay is .*; it must be finite") for value in (-1, NAN, INF)),
    ({"average": 1}, "average is 1.0"),
    ({"average": NAN}, "average is nan"),
    ({"target_sparsity": 100}, "target_sparsity is 100.0"),
    ({"target_sparsity": NAN}, "target_sparsity is nan"),
    ({"decide_at": 1.5}, "decide_at is 1.5; it is a share"),
    ({"beta_gain": -1.0}, "beta_gain is -1.0; it must lie in"),
    ({"beta_gain": NAN}, "beta_gain is nan; it must lie in"),
    (
        {"beta_gain": 10.0, "target_sparsity": None},
        "beta_gain is 10.0, and there is nothing to follow: give target_sparsity",
    ),
    ({"eps_warmup": NAN}, "eps_warmup is nan; it is a share"),
    ({"remove_after": -1}, "remove_after is -1; it must lie in 0"),
    ({"remove_after": 10**30}, "remove_after is 1000"),
    ({"milestones": [0.5, 2]}, "milestones are .*; each is a share"),
    ({"milestones": [NAN]}, "milestones are"),
    ({"milestones": [True]}, r"milestones is \[True\]"),
    ({"milestones": 0.5}, "milestones is 0.5"),
    ({"seed": -1}, "seed is -1"),
    ({"seed": 2**32}, r"it must lie in \[0, 2\^32\)"),
    ({"network": "resnet999"}, "Unknown network 'resnet999'; choose one of"),
    ({"optimiser": "lion"}, "optimiser is 'lion'"),
    ({"schedule": ["cosine"]}, r"schedule is \['cosine'\]"),
    ({"augment": "perhaps"}, "augment is 'perhaps'"),
    ({"shift": -1}, "shift is -1; it is a number of pixels"),
    ({"shift": 2, "augment": True}, "augment crops at random already"),
    ({"awp": 1.0}, "awp is 1.0; it is a share"),
    ({"awp": NAN}, "awp is nan"),
    ({"dropout": 1.5}, "dropout is 1.5; it multiplies the network's own"),
    ({"data": 7}, "data is 7"),
    *(
        ({"name": name}, "name is .*; the run directory is called after it")
        for name in ("../up", "/etc/x", "a//b", "", "a\0b", "a/../../b", ".hidden", "a\n", "x" * 201, "a b")
    ),
    ({"method": None}, "method must hold a name, one of standard"),
    ({"method": "anp"}, "method must hold a name"),
    ({"method": {"name": "nothing"}}, "method must hold a name"),
    ({"method": {"name": ["anp"]}}, "method must hold a name"),
    ({"method": {"beta": NAN}}, "beta is nan"),
    ({"method": {"beta": -1}}, "beta is -1"),
    ({"method": {"beta": "x"}}, "beta is 'x'"),
    ({"method": {"gate_loss": "none"}}, "gate_loss is 'none'"),
    ({"method": {"name": "admm", "updates": 10**400}}, "out of all bounds"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG, ids=lambda value: str(value)[:40])
def test_a_wrong_value_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        override(BASE, changes)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("value", [None, 3, [1, 2], "text"])
def test_what_is_no_mapping_is_no_recipe(value: Any) -> None:
    with pytest.raises(InputError, match="not a mapping of fields"):
        recipes.from_dict(value)


# -- overrides --------------------------------------------------------------------------------------------------


def test_an_override_changes_what_it_names_and_nothing_else() -> None:
    changed = override(BASE, {"attack": {"eps": 0.25}, "method": {"beta": 3.0}, "epochs": 7})
    expected = dataclasses.replace(
        BASE,
        epochs=7,
        attack=dataclasses.replace(BASE.attack, eps=0.25),
        method=dataclasses.replace(BASE.method, beta=3.0),
    )
    assert changed == expected


def test_another_method_starts_from_its_own_defaults() -> None:
    assert override(BASE, {"method": {"name": "at-bnn", "alpha": 0.5}}).method == ATBNN(alpha=0.5)
    assert override(BASE, {"method": {"name": "anp-vs"}}).method == BASE.method
    assert override(BASE, {"method": ADMM(updates=3)}).method == ADMM(updates=3)
    assert override(BASE, {"attack": Attack(0.1, 0.1, 1)}).attack == Attack(0.1, 0.1, 1)
    assert override(BASE, {"data_root": Path("there")}).data_root == "there"


def test_a_recipe_is_found_by_name_file_directory_or_itself(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(recipes.dump(BASE))
    for asked in ("digits/anp-vs", tmp_path, tmp_path / "recipe.yaml", str(tmp_path), BASE):
        assert recipes.find(asked) == BASE
    for missing in ("digits/nothing", tmp_path / "nothing", "", "a\0b"):
        with pytest.raises(InputError, match="There is no recipe"):
            recipes.find(missing)


# -- hostile files ----------------------------------------------------------------------------------------------

LAUGHS = "a: &a [x, x]\n" + "".join(
    f"{n}: &{n} [*{p}, *{p}, *{p}, *{p}, *{p}]\n" for p, n in zip("abcdefghijklmn", "bcdefghijklmno", strict=True)
)


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "3", "a: [", "\t", "a: b: c", "!!python/object/apply:os.system [true]", "!!int ''", "!!float ''",
        "!!bool x", "!!timestamp x", "!!binary x", "!!set 3", "2001-99-99", "? [a]\n: b", "? {a: b}\n: c", "&a [*a]",
        "[" * 5000, "{a: " * 5000, "a: " + "9" * 5000, "%YAML 9.9\n---\na: b", "---\na: 1\n---\nb: 2", "<<: 3", "<<: [1]",
        "method: " + LAUGHS.replace("\n", "\n  ").strip(), f"method:\n  name: {'n' * 90_000}", "\ufeffa: b", "a: 0x_", "1: 2",
        "method: &m\n  name: *m", "attack: &m\n  eps: *m", "name: !!null", "name: 1e999", "- !!omap [a: 1]", "=: =",
    ],
    ids=lambda text: repr(text[:24]),
)  # fmt: skip
def test_a_hostile_file_is_refused_in_one_paragraph(text: str, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=re.escape(str(path))) as caught:
        recipes.load(path)
    assert len(str(caught.value)) < 2000


def test_nested_aliases_in_a_field_do_not_unfold(tmp_path: Path) -> None:
    """Fourteen levels of five would be six thousand million words."""
    for field in ("method", "attack", "name", "milestones", "epochs"):
        fields = recipes.to_dict(BASE)
        del fields[field]
        place = f"{field}: *o\n"
        (tmp_path / "r.yaml").write_text(LAUGHS + yaml.safe_dump(fields) + place)
        with pytest.raises(InputError):
            recipes.load(tmp_path / "r.yaml")


def test_files_that_are_none_or_too_large_or_not_text(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(b"a: \xff\xfe")
    with pytest.raises(InputError, match="cannot be read as a YAML recipe"):
        recipes.load(path)
    path.write_bytes(b"# " + b"x" * LARGEST_FILE)
    with pytest.raises(InputError, match="larger than 100,000 bytes"):
        recipes.load(path)
    for other in (tmp_path, tmp_path / "missing"):
        with pytest.raises(InputError, match="cannot be read"):
            recipes.load(other)


FIELDS = sorted(recipes.to_dict(BASE))
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.binary(max_size=4),
    st.sampled_from([*METHODS, "lenet5-caffe", "adam", 10**400, -(10**400), "1e-3", "nan"]),
)  # fmt: skip
KEYS = st.one_of(
    st.sampled_from([*FIELDS, "eps", "step", "steps", "beta", "updates", "rho"]), st.text(max_size=4), SCALARS
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=3)),
    max_leaves=6,
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.dictionaries(st.sampled_from(FIELDS), VALUES, min_size=1, max_size=3))
def test_any_values_give_a_recipe_or_our_own_error(changes: dict[Any, Any]) -> None:
    values = recipes.to_dict(BASE) | changes
    if isinstance(changes.get("method"), dict):
        values["method"] = {"name": "admm"} | changes["method"]
    try:
        recipe = recipes.from_dict(values)
    except AnpVsError:
        return
    assert isinstance(recipe, Recipe)
    assert recipes.from_dict(recipes.to_dict(recipe)) == recipe


TAGS = st.sampled_from(
    ["!!int", "!!float", "!!bool", "!!null", "!!str", "!!binary", "!!timestamp", "!!set", "!!omap", "&a", "*a", ""]
)
LINES = st.tuples(st.sampled_from([*FIELDS, "- ", "? ", "<<", "=", "  x"]), TAGS, st.text(max_size=6)).map(
    lambda parts: f"{parts[0]}: {parts[1]} {parts[2]}"
)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.one_of(st.text(max_size=60), st.lists(LINES, max_size=5).map("\n".join)))
def test_any_text_gives_a_recipe_or_our_own_error(text: str, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(InputError):  # no text of these is long enough to be a whole recipe
        recipes.load(path)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_recipe_with_bytes_changed_gives_a_recipe_or_our_own_error(data: st.DataObject, tmp_path: Path) -> None:
    content = bytearray(recipes.dump(RECIPES["mnist/admm"]).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "r.yaml"
    path.write_bytes(bytes(content))
    try:
        assert isinstance(recipes.load(path), Recipe)
    except AnpVsError as error:
        assert len(str(error)) < 2000


def test_the_lambda_of_a_method_can_be_overridden_from_python() -> None:
    assert override(BASE, {"method": {"lambda_": 0.5}}).method == dataclasses.replace(BASE.method, lambda_=0.5)
    assert isinstance(BASE.method, ANPVS)

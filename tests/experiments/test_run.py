"""The released code's command lines mean here what they meant there."""

import os
import shlex
from pathlib import Path
from typing import Any

import pytest
from rich.table import Table

from anp_vs import cli, recipes
from anp_vs.errors import InputError, RunError
from anp_vs.experiments import run
from anp_vs.experiments.flags import TYPES, parse
from anp_vs.methods import ANP, ANPVS, AT, ATBNN, ATVS, BP, Standard
from anp_vs.recipes import RECIPES, Attack, Recipe
from anp_vs.training.run import Stopped
from anp_vs.training.run_directory import RunDirectory

# The README of the released code, word for word behind the module's name.
TRAIN_MNIST = (
    "--net lenet_conv --mode bbd --eps=0.3 --step_size=0.01 --adv_train=True --pgd_steps=20 --vulnerability=True "
    "--data mnist --n_epochs 200 --beta_weight=4 --lambda_weight=0.001"
)
TRAIN_CIFAR10 = (
    "--net vgg16 --mode bbd --eps=0.03 --step_size=0.007 --adv_train=True --pgd_steps=10 --vulnerability=True "
    "--data cifar10 --n_epochs 200 --beta_weight=2 --lambda_weight=0.0001"
)
TRAIN_CIFAR100 = (
    "--net vgg16 --mode bbd --eps=0.03 --step_size=0.007 --adv_train=True --pgd_steps=10 --vulnerability=True "
    "--data cifar100 --n_epochs 200 --beta_weight=1 --lambda_weight=0.0001"
)
ATTACK_MNIST = (
    "--net lenet_conv --mode bbd --eval_mode attack --white_box=True --attack_source base --eps 0.3 --step_size 0.01 "
    "--pgd_steps=40 --vulnerability_type=expected --data mnist --adv_train=True"
)
TEST_MNIST = "--net lenet_conv --mode bbd --eval_mode test --data mnist --adv_train=True"


FLAGS = """eval_mode gpuid net mode data batch_size save_freq n_epochs directory seed net_weights kl_weight beta_weight thres
init_lr adv_train train_source attack attack_source attack_ord pgd_steps adv_weight eps lambda_weight step_size white_box
draw_loss vulnerability vulnerability_type"""


def planned(line: str) -> run.Plan:
    return run.plan(parse(shlex.split(line)))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def finished(path: Path, recipe: Recipe) -> Path:
    """A run directory that looks like a finished one."""
    path.mkdir(parents=True)
    (path / "recipe.yaml").write_text(recipes.dump(recipe))
    (path / "network.safetensors").touch()
    (path / "network.json").touch()
    return path


# -- training ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "recipe"),
    [
        ("--net lenet_conv --mode base --data mnist", "mnist/standard"),
        ("--net vgg16 --mode base --data cifar10", "cifar10-released/standard"),
        ("--net vgg16 --mode base --data cifar100", "cifar100-released/standard"),
        (TRAIN_MNIST, "mnist/anp-vs"),
        (TRAIN_CIFAR10, "cifar10-released/anp-vs"),
    ],
)
def test_the_readmes_lines_are_the_recipes_of_the_tables(line: str, recipe: str) -> None:
    assert planned(line).recipe == RECIPES[recipe]
    assert planned(line).command == ["train", recipe]
    assert [("standardised" in note) for note in planned(line).notes] == [True] * recipe.startswith("cifar")
    assert planned(line).path == Path("runs") / recipe / "seed0"


def test_the_readmes_cifar100_line_has_another_lambda_than_the_table() -> None:
    found = planned(TRAIN_CIFAR100)
    assert found.recipe == recipes.override(RECIPES["cifar100-released/anp-vs"], {"method": {"lambda_": 1e-4}})
    assert found.command == ["train", "cifar100-released/anp-vs", "--method.lambda_", "0.0001"]


@pytest.mark.parametrize(
    ("line", "method"),
    [
        ("", Standard()),
        ("--mode bbd", BP(beta=1.0)),
        ("--mode bbd --beta_weight 4", BP(beta=1.0)),  # only adversarial training reads it there
        ("--adv_train=True", ATVS(lambda_=1e-4)),  # the released code's slip: vulnerability is on by default
        ("--adv_train True --vulnerability=False", AT()),
        ("--adv_train --novulnerability --adv_weight=5", AT(adversarial_weight=5.0)),
        ("--adv_train --mode bbd --vulnerability False", ANP(beta=1.0)),
        ("--adv_train --mode bbd --lambda_weight 2 --adv_weight 3", ANPVS(1.0, 2.0, 3.0)),
    ],
)
def test_flags_decide_the_method_with_the_released_codes_defaults(line: str, method: Any) -> None:
    assert planned(f"--net lenet_conv {line}").recipe.method == method


def test_a_plain_adversarial_training_says_that_it_is_not_plain() -> None:
    assert "AT-VS, not AT" in planned("--net lenet_conv --adv_train=True").notes[0]
    assert planned("--net lenet_conv --adv_train=True --vulnerability=True").notes == []


def test_bayesian_networks_are_at_bnn_with_the_kl_term_divided_by_its_weight() -> None:
    lenet, vgg = (
        planned(f"--net {net}_bayes --adv_train=True --kl_weight=50").recipe for net in ("lenet_conv", "vgg16")
    )
    assert lenet.method == ATBNN(alpha=0.02)
    assert vgg.method == ATBNN(alpha=0.02, prior_sigma=0.1, initial_rho=-5.0)
    assert (lenet.network, lenet.data, vgg.network, vgg.data) == (
        "lenet5-caffe",
        "mnist",
        "vgg16-standardised",
        "cifar10",
    )


def test_learning_rates_belong_to_the_gates_and_a_tenth_to_the_weights() -> None:
    gated, plain = planned("--net lenet_conv --mode bbd --init_lr=0.05"), planned("--net lenet_conv --init_lr=0.05")
    assert (gated.recipe.gate_lr, gated.recipe.lr) == (0.05, pytest.approx(0.005))
    assert plain.recipe.lr == 1e-3
    assert "no effect without gates" in plain.notes[0]


def test_numbers_reach_the_recipe() -> None:
    recipe = planned(
        "--net vgg16 --data cifar100 --adv_train=True --batch_size 32 --n_epochs=3 --seed 9 --eps .1 --step_size .02 --pgd_steps 7"
    ).recipe
    assert (recipe.batch_size, recipe.epochs, recipe.seed, recipe.data) == (32, 3, 9, "cifar100")
    assert recipe.attack == Attack(0.1, 0.02, 7)
    assert recipe.test_attack == Attack(0.1, 0.02, 40)


def test_the_source_of_black_box_attacks_goes_where_evaluation_looks_for_it() -> None:
    found = planned(
        "--net lenet_conv --adv_train=True --vulnerability=False --train_source=True --eps .3 --step_size .01 --pgd_steps 20"
    )
    assert found.recipe == RECIPES["mnist/black-box-source"]
    assert found.path == RunDirectory.default(RECIPES["mnist/black-box-source"])


@pytest.mark.parametrize(
    "line",
    [
        TRAIN_CIFAR100,
        "--net lenet_conv --adv_train --seed 3 --directory here/now",
        "--net vgg16_bayes --data cifar100 --adv_train --kl_weight 7",
        "--net lenet_conv --adv_train --train_source",
        "--net lenet_conv --mode bbd --init_lr 0.2 --n_epochs 7 --batch_size 100",
    ],
)
def test_the_command_that_is_printed_does_the_same(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Recipe, Path | None]] = []

    def training(recipe: Recipe, out: Path | None = None, **_: Any) -> None:
        calls.append((recipe, out or RunDirectory.default(recipe)))
        raise Stopped("enough")

    monkeypatch.setattr("anp_vs.training.run.train", training)
    monkeypatch.setattr(cli, "_speak_plainly", lambda: None)
    assert run.main(shlex.split(line)) == 130
    assert cli.main(planned(line).command) == 130
    assert calls[0] == calls[1]


# -- evaluation -------------------------------------------------------------------------------------------------


def test_attack_and_test_evaluate_the_run_that_the_same_flags_train() -> None:
    for line in (ATTACK_MNIST, TEST_MNIST):
        with pytest.raises(RunError, match="no finished run in runs/mnist/anp-vs/seed0; train it by the same command"):
            planned(line)
    path = finished(Path("runs/mnist/anp-vs/seed0"), RECIPES["mnist/anp-vs"])
    for line in (ATTACK_MNIST, TEST_MNIST):
        assert (planned(line).path, planned(line).command, planned(line).black_box) == (
            path,
            ["evaluate", str(path)],
            None,
        )


def test_without_a_word_on_vulnerability_either_run_is_found() -> None:
    path = finished(Path("runs/mnist/anp/seed0"), RECIPES["mnist/anp"])
    assert planned(TEST_MNIST).path == path
    with pytest.raises(RunError, match="no finished run"):
        planned(f"{TEST_MNIST} --vulnerability=True")


def test_a_black_box_attack_needs_its_source() -> None:
    line = ATTACK_MNIST.replace("--white_box=True", "--white_box=False")
    finished(Path("runs/mnist/anp-vs/seed0"), RECIPES["mnist/anp-vs"])
    with pytest.raises(RunError, match="--train_source=True"):
        planned(line)
    source = finished(RunDirectory.default(RECIPES["mnist/black-box-source"]), RECIPES["mnist/black-box-source"])
    assert planned(line).black_box == source
    assert planned(line).command[-2:] == ["--black-box", str(source)]


def test_another_attack_than_the_runs_own_is_refused_by_its_numbers() -> None:
    finished(Path("mine"), RECIPES["mnist/anp-vs"])
    line = f"{ATTACK_MNIST} --directory mine"
    assert planned(line).path == Path("mine")
    with pytest.raises(RunError, match=r"tested with --eps 0\.3 --step_size 0\.01 --pgd_steps 40, and asked were 0\.1"):
        planned(f"{line} --eps=0.1")
    assert planned(f"{TEST_MNIST} --directory mine --eps=0.1").path == Path("mine")  # nothing is attacked there


def test_cifar_says_what_is_attacked() -> None:
    finished(Path("mine"), RECIPES["cifar10-released/anp-vs"])
    found = planned("--net vgg16 --mode bbd --eval_mode test --adv_train=True --directory mine")
    assert "robustness in pixels: the recipes cifar10/" in found.notes[0]


def test_an_evaluation_is_called_and_shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    path = finished(Path("runs/mnist/anp-vs/seed0"), RECIPES["mnist/anp-vs"])
    seen = {}

    def evaluating(target: Path, sources: list[Path]) -> dict[str, Any]:
        seen.update(target=target, sources=sources)
        return {}

    monkeypatch.setattr("anp_vs.evaluation.row.evaluate_run", evaluating)
    monkeypatch.setattr("anp_vs.report.tables.beside_published", lambda rows: Table("a heading"))
    assert run.main(shlex.split(ATTACK_MNIST)) == 0
    assert seen == {"target": path, "sources": []}
    out = capsys.readouterr().out
    assert f"anp-vs evaluate {path}" in out
    assert "a heading" in out


# -- refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--net lenet_conv --momentum=0.9", r"Unknown flag --momentum\. The flags are --eval_mode"),
        ("--net lenet_conv --epochs=3", "Did you mean --n_epochs"),
        ("--net lenet_conv stray", "'stray' belongs to no flag"),
        ("-net lenet_conv", "'-net' belongs to no flag"),
        ("--net", "--net needs a value"),
        ("--net --mode base", "--net needs a value"),
        ("--net resnet18", "--net is 'resnet18'; it must be one of lenet_conv"),
        ("--net lenet_conv --n_epochs=2.5", "--n_epochs is '2.5'; it must be a whole number"),
        ("--net lenet_conv --eps=nan", "--eps is 'nan'; it must be a finite number"),
        ("--net lenet_conv --eps=big", "--eps is 'big'"),
        ("--net lenet_conv --adv_train=maybe", "--adv_train is 'maybe'; it must be True or False"),
        ("--net lenet_conv --adv_train --eps=-1", r"eps is -1.0; it must lie in \[0, 1\]"),
        ("--net lenet_conv --n_epochs=0", "epochs is 0"),
        ("--net lenet_conv --eval_mode=dance", "one of train, test, attack"),
        ("", "lenet_fc .* is not in the published tables"),
        ("--net lenet_conv --draw_loss=True", "draw_loss was never implemented"),
        ("--net lenet_conv --vulnerability_type=max", "max was never implemented"),
        ("--net lenet_conv --attack=fgsm", "fgsm is not offered"),
        ("--net lenet_conv --attack_ord=2", "attack_ord=2 is not offered"),
        ("--net lenet_conv --thres=0.01", "thres is 0.01"),
        ("--net vgg16 --data mnist", "no data set mnist"),
        ("--net vgg16_bayes --mode bbd --adv_train", "gates on Bayesian weights"),
        ("--net vgg16_bayes", "only as AT BNN"),
        ("--net vgg16_bayes --adv_train --kl_weight=0", "it must be positive"),
        ("--net lenet_conv --mode bbd --train_source", "give --mode base"),
        ("--net lenet_conv --eval_mode attack --attack_source=bbd", "attack_source=bbd is not offered"),
        ("--net lenet_conv --adv_train --white_box=False", "training on transferred attacks"),
    ],
)
def test_what_is_not_offered_is_refused_with_a_word(
    line: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match=message):
        planned(line)
    assert run.main(shlex.split(line)) == 2
    assert capsys.readouterr().err.startswith("anp-vs: ")


def test_help_names_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"--{name} " in out for name in TYPES)
    assert list(TYPES) == FLAGS.split()


def test_the_gpu_is_chosen_as_there(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    seen = []
    monkeypatch.setattr("anp_vs.training.run.train", lambda *_, **__: seen.append(os.environ["CUDA_VISIBLE_DEVICES"]))
    assert run.main(["--net", "lenet_conv", "--gpuid=2"]) == 0
    assert seen == ["2"]
    assert "CUDA_VISIBLE_DEVICES=2 anp-vs train mnist/standard" in capsys.readouterr().out

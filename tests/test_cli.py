"""The command line: helpful, and a user's mistake is one paragraph and an exit status, never a traceback."""

import json
import logging
import os
import re
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from anp_vs import cli, recipes, serialization
from anp_vs.networks import NETWORKS, build
from anp_vs.networks.lenet import LeNet
from anp_vs.pruning.gate import gates
from anp_vs.pruning.insertion import insert_gates
from anp_vs.recipes import RECIPES
from anp_vs.terminal import exit_status
from anp_vs.training import run
from training.tiny import TinyConvolution, few, recipe


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A folder of its own, the little network, and the process's warnings and log left as they were."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "110")
    monkeypatch.setitem(NETWORKS, "tiny-convolution", TinyConvolution)
    few(monkeypatch)
    root = logging.getLogger()
    handlers = list(root.handlers)
    with warnings.catch_warnings():
        yield
    root.handlers = handlers


class Ran:
    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err


@pytest.fixture
def anp_vs(capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a command in this process."""

    def call(*words: str) -> Ran:
        try:
            status = cli.main(words)
        except SystemExit as end:
            status = int(end.code or 0) if isinstance(end.code, int | None) else 1
        out, err = capsys.readouterr()
        return Ran(status, out, err)

    return call


def paragraph(ran: Ran, pattern: str) -> None:
    """A mistake: a status that is not zero, one paragraph on stderr, and no traceback."""
    assert ran.status == 2, ran.out + ran.err
    text = " ".join(re.sub(r"[│╭╮╰╯─]", " ", ran.err).split())
    assert re.search(pattern, text), text
    assert "Traceback" not in ran.err + ran.out
    assert len(ran.err) < 4000


# -- help -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [[], ["-h"], ["--help"], ["help"]], ids=str)
def test_alone_it_lists_its_commands(words: list[str], anp_vs: Any) -> None:
    ran = anp_vs(*words)
    assert ran.status == 0
    shown = set(re.findall(r"^  anp-vs (\w+)", ran.out, re.MULTILINE))
    assert shown == set(cli.COMMANDS)


def test_train_help_lists_every_recipe_with_its_source(anp_vs: Any) -> None:
    for words in (["train", "--help"], ["recipes"]):
        ran = anp_vs(*words)
        assert ran.status == 0
        assert all(name in ran.out for name in RECIPES)
        assert all(recipe.source in ran.out and recipe.method.source in ran.out for recipe in RECIPES.values())


def test_help_on_a_recipe_names_every_field_and_what_it_is_now(anp_vs: Any) -> None:
    ran = anp_vs("train", "digits/anp-vs", "--help")
    assert ran.status == 0
    for name in (
        "--epochs",
        "--method.beta",
        "--attack.eps",
        "--test-attack.steps",
        "--out",
        "--device",
        "--decide-at",
    ):
        assert name in ran.out
    text = " ".join(re.sub(r"[│╭╮╰╯─]", " ", ran.out).split())
    assert f"(default: {RECIPES['digits/anp-vs'].epochs})" in text
    assert "radius in units of [0, 1] pixels" in text


def test_a_long_recipe_s_name_and_its_source_stay_apart(anp_vs: Any) -> None:
    lines = anp_vs("recipes").out.splitlines()
    listed = [re.split(r" {2,}", line.strip(), maxsplit=2) for line in lines if line.startswith("    ")]
    wanted = {(name, f"{recipe.epochs} epochs", recipe.method.source) for name, recipe in RECIPES.items()}
    assert {tuple(columns) for columns in listed} == wanted


@pytest.mark.parametrize("command", ["demo", "evaluate", "compact", "export", "cost", "report", "reproduce", "recipes"])
def test_the_other_commands_explain_themselves(command: str, anp_vs: Any) -> None:
    ran = anp_vs(command, "--help")
    assert ran.status == 0
    assert f"usage: anp-vs {command}" in ran.out


# -- mistakes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "pattern"),
    [
        ("dance", "no command 'dance'; the commands are demo, train"),
        ("train mnist/nothing", "no recipe, run directory or YAML file 'mnist/nothing'"),
        ("train digits/at --nonsense 3", "Unrecognized options: --nonsense"),
        ("train digits/at --attack.eps -1", r"eps is -1.0; it must lie in \[0, 1\]"),
        ("train digits/at --attack.steps 0", "it needs 1 to 1,000,000"),
        ("train digits/anp-vs --target-sparsity 0.8", "target_sparsity is 0.8; it is a percentage"),
        ("train digits/at --epochs 0", "epochs is 0; it must lie in 1 to 1,000,000"),
        ("train digits/at --epochs many", "invalid|many"),
        ("train digits/at --lr nan", "lr is nan; it must be positive and finite"),
        ("train digits/at --method.adversarial-weight -1", "adversarial_weight is -1.0"),
        ("train digits/at --network resnet999", "Unknown network 'resnet999'"),
        ("train digits/at --data nowhere", "nowhere"),
        ("train digits/at --name ../../up", "the run directory is called after it"),
        ("train digits/at --device tpu", "tpu"),
        ("train digits/at --seed -1", r"seed is -1; it must lie in \[0, 2\^32\)"),
        ("evaluate nowhere", "no saved network 'nowhere'"),
        ("evaluate .", "no recipe.yaml|not a run"),
        ("evaluate", "RUN_OR_MODEL"),
        ("evaluate no_such:thing --data digits --eps 0.1", "'no_such' cannot be imported"),
        # Between two colons stands a name here, and not one of an emoji.
        ("evaluate no_such:factory --data digits --eps 0.1", "no_such:factory: 'no_such' cannot be imported"),
        ("demo --nonsense", "Unrecognized options: --nonsense"),
        ("reproduce mnist --retries -1", "retries is -1; give 0 or more"),
        ("reproduce mnist --cpus 0", "cpus is 0"),
        ("evaluate torch.nn:Identity --data digits", "Give the radius .--eps."),
        ("evaluate torch.nn:Identity --eps 0.1", "Give the data set .--data."),
        ("evaluate torch.nn:Flatten --data digits --eps 0.1", "784 outputs and the data 10 classes"),
        ("evaluate torch.nn:Flatten --data digits --eps -1", "eps is -1"),
        (
            "evaluate torch.nn:Flatten --data digits --eps 8 --limit 1",
            "in the inf norm it must lie in .0, 1., in units .*8/255",
        ),
        ("evaluate torch.nn:Flatten --data digits --eps 0.1 --limit 0", "limit is 0"),
        ("evaluate torch.nn:Flatten --data digits --eps 0.1 --norm 3", "norm"),
        ("evaluate nowhere --limit", "--limit"),
        ("compact nowhere", "no saved network 'nowhere"),
        ("cost nowhere", "no saved network 'nowhere'"),
        ("cost", "NETWORK|network"),
    ],
)
def test_a_mistake_is_one_paragraph_with_the_value_and_the_remedy(
    line: str, pattern: str, anp_vs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "load_data", __import__("anp_vs.data").data.load)
    paragraph(anp_vs(*line.split()), pattern)
    assert not list(Path().iterdir())  # nothing is left behind


def test_a_gpu_where_none_is(anp_vs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for words in (("train", "digits/at"), ("reproduce", "mnist")):
        paragraph(anp_vs(*words, "--device", "cuda"), "GPU was asked for .* Use device cpu or auto")


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("a: [", "cannot be read as a YAML recipe"),
        ("[1]", "not a mapping of fields"),
        (recipes.dump(RECIPES["digits/at"]) + "colour: red\n", "has no field 'colour'"),
        (recipes.dump(RECIPES["digits/at"]).replace("eps: 0.", "eps: -0.", 1), "eps is -0"),
        ("!!python/object/apply:os.system ['true']", "cannot be read as a YAML recipe"),
    ],
)
def test_a_wrong_recipe_file(text: str, pattern: str, anp_vs: Any) -> None:
    Path("mine.yaml").write_text(text)
    paragraph(anp_vs("train", "mine.yaml"), pattern)


def test_a_directory_of_another_recipe_and_one_in_use(anp_vs: Any) -> None:
    Path("mine.yaml").write_text(recipes.dump(recipe()))
    with run.RunDirectory(Path("here")):
        paragraph(anp_vs("train", "mine.yaml", "--out", "here"), "in use by this very process")
    assert anp_vs("train", "mine.yaml", "--out", "here", "--quiet").status == 0
    paragraph(
        anp_vs("train", "mine.yaml", "--out", "here", "--lr", "0.5"),
        # What the run settled by itself (precision, layout, compilation) is no difference and is not named.
        r"another recipe: lr \(0.003 there, 0.5 asked\)\. Choose",
    )
    with run.RunDirectory(Path("here")):  # what is finished is only read
        assert anp_vs("train", "here").status == 0


def test_weights_of_another_number_of_classes(anp_vs: Any) -> None:
    saved = serialization.save(build("lenet5-caffe", 7), "seven")
    paragraph(anp_vs("train", "digits/at", "--batch-size", "8", "--start", str(saved)), "do not fit LeNet")
    Path("mine.yaml").write_text(recipes.dump(recipe()))
    assert anp_vs("train", "mine.yaml", "--out", "here", "--quiet").status == 0
    serialization.save(TinyConvolution(7), "here/network")
    paragraph(anp_vs("evaluate", "here"), "7")


def test_a_damaged_network(anp_vs: Any) -> None:
    path = serialization.save(LeNet(), "whole")
    path.write_bytes(path.read_bytes()[:1000])
    for command in ("cost", "compact"):
        paragraph(anp_vs(command, str(path)), "damaged or belongs to another card")


# -- what works -------------------------------------------------------------------------------------------------


def test_train_takes_a_file_then_its_directory_and_a_finished_run_at_once(
    anp_vs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("mine.yaml").write_text(recipes.dump(recipe("anp-vs")))
    ran = anp_vs("train", "mine.yaml", "--epochs", "2", "--method.beta", "3", "--attack.eps", "0.05")
    assert ran.status == 0
    path = Path("runs/tiny/anp-vs/seed0")
    assert f"Next: anp-vs evaluate {path}" in ran.out
    assert "clean_accuracy" in ran.out
    held = recipes.load(path / "recipe.yaml")
    assert (held.epochs, held.method.beta, held.attack.eps) == (2, 3.0, 0.05)  # type: ignore[union-attr]
    network = (path / "network.safetensors").read_bytes()
    # Again from the resolved recipe, elsewhere: the same network.
    assert anp_vs("train", str(path / "recipe.yaml"), "--out", "again", "--quiet").status == 0
    assert Path("again/network.safetensors").read_bytes() == network
    # Stopped before its end: the directory is enough to go on.
    (path / "network.json").unlink()
    assert anp_vs("train", str(path)).status == 0
    assert (path / "network.safetensors").read_bytes() == network
    monkeypatch.setattr(run, "Trainer", None)
    assert anp_vs("train", str(path)).out.startswith(f"{path}: ")


def test_evaluate_any_classifier_prints_the_row_and_the_verdict(anp_vs: Any) -> None:
    saved = serialization.save(LeNet(), "plain")
    words = ["--data", "digits", "--eps", "0.1", "--steps", "2", "--limit", "6", "--out", "mine.json"]
    ran = anp_vs("evaluate", str(saved), *words, "--masking", "6")
    assert ran.status == 0, ran.err
    assert "of masked gradients" in ran.out
    assert "unbounded attack reaches 0 %" in ran.out
    assert "give --black-box RUN_OR_MODEL" in ran.out
    assert json.loads(Path("mine.json").read_text())["diagnosis"]["images"] == 6
    ran = anp_vs("evaluate", str(saved), *words, "--masking", "0", "--black-box", str(saved))
    assert "not looked for" in ran.out
    row = json.loads(Path("mine.json").read_text())
    assert row["diagnosis"] is None
    assert row["black_box_accuracy"] is not None


def test_evaluate_a_run_under_another_attack_needs_its_network_s_file(anp_vs: Any) -> None:
    Path("mine.yaml").write_text(recipes.dump(recipe()))
    assert anp_vs("train", "mine.yaml", "--out", "here", "--quiet").status == 0
    paragraph(
        anp_vs("evaluate", "here", "--eps", "0.5"), "evaluated under its recipe.* evaluate here/network.safetensors"
    )


def test_compact_and_cost_of_a_run(anp_vs: Any) -> None:
    network = insert_gates(LeNet()).eval()
    with torch.no_grad():
        for gate in gates(network).values():
            gate.a_uc[1::2] = -12.0
    serialization.save(network, "here/network")
    ran = anp_vs("compact", "here")
    assert ran.status == 0
    assert "here/compact.safetensors" in ran.out
    images = torch.rand(2, 1, 28, 28)
    torch.testing.assert_close(serialization.load("here/compact")(images), network(images), rtol=0, atol=1e-5)
    figures = json.loads(anp_vs("cost", "here", "--no-latency").out)
    assert figures["parameters"] == sum(p.numel() for p in serialization.load("here/compact").parameters())


def test_a_stopped_run_ends_with_the_status_of_a_signal(anp_vs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("mine.yaml").write_text(recipes.dump(recipe()))
    advance = run.Trainer.advance

    def signalled(training: run.Trainer) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return advance(training)

    monkeypatch.setattr(run.Trainer, "advance", signalled)
    ran = anp_vs("train", "mine.yaml", "--out", "here")
    assert ran.status == 130
    assert "Stopped at step 1 of 12; everything is saved. Give the same command again" in ran.err
    assert "goes on with: anp-vs train here" in ran.err


def test_an_interrupt_outside_training_is_no_traceback(anp_vs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(words: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.COMMANDS, "cost", interrupted)
    ran = anp_vs("cost", "here")
    assert ran.status == 130
    assert "Traceback" not in ran.err


@pytest.mark.parametrize(
    "program",
    [
        ["anp_vs", "recipes"],
        ["anp_vs"],
        ["anp_vs", "reproduce", "mnist", "--dry"],
        ["anp_vs", "demo"],
        ["anp_vs.experiments.run", "--help"],
    ],
    ids=" ".join,
)
def test_as_a_program_whose_reader_has_gone(program: list[str], tmp_path: Path) -> None:
    """`anp-vs recipes | head` is no error."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", *program], stdout=writing, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_as_a_program_a_mistake_has_a_status_and_no_traceback(tmp_path: Path) -> None:
    """In a process of its own, once: what `sys.exit` makes of it all."""
    done = subprocess.run(
        [sys.executable, "-m", "anp_vs", "train", "no\x1bsuch/recipe"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("anp-vs: There is no recipe")
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_the_versions_and_both_spellings_of_import(anp_vs: Any) -> None:
    assert anp_vs("--version").out.startswith("anp-vs ")
    paragraph(anp_vs("--import", "nets.py", "recipes"), r"--import nets\.py: No module named .* Give a \.py file")
    paragraph(anp_vs("--import=nets.py", "recipes"), r"--import nets\.py: No module named")


def test_a_row_cannot_be_written_over_a_folder(anp_vs: Any) -> None:
    Path("mine.yaml").write_text(recipes.dump(recipe()))
    Path("rows").mkdir()
    assert anp_vs("train", "mine.yaml", "--out", "here", "--quiet").status == 0
    paragraph(
        anp_vs("evaluate", "here", "--out", "rows"), r"rows is a folder; --out names the file .* rows/evaluation\.json"
    )


def test_a_full_gpu_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    def full() -> int:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nSee documentation.")

    assert exit_status(full) == 2
    said = capsys.readouterr().err
    assert "memory is full (CUDA out of memory. Tried to allocate 2 GiB.). Lower the batch size" in said
    with pytest.raises(RuntimeError, match="something else"):
        exit_status(partial(_raise, RuntimeError("something else")))


def _raise(error: Exception) -> int:
    raise error

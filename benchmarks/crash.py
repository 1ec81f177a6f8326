"""Kill real runs with SIGKILL at any instant, start them again, and compare with the run that nobody killed.

    python benchmarks/crash.py [--kills 110] [--seconds 3000] [--work DIR] [--out results/crash.json]

A life is a process that trains a recipe, evaluates the run, and writes its report. A round is lives on one run
directory: a few are killed, at an instant drawn from the length of the run or within an aimed-at part of it, the last
one ends. Then all of the files must be those of the uninterrupted run, to the last bit. Most processes are forked from
this one, which has imported everything; every eighth is a new interpreter. Rounds are kept in DIR: killed itself, this
program goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sklearn.datasets  # noqa: F401 - with all that a life needs, so that a forked one starts at once
import torch
import torch.utils.tensorboard

from anp_vs import cli, recipes
from anp_vs.evaluation import row
from anp_vs.methods import METHODS
from anp_vs.provenance import provenance
from anp_vs.report import page
from anp_vs.training import checkpoint, run
from anp_vs.training.loop import Trainer
from anp_vs.training.run_directory import MetricsLog

PARTS = ("elsewhere", "step", "save", "validation", "compaction", "evaluation", "report")
CHECKPOINT_SECONDS = 0.2
FEWEST_KILLS, MOST_KILLS = 8, 12
"""In one round."""
FRESH_EVERY = 8
BASE = {
    "source": "the crash benchmark: a run of seconds", "network": "lenet5-caffe", "epochs": 3, "validation": 60, "on_trouble": "continue", "batch_size": 100, "start": None,
    "black_box": None, "restarts": 1, "attack": {"eps": 0.1, "step": 0.05, "steps": 2}, "test_attack": {"eps": 0.1, "step": 0.02, "steps": 5},
    "target_sparsity": None, "decide_at": 0.7, "remove_after": 4, "average": 0.9,
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    **{name: {"method": {"name": name}} for name in METHODS},
    # Channels that leave the network while it trains, in several places, before the gates are fixed and after.
    "anp-vs, channels removed": {"method": {"name": "anp-vs", "beta": 20.0}, "gate_lr": 0.5, "decide_at": 1.0},
    "anp-vs, target reached": {"method": {"name": "anp-vs", "beta": 20.0}, "gate_lr": 0.5, "target_sparsity": 50.0},
    "at, sgd and augmentation": {"method": {"name": "at"}, "optimiser": "sgd", "lr": 0.02, "augment": True},
}
FIGURES = ("accuracy", "vulnerability", "percent", "parameters", "macs")


def live(recipe: Path, out: Path, marker: Path) -> None:
    """One life: train, evaluate, report. The marker's one byte says which part is going on."""
    with marker.open("r+b") as file:
        mark = mmap.mmap(file.fileno(), 1)

    def marked(owner: Any, name: str, part: str) -> None:
        inner: Callable[..., Any] = getattr(owner, name)

        def outer(*words: Any, **options: Any) -> Any:
            before, mark[0] = mark[0], PARTS.index(part)
            try:
                return inner(*words, **options)
            finally:
                mark[0] = before

        setattr(owner, name, outer)

    run.CHECKPOINT_SECONDS, row.EOT_DRAWS = CHECKPOINT_SECONDS, 2
    for owner, name, part in (
        (Trainer, "advance", "step"), (checkpoint, "save", "save"), (Trainer, "validate", "validation"),
        (run, "_finish", "compaction"), (row, "evaluate_run", "evaluation"), (page, "write_report", "report"),
    ):  # fmt: skip
        marked(owner, name, part)
    for words in (
        ["train", str(recipe), "--out", str(out), "--device", "cpu"],
        ["evaluate", str(out), "--limit", "4"],
        ["report", str(out), "--out", str(out / "report.html")],
    ):
        if words[0] == "evaluate" and (out / "evaluation.json").exists():
            continue
        if status := cli.main(words):
            raise SystemExit(status)


def start(recipe: Path, out: Path, marker: Path, *, fresh: bool) -> int:
    """Begin a life; returns its process number."""
    marker.write_bytes(b"\0")
    log = os.open(marker.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    process = os.fork()
    if process:
        os.close(log)
        return process
    try:
        os.dup2(log, 1)
        os.dup2(log, 2)
        if fresh:
            words = [sys.executable, __file__, "--live", str(recipe), str(out), str(marker)]
            os.execv(sys.executable, words)  # noqa: S606 - our own interpreter, no shell
        live(recipe, out, marker)
        os._exit(0)
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)


def ended(process: int) -> int | None:
    """The exit status of a process (negative: a signal), or None while it runs."""
    found, status = os.waitpid(process, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def kill_when(process: int, marker: Path, aim: str | None, instant: float) -> str | None:
    """Kill a process `instant` seconds from now, or from when it is in the part aimed at.

    Returns:
        The part it was in, or None if it had ended by itself.

    Raises:
        SystemExit: it ended with an error.
    """
    with marker.open("rb") as file:
        mark = mmap.mmap(file.fileno(), 1, access=mmap.ACCESS_READ)
    until = None if aim else time.monotonic() + instant
    while (status := ended(process)) is None:
        if until is None and PARTS[mark[0]] == aim:
            until = time.monotonic() + instant
        if until is not None and time.monotonic() >= until:
            os.kill(process, signal.SIGSTOP)  # so that the part is the one it dies in
            part = PARTS[mark[0]]
            os.kill(process, signal.SIGKILL)
            _, status = os.waitpid(process, 0)
            return part if os.waitstatus_to_exitcode(status) == -signal.SIGKILL else None
        time.sleep(0.0005)
    if status:
        raise SystemExit(f"A life ended with status {status}: see {marker.with_suffix('.log')}")
    return None


def content(out: Path) -> dict[str, Any]:
    """What must not depend on kills: bytes of tensors, recipe and metrics; cards and rows without their times."""
    files: dict[str, Any] = {p.name: p.read_bytes() for p in (*out.glob("*.safetensors"), *out.glob("*.yaml"))}
    files["metrics"] = (out / "metrics.jsonl").read_bytes()
    for name in ("network", "compact"):
        if (out / f"{name}.json").exists():
            card = json.loads((out / f"{name}.json").read_text())
            files[f"{name}.json"] = {key: value for key, value in card.items() if key != "train_seconds"}
    line = json.loads((out / "evaluation.json").read_text())
    files["evaluation"] = {key: value for key, value in line.items() if key.endswith(FIGURES)}
    files["report"] = (out / "report.html").read_text().rstrip().endswith("</html>")
    files["left over"] = sorted(p.name for p in out.glob(".*"))
    return files


def steps_are_whole(out: Path) -> bool:
    """Whether the figures in the metrics have every epoch once and in order."""
    steps = [line["step"] for line in MetricsLog.read(out / "metrics.jsonl") if "message" not in line]
    validated = [line["epoch"] for line in MetricsLog.read(out / "metrics.jsonl") if "clean_accuracy" in line]
    return steps == sorted(set(steps)) and validated == list(range(BASE["epochs"]))  # type: ignore[call-overload]


def play(case: str, number: int, work: Path, kills: int) -> dict[str, Any]:
    """One round; the first of a case also makes the uninterrupted run."""
    place = work / case.replace(", ", "-").replace(" ", "-")
    place.mkdir(parents=True, exist_ok=True)
    recipe, marker, whole = place / "recipe.yaml", place / "marker", place / "whole"
    if not (place / "seconds").exists():
        asked = recipes.override(recipes.RECIPES["digits/at"], {"name": "crash/run"} | BASE | CASES[case])
        recipe.write_text(recipes.dump(asked))
        shutil.rmtree(whole, ignore_errors=True)
        began = time.monotonic()
        kill_when(start(recipe, whole, marker, fresh=False), marker, None, 1e9)
        (place / "seconds").write_text(str(time.monotonic() - began))
    length = float((place / "seconds").read_text())
    draws = random.Random(f"{case}/{number}")
    out = place / f"round{number}"
    shutil.rmtree(out, ignore_errors=True)
    died: Counter[str] = Counter()
    planned = min(draws.randint(FEWEST_KILLS, MOST_KILLS), max(1, kills))
    for life in range(planned):
        # What is over cannot be aimed at; the later parts are aimed at late, so that most lives die in training.
        if (out / "evaluation.json").exists():
            aim = "report"
            if died["report"]:  # once is enough
                break
        elif (out / "network.json").exists():
            aim = "evaluation"
        else:
            aim = draws.choice([None, None, *PARTS[1:4]]) if life < planned - 3 else "compaction"
        # Parts take from milliseconds (a save) to seconds (an evaluation): instants of all lengths.
        instant = draws.random() * length / 2 if aim is None else 10 ** draws.uniform(-4, -0.5)
        fresh = (number * MOST_KILLS + life) % FRESH_EVERY == 0
        part = kill_when(start(recipe, out, marker, fresh=fresh), marker, aim, instant)
        if part is not None:
            died[part] += 1
    kill_when(start(recipe, out, marker, fresh=False), marker, None, 1e9)
    expected, found = content(whole), content(out)
    differ = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    good = not differ and found["left over"] == [] and found["report"] and steps_are_whole(out)
    if good:
        shutil.rmtree(out)
    units = [line["message"] for line in MetricsLog.read(whole / "metrics.jsonl") if "units left" in str(line)]
    return {
        "case": case, "number": number, "kills": dict(died), "identical": good, "differ": differ,
        "removals": len(units), "instant_seed": f"{case}/{number}",
    }  # fmt: skip


def total(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """The counts of all rounds: `identical` and `lost` are of kills, by the outcome of their round."""

    def kills(chosen: list[dict[str, Any]]) -> int:
        return sum(sum(one["kills"].values()) for one in chosen)

    parts: Counter[str] = Counter()
    for one in rounds:
        parts.update(one["kills"])
    cases = {case: [one for one in rounds if one["case"] == case] for case in CASES}
    return {
        "kills": kills(rounds),
        "lost": kills([one for one in rounds if not one["identical"]]),
        "identical": kills([one for one in rounds if one["identical"]]),
        "rounds": len(rounds),
        "methods": {
            case: {"kills": kills(of), "identical": kills([one for one in of if one["identical"]]), "rounds": len(of),
                   "removals_of_channels": max((one["removals"] for one in of), default=0)}
            for case, of in cases.items()
        },
        "killed_during": {part: parts[part] for part in PARTS},
        "seeds": {"recipes": 0, "instants": "random.Random('CASE/ROUND')"},
    }  # fmt: skip


def main() -> None:
    """Play rounds until there are enough kills or the time is up, and keep the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=110)
    parser.add_argument("--seconds", type=float, default=3000.0, help="length of a slice")
    parser.add_argument("--work", type=Path, default=Path("runs/crash"))
    parser.add_argument("--out", type=Path, default=Path("results/crash.json"))
    parser.add_argument("--live", type=Path, nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.set_num_threads(1)  # forked processes have no threads of this one's pool
    if asked.live:
        live(*asked.live)
        return
    until = time.monotonic() + asked.seconds
    asked.work.mkdir(parents=True, exist_ok=True)
    record = asked.work / "rounds.jsonl"
    rounds = MetricsLog.read(record)
    while (counts := total(rounds))["kills"] < asked.kills and time.monotonic() < until:
        case = list(CASES)[len(rounds) % len(CASES)]
        rounds.append(play(case, len(rounds) // len(CASES), asked.work, asked.kills - counts["kills"]))
        with record.open("a") as file:
            file.write(json.dumps(rounds[-1]) + "\n")
        print(json.dumps(rounds[-1]), flush=True)
        asked.out.write_text(json.dumps(total(rounds) | provenance(), indent=2) + "\n")
    print(json.dumps(counts, indent=2))


if __name__ == "__main__":
    main()

"""One row of a table: a network, evaluated with every column, with all that is needed to check it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from anp_vs import recipes, serialization
from anp_vs.attacks.geometry import Norm
from anp_vs.attacks.protocols import ProtocolName
from anp_vs.attacks.transfer import Ensemble
from anp_vs.data import load as load_data
from anp_vs.device import choose, full_float32
from anp_vs.errors import InputError, RunError
from anp_vs.evaluation.beyond import beyond_attacks
from anp_vs.evaluation.black_box import FOLDER
from anp_vs.evaluation.figure_files import network_of, read_object
from anp_vs.evaluation.finished import Finished, checksum, remove
from anp_vs.evaluation.masking import DIAGNOSED
from anp_vs.evaluation.models import find_model
from anp_vs.evaluation.queries import query_accuracy
from anp_vs.evaluation.robustness import Evaluation, evaluate
from anp_vs.evaluation.subject import count_of
from anp_vs.provenance import provenance, versions
from anp_vs.pruning.gate import gates
from anp_vs.recipes import Attack, Recipe
from anp_vs.storage import write_atomically
from anp_vs.training.run_directory import RunDirectory, root_of

EOT_DRAWS = 20
"""Passes averaged for a network that is random in evaluation, at least what its authors used."""
BATCH = {"cpu": 50, "cuda": 250}
"""Images attacked together: on a CPU more are no faster, and an interruption costs the batch it falls in."""


@dataclass(frozen=True)
class Options:
    """What a row is measured on, beside what its recipe says.

    Attributes:
        data_root: folder that holds the data set; the recipe's own by default.
        sources: runs, saved networks or `module:factory` that black-box images are made on, together (see
            `anp_vs.attacks.transfer`).
        limit: evaluate only the first so many images (the row says so).
        autoattack: images to run AutoAttack on.
        queries: also measure the accuracy under Square alone with so many queries an image (see
            `query_accuracy`), in pixel space only.
        corruptions: also classify this many images, the first ones, under common corruptions (see
            `evaluate_corruptions`).
        certify: also certify this many images (see `beyond_attacks`).
        masking: images on which signs of masked gradients are looked for; None leaves that out.
        protocol: `pixel-space` or `released-code`; None for the one a run was trained under, for other classifiers the first.
        device: auto, cpu or cuda.
        progress: show what is going on.
    """

    data_root: str | None = None
    sources: Sequence[str | Path] = ()
    limit: int | None = None
    autoattack: int | None = None
    queries: int | None = None
    corruptions: int | None = None
    certify: int | None = None
    masking: int | None = DIAGNOSED
    protocol: ProtocolName | None = None
    device: str = "auto"
    progress: bool = True


@dataclass(frozen=True)
class Conditions:
    """Under what a model without a run directory is evaluated; None: as its card says.

    Attributes:
        data: data set by name.
        eps: radius in pixel units.
        step: length of a PGD step; 2.5 eps / steps by default.
        steps: PGD steps; 40 by default.
        norm: of the ball.
        restarts: random starts in the strongest figure.
        draws: passes averaged for a network that is random in evaluation.
    """

    data: str | None = None
    eps: float | None = None
    step: float | None = None
    steps: int | None = None
    norm: Norm = "inf"
    restarts: int = 5
    draws: int | None = None


def black_box_source(run: RunDirectory, recipe: Recipe) -> Path | None:
    """The finished run on the same data, under the same protocol, that black-box attacks are made on, or None when it is not there (yet)."""
    if recipe.black_box is None:
        return None
    if recipe.black_box not in recipes.RECIPES:
        return Path(recipe.black_box)
    source = RunDirectory(RunDirectory.default(recipes.RECIPES[recipe.black_box], root_of(run.path, recipe)))
    if not source.finished:
        return None
    trained = source.read_recipe()  # one of the recipe's own data set knows nothing of pictures of one's own
    alike = ("data", "pictures", "protocol")
    return source.path if all(getattr(trained, name) == getattr(recipe, name) for name in alike) else None


def network_at(sources: Sequence[str | Path]) -> nn.Module | None:
    """The network that black-box images are made on: a run's trained one, a saved one, a factory's, or several."""
    paths = [Path(source) / "network.safetensors" if Path(source).is_dir() else source for source in sources]
    networks = [find_model(str(path)).network for path in paths]
    return Ensemble(networks) if len(networks) > 1 else next(iter(networks), None)


def evaluate_run(path: Path, out: Path | None = None, **options: Any) -> dict[str, Any]:
    """Evaluate a finished run on its test set, under its recipe's test attack, and keep the row beside it.

    What was finished before an interruption is kept beside the row; called again, the evaluation goes on from there.

    The attacks are made on the compact network, the vulnerability is measured on the gated one; both compute
    the same function.

    Args:
        path: the run directory.
        out: file of the row; in the run directory by default (see `row_file`).
        options: fields of `Options`.

    Raises:
        RunError: the run is not finished, or there is no folder for the row.
        InputError: a value is outside what is accepted, or the row would replace one of more images.
        Stopped: a signal asked to stop; what is finished is kept.
    """
    chosen = Options(**options)
    run = RunDirectory(path)
    recipe = run.read_recipe()
    protocol = chosen.protocol or recipe.protocol
    chosen, out = replace(chosen, protocol=protocol), out or row_file(path, protocol)
    _check_folder(out)
    network = serialization.load(serialization.locate(path))
    full = serialization.load(run.network)
    trained = serialization.card_of(full).get("recipe")
    if trained and (changed := run.differences(recipes.from_dict(trained), ("data", "black_box"))):
        raise RunError(
            f"{run.recipe_file} is not what the network beside it was trained with: {'; '.join(changed)}. Put it back (the card {run.network.stem}.json "
            f"holds it), or evaluate the network's file with options of its own."
        )
    own = black_box_source(run, recipe)
    sources = chosen.sources or ([own] if own else [])
    table, _, row = recipe.name.rpartition("/")
    extra = serialization.card_of(full).get("extra_data", "")
    facts = {
        "dataset": recipe.data, "network": recipe.network, "method": recipe.method.name, "recipe": recipe.name,
        "row": row + extra, "extra_data": extra, "table": table, "run_seed": recipe.seed,
        "recipe_values": recipes.to_dict(recipe), "vulnerability_of": "gated" if gates(full) else "evaluated",
        **_origin(sources),
        **{name: serialization.card_of(full).get(name) for name in ("train_seconds", "train_hardware", "train_commit")},
        "network_sha256": serialization.card_of(full)["sha256"],
    }  # fmt: skip
    result = _measured(
        network, recipe.data, recipe.test_attack, "inf", recipe.restarts, chosen, recipe=recipe, out=out,
        data_root=chosen.data_root or recipe.data_root, sources=sources, gated=full if gates(full) else None,
        network_sha256=facts["network_sha256"],
    )  # fmt: skip
    return _keep(facts, result, out, chosen.device, seed=recipe.seed)


def evaluate_model(name: str, conditions: Conditions, *, out: Path, **options: Any) -> dict[str, Any]:
    """Evaluate any classifier, in pixel space unless asked otherwise, and keep the row.

    Args:
        name: a saved network, a shipped one, or `module:factory` (see `find_model`).
        conditions: what its card does not say.
        out: file of the row.
        options: fields of `Options`.

    Raises:
        RunError: there is no such network, or no folder for the row.
        InputError: a value is outside what is accepted, or neither given nor known from a recipe; or the row would
            replace one of more images.
        Stopped: a signal asked to stop; what is finished is kept beside the row, to go on from.
    """
    chosen = Options(**options)
    _check_folder(out)
    model = find_model(name)
    known = model.recipe
    data = conditions.data or (known.data if known else None)
    if data is None or (conditions.eps is None and known is None):
        lacking = "data set (--data)" if data is None else "radius (--eps)"
        raise InputError(
            f"{name} comes without a recipe that says what it was made for. Give the {lacking}, such as --data cifar10 "
            f"--eps 0.0314; --norm, --step and --steps are optional."
        )
    root = known.data_root if known and known.data_root and Path(known.data_root).is_dir() else None
    card = serialization.card_of(model.network)
    network_sha256 = card.get("sha256") or checksum(model.network)
    result = _measured(
        model.network, data, _attack(conditions, known), conditions.norm, conditions.restarts, chosen, recipe=known,
        data_root=chosen.data_root or root, sources=chosen.sources, gated=None, out=out,
        network_sha256=network_sha256, draws=EOT_DRAWS if conditions.draws is None else conditions.draws,
    )  # fmt: skip
    extra = card.get("extra_data", "")
    facts = {
        "dataset": data, "network": model.architecture, "method": name, "row": name + extra, "extra_data": extra, "recipe": known.name if known else None,
        "vulnerability_of": "compact" if known and known.method.gated and not gates(model.network) else "evaluated",
        **_origin(chosen.sources), "network_sha256": network_sha256,
    }  # fmt: skip
    return _keep(facts, result, out, chosen.device)


def _check_folder(out: Path) -> None:
    if out.is_dir():
        raise RunError(f"{out} is a folder; --out names the file of the row, such as {out / 'evaluation.json'}.")
    if not out.parent.is_dir():
        raise RunError(f"There is no folder {out.parent} for the row. Make it, or name another file with --out.")
    if not os.access(out.parent, os.W_OK):
        raise RunError(f"The folder {out.parent} cannot be written. Make it writable, or name another file with --out.")


def _attack(conditions: Conditions, recipe: Recipe | None) -> tuple[float, float, int]:
    """eps, step and steps as asked, else as the recipe's test attack has them."""
    given = conditions.eps, conditions.step, conditions.steps, conditions.norm
    if recipe is not None and given == (None, None, None, "inf"):
        return _values(recipe.test_attack)
    if conditions.eps is None and conditions.norm != "inf":
        raise InputError(
            f"norm is {conditions.norm} and there is no eps: the recipe's radius is one of the inf norm. Give --eps, such as "
            f"--norm 2 --eps 0.5."
        )
    eps = conditions.eps if conditions.eps is not None else (recipe.test_attack.eps if recipe else 0.0)
    steps = 40 if conditions.steps is None else conditions.steps
    usual = 2.5 * eps / max(steps, 1) or 0.01  # an eps of 0 needs no step, but a valid one
    return eps, usual if conditions.step is None else conditions.step, steps


def _listed(classes: Sequence[object], most: int = 12) -> str:
    return ", ".join(map(str, classes[:most])) + (f" and {len(classes) - most} more" if len(classes) > most else "")


def _values(attack: Attack) -> tuple[float, float, int]:
    return attack.eps, attack.step, attack.steps


@full_float32()
def _measured(
    network: nn.Module, data: str, attack: Attack | tuple[float, float, int], norm: Norm, restarts: int, chosen: Options,
    *, data_root: str | None, sources: Sequence[str | Path], gated: nn.Module | None, out: Path, network_sha256: str,
    draws: int = EOT_DRAWS, recipe: Recipe | None,
) -> Evaluation:  # fmt: skip
    own, protocol = recipe if recipe and recipe.data == data else None, chosen.protocol or "pixel-space"
    dataset = load_data(
        data, data_root, validation=own.validation if own else None, pictures=own.pictures if own else None
    )
    known = serialization.card_of(network).get("classes")
    if known and list(known) != list(dataset.classes):
        raise InputError(
            f"The network tells {_listed(known)} apart and the data hold {_listed(dataset.classes)}: its accuracy on them would mean "
            f"nothing. Give data of the same classes, whose folders sort in the same order."
        )
    for name in ("corruptions", "certify", "queries"):  # now, not after the attacks
        asked = getattr(chosen, name)
        if asked is not None and protocol != "pixel-space":
            raise InputError(
                f"{name} is {asked}, and is measured on images alone, not under the protocol {protocol}. Leave "
                f"one of the two out."
            )
        if name != "queries":
            count_of(dataset.test, asked)
        elif asked is not None and asked < 1:
            raise InputError(f"queries is {asked}; it must be at least 1.")
    count = count_of(dataset.test, chosen.limit)
    _refuse_fewer(out, network_sha256, count, chosen)
    eps, step, steps = _values(attack) if isinstance(attack, Attack) else attack
    device, source = choose(chosen.device), network_at(sources)
    ready = Path(sources[0]) / FOLDER if len(sources) == 1 and Path(sources[0]).is_dir() else None
    settings = {
        "network": [checksum(one) for one in (network, gated) if one], "black-box source": source and checksum(source),
        "limit": count, "set of test images": checksum(dataset.test.head(count)), "eps": eps, "step": step, "steps": steps, "norm": norm,
        "restarts": restarts, "autoattack": chosen.autoattack, "draws": draws,
        "protocol": protocol, "device": device.type, "version of the software": versions(),
    }  # fmt: skip
    finished = Finished(out, settings, count)
    with finished.stoppable():
        result = evaluate(
            network.to(device), dataset.test, eps=eps, step=step, steps=steps, norm=norm, restarts=restarts,
            source=source.to(device) if source else None, gated=gated.to(device) if gated else None,
            batch_size=BATCH[device.type], limit=chosen.limit, autoattack=chosen.autoattack, draws=draws,
            classes=len(dataset.classes), protocol=protocol, masking=chosen.masking, finished=finished,
            black_box_images=ready, progress=chosen.progress,
        )  # fmt: skip
        if chosen.queries is not None:
            alone = query_accuracy(
                network, dataset.test, eps=eps, queries=chosen.queries, norm=norm, batch_size=BATCH[device.type],
                limit=chosen.limit, draws=draws, finished=finished, progress=chosen.progress,
            )  # fmt: skip
            result |= {name: alone[name] for name in ("query_accuracy", "queries")}
        result |= beyond_attacks(
            network, dataset.test, eps=eps, norm=norm, corruptions=chosen.corruptions, certify=chosen.certify,
            draws=draws, finished=finished, progress=chosen.progress,
        )  # fmt: skip
    return result


def _refuse_fewer(out: Path, network: str, count: int, chosen: Options) -> None:
    """See that no row of more images, or with more figures, of the same network is lost."""
    try:
        row = read_object(out) or {}
    except RunError:  # damaged, so nothing is lost
        return
    if row.get("network_sha256") == network and isinstance(row.get("images"), int) and row["images"] > count:
        raise InputError(
            f"{out} is a row of {row['images']} images of this network; one of {count} would replace it. Keep the new one "
            f"elsewhere with --out FILE, or delete {out} first."
        )
    given = {
        "autoattack_accuracy": ("autoattack", chosen.autoattack), "query_accuracy": ("queries", chosen.queries),
        "corruptions": ("corruptions", chosen.corruptions), "certificates": ("certify", chosen.certify),
    }  # fmt: skip
    lost = [f"--{option}" for name, (option, asked) in given.items() if asked is None and row.get(name) is not None]
    if row.get("network_sha256") == network and lost:
        raise InputError(
            f"{out} is a row of this network that was measured with {' and '.join(lost)}; one without would replace it. Give "
            f"that again, keep the new row elsewhere with --out FILE, or delete {out} first."
        )


def _origin(sources: Sequence[str | Path]) -> dict[str, Any]:
    """Where black-box images come from: the names of the sources, and the checksums of those that are runs."""
    sums = [network_of(Path(source)) if Path(source).is_dir() else None for source in sources]
    return {"black_box_source": ", ".join(map(str, sources)) or None, "black_box_sha256": sums}


def _keep(facts: dict[str, Any], result: Evaluation, path: Path, device: str, **more: Any) -> dict[str, Any]:
    """Write the row, and beside it what happened to each image; returns the row."""
    line = {**facts, **dict(result), "evaluation_seed": result["seed"], **more, **provenance(choose(device))}
    write_atomically(path, json.dumps(line, indent=2).encode())
    images = {
        "correct": {setting: right.int().tolist() for setting, right in result.correct.items()},
        "broken_by": list(result.broken_by),
        "margin": None if result.margin is None else result.margin.tolist(),
    }
    write_atomically(path.with_name(f"{path.stem}-images.json"), json.dumps(images).encode())
    remove(path)
    return line


def row_file(run: Path, protocol: ProtocolName) -> Path:
    """Where the row of a run lies."""
    return run / ("evaluation.json" if protocol == "pixel-space" else f"evaluation-{protocol}.json")

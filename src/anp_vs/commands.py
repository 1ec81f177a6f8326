"""What each command can be told, as types: their docstrings are the commands' --help."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from anp_vs.recipes import Recipe


@dataclass(frozen=True)
class DemoCommand:
    """Train AT and ANP-VS on scikit-learn's handwritten digits, without a download, and print their rows.

    Attributes:
        out: folder of the run directories; run again to go on where it was stopped.
    """

    out: Annotated[Path, tyro.conf.Positional] = Path("runs")


@dataclass(frozen=True)
class RecipesCommand:
    """List every recipe with its source. What a recipe's fields mean: anp-vs train RECIPE --help."""


@dataclass(frozen=True)
class TrainCommand:
    """Train a recipe.

    Attributes:
        recipe: its fields; each can be changed here, and the result is saved as recipe.yaml in the run directory.
        out: run directory; runs/RECIPE/seedN by default. A stopped run there is resumed.
        device: where to train.
        devices: processes on this machine that share every batch, one for each GPU or some CPU cores.
        nodes: machines; start the same command on each with torchrun.
        quiet: show no progress.
    """

    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    out: Path | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    devices: int = 1
    nodes: int = 1
    quiet: bool = False


@dataclass(frozen=True)
class EvaluateCommand:
    """Evaluate a network on the whole test set, look for masked gradients, and print its row and the verdict.

    A run is evaluated under its recipe, and the row kept in it. Any other classifier needs --data and --eps unless its
    card has a recipe; to attack a run's network otherwise, give its file: RUN/network.safetensors. After an interruption
    the same command goes on from where it was stopped.

    Attributes:
        target: run directory, saved network, name of a shipped one, or module:factory, a function without arguments
            that returns an nn.Module: images in [0, 1] to logits.
        data: digits, mnist, cifar10, cifar100, or folder:PATH.
        data_root: folder that holds the data set; the recipe's own by default.
        eps: radius of the attack, in units of pixels in [0, 1].
        step: length of a PGD step; 2.5 eps / steps by default.
        steps: PGD steps; 40 by default.
        norm: of the attack.
        draws: passes averaged in every prediction and gradient where the network is random in evaluation; 20 by default.
        black_box: networks that black-box images are made on, named like the target; the recipe's own source by default.
        autoattack: also run AutoAttack on this many test images.
        queries: also measure the accuracy under Square alone, which sees logits only, with so many queries an image.
        corruptions: also classify this many test images under ten common corruptions of five severities.
        certify: also prove, for this many test images, what no attack can change: by interval bounds at shares of eps,
            and for the classifier smoothed with noise of 0.25.
        masking: test images on which signs of masked gradients are looked for; 0 leaves that out.
        limit: only the first so many test images, for a quick look; the row says so, and replaces none of more images.
        protocol: pixel-space, or released-code as the published CIFAR rows were attacked; by default as a run was trained.
        out: file of the row; RUN/evaluation.json for a run, else evaluation.json here.
        device: where to evaluate.
    """

    target: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_OR_MODEL")]
    data: str | None = None
    data_root: str | None = None
    eps: float | None = None
    step: float | None = None
    steps: int | None = None
    norm: Literal["inf", "2", "1"] = "inf"
    draws: int | None = None
    black_box: tuple[str, ...] = ()
    autoattack: int | None = None
    queries: int | None = None
    corruptions: int | None = None
    certify: int | None = None
    masking: int = 160
    limit: int | None = None
    protocol: Literal["pixel-space", "released-code"] | None = None
    out: Path | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"


@dataclass(frozen=True)
class CompactCommand:
    """Take the pruned channels out of a run's network and save the small one.

    Attributes:
        run: run directory, or a saved gated network.
        out: where to save; RUN/compact.safetensors by default.
        multiple: keep so many pruned units, at zero, that every width is a multiple of this, for hardware that works
            in blocks of 8 or 16; the function is the same. With 1, units that are provably zero on every image leave, too.
    """

    run: Annotated[Path, tyro.conf.Positional]
    out: Path | None = None
    multiple: int = 1


@dataclass(frozen=True)
class ExportCommand:
    """Write a run's compact network for another runtime, with its card.

    Attributes:
        run: run directory, saved network, or name of a shipped one.
        format: safetensors for this package, torch-export for PyTorch alone, onnx for onnxruntime and others.
        out: the file; RUN/compact with the format's ending by default.
        int8: also write a quantised copy (onnx only), calibrated on training images of the run.
        data_root: folder that holds the data set, for int8; the recipe's own by default.
    """

    run: Annotated[Path, tyro.conf.Positional]
    format: Literal["safetensors", "torch-export", "onnx"] = "onnx"
    out: Path | None = None
    int8: bool = False
    data_root: str | None = None


@dataclass(frozen=True)
class CostCommand:
    """Measure what a network costs, beside the full network it came from.

    Attributes:
        network: run directory, saved network, or name of a shipped one.
        latency: measure the latency too (some seconds).
    """

    network: Annotated[Path, tyro.conf.Positional]
    latency: bool = True


@dataclass(frozen=True)
class ReportCommand:
    """Write one self-contained HTML page about finished runs.

    Attributes:
        runs: run directories, or folders that hold some; every finished run below runs/ by default.
        out: the page.
        figures: first measure what the figures lack, and keep it in the run directories.
        images: test images to measure figures on, the first ones.
        seconds: time for that; what would not end within it is left out, and said.
        data_root: folder that holds the data sets; each recipe's own by default.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    out: Path = Path("report.html")
    figures: bool = False
    images: int = 160
    seconds: float = 600.0
    data_root: str | None = None


@dataclass(frozen=True)
class ReproduceCommand:
    """Train, evaluate and report the rows of a published table. What is done is not done again.

    Attributes:
        table: mnist, cifar10 or cifar100.
        rows: which ones; by default all of the eight published rows that the recipe has.
        seeds: runs of each row, with the seeds 0, 1, ...
        recipe: paper, 200 epochs as published; released, CIFAR only, the same under the released code's protocol, with which
            alone the published rows compare; reduced to what two CPU cores (cpu) or, CIFAR only, one GPU (gpu) can train;
            or, not for CIFAR-100, best: the small network improved beyond the paper, with the networks it needs.
        data_root: folder that holds the data sets; without it they are downloaded.
        out: folder of the run directories and of the report.
        autoattack: test images to run AutoAttack on; 0 for none.
        retries: further tries of a run that failed, each from its last checkpoint; none after a wrong value or a file
            that is missing.
        device: where to train.
        cluster: spread the runs over Ray: the cluster at RAY_ADDRESS, or a local one that is started.
        cpus: CPU cores of one run on the cluster.
        gpus: GPUs of one run on the cluster; 0.5 lets two share one; by default 1, but for --device cpu or a cluster that has none.
        dry: only show the plan: what is done, what is not, and what each run needs.
    """

    table: Annotated[Literal["mnist", "cifar10", "cifar100"], tyro.conf.Positional]
    rows: tuple[str, ...] = ()
    seeds: int = 1
    recipe: Literal["paper", "released", "cpu", "gpu", "best"] = "cpu"
    data_root: Path | None = None
    out: Path = Path("runs")
    autoattack: int = 1000
    retries: int = 2
    device: Literal["auto", "cpu", "cuda"] = "auto"
    cluster: bool = False
    cpus: int = 1
    gpus: float = 0.0
    dry: bool = False

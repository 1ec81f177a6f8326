"""Makes the frozen run of this minor version: PYTHONPATH=src:tests python tests/training/freeze.py

Once for each minor version, before its release; what is in the repository is never made again, so that the tests
show that runs of released versions still load.
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from torch import Tensor

from anp_vs.networks import NETWORKS
from anp_vs.training import run
from anp_vs.training.loop import Trainer
from training.tiny import TinyConvolution, digits, patched, prune_some, recipe

FROZEN = Path(__file__).resolve().parent.parent / "frozen_run"
VERSION = "0.1"
STOP = 7  # of 12: units have left the network, the gates are not fixed yet
STATE = ("recipe.yaml", "checkpoint.state", "metrics.jsonl")
END = ("network.safetensors", "network.json")


class StoppedHereError(Exception):
    """The run is stopped here."""


def probe() -> Tensor:
    """The images whose logits are kept."""
    return digits().test.images[:4].float() / 255


def main() -> None:
    NETWORKS["tiny-convolution"] = TinyConvolution
    place = FROZEN / VERSION
    if place.exists():
        raise SystemExit(f"{place} is there already, and frozen.")
    asked = recipe("anp-vs")
    advance = Trainer.advance

    def stopping(training: Trainer) -> Any:
        if training.step == STOP:
            raise StoppedHereError
        prune_some(training)
        return advance(training)

    with patched(), tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        Trainer.advance = stopping  # type: ignore[method-assign]
        try:
            run.train(asked, out=path, device="cpu", quiet=True)
        except StoppedHereError:
            Trainer.advance = advance  # type: ignore[method-assign]
        place.mkdir(parents=True)
        for name in STATE:
            shutil.copy(path / name, place)
        network = run.train(path, device="cpu", quiet=True).network
        for name in END:
            shutil.copy(path / name, place)
        (place / "logits.json").write_text(json.dumps(network(probe()).tolist()))


if __name__ == "__main__":
    main()

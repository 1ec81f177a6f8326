"""Networks on the Hugging Face Hub, by the mixin of `huggingface_hub`: safetensors and the card, never a pickle.

Needs the extra `anp-vs[hub]`; what is downloaded is read as any saved network, and runs no code.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from huggingface_hub import ModelHubMixin, snapshot_download
from torch import Tensor, nn

from anp_vs import serialization
from anp_vs.errors import RunError

NAME = "network"
_TEMPLATE = """---
{{ card_data }}
---

An image classifier: float images in [0, 1], N x C x H x W, in; logits out.

{{ facts }}

```
pip install '.[hub]'    # in a clone of anp-vs
```

```
from anp_vs.deploy.hub import HubNetwork

network = HubNetwork.from_pretrained("{{ repo_id }}")
```

Made with anp-vs; method: [Madaan, Shin, Hwang, ICML 2020]({{ paper_url }}).
"""


class HubNetwork(
    nn.Module,
    ModelHubMixin,
    library_name="anp-vs",
    tags=["adversarial-robustness", "pruning"],
    pipeline_tag="image-classification",
    paper_url="https://arxiv.org/abs/1908.04355",
    model_card_template=_TEMPLATE,
):
    """A network with `save_pretrained`, `push_to_hub` and `from_pretrained`.

    Args:
        network: gated or compact; of a class that is built in or registered, so that it loads again.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Images N x C x H x W in [0, 1] to logits."""
        logits: Tensor = self.network(images)
        return logits

    @property
    def card(self) -> dict[str, Any]:
        """The card the network was loaded with: class names, threat model, recipe, figures."""
        return serialization.card_of(self.network)

    def generate_model_card(self, *args: Any, **kwargs: Any) -> Any:
        """The page of the repository, with the facts of the card."""
        card = serialization.card_for(self.network)
        threat = card.get("threat_model") or {}
        facts = {
            "architecture": card["architecture"], "parameters": f"{card['parameters']:,}",
            "images": " x ".join(map(str, card["input_shape"] or ["?"])),
            "classes": ", ".join(map(str, card.get("classes", []))) or None,
            "threat model": f"{threat['norm']} norm, eps {threat['eps']:.4g}" if threat else None,
            "what is attacked": threat.get("space"),
        }  # fmt: skip
        lines = "\n".join(f"- {name}: {value}" for name, value in facts.items() if value)
        return super().generate_model_card(*args, facts=lines, **{"repo_id": "REPOSITORY", **kwargs})

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload to the Hub; `options` are those of `huggingface_hub.ModelHubMixin.push_to_hub`."""
        options["model_card_kwargs"] = {"repo_id": repo_id, **(options.get("model_card_kwargs") or {})}
        return super().push_to_hub(repo_id, **options)

    def _save_pretrained(self, save_directory: Path) -> None:
        serialization.save(self.network, save_directory / NAME)
        # By this file the Hub counts downloads.
        config = {"library": "anp-vs", "architectures": [serialization.architecture(self.network)]}
        (save_directory / "config.json").write_text(json.dumps(config), encoding="utf-8")

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        network: nn.Module | None = None,
        **_: Any,
    ) -> HubNetwork:
        """Read a repository or a local folder; `network` is a fresh instance for a class that is not known."""
        folder = Path(model_id)
        if not folder.is_dir():
            try:
                folder = Path(
                    snapshot_download(
                        model_id, revision=revision, cache_dir=cache_dir, force_download=force_download,
                        local_files_only=local_files_only, token=token, allow_patterns=[f"{NAME}.*"],
                    )
                )  # fmt: skip
            except (OSError, ValueError) as error:
                raise RunError(f"{model_id} could not be had from the Hub: {error}.") from error
        return cls(serialization.load(folder / f"{NAME}.safetensors", network)).eval()

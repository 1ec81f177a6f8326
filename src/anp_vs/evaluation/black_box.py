"""Images made on a black-box source, kept beside it: all rows of a table are shown the same ones, made once."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from torch import Tensor

from anp_vs import attacks
from anp_vs.errors import RunError
from anp_vs.evaluation import white_box
from anp_vs.evaluation.finished import checksum, same_logits
from anp_vs.evaluation.subject import Subject
from anp_vs.evaluation.white_box import Attacker
from anp_vs.provenance import versions
from anp_vs.storage import pack, unpack, write_atomically

logger = logging.getLogger(__name__)
FOLDER = "black-box-images"
"""In the source's run directory; it may be deleted at any time."""


CODE = (*sorted(Path(attacks.__file__).parent.glob("*.py")), Path(white_box.__file__))
"""Sources by whose change the same networks and settings give other images."""


class BlackBox:
    """Attacks the source, unless what that gives lies on the disk.

    Args:
        attacker: of the evaluation; its budget, protocol and seed decide the images.
        source: attacked.
        folder: where batches are kept, each in a file that is named by all that decides it; None keeps none.
    """

    def __init__(self, attacker: Attacker, source: Subject, folder: Path | None) -> None:
        self._attacker, self._source, self._folder = attacker, source, folder
        self._settings = ""
        if folder is not None:
            code = hashlib.sha256(b"".join(path.read_bytes() for path in CODE)).hexdigest()
            facts = attacker.protocol.name, attacker.budget, attacker.seed, source.draws, source.device.type, versions()
            self._settings = f"{checksum(source.network)} {facts} {code}"

    def __call__(self, images: Tensor, labels: Tensor, start: int) -> Tensor:
        """Adversarial images for one batch, of the same shape.

        Args:
            images: as the source is shown them, N x C x H x W.
            labels: int64, N.
            start: number of the batch's first image.
        """
        if self._folder is None:
            return self._made(images, labels, start)
        name = hashlib.sha256(f"{self._settings} {start} {checksum((images, labels))}".encode()).hexdigest()
        path = self._folder / f"{name[:32]}.state"
        # The source's own code can change where its weights do not.
        logits = self._source.classify(images, labels, self._attacker.seed, "black-box", start)
        try:
            held = unpack(path.read_bytes(), path)
            kept, known = held.get("images"), held.get("logits")
            if not isinstance(known, Tensor) or not isinstance(kept, Tensor) or kept.shape != images.shape:
                raise RunError(f"{path} is not what an evaluation keeps.")
            if same_logits(known, logits):
                return kept.to(images)
        except FileNotFoundError:
            pass
        except (OSError, RunError) as error:
            logger.warning("%s These images are made again.", error)
        made = self._made(images, labels, start)
        try:
            self._folder.mkdir(exist_ok=True)
            write_atomically(path, pack({"images": made, "logits": logits}))
        except (OSError, RunError) as error:
            logger.warning("The next row has to make these images again: %s", error)
            self._folder = None  # once is enough said
        return made

    def _made(self, images: Tensor, labels: Tensor, start: int) -> Tensor:
        return self._attacker(self._source, images, labels, start, name="black-box")

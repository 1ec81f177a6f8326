"""A run directory's network, exported."""

from __future__ import annotations

from pathlib import Path

from anp_vs import recipes, serialization
from anp_vs.data import load as load_data
from anp_vs.deploy.export import Format, export
from anp_vs.deploy.quantise import calibration_images, quantise
from anp_vs.errors import InputError


def export_run(
    run: Path,
    format: Format,  # noqa: A002
    out: Path | None = None,
    *,
    int8: bool = False,
    data_root: str | None = None,
) -> list[Path]:
    """Export the compact network of a run.

    Args:
        run: run directory, saved network, or name of a shipped one.
        format: see `export`.
        out: the file; by default `compact` with the format's ending beside what was loaded, and a shipped network
            under its own name in the working directory.
        int8: also quantise, calibrated on 256 training images of the run's data set; only for `onnx`.
        data_root: where the data set is; the recipe's own place by default.

    Returns:
        The files written.

    Raises:
        InputError: int8 for another format, or for something that is no run directory.
        RunError: the network cannot be read, or the files not be written.
    """
    if int8 and (format != "onnx" or not (run / "recipe.yaml").exists()):
        raise InputError("int8 needs format onnx and a run directory, whose training images set the ranges.")
    network = serialization.load(run)
    found = serialization.locate(run)
    beside = Path(run.name) if found.is_relative_to(serialization.SHIPPED) else found.with_name("compact")
    written = [export(network, out or beside, format)]
    if int8:
        recipe = recipes.find(run)
        dataset = load_data(
            recipe.data, data_root or recipe.data_root, validation=recipe.validation, pictures=recipe.pictures
        )
        written.append(quantise(written[0], calibration_images(dataset.train)))
    return written

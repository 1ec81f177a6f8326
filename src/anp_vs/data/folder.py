"""A folder of pictures as a data set: PATH/split/class/file."""

import warnings
from pathlib import Path

import torch
from torch import Tensor

from anp_vs.data.check import damaged_files, refuse_or_warn
from anp_vs.data.download import user_path
from anp_vs.data.lazy import LazySplit
from anp_vs.data.picture import SUFFIXES, PictureOptions, decode
from anp_vs.data.split import Dataset, Split, hold_out
from anp_vs.errors import DataError, InputError

_FORMATS = "PNG, JPEG or WebP"
_SHARE = 10  # one in so many training pictures is held out where there is no validation folder


def load_folder(
    path: str | Path, options: PictureOptions | None = None, *, validation: int | None = None, seed: int = 0
) -> Dataset:
    """Load PATH/train/CLASS/*, PATH/test/CLASS/* and, where there is one, PATH/validation/CLASS/*.

    Every picture is decoded once as a check (and not again while the files stay as they are); afterwards
    pictures are decoded when they are needed, so the folder may be larger than memory. Hidden files are
    ignored.

    Args:
        path: The folder. Class names are folder names, in alphabetical order.
        options: Size, colour, and what to do with damaged pictures.
        validation: Pictures held out of the training set, each class in proportion; None: a tenth. Not to be
            given when there is a validation folder.
        seed: Chooses which are held out.

    Returns:
        The data set, named "folder:PATH", its splits decoding on demand.

    Raises:
        DataError: If a folder is missing, there are fewer than two classes, a class has no picture or is only
            in some splits, or pictures are damaged and to be refused.
        InputError: If validation or seed is out of range, or validation is given beside a validation folder.
    """
    options = options or PictureOptions()
    path = user_path(path)
    try:
        names = [name for name in ("train", "validation", "test") if name != "validation" or (path / name).is_dir()]
        classes = _classes(path)
        if len(names) == 3 and validation is not None:
            raise InputError(
                f"validation is {validation!r}, but {path / 'validation'} gives the validation pictures; leave one out."
            )
        files = {name: _pictures(path / name, classes) for name in names}
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error}); give a folder that you may read.") from error
    paths = [file for pairs in files.values() for file, _ in pairs]
    reasons = damaged_files(paths, options)
    refuse_or_warn(reasons, len(paths), options)
    bad = {paths[number] for number in reasons}
    splits = {name: _split(path / name, pairs, bad, classes, options) for name, pairs in files.items()}
    train = splits["train"]
    if "validation" not in splits:
        kept, held = hold_out(train.labels, len(train) // _SHARE if validation is None else validation, seed)
        train, splits["validation"] = train.subset(kept), train.subset(held)
    return Dataset(f"folder:{path}", train, splits["validation"], splits["test"], classes)


def _visible(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _classes(path: Path) -> tuple[str, ...]:
    for folder in (path, path / "train", path / "test"):
        if not folder.is_dir():
            raise DataError(
                f"there is no folder {folder}; lay the pictures out as {path}/train/CLASS/FILE and "
                f"{path}/test/CLASS/FILE."
            )
    classes = tuple(entry.name for entry in _visible(path / "train") if entry.is_dir())
    if len(classes) < 2:
        found = f"only the class {classes[0]!r}" if classes else "no class"
        raise DataError(
            f"{path / 'train'} has {found}; a classifier needs at least two. Give each class a folder of its own there."
        )
    return classes


def _pictures(folder: Path, classes: tuple[str, ...]) -> list[tuple[Path, int]]:
    """Every picture of a split with its label."""
    others = [entry.name for entry in _visible(folder) if entry.is_dir() and entry.name not in classes]
    if others:
        raise DataError(
            f"{folder} has the class {others[0]!r}, which the train folder does not have; every split needs "
            "the same classes. Add training pictures of it, or remove it."
        )
    found = []
    ignored = []
    for label, name in enumerate(classes):
        entries = _visible(folder / name) if (folder / name).is_dir() else []
        pictures = [entry for entry in entries if entry.suffix.lower() in SUFFIXES]
        if not pictures:
            raise DataError(
                f"the class folder {folder / name} has no picture; put {_FORMATS} files there "
                f"({', '.join(SUFFIXES)}), or remove the class from every split."
            )
        found += [(picture, label) for picture in pictures]
        ignored += [entry for entry in entries if entry.suffix.lower() not in SUFFIXES]
    if ignored:
        warnings.warn(
            f"{len(ignored)} files are no {_FORMATS} pictures and ignored, such as {ignored[0]}.",
            stacklevel=3,
        )
    return found


def _split(
    folder: Path,
    pairs: list[tuple[Path, int]],
    bad: set[Path],
    classes: tuple[str, ...],
    options: PictureOptions,
) -> Split:
    sound = [(file, label) for file, label in pairs if file not in bad]
    counts = torch.tensor([label for _, label in sound], dtype=torch.int64).bincount(minlength=len(classes))
    if not counts.all():
        raise DataError(
            f"the class folder {folder / classes[int(counts.argmin())]} has no sound picture left; replace "
            "the damaged ones, or remove the class from every split."
        )
    files = [file for file, _ in sound]

    def image(number: int) -> Tensor:
        return decode(files[number], str(files[number]), options)

    labels = torch.tensor([label for _, label in sound], dtype=torch.int64)
    return LazySplit(image, torch.arange(len(files)), labels, options.shape, workers=options.workers)

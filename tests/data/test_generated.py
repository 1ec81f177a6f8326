"""Generated images: read from .npz files without unpickling, mapped where they are not compressed, refused when unsound."""

import io
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anp_vs.data.generated import load_generated
from anp_vs.errors import DataError

SHAPE = (3, 4, 5)
RANDOM = np.random.default_rng(0)
COUNT = 107  # so many that a header is parsed before zipfile has seen the checksum of the whole array
IMAGES = RANDOM.integers(0, 256, (COUNT, 4, 5, 3), np.uint8)
LABELS = np.arange(COUNT) % 4


def written(path: Path, *, compressed: bool = False, **arrays: Any) -> Path:
    (np.savez_compressed if compressed else np.savez)(path, **({"image": IMAGES, "label": LABELS} | arrays))
    return path


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8])
def test_images_and_labels_come_as_they_were_written(tmp_path: Path, *, compressed: bool, kind: type) -> None:
    split = load_generated(written(tmp_path / "g.npz", compressed=compressed, label=LABELS.astype(kind)), SHAPE, 4)
    assert torch.equal(split.images, torch.from_numpy(IMAGES).permute(0, 3, 1, 2))
    assert torch.equal(split.labels, torch.from_numpy(LABELS))
    chosen = torch.tensor([6, 0, 6])
    assert torch.equal(split.batch(chosen), split.images[chosen])


def test_what_is_not_compressed_is_mapped_and_never_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "g.npz")
    before = path.read_bytes()
    monkeypatch.delattr(np, "empty")  # what is read and not mapped is put into it
    split = load_generated(path, SHAPE, 4)
    split.images.zero_()
    assert path.read_bytes() == before


def test_extra_fields_before_the_bytes_are_passed_over(tmp_path: Path) -> None:
    """Some writers align what they store by extra fields, which the directory at the end of the file does not tell."""
    with zipfile.ZipFile(tmp_path / "g.npz", "w") as archive:
        for name, values in (("image", IMAGES), ("label", LABELS)):
            entry = zipfile.ZipInfo(f"{name}.npy")
            entry.extra = struct.pack("<HH", 0xFFFF, 5) + b"....."
            out = io.BytesIO()
            np.save(out, values)
            archive.writestr(entry, out.getvalue())
    assert torch.equal(
        load_generated(tmp_path / "g.npz", SHAPE, 4).images, torch.from_numpy(IMAGES).permute(0, 3, 1, 2)
    )


class Trap:
    """Notes that it was unpickled."""

    sprung = False

    def __reduce__(self) -> Any:
        return setattr, (Trap, "sprung", True)


@pytest.mark.parametrize("compressed", [False, True])
def test_python_objects_are_refused_and_never_unpickled(tmp_path: Path, *, compressed: bool) -> None:
    trapped = written(tmp_path / "g.npz", compressed=compressed, label=np.array([Trap()] * COUNT, dtype=object))
    with pytest.raises(DataError, match=r"label in .* holds Python objects"):
        load_generated(trapped, SHAPE, 4)
    assert not Trap.sprung


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"image": IMAGES.astype(np.float32)},
            r"image in .* is float32 of shape \(107, 4, 5, 3\); .* uint8 of N x 4 x 5 x 3, N at least 1",
        ),
        ({"image": IMAGES.transpose(0, 3, 1, 2)}, r"image in .* shape \(107, 3, 4, 5\)"),
        ({"image": IMAGES[:0], "label": LABELS[:0]}, r"shape \(0, 4, 5, 3\); .* N at least 1"),
        ({"image": np.uint8(3)}, r"image in .* shape \(\)"),
        ({"label": LABELS[:6]}, r"label in .* shape \(6,\); the data set takes 107 whole numbers"),
        ({"label": LABELS.astype(float)}, "label in .* is float64"),
        ({"label": LABELS + 1}, "label in .* goes from 1 to 4; .* classes 0 to 3"),
        ({"label": LABELS - 1}, "goes from -1 to 2"),
        ({"image": np.asfortranarray(IMAGES)}, "column by column"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value[:30],
)
def test_arrays_that_do_not_fit_the_data_set_are_refused(arrays: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        load_generated(written(tmp_path / "g.npz", **arrays), SHAPE, 4)


def test_files_that_are_no_such_thing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"missing.npz cannot be read: No such file"):
        load_generated(tmp_path / "missing.npz", SHAPE, 4)
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(DataError, match=r"not a sound .npz file"):
        load_generated(tmp_path / "text.npz", SHAPE, 4)
    np.savez(tmp_path / "other.npz", x=IMAGES)
    with pytest.raises(DataError, match=r"no array 'image' but x.npy; give a file written by numpy.savez"):
        load_generated(tmp_path / "other.npz", SHAPE, 4)
    with zipfile.ZipFile(tmp_path / "short.npz", "w") as archive:
        out = io.BytesIO()
        np.save(out, IMAGES)
        archive.writestr("image.npy", out.getvalue()[:-1])
        archive.writestr("label.npy", out.getvalue())
    with pytest.raises(DataError, match=r"image in .* says uint8 of shape \(107, 4, 5, 3\) and holds 6419 bytes"):
        load_generated(tmp_path / "short.npz", SHAPE, 4)


HEADERS = [
    "{'descr': '", "{'descr': '(2,u1', 'fortran_order': False, 'shape': (107,)}", "{[]: 1}", "{1: 2, 'a': 3}", "-" * 9000 + "1", "\0",
    "{'descr': (), 'fortran_order': False, 'shape': (107,)}", "{'descr': '|u1', 'fortran_order': False, 'shape': (-1,)}",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (4294967296, 4294967296)}", "[" * 5000,
]  # fmt: skip


@pytest.mark.parametrize("header", HEADERS, ids=lambda text: text[:20])
@pytest.mark.parametrize("version", [1, 2])
def test_headers_made_up_to_confuse_the_parser_are_refused(header: str, version: int, tmp_path: Path) -> None:
    for said in (len(header), 0xFFFF if version == 1 else 0xFFFFFFFF):
        text = b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", said) + header.encode()
        with zipfile.ZipFile(tmp_path / "g.npz", "w") as archive:
            archive.writestr("image.npy", text + bytes(7000))
        with pytest.raises(DataError, match=r"not a sound \.npz file \(.+\)|image in"):
            load_generated(tmp_path / "g.npz", SHAPE, 4)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_bytes_changed_at_random_give_our_own_error_or_images(compression: int, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "g.npz", "w", compression) as archive:
        for name, values in (("image", IMAGES), ("label", LABELS)):
            out = io.BytesIO()
            np.save(out, values)
            archive.writestr(f"{name}.npy", out.getvalue())
    sound = (tmp_path / "g.npz").read_bytes()
    refused = 0
    for place in [*range(200), *RANDOM.integers(0, len(sound), 300)]:
        changed = bytearray(sound)
        changed[int(place)] ^= int(RANDOM.integers(1, 256))
        (tmp_path / "c.npz").write_bytes(changed)
        try:
            load_generated(tmp_path / "c.npz", SHAPE, 4)
        except DataError:
            refused += 1
    assert refused > 50

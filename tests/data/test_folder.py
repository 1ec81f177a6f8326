"""Folders of pictures, decoded on demand."""

import os
import threading
from pathlib import Path

import pytest
import torch

from anp_vs.data import Dataset, PictureOptions, check, lazy, load
from anp_vs.data.lazy import LazySplit
from anp_vs.errors import DataError, InputError
from data import pictures

COUNTS = {"blue": 8, "green": 7, "red": 12}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own."""
    monkeypatch.setattr("pooch.os_cache", lambda name: tmp_path / "cache" / name)
    return tmp_path / "cache" / "anp-vs" / "checked-pictures"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return pictures.folder(tmp_path / "set", COUNTS)


def opened(path: Path, **options: object) -> Dataset:
    return load(f"folder:{path}", pictures=PictureOptions(size=8, workers=2, **options))


def test_pictures_come_with_their_classes(path: Path) -> None:
    dataset = opened(path)
    assert dataset.classes == ("blue", "green", "red")
    assert dataset.name == f"folder:{path}"
    assert [len(part) for part in (dataset.train, dataset.validation, dataset.test)] == [25, 2, 27]
    colours = torch.tensor([pictures.COLOURS[name] for name in dataset.classes])
    for part in (dataset.train, dataset.validation, dataset.test):
        assert part.shape == (3, 8, 8)
        assert part.images.dtype == torch.uint8
        # The k-th picture of a class is its colour plus k, at most 11; JPEG and WebP are off by a little.
        difference = part.images.int() - colours[part.labels].view(-1, 3, 1, 1)
        assert difference.min() >= -6
        assert difference.max() <= 17
    assert opened(path, colour="grey").train.shape == (1, 8, 8)


def test_a_split_on_disk_acts_like_one_in_memory(path: Path) -> None:
    split = opened(path).train
    memory = torch.stack([split.batch(torch.tensor([number]))[0] for number in range(len(split))])
    order = torch.tensor([20, 3, 3, 0])
    assert torch.equal(split.batch(order), memory[order])
    part = split.subset(order)
    assert torch.equal(part.labels, split.labels[order])
    assert torch.equal(part.subset(torch.tensor([1, 0])).batch(torch.tensor([1])), memory[[20]])
    assert len(split.head(3)) == 3
    batches = [torch.tensor(numbers) for numbers in ([4, 5], [24], [0, 0, 1], [7], [9, 8])]
    for number, (images, labels) in enumerate(split.batches(iter(batches))):
        assert torch.equal(images, memory[batches[number]])
        assert torch.equal(labels, split.labels[batches[number]])
    assert number == 4
    assert torch.equal(split.images, memory)
    assert torch.equal(split.batch(order), memory[order])
    moved = split.to("meta")
    assert moved.labels.device.type == "meta"
    assert len(list(split.batches([]))) == 0


def test_batches_are_decoded_ahead_and_no_further(path: Path) -> None:
    split = opened(path).train
    asked: list[int] = []

    def order() -> object:
        for number in range(10):
            asked.append(number)
            yield torch.tensor([number])

    stream = split.batches(order())
    next(stream)
    assert asked == [0, 1, 2]
    next(stream)
    assert asked == [0, 1, 2, 3]
    stream.close()


def test_the_batch_to_come_is_decoded_meanwhile_and_only_that(path: Path) -> None:
    """What is announced is decoded without being asked for, the same pictures come out, and one batch is held."""
    whole = opened(path).train
    memory, split = whole.images, opened(path).train
    assert isinstance(split, LazySplit)
    begun: list[int] = []
    decode, arrived = split._decode, threading.Semaphore(0)

    def noted(number: int) -> torch.Tensor:
        begun.append(number)
        try:
            return decode(number)
        finally:
            arrived.release()

    split._decode = noted
    first, second = torch.tensor([3, 1, 4]), torch.tensor([5, 9])
    split.prepare(first)
    for _ in first:
        assert arrived.acquire(timeout=10)
    assert torch.equal(split.batch(first), memory[first])
    assert len(begun) == 3
    split.prepare(first)
    split.prepare(second)  # in place of the one before
    assert torch.equal(split.batch(second), memory[second])
    split.prepare(first)
    assert torch.equal(split.batch(second), memory[second])  # not what was announced
    split.prepare(first)
    split.close()
    assert torch.equal(split.batch(first), memory[first])


def test_a_picture_damaged_later_is_named_where_its_batch_is_used(path: Path) -> None:
    split = opened(path).test
    (path / "test/blue/3.png").write_bytes(b"")
    everything = torch.arange(len(split))
    split.prepare(everything)
    assert len(split.subset(everything)) == len(split)
    with pytest.raises(DataError, match=r"test/blue/3\.png cannot be decoded"):
        split.batch(everything)


def test_images_larger_than_memory_are_refused_as_a_whole(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = opened(path).train
    monkeypatch.setattr(lazy, "_MOST_IN_MEMORY", 25 * 3 * 8 * 8 - 1)
    with pytest.raises(InputError, match="use `batch`"):
        _ = split.images
    assert split.head(24).images.shape == (24, 3, 8, 8)


def test_a_validation_folder_is_used_as_it_is(tmp_path: Path) -> None:
    path = pictures.folder(tmp_path / "set", COUNTS, ("train", "validation", "test"))
    dataset = opened(path)
    assert [len(part) for part in (dataset.train, dataset.validation, dataset.test)] == [27, 27, 27]
    with pytest.raises(InputError, match="leave one out"):
        load(f"folder:{path}", validation=3)


def damage(path: Path) -> list[Path]:
    """Three pictures that cannot be used."""
    cut, bomb, text = path / "train/red/1.jpg", path / "train/blue/0.png", path / "test/green/2.webp"
    cut.write_bytes(cut.read_bytes()[:-100])
    bomb.write_bytes(pictures.bomb(9000, 8000))
    text.write_text("no picture")
    return [cut, bomb, text]


def test_damaged_pictures_are_named_and_refused_or_skipped(path: Path) -> None:
    bad = damage(path)
    with pytest.raises(DataError, match="3 of 54 pictures cannot be used") as error:
        opened(path)
    assert all(str(file) in str(error.value) for file in bad)
    assert "skip" in str(error.value)
    with pytest.warns(UserWarning, match="They are skipped") as warnings:
        dataset = opened(path, damaged="skip")
    assert all(str(file) in str(warnings[0].message) for file in bad)
    assert len(dataset.train) + len(dataset.validation) == 25
    assert len(dataset.test) == 26
    assert len(dataset.train.images) == len(dataset.train)
    assert dataset.test.labels.bincount().tolist() == [8, 6, 12]


def test_a_picture_damaged_later_is_named(path: Path) -> None:
    split = opened(path).test
    bad = path / "test/blue/3.png"
    bad.write_bytes(bad.read_bytes()[:40])
    with pytest.raises(DataError, match=r"test/blue/3\.png cannot be decoded"):
        split.batch(torch.arange(len(split)))


def test_a_class_without_a_sound_picture_left_is_named(path: Path) -> None:
    for file in (path / "test/green").iterdir():
        file.write_bytes(b"")
    with (
        pytest.warns(UserWarning, match="and 2 more|And 2 more"),
        pytest.raises(DataError, match="test/green has no sound"),
    ):
        opened(path, damaged="skip")


def test_pictures_are_checked_once_until_they_change(path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    opened(path)
    decoded: list[str] = []
    real = check.decode

    def counting(source: object, name: str, options: PictureOptions) -> torch.Tensor:
        decoded.append(name)
        return real(source, name, options)

    monkeypatch.setattr(check, "decode", counting)
    opened(path)
    assert not decoded
    changed = path / "train/red/0.png"
    changed.write_bytes(b"short")
    with pytest.raises(DataError, match=r"red/0\.png"):
        opened(path)
    assert len(decoded) == 54
    with pytest.raises(DataError, match=r"red/0\.png"):
        opened(path)
    assert len(decoded) == 54
    for record in cache.iterdir():
        record.write_text('[[999, "no such picture"]]')
    with pytest.raises(DataError, match=r"1 of 54"):
        opened(path)
    assert len(decoded) == 108


@pytest.mark.parametrize("text", ["", "{}", "[1]", '[["0", "x"]]', "[[0]]", '[[-1, "x"]]', "[" * 100_000, "\udcff"])
def test_a_damaged_record_is_no_record(path: Path, cache: Path, text: str) -> None:
    opened(path)
    for record in cache.iterdir():
        record.write_bytes(text.encode(errors="surrogateescape"))
    assert len(opened(path).test) == 27


def test_layouts_that_cannot_be_trained_on_are_named(tmp_path: Path) -> None:
    path = tmp_path / "set"
    with pytest.raises(DataError, match=r"there is no folder .*set;"):
        opened(path)
    (path / "train").mkdir(parents=True)
    with pytest.raises(DataError, match=r"there is no folder .*test;"):
        opened(path)
    (path / "test").mkdir()
    with pytest.raises(DataError, match="has no class"):
        opened(path)
    (path / "train" / "red").mkdir()
    with pytest.raises(DataError, match="only the class 'red'"):
        opened(path)
    (path / "train" / "blue").mkdir()
    (path / "train" / ".hidden").mkdir()
    with pytest.raises(DataError, match="train/blue has no picture"):
        opened(path)


def test_classes_must_agree_between_splits(path: Path) -> None:
    (path / "test" / "black").mkdir()
    with pytest.raises(DataError, match="the class 'black', which the train folder does not have"):
        opened(path)
    (path / "test" / "black").rmdir()
    for file in (path / "test" / "red").iterdir():
        file.unlink()
    with pytest.raises(DataError, match="test/red has no picture"):
        opened(path)
    (path / "test" / "red").rmdir()
    with pytest.raises(DataError, match="test/red has no picture"):
        opened(path)


def test_other_files_are_ignored_and_named(path: Path) -> None:
    (path / "train/red/.DS_Store").write_bytes(b"x")
    opened(path)
    (path / "train/red/a.bmp").write_bytes(b"x")
    with pytest.warns(UserWarning, match=r"1 files are no .* such as .*a\.bmp"):
        assert len(opened(path).test) == 27


def test_a_forked_process_decodes_with_threads_of_its_own(path: Path) -> None:
    split = opened(path).train
    assert isinstance(split, LazySplit)
    split.batch(torch.tensor([0]))  # the parent's threads exist
    assert lazy._pool(2, os.getpid()) is lazy._pool(2, os.getpid())
    assert lazy._pool(2, os.getpid()) is not lazy._pool(2, os.getpid() + 1)

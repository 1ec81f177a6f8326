"""Feed every reader of strangers' files what a coverage-guided fuzzer makes up; only our own errors may come out.

    python benchmarks/fuzz.py [--share 1.0] [--seconds 3000] [--work DIR] [--out results/fuzz.json]

The fuzzer is Atheris (libFuzzer) with the package instrumented; one process a slice, its corpus kept in DIR, so that
the next slice, or the next call, goes on. Where a format has a checksum, a fitting one is made around the fuzzed part:
a file with a wrong one ends there, and the tests have that. An escape is any exception that is no AnpVsError, an input
that takes longer than 20 seconds, or more than 4 GiB of memory.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if "--reader" in sys.argv:  # the fuzzed process: instrument the package while it is imported
    import atheris

    with atheris.instrument_imports(include=["anp_vs"]):
        for module in ("cli", "data", "report.runs", "training.run"):
            importlib.import_module(f"anp_vs.{module}")

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save as save_tensors

from anp_vs import cli, recipes, serialization, storage
from anp_vs.data import archive, cifar, idx
from anp_vs.data.folder import load_folder
from anp_vs.data.generated import load_generated
from anp_vs.data.picture import PictureOptions, decode
from anp_vs.errors import AnpVsError
from anp_vs.evaluation import figure_files
from anp_vs.networks import NETWORKS
from anp_vs.provenance import provenance
from anp_vs.training import run
from anp_vs.training.run_directory import MetricsLog

SLICE = 160_000
"""Inputs of one process at most."""
PLACE = Path(tempfile.gettempdir())
"""Where files are put for readers that want a path; `main` chooses one in memory."""


def file(name: str, data: bytes) -> Path:
    """A file with this content."""
    path = PLACE / name
    path.write_bytes(data)
    return path


def picture(kind: str, size: tuple[int, int] = (5, 4)) -> bytes:
    """A small picture of a format."""
    out = io.BytesIO()
    Image.frombytes("RGB", size, bytes(range(size[0] * size[1] * 3))).save(out, kind)
    return out.getvalue()


def generated(save: Callable[..., None]) -> bytes:
    """An .npz file of two generated images."""
    out = io.BytesIO()
    save(out, image=np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3), label=np.array([0, 3]))
    return out.getvalue()


def gzipped(data: bytes) -> bytes:
    """One gzip stream."""
    import gzip

    return gzip.compress(data, mtime=0)


def tarred() -> bytes:
    """An archive with one member `d/m` of 5 bytes, not compressed."""
    import tarfile

    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        entry = tarfile.TarInfo("d/m")
        entry.size = 5
        tar.addfile(entry, io.BytesIO(b"hello"))
    return out.getvalue()[:2048]


def read_tar(data: bytes) -> None:
    """As an archive whose gzip is sound."""
    into = PLACE / "into"
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir()
    try:
        archive.extract(file("a.tar.gz", gzipped(data)), {"d/m": 5}, into, 1 << 16)
    finally:
        if {path.name for path in into.iterdir()} - {"m"} or (PLACE.parent / "m").exists():
            raise AssertionError("a member was written outside of its place")


class Little(torch.nn.Module):
    """A network of a few bytes, so that whole saved networks can be fuzzed fast."""

    input_shape = (1, 4, 4)
    latents = ("relu",)

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.conv, self.relu, self.flatten = torch.nn.Conv2d(1, 2, 3), torch.nn.ReLU(), torch.nn.Flatten()
        self.fc = torch.nn.Linear(8, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits."""
        logits: torch.Tensor = self.fc(self.flatten(self.relu(self.conv(images))))
        return logits


def card(**values: Any) -> bytes:
    """The card of a `Little`."""
    facts = {"format": 1, "architecture": "little", "logits": 3, "original_units": {}, "sha256": ""}
    return json.dumps(facts | values).encode()


def read_network(data: bytes) -> None:
    """Card and tensors, divided by a zero byte; the card is given the checksum that fits."""
    text, _, tensors = data.partition(b"\0")
    with contextlib.suppress(ValueError, RecursionError):
        values = json.loads(text)
        if isinstance(values, dict):
            text = json.dumps(values | {"sha256": hashlib.sha256(tensors).hexdigest()}).encode()
    file("n.json", text)
    serialization.load(file("n.safetensors", tensors))


def read_tensors(data: bytes) -> None:
    """Safetensors under a fitting checksum."""
    serialization.read_tensors(file("t.safetensors", data), {"sha256": hashlib.sha256(data).hexdigest()})


def read_state(data: bytes) -> None:
    """A checkpoint under a fitting checksum."""
    storage.unpack(storage.MAGIC + hashlib.sha256(data).digest() + data, Path("c.state"))


def read_folder(data: bytes) -> None:
    """A folder of two classes; the name of one and the bytes of a picture are made up."""
    root = PLACE / "folder"
    shutil.rmtree(root, ignore_errors=True)
    name = re.sub(r"[/\0]", "_", data[:8].decode("utf-8", "replace")) or "x"
    for split in ("train", "test"):
        for kind in ("a", name if name not in (".", "..") else "x"):
            (root / split / kind).mkdir(parents=True, exist_ok=True)
            (root / split / kind / "1.png").write_bytes(SOUND)
    (root / "train" / "a" / "2.png").write_bytes(data[8:])
    load_folder(root, PictureOptions(size=4, damaged="skip" if len(data) % 2 else "refuse"), validation=0)


def read_generated(data: bytes) -> None:
    """As a whole file, or as an array in one whose checksums fit."""
    if not data.startswith(b"PK"):
        with zipfile.ZipFile(PLACE / "g.npz", "w") as archive:
            archive.writestr("image.npy", data + bytes(5004))  # one of 417 images, if its header says so
            with archive.open("label.npy", "w") as out:
                np.save(out, np.zeros(417, np.uint8))
        data = (PLACE / "g.npz").read_bytes()
    load_generated(file("g.npz", data), (3, 2, 2), 4)


def read_words(data: bytes) -> None:
    """Words of the command line, divided by zero bytes; a training that would begin does not."""
    words = data.decode("utf-8", "surrogateescape").split("\0")
    run.train = lambda *_, **__: run.Run(torch.nn.Identity(), PLACE, {})
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            cli.main(words)
    except SystemExit:  # help, or a mistake in an option
        pass


SOUND = picture("PNG")
NPY = b"\x93NUMPY\1\0\x46\0{'descr': '|u1', 'fortran_order': False, 'shape': (417, 2, 2, 3), }  \n"
LITTLE = save_tensors({name: value.contiguous() for name, value in Little().state_dict().items()})
STATE = storage.pack({"step": 3, "tuple": (1, None), "list": [0.5, "x"], 7: torch.zeros(2, 3), "more": {"a": torch.ones(1, dtype=torch.int64)}})  # fmt: skip
RECIPE = recipes.dump(recipes.RECIPES["digits/anp-vs"]).encode()
IDX = bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in (2, 2, 2)) + bytes(range(8))


@dataclass(frozen=True)
class Reader:
    """What is fuzzed.

    Attributes:
        read: takes the bytes.
        seeds: sound inputs to begin with.
        inputs: how many are made.
        longest: bytes of an input.
    """

    read: Callable[[bytes], object]
    seeds: tuple[bytes, ...]
    inputs: int
    longest: int = 2048


READERS: dict[str, Reader] = {
    "idx in gzip": Reader(lambda d: idx.parse(d, (2, 2, 2), "i"), (gzipped(IDX),), 40_000, 256),
    "idx": Reader(lambda d: idx.labels(idx.parse(gzipped(d), (2, 2, 2), "i").view(-1), 10, "i"), (IDX,), 120_000, 64),
    "CIFAR binary": Reader(lambda d: cifar.parse(d, (20, 100), 1, "c"), (b"\1\2" + bytes(cifar.PIXELS),), 160_000, 3100),
    "gzip": Reader(lambda d: archive.gunzip(d, 100, "g"), (gzipped(b"hello"), gzipped(bytes(1000))), 120_000, 256),
    "tar": Reader(read_tar, (tarred(),), 40_000),
    "YAML recipe": Reader(lambda d: recipes.load(file("r.yaml", d)), (RECIPE, b"a: &x [1]\nb: *x\n"), 40_000),
    "JSON card": Reader(lambda d: serialization.read_card(file("d.json", d)), (card(), card(x=[1, {"y": None}])), 120_000, 512),
    "safetensors": Reader(read_tensors, (LITTLE, save_tensors({"a": torch.zeros(2, dtype=torch.bfloat16)})), 120_000),
    "network and card": Reader(read_network, (card() + b"\0" + LITTLE,), 40_000),
    "checkpoint": Reader(read_state, (STATE[len(storage.MAGIC) + storage.DIGEST_BYTES :],), 120_000),
    "metrics": Reader(lambda d: MetricsLog.read(file("m.jsonl", d)), (b'{"step": 1}\n{"step": 2}\n',), 80_000, 256),
    "evaluation row": Reader(lambda d: figure_files.read_object(file("e.json", d)), (b'{"a": [1, null]}',), 40_000, 256),
    "picture": Reader(
        lambda d: decode(d, "p", PictureOptions(size=4)), tuple(map(picture, ("PNG", "JPEG", "WEBP"))), 40_000, 1024
    ),
    "generated images": Reader(read_generated, (generated(np.savez), generated(np.savez_compressed), NPY), 40_000),
    "image folder": Reader(read_folder, (b"b       " + SOUND, b"class b " + picture("JPEG")), 3_000, 512),
    "command line": Reader(
        read_words,
        (b"train\0digits/anp-vs\0--epochs\x003\0--attack.eps\x000.1", b"evaluate\0nowhere\0--limit\x003", b"report\0x\0--seconds\x00nan",
         b"train\0digits/at\0--milestones\x000.1\x000.2\0--start\0None", b"cost\0x\0--no-latency", b"compact\0x\0--out\0y"),
        3_000, 128,
    ),
}  # fmt: skip


def fuzz(name: str, inputs: int, corpus: Path, escapes: Path) -> None:
    """The fuzzed process: libFuzzer calls the reader `inputs` times and ends the process."""
    reader, seen = READERS[name], set()
    NETWORKS["little"] = Little

    def one(data: bytes) -> None:
        try:
            reader.read(data)
        except AnpVsError:
            pass
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            if (key := (type(error), place.filename, place.lineno)) not in seen:
                seen.add(key)
                line = {"reader": name, "input": data.hex(), "error": "".join(traceback.format_exception(error))}
                with escapes.open("a") as out:
                    out.write(json.dumps(line) + "\n")

    import warnings

    warnings.simplefilter("ignore")
    limits = [
        f"-runs={inputs}",
        f"-max_len={reader.longest}",
        "-timeout=20",
        "-rss_limit_mb=4096",
        "-print_final_stats=1",
    ]
    seed = int(hashlib.sha256(f"{name}{len(list(corpus.iterdir()))}".encode()).hexdigest()[:7], 16)
    atheris.Setup([sys.argv[0], str(corpus), *limits, f"-seed={seed}", f"-artifact_prefix={corpus.parent}/"], one)
    atheris.Fuzz()


def play(name: str, inputs: int, work: Path) -> dict[str, Any]:
    """One slice of one reader in a process of its own."""
    folder = work / re.sub(r"\W", "-", name)
    corpus, escapes = folder / "corpus", folder / "escapes.jsonl"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(READERS[name].seeds):
        (corpus / f"seed{number}").write_bytes(seed)
    words = [sys.executable, __file__, "--reader", name, "--inputs", str(inputs), "--work", str(folder)]
    done = subprocess.run(words, capture_output=True, text=True, errors="replace")
    units = re.search(r"stat::number_of_executed_units:\s*(\d+)", done.stderr)
    covered = re.findall(r"cov: (\d+)", done.stderr)
    if done.returncode or units is None:
        with escapes.open("a") as out:
            out.write(json.dumps({"reader": name, "error": done.stderr[-3000:]}) + "\n")
    return {
        "reader": name, "inputs": int(units[1]) if units else 0, "coverage": max(map(int, covered), default=0),
        "status": done.returncode,
    }  # fmt: skip


def main() -> None:
    """Play slices until every reader has had its inputs or the time is up."""
    global PLACE
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=1.0, help="of the planned inputs, 1.1 million")
    parser.add_argument("--seconds", type=float, default=3000.0)
    parser.add_argument("--work", type=Path, default=Path("runs/fuzz"))
    parser.add_argument("--out", type=Path, default=Path("results/fuzz.json"))
    parser.add_argument("--reader", help=argparse.SUPPRESS)
    parser.add_argument("--inputs", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.reader:
        PLACE = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))  # noqa: S108
        os.environ["XDG_CACHE_HOME"] = str(PLACE / "cache")
        os.chdir(PLACE)
        work = asked.work
        fuzz(asked.reader, asked.inputs, work / "corpus", work / "escapes.jsonl")
        return
    work, until = asked.work.absolute(), time.monotonic() + asked.seconds
    work.mkdir(parents=True, exist_ok=True)
    record = work / "slices.jsonl"
    slices = MetricsLog.read(record)
    for turn in range(max(reader.inputs for reader in READERS.values()) // SLICE + 1):
        for name, reader in READERS.items():
            planned = min(int(reader.inputs * asked.share), (turn + 1) * SLICE)
            missing = planned - sum(one["inputs"] for one in slices if one["reader"] == name)
            if missing <= 0 or time.monotonic() > until or any(s["status"] for s in slices if s["reader"] == name):
                continue
            slices.append(play(name, missing, work))
            with record.open("a") as out:
                out.write(json.dumps(slices[-1]) + "\n")
            print(json.dumps(slices[-1]), flush=True)
            escapes = [
                json.loads(line) for path in work.glob("*/escapes.jsonl") for line in path.read_text().splitlines()
            ]
            result = {
                "inputs": sum(one["inputs"] for one in slices),
                "escapes": len(escapes),
                "readers": {
                    name: {
                        "inputs": sum(s["inputs"] for s in slices if s["reader"] == name),
                        "escapes": sum(e["reader"] == name for e in escapes),
                        "coverage": max((s["coverage"] for s in slices if s["reader"] == name), default=0),
                    }
                    for name in READERS
                },
                "fuzzer": "Atheris 3.0.0 (libFuzzer), coverage-guided over the package's bytecode",
                "seeds": "libFuzzer's -seed from SHA-256 of the reader's name and the size of its corpus",
            }
            asked.out.write_text(json.dumps(result | provenance(), indent=2) + "\n")


if __name__ == "__main__":
    main()

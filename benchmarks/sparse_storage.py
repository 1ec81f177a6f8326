"""What single zero weights save against pruned channels: bytes and time of ADMM's network and of the compact ANP-VS one.

    python benchmarks/sparse_storage.py --runs runs/mnist-cpu [--turns 200]

Reads RUNS/admm/seed0 and RUNS/anp-vs/seed0 and writes results/sparse_storage.json. Bytes are those of the weights and
biases in float32; CSR holds of each weight, as a matrix of outputs x inputs, the values that are not zero, their columns
and where the rows begin, indices in 32 bits. PyTorch multiplies by CSR matrices but has no sparse convolution, so that
of the last contestant gathers the patches (`unfold`) and multiplies them. One thread, processor time, in turns.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import statistics
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from speed import take_turns
from torch import Tensor, nn
from torch.nn import functional

import anp_vs
from anp_vs.evaluation.published_cost import zero_weights_percent
from anp_vs.provenance import provenance
from anp_vs.serialization import locate
from anp_vs.training.run_directory import RunDirectory

HOME = Path(__file__).resolve().parent.parent
BATCHES = (1, 128)


class SparseLinear(nn.Module):
    """A dense layer whose weight is a CSR matrix."""

    def __init__(self, layer: nn.Linear | nn.Conv2d) -> None:
        super().__init__()
        self.weight = csr(layer.weight)
        assert layer.bias is not None
        self.bias = layer.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """N x inputs to N x outputs."""
        return (self.weight @ x.T).T + self.bias


class SparseConv(SparseLinear):
    """A convolution without padding, stride 1, whose weight is a CSR matrix."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__(layer)
        assert layer.kernel_size == (layer.kernel_size[0],) * 2
        assert (layer.stride, layer.padding, layer.groups) == ((1, 1), (0, 0), 1)
        self.size = layer.kernel_size[0]

    def forward(self, x: Tensor) -> Tensor:
        """N x C x H x W to N x outputs x H' x W'."""
        patches = functional.unfold(x, self.size)  # N x C size^2 x places
        flat = super().forward(patches.transpose(1, 2).flatten(0, 1))  # N places x outputs
        side = x.shape[-1] - self.size + 1
        return flat.view(len(x), -1, flat.shape[1]).transpose(1, 2).unflatten(2, (-1, side))


def csr(weight: Tensor) -> Tensor:
    """A layer's weight as a CSR matrix of outputs x inputs, indices int32."""
    dense = weight.detach().flatten(1).contiguous().to_sparse_csr()
    rows, columns = dense.crow_indices().int(), dense.col_indices().int()
    return torch.sparse_csr_tensor(rows, columns, dense.values(), dense.shape, check_invariants=True)


def csr_bytes(network: nn.Module) -> int:
    """Bytes of all weights as CSR and of all biases."""
    total = 0
    for tensor in network.parameters():
        parts = [tensor]
        if tensor.dim() > 1:
            matrix = csr(tensor)
            parts = [matrix.crow_indices(), matrix.col_indices(), matrix.values()]
        total += sum(part.nbytes for part in parts)
    return total


def sparse(network: nn.Module, convolutions: bool) -> nn.Module:
    """A copy with CSR weights in its dense layers, and on request in its convolutions."""
    changed = copy.deepcopy(network)
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Linear):
            changed.set_submodule(name, SparseLinear(layer))
        elif convolutions and isinstance(layer, nn.Conv2d):
            changed.set_submodule(name, SparseConv(layer))
    return changed


def zipped(path: Path) -> int:
    """Bytes of a file in a zip archive of the strongest deflation."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        archive.write(path, path.name)
    return target.tell()


@torch.no_grad()
def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="folder that holds admm/seed0 and anp-vs/seed0")
    parser.add_argument("--turns", type=int, default=200)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
    admm_run, small_run = (asked.runs / row / "seed0" for row in ("admm", "anp-vs"))
    admm, small = anp_vs.load(admm_run), anp_vs.load(small_run)
    contestants = {
        "admm, dense": admm,
        "admm, CSR in the dense layers": sparse(admm, convolutions=False),
        "admm, CSR everywhere": sparse(admm, convolutions=True),
        "anp-vs, compact": small,
    }
    example = torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    differences = [float((contestants[name](example) - admm(example)).abs().max()) for name in list(contestants)[1:3]]
    storage: dict[str, Any] = {}
    files = {"admm": RunDirectory(admm_run).network, "anp-vs": RunDirectory(small_run).compact}
    for row, network in (("admm", admm), ("anp-vs", small)):
        file = locate(files[row])
        storage[row] = {
            "weights_and_biases": sum(p.numel() for p in network.parameters()),
            "zero_weights_percent": zero_weights_percent(network),
            "dense_bytes": sum(p.nbytes for p in network.parameters()),
            "csr_bytes": csr_bytes(network),
            "file_bytes": file.stat().st_size, "zipped_file_bytes": zipped(file),
        }  # fmt: skip
    latency = {}
    for batch in BATCHES:
        images = torch.rand(batch, 1, 28, 28, generator=torch.Generator().manual_seed(batch))
        turns = {
            name: (lambda network=network, images=images: network(images)) for name, network in contestants.items()
        }
        seconds = take_turns(turns, asked.turns)
        latency[f"batch {batch}"] = {
            name: dict(zip(("low", "median", "high"), (round(1000 * q, 4) for q in statistics.quantiles(s, n=4)), strict=True))
            for name, s in seconds.items()
        }  # fmt: skip
    result = {
        "storage": storage, "milliseconds_a_batch": latency, "turns": asked.turns, "clock": "processor", "seed": 0,
        "largest_difference_of_logits": max(differences), **provenance(),
    }  # fmt: skip
    (HOME / "results" / "sparse_storage.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps({"storage": storage, "latency": latency, "differences": differences}, indent=2))


if __name__ == "__main__":
    main()

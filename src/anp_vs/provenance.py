"""Where a figure comes from: the command, the commit, the hardware and the versions that computed it."""

from __future__ import annotations

import platform
import shlex
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

IMPORTED: list[str] = []
"""What `--import` named in this process; the commands that messages propose need it, too."""
PACKAGES = ("anp-vs", "torch", "numpy")


def versions() -> dict[str, str]:
    """Versions of the interpreter and of the packages a result depends on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def hardware(device: torch.device | None = None) -> str:
    """Processor, cores and the GPU, in words; the GPU only where it is the device that computed (None: if there is one)."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), name)
        flags = next((line for line in lines if line.startswith("flags")), "")
        name += "".join(f", {flag}" for flag in ("avx512f", "avx512_bf16", "amx_bf16") if f" {flag}" in flags)
    except OSError:
        pass  # not Linux: the platform's own word is enough
    words = f"{name}, {torch.get_num_threads()} threads"
    if (device is None or device.type == "cuda") and torch.cuda.is_available():
        words += f", {torch.cuda.get_device_name()}"
    return words


def commit() -> str | None:
    """The commit of the source tree this package runs from, with + when it has changes; None outside one."""
    folder = Path(__file__).resolve().parent
    git = shutil.which("git")
    if git is None:
        return None

    def ask(*words: str) -> str:
        done = subprocess.run([git, "-C", str(folder), *words], capture_output=True, text=True, check=True, timeout=10)  # noqa: S603 - fixed words
        return done.stdout.strip()

    try:
        return ask("rev-parse", "HEAD") + ("+" if ask("status", "--porcelain", "--", str(folder)) else "")
    except (OSError, subprocess.SubprocessError):
        return None


def command() -> str:
    """The command line of this process."""
    program = Path(sys.argv[0]).name
    if program == "__main__.py":
        program = "python -m anp_vs"
    return " ".join([program, *map(shlex.quote, sys.argv[1:])])


def proposed(words: str) -> str:
    """A command line for a message to propose, such as `train RUN`, that runs here as it stands."""
    return " ".join(["anp-vs", *(f"--import {shlex.quote(name)}" for name in IMPORTED), words])


def provenance(device: torch.device | None = None) -> dict[str, Any]:
    """All of it, ready for JSON; of what a device computed, where one is named."""
    return {"command": command(), "commit": commit(), "hardware": hardware(device), "versions": versions()}

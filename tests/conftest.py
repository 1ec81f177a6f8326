"""What every test shares: fixed seeds, few threads, and where the official data files are."""

import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

SEED = 20200713

# The machine's speed must not decide whether a test passes, and the examples are the same on every run.
settings.register_profile("ci", deadline=None, derandomize=True)
# To look for new counterexamples: HYPOTHESIS_PROFILE=search make test
settings.register_profile("search", deadline=None, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # tests compare to the last bit, which only a CPU promises
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test starts from the same state of the global generators, whatever ran before it."""
    random.seed(SEED)
    np.random.seed(SEED)
    torch.manual_seed(SEED)


@pytest.fixture
def generator() -> torch.Generator:
    """A generator of the test's own, for functions that take one."""
    return torch.Generator().manual_seed(SEED)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of official data files, laid out as `--data-root` expects; the test is skipped without."""
    root = os.environ.get("ANP_VS_DATA_ROOT")
    if not root:
        pytest.skip("ANP_VS_DATA_ROOT names no folder with the official data files")
    return Path(root)

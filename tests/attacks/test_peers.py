"""Beside torchattacks and ART, with the same budgets, on small networks: never weaker by over 0.3 points.

How to install them: see `attacks.peers`. `benchmarks/attack_peers.py` writes such comparisons down.
"""

from collections.abc import Callable

import pytest

from attacks import peers
from attacks.small_networks import accuracy, digits_network, held_out

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]

TOLERANCE = 0.003
COUNT = 1000
EPS = {True: {"inf": 0.15, "2": 0.8}, False: {"inf": 0.05, "2": 0.3}}
BOTH = ("fgsm", "pgd", "apgd-ce", "apgd-dlr", "square")


@pytest.mark.parametrize("robust", [True, False], ids=["robust", "standard"])
@pytest.mark.parametrize("norm", ["inf", "2"])
@pytest.mark.parametrize(
    ("peer", "attack"),
    [("torchattacks", name) for name in (*BOTH, "apgd-t", "fab-t")] + [("art", name) for name in BOTH],
)
def test_never_weaker_than_the_peer(
    peer: str,
    attack: str,
    norm: peers.Norm,
    robust: bool,
    record_property: Callable[[str, object], None],
) -> None:
    if attack == "fgsm" and norm == "2" and peer == "torchattacks":
        pytest.skip("torchattacks has no 2-norm FGSM")
    network, (images, labels) = digits_network(robust), held_out(COUNT)
    runs = peers.runs(attack)

    def mean(run: peers.Run) -> float:
        cases = [peers.Case(network, images, labels, norm, EPS[robust][norm], seed) for seed in range(runs)]
        return sum(accuracy(network, run(attack, case), labels) for case in cases) / runs

    theirs, ours = mean(peers.PEERS[peer]), mean(peers.ours)
    record_property("ours", ours)
    record_property("theirs", theirs)
    assert ours <= theirs + TOLERANCE, f"ours {ours:.2%}, theirs {theirs:.2%}"

"""Attacks on image classifiers in pixel space: functions (network, images in [0, 1], labels) -> images."""

from anp_vs.attacks.apgd import apgd
from anp_vs.attacks.autoattack import AutoAttackResult, autoattack
from anp_vs.attacks.fab import fab
from anp_vs.attacks.fgsm import fgsm
from anp_vs.attacks.frozen import frozen
from anp_vs.attacks.pgd import pgd
from anp_vs.attacks.square import square
from anp_vs.attacks.transfer import transfer

__all__ = ["AutoAttackResult", "apgd", "autoattack", "fab", "fgsm", "frozen", "pgd", "square", "transfer"]

"""Training methods, one file for each row of the published tables."""

from __future__ import annotations

from anp_vs.methods.admm import ADMM
from anp_vs.methods.anp_vs import ANP, ANPVS
from anp_vs.methods.at import AT, ATVS
from anp_vs.methods.at_bnn import ATBNN
from anp_vs.methods.bp import BP
from anp_vs.methods.mart import MART
from anp_vs.methods.method import Companion, Method, Objective
from anp_vs.methods.pretrained_at import PretrainedAT
from anp_vs.methods.standard import Standard
from anp_vs.methods.trades import TRADES

AnyMethod = Standard | BP | AT | ATBNN | PretrainedAT | ADMM | TRADES | MART | ATVS | ANP | ANPVS

METHODS: dict[str, type[AnyMethod]] = {
    method.name: method for method in (Standard, BP, AT, ATBNN, PretrainedAT, ADMM, TRADES, MART, ATVS, ANP, ANPVS)
}

__all__ = [
    "ADMM",
    "ANP",
    "ANPVS",
    "AT",
    "ATBNN",
    "ATVS",
    "BP",
    "MART",
    "METHODS",
    "TRADES",
    "AnyMethod",
    "Companion",
    "Method",
    "Objective",
    "PretrainedAT",
    "Standard",
]

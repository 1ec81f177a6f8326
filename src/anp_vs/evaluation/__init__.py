"""What a network withstands, what it costs, and whether the figures are to be trusted."""

from anp_vs.evaluation.cost import Cost, cost
from anp_vs.evaluation.published_cost import PublishedCost, published_cost
from anp_vs.evaluation.robustness import Evaluation, evaluate
from anp_vs.evaluation.vulnerability import Vulnerability, VulnerabilityMeter, vulnerability

__all__ = [
    "Cost",
    "Evaluation",
    "PublishedCost",
    "Vulnerability",
    "VulnerabilityMeter",
    "cost",
    "evaluate",
    "published_cost",
    "vulnerability",
]

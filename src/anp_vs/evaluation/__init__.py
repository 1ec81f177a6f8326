"""What a network withstands, what it costs, and whether the figures are to be trusted."""

from anp_vs.evaluation.certify import SmoothedCertificates, certify_smoothed
from anp_vs.evaluation.corruptions import CorruptionTable, corrupt, evaluate_corruptions
from anp_vs.evaluation.cost import Cost, cost
from anp_vs.evaluation.finished import Finished, how_far
from anp_vs.evaluation.intervals import certified
from anp_vs.evaluation.masking import Diagnosis, diagnose
from anp_vs.evaluation.published_cost import PublishedCost, published_cost
from anp_vs.evaluation.queries import query_accuracy
from anp_vs.evaluation.robustness import Evaluation, evaluate
from anp_vs.evaluation.vulnerability import Vulnerability, VulnerabilityMeter, vulnerability

__all__ = [
    "CorruptionTable",
    "Cost",
    "Diagnosis",
    "Evaluation",
    "Finished",
    "PublishedCost",
    "SmoothedCertificates",
    "Vulnerability",
    "VulnerabilityMeter",
    "certified",
    "certify_smoothed",
    "corrupt",
    "cost",
    "diagnose",
    "evaluate",
    "evaluate_corruptions",
    "how_far",
    "published_cost",
    "query_accuracy",
    "vulnerability",
]

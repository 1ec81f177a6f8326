import dataclasses
import math

import pytest

from anp_vs.errors import InputError
from anp_vs.methods import ADMM, ANP, ANPVS, AT, ATBNN, ATVS, BP, MART, METHODS, TRADES, Method, PretrainedAT

# fmt: off
OUTSIDE = [
    (BP, "beta", -1), (AT, "adversarial_weight", 0), (PretrainedAT, "adversarial_weight", -2),
    (ATVS, "lambda_", -1e-9), (ATVS, "adversarial_weight", 0), (ANP, "beta", -1),
    (ANP, "adversarial_weight", 0), (ANPVS, "beta", -1), (ANPVS, "lambda_", -1),
    (ANPVS, "adversarial_weight", 0), (ANPVS, "robust_weight", -1), (ANPVS, "gate_loss", "both"),
    (ANPVS, "adversarial_loss", "CE"), (TRADES, "beta", -0.1), (MART, "lambda_", -1), (ATBNN, "alpha", -1),
    (ATBNN, "prior_sigma", 0), (ATBNN, "initial_rho", 2), (ADMM, "sparsity_percent", 0),
    (ADMM, "sparsity_percent", 100), (ADMM, "rho", 0), (ADMM, "rho_growth", 0.9), (ADMM, "updates", 0),
    (ADMM, "admm_share", 1),
]
# fmt: on


@pytest.mark.parametrize(("method", "field", "value"), OUTSIDE)
def test_a_value_outside_its_range_is_refused_by_name(method: type[Method], field: str, value: object) -> None:
    with pytest.raises(InputError, match=rf"{method.name}: {field} is {value!r}; it must be"):
        method(**{field: value})


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_no_number_may_be_infinite_missing_or_text(method: type[Method]) -> None:
    for field in dataclasses.fields(method):
        for value in (math.nan, math.inf, -math.inf, None, "many", True):
            with pytest.raises(InputError, match=field.name):
                method(**{field.name: value})


def test_zero_is_accepted_where_a_term_may_be_left_out() -> None:
    for method in (
        BP(beta=0),
        ATVS(lambda_=0),
        ANP(beta=0),
        ANPVS(beta=0, lambda_=0),
        TRADES(beta=0),
        ATBNN(alpha=0),
    ):
        assert method.name in METHODS


def test_every_method_is_registered_under_its_own_name() -> None:
    assert all(method.name == name for name, method in METHODS.items())
    assert len({method.name for method in METHODS.values()}) == len(METHODS)

"""What we rely on in Opacus 1.6: computable by hand. If it fails, read dpdm/privacy again."""

import importlib

import pytest
from opacus.accountants import PRVAccountant, RDPAccountant

from dpdm.privacy.opacus_analysis import analysis
from dpdm.privacy.rdp import ORDERS


@pytest.mark.parametrize("accountant", [RDPAccountant, PRVAccountant])
def test_accountants_take_a_history_of_noise_rate_steps_and_compose_mixed_events(accountant):
    def spent(*history):
        one = accountant()
        one.history = list(history)
        return one.get_epsilon(1e-5)

    both = spent((1.0, 0.01, 100), (5.0, 1.0, 1))
    assert both > max(spent((1.0, 0.01, 100)), spent((5.0, 1.0, 1)))


@pytest.mark.parametrize("name", ["rdp", "prv", "prv.compose", "prv.prvs"])
def test_the_analysis_is_the_installed_one_under_another_name(name):
    theirs = importlib.import_module(f"opacus.accountants.analysis.{name}")
    assert analysis(name).__file__ == theirs.__file__
    assert analysis(name) is not theirs


def test_the_orders_hold_those_of_opacus():
    assert set(RDPAccountant.DEFAULT_ALPHAS) < set(ORDERS)
    assert list(ORDERS) == sorted(ORDERS)

"""What we rely on in Opacus 1.6: computable by hand. If it fails, read dpdm/privacy again."""

import pytest
from opacus.accountants import PRVAccountant, RDPAccountant


@pytest.mark.parametrize("accountant", [RDPAccountant, PRVAccountant])
def test_accountants_take_a_history_of_noise_rate_steps_and_compose_mixed_events(accountant):
    def spent(*history):
        one = accountant()
        one.history = list(history)
        return one.get_epsilon(1e-5)

    both = spent((1.0, 0.01, 100), (5.0, 1.0, 1))
    assert both > max(spent((1.0, 0.01, 100)), spent((5.0, 1.0, 1)))

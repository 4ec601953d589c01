"""The PLD accountant's composition: whatever tilt it takes, its epsilon is an upper bound."""

import pytest

from dpdm.privacy import pld
from dpdm.privacy.history import Part


@pytest.mark.parametrize("theta", [0.0, 0.03, 0.1, 1.0])
def test_a_tilt_that_does_not_fit_never_understates(theta):
    """At theta = 0.1 the tilted losses lie near 6,500, far above epsilon, and the library cuts off all below 3,600."""
    part, delta = Part(0.113, 0.05, 200), 1e-7
    ((with_record, _),) = pld._pairs([part], 0.46)
    fitting, _ = pld._composed([with_record], [part], 0.02, delta)
    assert 900 < fitting < 1300
    found, _ = pld._composed([with_record], [part], theta, delta)
    assert found >= (1 - 1e-6) * fitting

"""The search among the orders finds what looking at all of them finds."""

import math

import numpy as np
import pytest

from dpdm.privacy import rdp
from dpdm.privacy.history import Part


@pytest.mark.parametrize(
    "history",
    [
        [Part(1.0, 0.05, 200)],
        [Part(0.4, 1e-3, 20_000)],
        [Part(300.0, 0.5, 10)],
        [Part(0.05, 1.0, 1)],
        [Part(0.8, 0.02, 1000, categorical=True)],
        [Part(5.0, 1e-9, 10**7), Part(2.0, 0.1, 30), Part(9.0, 1.0, 1)],
    ],
    ids=["dpsgd", "little noise", "much noise", "large epsilon", "shards", "mixed"],
)
@pytest.mark.parametrize("delta", [1e-3, 1e-12])
def test_the_least_order_is_found_and_few_are_looked_at(history, delta):
    orders = np.array(rdp.ORDERS)
    everywhere = np.array([sum(p.steps * rdp.divergence(p._replace(steps=1), a) for p in history) for a in rdp.ORDERS])
    extra = np.log(1 - 1 / orders) - (math.log(delta) + np.log(orders)) / (orders - 1)  # Balle et al. 2020
    found, order = rdp.best_rdp(history, delta)
    assert found == pytest.approx(float(np.nanmin(everywhere + extra)), rel=1e-12)
    assert order == orders[np.nanargmin(everywhere + extra)]
    assert rdp.largest_loss(history, delta) == float(np.nanmin(everywhere + math.log(2 / delta) / (orders - 1)))
    assert len(rdp._totals(history, extra)) < 0.4 * len(orders)


def test_an_order_that_overflows_is_passed_over(monkeypatch):
    honest = rdp.divergence
    for bad in (math.nan, math.inf):
        monkeypatch.setattr(rdp, "divergence", lambda step, order, bad=bad: bad if order > 5 else honest(step, order))
        found, order = rdp.best_rdp([Part(4.0, 1.0, 1)], 1e-5)
        assert order <= 5
        assert found > 0

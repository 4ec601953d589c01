"""Accounting against closed forms, and calibration against its promise."""

import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from opacus.accountants.analysis import rdp
from scipy.optimize import brentq
from scipy.special import ndtr
from scipy.stats import norm

from dpdm.config import load_study
from dpdm.data import known_meta
from dpdm.errors import UserError
from dpdm.method import prepare_run
from dpdm.privacy.accounting import Budget, Mechanism, calibrate, categorical_rdp, epsilon_along, epsilon_spent
from dpdm.privacy.ledger import Event

PAPER = load_study(Path(__file__).parents[2] / "config" / "paper.yaml")


def gaussian(z: float, name: str = "g") -> Event:
    return Event("gaussian", name, z, 1.0)


def subsampled(z: float, q: float, steps: int) -> Event:
    return Event("poisson_subsampled_gaussian", "s", z, 1.0, q, steps)


def plan_of(q: float, steps: int) -> list[Mechanism]:
    return [Mechanism("s", "poisson_subsampled_gaussian", q, steps)]


def exact_gaussian_epsilon(z: float, delta: float) -> float:
    """Balle and Wang 2018, theorem 5: delta(eps) = Phi(1/2z - eps z) - e^eps Phi(-1/2z - eps z)."""

    def gap(eps: float) -> float:
        return norm.cdf(1 / (2 * z) - eps * z) - math.exp(eps) * norm.cdf(-1 / (2 * z) - eps * z) - delta

    return brentq(gap, 0, 200)


@pytest.mark.parametrize("z", [0.5, 1.0, 4.0, 16.0])
@pytest.mark.parametrize("delta", [1e-5, 3.5e-4])
def test_one_gaussian_against_its_closed_form(z, delta):
    exact = exact_gaussian_epsilon(z, delta)
    prv = epsilon_spent([gaussian(z)], delta, "prv")
    rdp = epsilon_spent([gaussian(z)], delta, "rdp")
    assert exact - 1e-6 <= prv <= exact * 1.01 + 1e-3  # an upper bound, and a tight one
    assert prv <= rdp <= exact * 1.3


@pytest.mark.parametrize("accountant", ["rdp", "prv"])
def test_full_batch_steps_compose_like_one_gaussian(accountant):
    """T Gaussians of multiplier z are exactly one of z / sqrt(T)."""
    many = epsilon_spent([subsampled(8.0, 1.0, 16)], 1e-5, accountant)
    assert many == pytest.approx(epsilon_spent([gaussian(2.0)], 1e-5, accountant), rel=1e-9)
    mixed = epsilon_spent([gaussian(4.0, "a"), gaussian(4.0, "b")], 1e-5, accountant)
    assert mixed == pytest.approx(epsilon_spent([gaussian(4.0 / math.sqrt(2))], 1e-5, accountant), rel=1e-9)


@pytest.mark.parametrize("accountant", ["rdp", "prv"])
def test_monotone_in_steps_rate_and_noise(accountant):
    base = epsilon_spent([subsampled(1.0, 0.05, 200)], 1e-5, accountant)
    assert epsilon_spent([subsampled(1.0, 0.05, 400)], 1e-5, accountant) > base
    assert epsilon_spent([subsampled(1.0, 0.10, 200)], 1e-5, accountant) > base
    assert epsilon_spent([subsampled(1.1, 0.05, 200)], 1e-5, accountant) < base
    assert epsilon_spent([subsampled(1.0, 0.05, 200), gaussian(3.0)], 1e-5, accountant) > base


def test_nothing_released_nothing_spent_and_no_noise_no_bound():
    for accountant in ("rdp", "prv"):
        assert epsilon_spent([], 1e-5, accountant) == 0
        assert epsilon_spent([subsampled(1.0, 0.1, 0)], 1e-5, accountant) == 0
        assert epsilon_spent([gaussian(1.0), gaussian(0.0)], 1e-5, accountant) == math.inf


@pytest.mark.parametrize("accountant", ["rdp", "prv"])
def test_a_single_subsampled_step_costs_something_and_less_than_without_subsampling(accountant):
    one = epsilon_spent([subsampled(1.0, 0.1, 1)], 1e-5, accountant)
    assert 0 < one < epsilon_spent([gaussian(1.0)], 1e-5, accountant)


def test_unknown_accountant():
    with pytest.raises(UserError, match="unknown accountant 'gdp'"):
        epsilon_spent([gaussian(1.0)], 1e-5, "gdp")


@pytest.mark.parametrize("accountant", ["rdp", "prv"])
@pytest.mark.parametrize("epsilon", [0.2, 1.0, 10.0])
@pytest.mark.parametrize(
    "plan",
    [
        [Mechanism.gaussian("a")],
        [Mechanism.gaussian("a", 0.02), Mechanism.gaussian("b", 0.98)],
        plan_of(0.1, 100),
        [*plan_of(0.05, 50), Mechanism.gaussian("a", 0.1)],
    ],
    ids=["gaussian", "two gaussians", "dpsgd", "mixed"],
)
def test_calibration_is_never_above_and_within_one_per_cent_below(accountant, epsilon, plan):
    scale = calibrate(plan, Budget(epsilon, 1e-5), accountant)
    spent = epsilon_spent([mechanism.event(scale) for mechanism in plan], 1e-5, accountant)
    assert 0.99 * epsilon <= spent <= epsilon


@pytest.mark.parametrize(
    ("dataset", "epsilon", "theirs"),
    [
        ("mnist", 10.0, 2.488), ("mnist", 1.0, 18.28), ("mnist", 0.2, 85.0), ("fashion_mnist", 10.0, 2.488),
        ("celeba_32", 10.0, 1.304), ("celeba_32", 1.0, 8.828), ("celeba_64", 10.0, 1.304), ("cifar10", 10.0, 2.481),
    ],
)  # fmt: skip
def test_the_papers_recipes(dataset, epsilon, theirs):
    """config/paper.yaml against the noise that the authors' code arrives at; ours may need less, never more.

    Their bisection stops up to 0.01 of epsilon short, i.e. at 0.01/epsilon too much noise at most (noise falls no
    faster than 1/epsilon); one per cent more covers their shorter list of orders and B as a whole number. Above: the
    four digits of their value, and the thousandth of epsilon that ours may leave unspent.
    """
    run = PAPER.run(dataset, "dpdm_celeba" if dataset.startswith("celeba") else "dpdm", epsilon, 0)
    _, _, plan, budget = prepare_run(run, known_meta(PAPER.datasets[dataset]))
    assert (0.99 - 0.01 / epsilon) * theirs <= calibrate(plan, budget, run.accountant) <= 1.001 * theirs


def test_shares_split_the_budget_in_squares():
    plan = [Mechanism.gaussian("a", 0.1), Mechanism.gaussian("b", 0.9)]
    scale = calibrate(plan, Budget(1.0, 1e-5), "rdp")
    precision = [1 / m.event(scale).noise_multiplier ** 2 for m in plan]
    assert precision[0] / sum(precision) == pytest.approx(0.1)


def test_edges():
    assert calibrate([], Budget(1.0, 1e-5), "rdp") == 0
    assert calibrate([Mechanism.gaussian("a")], Budget(math.inf, 1e-5), "rdp") == 0
    with pytest.raises(UserError, match="distinct names"):
        calibrate([Mechanism.gaussian("a"), Mechanism.gaussian("a")], Budget(1.0, 1e-5), "rdp")
    for epsilon, delta in ((0, 1e-5), (-1, 1e-5), (math.nan, 1e-5), (1, 0), (1, 1), (1, math.nan)):
        with pytest.raises(UserError):
            Budget(epsilon, delta)


# --- one of many shards -----------------------------------------------------------------------------------------


def renyi(p, q, x, order):
    logs = order * np.log(p) + (1 - order) * np.log(q)
    return (np.log(np.trapezoid(np.exp(logs - logs.max()), x)) + logs.max()) / (order - 1)


@pytest.mark.parametrize("order", [1.5, 2.0, 5.0, 10.9, 16, 40])
@pytest.mark.parametrize(("sample_rate", "noise_multiplier"), [(0.02, 0.8), (0.2, 2.0), (0.5, 1.0)])
def test_categorical_rdp_covers_concrete_shards(sample_rate, noise_multiplier, order):
    """Brute force: densities of (1-q) A + q B and (1-q) A + q B' on a line, shards at most one sensitivity apart."""
    q, z = sample_rate, noise_multiplier
    x = np.linspace(-order - 10 * z, order + 10 * z, 40001)

    def normal(mean):
        return np.exp(-((x - mean) ** 2) / (2 * z * z)) / (z * math.sqrt(2 * math.pi)) + 1e-300

    bound = float(categorical_rdp(q, z, [order])[0])
    largest = 0.0
    for others in ([-0.5], [0.5], [0.0], [-0.5, 0.5], [-0.5, 0.1, 0.3]):
        a = sum(map(normal, others)) / len(others)
        for with_record, without in ((0.5, -0.5), (-0.5, 0.5), (0.5, 0.0)):
            p, r = (1 - q) * a + q * normal(with_record), (1 - q) * a + q * normal(without)
            largest = max(largest, renyi(p, r, x, order))
    assert largest <= bound * (1 + 1e-6)
    assert largest > 0.3 * bound  # and not by being useless


@pytest.mark.parametrize("noise_multiplier", [0.3, 1.0, 4.0])
def test_one_shard_is_the_plain_gaussian(noise_multiplier):
    orders = [1.5, 2, 8, 10.9, 12, 64, 512]
    assert categorical_rdp(1.0, noise_multiplier, orders) == pytest.approx(
        [order / (2 * noise_multiplier**2) for order in orders], rel=1e-6
    )


def test_categorical_rdp_lies_between_poisson_and_the_bound_of_wang_et_al():
    """Wang, Balle, Kasiviswanathan 2019, theorem 9 (without replacement, replacing a record), for whole orders."""
    q, z = 0.02, 1.0
    for order in (2, 3, 8, 16):
        ours = float(categorical_rdp(q, z, [order])[0])
        poisson = float(rdp.compute_rdp(q=q, noise_multiplier=z, steps=1, orders=[order])[0])
        total = 1 + q**2 * math.comb(order, 2) * min(4 * (math.exp(1 / z**2) - 1), 2 * math.exp(1 / z**2))
        for j in range(3, order + 1):
            total += 2 * q**j * math.comb(order, j) * math.exp((j - 1) * j / (2 * z**2))
        assert poisson <= ours <= math.log(total) / (order - 1)


@pytest.mark.parametrize(("sample_rate", "noise_multiplier"), [(0.1, 0.5), (0.02, 0.4)])
def test_prv_of_one_categorical_draw_against_the_closed_form(sample_rate, noise_multiplier):
    """delta(e') = q delta_Gaussian(e) with e' = log(1 + q (exp(e) - 1)): Balle, Barthe, Gaboardi 2018."""
    q, z, delta = sample_rate, noise_multiplier, 1e-5
    event = Event("categorical_subsampled_gaussian", "a", z, 1.0, q, 1)

    def gaussian_delta(e):
        return ndtr(1 / (2 * z) - e * z) - math.exp(e) * ndtr(-1 / (2 * z) - e * z)

    exact = brentq(lambda e: q * gaussian_delta(e) - delta, 0.0, 60.0)
    exact = math.log1p(q * math.expm1(exact))
    spent = epsilon_spent([event], delta, "prv")
    assert exact <= spent <= exact + 0.03
    assert epsilon_spent([event], delta, "rdp") >= exact


def test_categorical_steps_compose_and_cost_more_than_poisson_ones():
    def spent(kind, accountant):
        return epsilon_spent([Event(kind, "a", 0.8, 1.0, 0.02, 1000)], 1e-5, accountant)

    for accountant in ("rdp", "prv"):
        poisson = spent("poisson_subsampled_gaussian", accountant)
        assert poisson < spent("categorical_subsampled_gaussian", accountant) < 1.3 * poisson
    assert spent("categorical_subsampled_gaussian", "prv") < spent("categorical_subsampled_gaussian", "rdp")


def test_published_gs_wgan_noise_costs_far_more_than_it_says():
    """Chen et al. 2020: 1000 critics, 20,000 steps, noise 1.07 per image of a batch of 32 that shares one critic."""
    event = Event("categorical_subsampled_gaussian", "generator", 1.07 / math.sqrt(32), 1.0, 1 / 1000, 20_000)
    assert epsilon_spent([event], 1e-5, "rdp") > 300


# --- along the way --------------------------------------------------------------------------------------------

NET = Event("poisson_subsampled_gaussian", "net", 2.0, 1.0, 0.05, 300)
SUMS = Event("gaussian", "sums", 8.0, 1.0)
SHARDS = Event("categorical_subsampled_gaussian", "shards", 1.5, 1.0, 0.01, 40)


def first_steps(events, steps):
    """The same releases stopped after `steps` steps, one-shot releases of that moment included."""
    out = []
    for event in events:
        count = 0 if event.mechanism == "gaussian" else min(event.steps, steps)
        out.append(event if event.mechanism == "gaussian" else replace(event, steps=count))
        steps -= count
        if event.steps > count > 0:
            break
    return out


def test_epsilon_along_the_way_is_that_of_a_run_stopped_there():
    along = epsilon_along([NET, SHARDS], 1e-5)
    assert along[0] == (0, 0.0)
    assert 20 <= len(along) <= 22
    for steps, epsilon in along:
        assert epsilon == pytest.approx(epsilon_spent(first_steps([NET, SHARDS], steps), 1e-5, "rdp"), rel=1e-9)
    assert along[-1][0] == 340
    assert (300, epsilon_spent([NET], 1e-5, "rdp")) in along
    values = [epsilon for _, epsilon in along]
    assert values == sorted(values)
    gaps = {b - a for (a, _), (b, _) in itertools.pairwise(along)}
    assert max(gaps) <= 17 + 1


def test_a_one_shot_release_is_a_jump_in_its_place():
    alone = epsilon_spent([SUMS], 1e-5, "rdp")
    assert epsilon_along([SUMS], 1e-5) == [(0, 0.0), (0, alone)]
    before = epsilon_along([SUMS, NET], 1e-5)
    assert before[:2] == [(0, 0.0), (0, alone)]
    after = epsilon_along([NET, SUMS], 1e-5)
    assert [steps for steps, _ in after[-2:]] == [300, 300]
    assert after[-1][1] == pytest.approx(before[-1][1]) == pytest.approx(epsilon_spent([NET, SUMS], 1e-5, "rdp"))
    assert after[-2][1] == epsilon_spent([NET], 1e-5, "rdp")


def test_nothing_along_the_way_without_noise_or_without_releases():
    assert epsilon_along([SUMS, replace(NET, noise_multiplier=0.0)], 1e-5) == []
    assert epsilon_along([replace(NET, noise_multiplier=0.0, steps=0)], 1e-5) == [(0, 0.0)]
    assert epsilon_along([], 1e-5) == [(0, 0.0)]
    assert [steps for steps, _ in epsilon_along([replace(NET, steps=3)], 1e-5)] == [0, 1, 2, 3]

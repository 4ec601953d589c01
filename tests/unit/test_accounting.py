"""Accounting against closed forms, and calibration against its promise."""

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from refusals import refuses
from scipy.optimize import brentq
from scipy.special import log_ndtr, ndtr

from dpdm.config import load_study
from dpdm.errors import UserError
from dpdm.method import prepare_run
from dpdm.privacy import accounting, pld, prv, rdp
from dpdm.privacy.accounting import Budget, Mechanism, budget_shares, calibrate, epsilon_spent, settled
from dpdm.privacy.ledger import Event
from dpdm.privacy.noise import Randomness, noised
from dpdm.privacy.shards import categorical_rdp

PAPER = load_study(Path(__file__).parents[2] / "config" / "paper.yaml")


def gaussian(z: float, name: str = "g") -> Event:
    return Event("gaussian", name, z, 1.0)


def subsampled(z: float, q: float, steps: int) -> Event:
    return Event("poisson_subsampled_gaussian", "s", z, 1.0, q, steps)


def plan_of(q: float, steps: int) -> list[Mechanism]:
    return [Mechanism("s", "poisson_subsampled_gaussian", q, steps)]


def log_gaussian_delta(z: float, eps: float) -> float:
    """Balle and Wang 2018, theorem 8: delta(eps) = Phi(1/2z - eps z) - e^eps Phi(-1/2z - eps z), by its logarithm."""
    first = log_ndtr(1 / (2 * z) - eps * z)
    second = eps + log_ndtr(-1 / (2 * z) - eps * z)
    return first + math.log(-math.expm1(second - first))


def exact_gaussian_epsilon(z: float, delta: float) -> float:
    return brentq(lambda eps: log_gaussian_delta(z, eps) - math.log(delta), 0, 1 / z**2 + 60 / z, xtol=1e-14)


def exact_gaussian_noise(epsilon: float, delta: float) -> float:
    def gap(log_z: float) -> float:
        return log_gaussian_delta(math.exp(log_z), epsilon) - math.log(delta)

    return math.exp(brentq(gap, math.log(5e-3), math.log(10 + 20 / epsilon), xtol=1e-13))


def exact_one_step_epsilon(q: float, z: float, delta: float) -> float:
    """One Poisson-subsampled step: delta'(log(1 + q (e^eps - 1))) = q delta(eps) of the Gaussian."""
    gaussian_epsilon = exact_gaussian_epsilon(z, delta / q)
    return math.log1p(q * math.expm1(gaussian_epsilon))


@pytest.mark.parametrize("z", [0.5, 1.0, 4.0, 16.0])
@pytest.mark.parametrize("delta", [1e-5, 3.5e-4])
def test_one_gaussian_against_its_closed_form(z, delta):
    exact = exact_gaussian_epsilon(z, delta)
    prv = epsilon_spent([gaussian(z)], delta, "prv")
    rdp = epsilon_spent([gaussian(z)], delta, "rdp")
    assert exact - 1e-6 <= prv <= exact * 1.01 + 1e-3  # an upper bound, and a tight one
    assert prv <= rdp <= exact * 1.3


@pytest.mark.parametrize("accountant", ["rdp", "prv", "pld"])
def test_full_batch_steps_compose_like_one_gaussian(accountant):
    """T Gaussians of multiplier z are exactly one of z / sqrt(T)."""
    many = epsilon_spent([subsampled(8.0, 1.0, 16)], 1e-5, accountant)
    assert many == pytest.approx(epsilon_spent([gaussian(2.0)], 1e-5, accountant), rel=1e-9)
    mixed = epsilon_spent([gaussian(4.0, "a"), gaussian(4.0, "b")], 1e-5, accountant)
    assert mixed == pytest.approx(epsilon_spent([gaussian(4.0 / math.sqrt(2))], 1e-5, accountant), rel=1e-9)


@pytest.mark.parametrize("accountant", ["rdp", "prv", "pld"])
def test_monotone_in_steps_rate_and_noise(accountant):
    base = epsilon_spent([subsampled(1.0, 0.05, 200)], 1e-5, accountant)
    assert epsilon_spent([subsampled(1.0, 0.05, 400)], 1e-5, accountant) > base
    assert epsilon_spent([subsampled(1.0, 0.10, 200)], 1e-5, accountant) > base
    assert epsilon_spent([subsampled(1.1, 0.05, 200)], 1e-5, accountant) < base
    assert epsilon_spent([subsampled(1.0, 0.05, 200), gaussian(3.0)], 1e-5, accountant) > base


def test_nothing_released_nothing_spent_and_no_noise_no_bound():
    for accountant in ("rdp", "prv", "pld"):
        assert epsilon_spent([], 1e-5, accountant) == 0
        assert epsilon_spent([subsampled(1.0, 0.1, 0)], 1e-5, accountant) == 0
        assert epsilon_spent([gaussian(1.0), gaussian(0.0)], 1e-5, accountant) == math.inf


@pytest.mark.parametrize("accountant", ["rdp", "prv", "pld"])
def test_a_single_subsampled_step_costs_something_and_less_than_without_subsampling(accountant):
    one = epsilon_spent([subsampled(1.0, 0.1, 1)], 1e-5, accountant)
    assert 0 < one < epsilon_spent([gaussian(1.0)], 1e-5, accountant)


def test_unknown_accountant():
    with refuses("'gdp'", "rdp", "prv", "pld"):
        epsilon_spent([gaussian(1.0)], 1e-5, "gdp")


@pytest.mark.parametrize("accountant", ["rdp", "prv", "pld"])
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
    _, _, plan, budget = prepare_run(run, PAPER.datasets[dataset].meta())
    assert (0.99 - 0.01 / epsilon) * theirs <= calibrate(plan, budget, run.accountant) <= 1.001 * theirs


@pytest.mark.parametrize("accountant", ["rdp", "prv"])
def test_shares_of_a_mixed_plan_are_shown_as_they_were_given(accountant):
    budget = Budget(1.0, 1e-5)
    for sgd in (plan_of(0.05, 50), plan_of(0.2, 400)):
        plan = settled([Mechanism.gaussian("a", 0.2), *sgd], budget, accountant)
        scale = calibrate(plan, budget, accountant)
        events = [mechanism.event(scale) for mechanism in plan]
        assert 0.99 < epsilon_spent(events, 1e-5, accountant) <= 1.0
        shares = budget_shares(events, 1e-5)
        for name in ("rdp", "prv"):
            assert sum(share[name] for share in shares.values()) == pytest.approx(1)
            assert shares["a"][name] == pytest.approx(0.2, rel=0.15)


def test_shares_are_exact_among_gaussian_releases_and_none_without():
    plan = [Mechanism.gaussian("a", 0.1), Mechanism.gaussian("b", 0.9)]
    shares = budget_shares([mechanism.event(3.0) for mechanism in plan], 1e-5)
    assert [shares["a"]["rdp"], shares["b"]["rdp"]] == pytest.approx([0.1, 0.9])
    assert [shares["a"]["prv"], shares["b"]["prv"]] == pytest.approx([0.1, 0.9], rel=0.01)
    assert budget_shares([plan[0].event(3.0)], 1e-5) == {}  # it has all of it
    assert budget_shares([mechanism.event(0.0) for mechanism in plan], 1e-5) == {}
    assert budget_shares([mechanism.event(2.0) for mechanism in plan_of(0.05, 50)], 1e-5) == {}
    little = calibrate(plan, Budget(1e-6, 1e-4), "rdp")
    assert budget_shares([mechanism.event(little) for mechanism in plan], 1e-4) == {}  # PRV says that none is spent


def test_shares_split_the_budget_in_squares():
    plan = [Mechanism.gaussian("a", 0.1), Mechanism.gaussian("b", 0.9)]
    scale = calibrate(plan, Budget(1.0, 1e-5), "rdp")
    precision = [1 / m.event(scale).noise_multiplier ** 2 for m in plan]
    assert precision[0] / sum(precision) == pytest.approx(0.1)


# --- three accountants, one truth: gaps as stated in docs/privacy.md ------------------------------------------------

ALMOST_ALL = 1 - 1e-9  # a rate at which steps are composed one by one, and cost what full batches do


def spent_under_all(events, delta):
    return [epsilon_spent(events, delta, name) for name in ("rdp", "prv", "pld")]


@pytest.mark.parametrize(
    ("steps", "delta", "epsilon"),
    [(1, 1e-3, 0.01), (1, 1e-5, 0.001), (1, 1e-12, 500.0), (1, 1e-9, 1.0), (100, 1e-3, 100.0), (100_000, 1e-12, 1.0),
     (100_000, 1e-5, 0.1), (10_000, 1e-12, 100.0)],
)  # fmt: skip
def test_full_batches_against_the_exact_gaussian(steps, delta, epsilon):
    """At 1e5 steps and delta = 1e-12 the rounding of a plain FFT understates epsilon by up to 2 %."""
    event = subsampled(exact_gaussian_noise(epsilon, delta) * math.sqrt(steps), ALMOST_ALL, steps)
    rdp, prv, pld = spent_under_all([event], delta)
    assert (1 - 1e-6) * epsilon <= pld <= 1.003 * epsilon
    assert 1.0015 * epsilon <= prv <= 1.01 * epsilon  # the upper end of its interval, not its estimate
    assert 1.015 * epsilon <= rdp <= 1.45 * epsilon


@pytest.mark.parametrize(
    ("q", "z", "delta"),
    [(0.1, 1.0, 1e-5), (1e-3, 0.4, 1e-8), (1e-6, 0.3, 1e-12), (0.5, 30.0, 1e-4), (0.02, 0.2, 1e-10)],
)
@pytest.mark.parametrize("kind", ["poisson_subsampled_gaussian", "categorical_subsampled_gaussian"])
def test_one_subsampled_step_against_its_closed_form(kind, q, z, delta):
    exact = exact_one_step_epsilon(q, z, delta)
    rdp, prv, pld = spent_under_all([Event(kind, "s", z, 1.0, q, 1)], delta)
    assert (1 - 1e-9) * exact <= pld <= 1.01 * exact + 1e-6
    assert exact < prv <= 1.03 * exact
    assert rdp >= exact


@pytest.mark.parametrize(
    "events",
    [
        [subsampled(0.7, 1e-3, 20_000)],
        [subsampled(20.0, 0.3, 5_000)],
        [subsampled(0.5, 1e-3, 200)],
        [subsampled(1.0, 0.02, 500), gaussian(4.0)],
        [subsampled(1.0, 0.02, 500), replace(subsampled(0.6, 1e-3, 70), name="t"), gaussian(9.0), gaussian(5.0, "h")],
        [Event("categorical_subsampled_gaussian", "c", 0.8, 1.0, 0.02, 1000), subsampled(3.0, 0.1, 50), gaussian(8.0)],
    ],
    ids=["tiny rate", "large rate", "little noise", "mixed", "many", "shards"],
)
@pytest.mark.parametrize("delta", [1e-3, 1e-6, 1e-12])
def test_the_tight_accountants_agree_below_rdp(events, delta):
    """They share neither code nor method but the tilt: PRV takes one direction and a mean, PLD both and dominates."""
    rdp, prv, pld = spent_under_all(events, delta)
    assert -0.004 * pld <= prv - pld <= 0.008 * rdp  # PRV's error is set as a share of RDP's epsilon
    assert max(prv, pld) <= rdp


def test_shards_cost_more_than_poisson_under_each_accountant():
    """6.43 and 7.70 were also found by a program of its own (PRV)."""
    for name, poisson, shards in (("prv", 6.43, 7.70), ("pld", 6.43, 7.70), ("rdp", 7.20, 8.48)):
        assert epsilon_spent([subsampled(0.8, 0.02, 1000)], 1e-5, name) == pytest.approx(poisson, abs=0.015)
        event = Event("categorical_subsampled_gaussian", "s", 0.8, 1.0, 0.02, 1000)
        assert epsilon_spent([event], 1e-5, name) == pytest.approx(shards, abs=0.015)


# --- what a plan may hold -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, -1.0, 5, 1 + 1e-9, math.nan, math.inf])
def test_a_share_is_a_part_of_the_budget(share):
    with pytest.raises(UserError, match=rf"counts.*share.*{share}"):
        Mechanism.gaussian("counts", share)
    assert Mechanism.gaussian("counts", 1).noise_ratio == 1
    assert Mechanism.gaussian("counts", 0.25).noise_ratio == 2


@pytest.mark.parametrize("sensitivity", [1e-310, 9.9e-13, 0.0, -1.0, 1.1e30, 1e308, math.nan, math.inf])
def test_a_sensitivity_that_the_noise_s_grid_cannot_bear_is_refused(sensitivity):
    for make in (Mechanism, Mechanism.gaussian):
        with pytest.raises(UserError, match=rf"sums.*sensitivity.*{re.escape(str(sensitivity))}"):
            make("sums", sensitivity=sensitivity)


@pytest.mark.parametrize("sensitivity", accounting.SENSITIVITIES)
@pytest.mark.parametrize("noise_multiplier", [1e-3, 2.0**40])
def test_releases_at_the_ends_of_sensitivity_are_finite_and_noised(sensitivity, noise_multiplier):
    std = Mechanism("sums", sensitivity=sensitivity).sensitivity * noise_multiplier
    total = torch.linspace(-1000 * sensitivity, 1000 * sensitivity, 50, dtype=torch.float64)
    error = (noised(total, std, Randomness.repeatable(0), "sums") - total) / std
    assert 0.5 < error.std() < 1.5


# --- edges --------------------------------------------------------------------------------------------------------


def test_edges():
    assert calibrate([], Budget(1.0, 1e-5), "rdp") == 0
    assert calibrate([Mechanism.gaussian("a")], Budget(math.inf, 1e-5), "rdp") == 0
    with pytest.raises(UserError, match="distinct names"):
        calibrate([Mechanism.gaussian("a"), Mechanism.gaussian("a")], Budget(1.0, 1e-5), "rdp")
    for epsilon, delta in ((0, 1e-5), (-1, 1e-5), (math.nan, 1e-5), (1001, 1e-5), (1, 0), (1, 1), (1, math.nan)):
        with pytest.raises(UserError):
            Budget(epsilon, delta)


@pytest.mark.parametrize("delta", [9e-13, 1e-16, 1e-300])
def test_a_delta_that_no_accountant_resolves_is_refused_with_its_number(delta):
    with pytest.raises(UserError, match=rf"delta .* 1e-12.* {delta}"):
        Budget(1.0, delta)


@pytest.mark.parametrize("accountant", ["rdp", "prv", "pld"])
@pytest.mark.parametrize("epsilon", [1e-3, 1000.0])
@pytest.mark.parametrize("plan", [[Mechanism.gaussian("a")], plan_of(0.05, 200)], ids=["gaussian", "dpsgd"])
def test_calibration_at_the_ends_of_what_may_be_asked(plan, epsilon, accountant):
    scale = calibrate(plan, Budget(epsilon, 1e-7), accountant)
    events = [mechanism.event(scale) for mechanism in plan]
    spent = {name: epsilon_spent(events, 1e-7, name) for name in {accountant, "prv", "pld"}}
    assert 0.999 * epsilon <= max(spent.values()) <= epsilon


def test_the_accountant_that_cannot_certify_is_named_and_another_can():
    plan, budget = [Mechanism.gaussian("a")], Budget(1e-4, 1e-9)
    with pytest.raises(UserError, match=r"accountant rdp .*0\.0001 .*1e-09.*pld"):
        calibrate(plan, budget, "rdp")
    scale = calibrate(plan, budget, "pld")
    assert scale == pytest.approx(exact_gaussian_noise(1e-4, 1e-9), rel=0.03)


@pytest.mark.parametrize("accountant", ["rdp", "prv", "pld"])
def test_noise_and_rates_at_the_ends_of_arithmetic(accountant):
    """Right, or inf; never an exception, NaN or a negative number."""
    for z in (5e-324, 1e-160, 1e-4):
        assert epsilon_spent([gaussian(z)], 1e-5, accountant) == math.inf
    assert epsilon_spent([gaussian(1e300)], 1e-5, accountant) < 1e-3
    assert 0 <= epsilon_spent([subsampled(2.0, 1e-300, 10)], 1e-5, accountant) < 0.03
    assert 0 <= epsilon_spent([gaussian(50.0)], 0.5, accountant) < 0.1
    assert epsilon_spent([gaussian(0.02)], 1e-5, accountant) >= 1250 + 200


@pytest.mark.parametrize("accountant", ["rdp", "prv", "pld"])
def test_a_delta_that_covers_all_costs_nothing_and_one_that_nearly_does_costs_little(accountant):
    """delta(0) of a Gaussian is 2 Phi(1 / 2z) - 1: 0.383 at z = 1, 0.197 at z = 2."""
    assert epsilon_spent([gaussian(2.0)], 0.49, accountant) == 0
    assert epsilon_spent([Event("categorical_subsampled_gaussian", "s", 5.0, 1.0, 0.9, 1)], 0.49, accountant) == 0
    exact = exact_gaussian_epsilon(1.0, 0.37)
    assert exact <= epsilon_spent([gaussian(1.0)], 0.37, accountant) < (1.0 if accountant == "rdp" else 1.2 * exact)
    assert epsilon_spent([subsampled(0.4, 0.01, 200)], 0.49, accountant) < (2.0 if accountant == "rdp" else 0.01)


@pytest.mark.parametrize("answer", [math.nan, ValueError("no"), RuntimeError("no"), OverflowError("no"), MemoryError()])
def test_what_a_library_cannot_answer_is_a_user_error(monkeypatch, answer):
    def fails(history, delta):
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(pld, "epsilon", fails)
    with pytest.raises(UserError, match=r"accountant pld .*noise_multiplier=1\.2345"):
        epsilon_spent([gaussian(1.2345)], 1e-5, "pld")


def test_epsilon_is_never_below_0(monkeypatch):
    monkeypatch.setattr(pld, "epsilon", lambda history, delta: -1e-9)
    assert epsilon_spent([gaussian(1.23456)], 1e-5, "pld") == 0


@pytest.mark.parametrize(("declared", "other"), [("prv", pld), ("pld", prv), ("rdp", pld)])
def test_calibration_meets_the_target_under_the_other_accountants_too(monkeypatch, declared, other):
    """Else the audit, which asks them all, could fail a run that did what it was planned to do."""
    honest, plan = other.epsilon, [Mechanism.gaussian("a", 0.123), Mechanism.gaussian("b")]
    monkeypatch.setattr(other, "epsilon", lambda history, delta: 1.3 * honest(history, delta))
    scale = calibrate(plan, Budget(2.345, 1e-5), declared)
    events = [mechanism.event(scale) for mechanism in plan]
    assert 0.999 * 2.345 <= epsilon_spent(events, 1e-5, other.__name__.rpartition(".")[2]) <= 2.345
    accounting._spent.cache_clear()
    accounting._calibrated.cache_clear()


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
        poisson = float(rdp._opacus.compute_rdp(q=q, noise_multiplier=z, steps=1, orders=[order])[0])
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

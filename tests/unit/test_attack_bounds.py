"""Lower bounds of epsilon: published values, closed forms, and their validity on mechanisms of known epsilon."""

import math

import numpy as np
import pytest
from scipy import stats

from dpdm.attacks.bounds import (
    Errors,
    clopper_pearson,
    epsilon_by_errors,
    epsilon_by_one_run,
    epsilon_of_mu,
    mu_by_errors,
    one_run_p_value,
)

REPEATS = 400
# So many of REPEATS bounds at 95 % may exceed the truth: more do once in a thousand times, if 5 % is right.
MOST = int(stats.binom.ppf(0.999, REPEATS, 0.05))


@pytest.mark.parametrize(
    ("canaries", "guesses", "correct", "delta", "published"),
    [(1000, 100, 75, 1e-4, 0.673), (100_000, 1510, 1439, 1e-5, 2.675)],  # Steinke et al.: appendix D, section 7
)
def test_the_one_run_bound_is_the_papers(canaries, guesses, correct, delta, published):
    assert epsilon_by_one_run(canaries, guesses, correct, delta, 0.95) == pytest.approx(published, abs=1e-3)


def test_without_delta_the_one_run_p_value_is_a_binomial_tail():
    assert one_run_p_value(1000, 20, 18, 1.0, 0.0) == pytest.approx(stats.binom.sf(17, 20, 1 / (1 + math.exp(-1))))


def test_the_one_run_bound_inverts_its_p_value_and_every_delta_costs():
    bound = epsilon_by_one_run(500, 200, 180, 1e-4, 0.95)
    assert one_run_p_value(500, 200, 180, bound, 1e-4) == pytest.approx(0.05, rel=1e-3)
    assert one_run_p_value(1000, 200, 180, bound, 1e-4) > 0.05  # of 800 abstentions instead of 300
    assert bound < epsilon_by_one_run(500, 200, 180, 0.0, 0.95)


@pytest.mark.parametrize(("guesses", "correct"), [(0, 0), (100, 50), (100, 57), (100, 0)])
def test_guesses_no_better_than_coins_refute_nothing(guesses, correct):
    assert epsilon_by_one_run(1000, guesses, correct, 1e-5, 0.95) == 0


def test_the_one_run_p_value_grows_with_epsilon():
    for facts in ((1000, 500, 450), (1437, 100, 99), (40, 24, 22)):
        values = [one_run_p_value(*facts, epsilon, 1 / 2874) for epsilon in np.linspace(0, 8, 200)]
        assert min(np.diff(values)) >= 0


def test_clopper_pearson_ends():
    assert clopper_pearson(0, 100, 0.05) == (0.0, pytest.approx(1 - 0.05 ** (1 / 100)))
    assert clopper_pearson(100, 100, 0.05) == (pytest.approx(0.05 ** (1 / 100)), 1.0)
    lower, upper = clopper_pearson(30, 100, 0.05)
    assert stats.binom.sf(29, 100, lower) == pytest.approx(0.05)
    assert stats.binom.cdf(30, 100, upper) == pytest.approx(0.05)


def test_the_epsilon_of_two_error_rates():
    errors = Errors(0, 1000, 500, 1000)
    upper = [clopper_pearson(errors.false_positives, 1000, 0.025)[1], clopper_pearson(500, 1000, 0.025)[1]]
    assert epsilon_by_errors(errors, 1e-5, 0.95) == pytest.approx(math.log((1 - 1e-5 - upper[1]) / upper[0]))
    assert epsilon_by_errors(Errors(500, 1000, 0, 1000), 1e-5, 0.95) == epsilon_by_errors(errors, 1e-5, 0.95)
    assert epsilon_by_errors(errors, 0.3, 0.95) < epsilon_by_errors(errors, 1e-5, 0.95)


@pytest.mark.parametrize("errors", [Errors(500, 1000, 500, 1000), Errors(0, 0, 0, 0), Errors(1000, 1000, 1000, 1000)])
def test_no_bound_without_evidence(errors):
    assert epsilon_by_errors(errors, 1e-5, 0.95) == mu_by_errors(errors, 0.95) == 0


def test_epsilon_of_mu_solves_the_gaussian_profile():
    assert epsilon_of_mu(1.0, 1e-5) == pytest.approx(4.3771781)  # z = 1 at delta 1e-5, Balle and Wang's calibration
    assert epsilon_of_mu(0.0, 1e-5) == epsilon_of_mu(0.01, 0.1) == 0
    for mu, delta in ((0.1, 1e-4), (5.0, 1e-12), (3.0, 0.3)):
        epsilon = epsilon_of_mu(mu, delta)
        above = stats.norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * stats.norm.cdf(-mu / 2 - epsilon / mu)
        assert above == pytest.approx(delta, rel=1e-4)


# --- validity: at most one in twenty 95 % bounds exceeds the truth ----------------------------------------------


def _one_run_bounds(canaries: int, correct: np.ndarray, delta: float) -> np.ndarray:
    """A bound for each number of correct guesses, where nobody abstains."""
    values, places = np.unique(correct, return_inverse=True)
    return np.array([epsilon_by_one_run(canaries, canaries, int(v), delta, 0.95) for v in values])[places]


def _gaussian_errors(mu: float, trials: int, rng: np.random.Generator) -> Errors:
    """Of the threshold mu / 2 on N(0, 1) and N(mu, 1)."""
    wrong = rng.binomial(trials, stats.norm.sf(mu / 2), 2)
    return Errors(int(wrong[0]), trials, int(wrong[1]), trials)


@pytest.mark.parametrize("mu", [0.3, 1.0, 2.5])
def test_bounds_by_errors_hold_and_see_something(mu):
    rng = np.random.default_rng(0)
    found = [_gaussian_errors(mu, 2000, rng) for _ in range(REPEATS)]
    mus = np.array([mu_by_errors(errors, 0.95) for errors in found])
    assert (mus > mu).sum() <= MOST
    assert np.median(mus) > mu - 0.25
    truth = epsilon_of_mu(mu, 1e-5)
    assert (np.array([epsilon_by_errors(errors, 1e-5, 0.95) for errors in found]) > truth).sum() <= MOST


def test_clopper_pearson_holds_where_the_mechanism_attains_it():
    """Randomised response is the worst epsilon-DP mechanism: FPR = FNR = 1 / (1 + e^epsilon)."""
    rng, epsilon = np.random.default_rng(1), 2.0
    wrong = rng.binomial(500, 1 / (1 + math.exp(epsilon)), (REPEATS, 2))
    bounds = [epsilon_by_errors(Errors(int(a), 500, int(b), 500), 0.0, 0.95) for a, b in wrong]
    assert 0 < (np.array(bounds) > epsilon).sum() <= MOST
    assert np.median(bounds) > 1.5


@pytest.mark.parametrize(("epsilon", "delta"), [(0.5, 0.0), (4.0, 0.0), (4.0, 1e-3)])
def test_the_one_run_bound_holds_where_the_mechanism_attains_it(epsilon, delta):
    """Randomised response of every canary, which with probability delta tells the truth instead."""
    rng, canaries = np.random.default_rng(2), 300
    right = delta + (1 - delta) / (1 + math.exp(-epsilon))
    correct = rng.binomial(canaries, right, REPEATS)
    bounds = _one_run_bounds(canaries, correct, delta)
    assert (bounds > epsilon).sum() <= MOST
    if delta == 0:
        assert (bounds > epsilon).any()  # it is attained, so a bound that never fails would be too weak
    assert np.median(bounds) > (2.5 if epsilon == 4 else 0.25)


def test_the_one_run_bound_holds_where_canaries_stand_and_fall_together():
    """One failure of probability delta may show all canaries at once: what the delta term pays for."""
    rng, canaries, epsilon, delta = np.random.default_rng(3), 100, 1.0, 0.03
    correct = np.where(
        rng.random(REPEATS) < delta, canaries, rng.binomial(canaries, 1 / (1 + math.exp(-epsilon)), REPEATS)
    )
    bounds = _one_run_bounds(canaries, correct, delta)
    assert (bounds > epsilon).sum() <= MOST

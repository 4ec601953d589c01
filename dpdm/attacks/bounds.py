"""Lower bounds of epsilon, with a stated confidence, from an attacker's right and wrong guesses.

If the mechanism were (epsilon, delta)-DP with an epsilon below the bound, guesses as good as the attacker's would have
probability at most 1 - confidence.
"""

import math
from typing import NamedTuple

import numpy as np
from scipy import optimize, stats

LARGEST = 60.0  # no bound is sought above, which would need e^60 guesses


class Errors(NamedTuple):
    """Wrong guesses of independent trials whose guess rule was fixed beforehand."""

    false_positives: int  # guessed "in" although the record was out
    negatives: int  # trials without the record
    false_negatives: int  # guessed "out" although the record was in
    positives: int  # trials with the record


def clopper_pearson(successes: int, trials: int, significance: float) -> tuple[float, float]:
    """The exact interval of a binomial proportion: each end fails with probability at most `significance`.

    Clopper and Pearson 1934. (0, 1) without trials.
    """
    lower = float(stats.beta.ppf(significance, successes, trials - successes + 1)) if successes else 0.0
    upper = float(stats.beta.ppf(1 - significance, successes + 1, trials - successes)) if successes < trials else 1.0
    return lower, upper


def epsilon_by_errors(errors: Errors, delta: float, confidence: float) -> float:
    """The largest epsilon that the two error rates refute (Kairouz et al. 2015; Jagielski et al. 2020); 0 for none.

    An (epsilon, delta)-DP mechanism has FPR >= (1 - delta - FNR) / e^epsilon, and the same with both rates exchanged.
    Both rates are replaced by their Clopper-Pearson upper ends, each at half the significance.
    """
    fpr, fnr = _upper_rates(errors, confidence)
    ratios = [(1 - delta - fnr) / fpr, (1 - delta - fpr) / fnr]
    return max(0.0, math.log(max(ratios))) if max(ratios) > 0 else 0.0


def delta_by_errors(errors: Errors, epsilon: float, confidence: float) -> float:
    """The delta below which the two error rates refute (epsilon, delta); may be negative. See `epsilon_by_errors`."""
    fpr, fnr = _upper_rates(errors, confidence)
    return 1 - min(fnr + math.exp(epsilon) * fpr, fpr + math.exp(epsilon) * fnr)


def mu_by_errors(errors: Errors, confidence: float) -> float:
    """The largest mu that the two error rates refute for a mu-GDP mechanism (Nasr et al. 2023); 0 for none.

    Only for a Gaussian mechanism: it has Phi^-1(1 - FPR) - Phi^-1(FNR) <= mu (Dong et al. 2022).
    """
    fpr, fnr = _upper_rates(errors, confidence)
    return max(0.0, float(stats.norm.isf(fpr) - stats.norm.ppf(fnr))) if max(fpr, fnr) < 1 else 0.0


def epsilon_of_mu(mu: float, delta: float) -> float:
    """The exact epsilon of a mu-GDP mechanism at `delta` (Balle and Wang 2018, theorem 8); 0 if delta covers it.

    Args:
        mu: sensitivity over the noise's std, for a Gaussian release; at least 0.
        delta: in (0, 1).
    """

    def excess(epsilon: float) -> float:
        above = stats.norm.cdf(mu / 2 - epsilon / mu)
        return float(above - math.exp(epsilon + stats.norm.logcdf(-mu / 2 - epsilon / mu))) - delta

    if mu == 0 or excess(0.0) <= 0:
        return 0.0
    high = 1.0
    while excess(high) > 0:
        high *= 2
    return float(optimize.brentq(excess, 0.0, high, xtol=1e-10))


def one_run_p_value(canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """An upper bound of the probability that an attacker of an (epsilon, delta)-DP mechanism guesses this well.

    Steinke, Nasr and Jagielski 2023, "Privacy Auditing with One (1) Training Run", corollary 5.4.

    Each of `canaries` records is included by a separate fair coin; the attacker sees the releases, guesses "in" or
    "out" for `guesses` of the canaries, and abstains from the others. With W ~ Binomial(guesses, e^epsilon / (1 +
    e^epsilon)),

        P[correct guesses >= v] <= P[W >= v] + 2 canaries delta max_{i >= 1} P[v - i <= W < v] / i.

    The guesses need not be independent: all may come from one run of the mechanism.
    """
    p = 1 / (1 + math.exp(-epsilon))
    tail = float(stats.binom.sf(correct - 1, guesses, p))
    if correct and delta:
        below = np.cumsum(stats.binom.pmf(np.arange(correct - 1, -1, -1), guesses, p))
        tail += 2 * canaries * delta * float((below / np.arange(1, correct + 1)).max())
    return min(1.0, tail)


def epsilon_by_one_run(canaries: int, guesses: int, correct: int, delta: float, confidence: float) -> float:
    """The largest epsilon that the guesses of one-run auditing refute (see `one_run_p_value`); 0 for none."""

    def kept(epsilon: float) -> bool:
        return one_run_p_value(canaries, guesses, correct, epsilon, delta) > 1 - confidence

    if kept(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while not kept(high) and high < LARGEST:
        low, high = high, 2 * high
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if kept(middle) else (middle, high)
    return low


def _upper_rates(errors: Errors, confidence: float) -> tuple[float, float]:
    """Upper ends of the false positive and the false negative rate, together valid with `confidence`."""
    significance = (1 - confidence) / 2
    return (
        clopper_pearson(errors.false_positives, errors.negatives, significance)[1],
        clopper_pearson(errors.false_negatives, errors.positives, significance)[1],
    )

"""Discrete privacy losses, shared by `prv` and `pld`.

Both compose by FFT, whose rounding error is absolute: 1e-17 times the number of steps, as large as a delta of 1e-12
after 1e5 steps, and of either sign. So masses are tilted by exp(theta loss) before they are composed, where theta + 1
is the best order of RDP. This moves the losses near epsilon to the middle of the distribution, where an error is
relative. Tilting commutes with composition and is undone after it.
"""

import math
from collections.abc import Callable

import numpy as np
from scipy import signal, special


def by_tilt(composed: Callable[[float], tuple[float, float]], order: float, steps: int, delta: float) -> float:
    """Epsilon by the first tilt with a negligible rounding error: the one for `order`, then others, then none.

    Args:
        composed: maps theta to epsilon, and to the logarithm of the divisor of all masses.

    Raises:
        RuntimeError: rounding may change delta by more than a hundredth in either direction.
    """
    for factor in (1, 8, 64, 512, 1 / 8, 0):
        theta = factor * (order - 1)
        epsilon, log_moment = composed(theta)
        if 1e-16 * steps * math.exp(min(log_moment - theta * epsilon, 700)) <= 0.01 * delta:
            return epsilon
    raise RuntimeError("rounding errors are as large as delta")


def tilted(losses: np.ndarray, masses: np.ndarray, theta: float) -> tuple[np.ndarray, float]:
    """Masses times exp(theta loss), normalized; and the logarithm of their divisor."""
    with np.errstate(divide="ignore"):
        logs = np.log(masses) + theta * losses
    log_moment = float(special.logsumexp(logs))
    return np.exp(logs - log_moment), log_moment


def tilted_back(masses: np.ndarray, losses: np.ndarray, theta: float, log_moment: float) -> np.ndarray:
    """The inverse of `tilted`; negative masses (from rounding) become 0, and none exceeds exp(100) (at low losses)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(masses) + (log_moment - theta * losses)
    return np.where(masses > 0, np.exp(np.minimum(logs, 100)), 0.0)


def epsilon_of_losses(losses: np.ndarray, masses: np.ndarray, infinity: float, delta: float) -> float:
    """The smallest epsilon >= 0 at which the hockey-stick divergence is at most `delta`.

    Args:
        losses: evenly spaced, increasing; masses: of each. infinity: the mass of an infinite loss.
    """
    if infinity >= delta:
        return math.inf
    positive = losses > 0
    losses, masses = losses[positive], masses[positive]
    if not len(losses):
        return 0.0
    decay = math.exp(-(losses[1] - losses[0])) if len(losses) > 1 else 0.0
    upper = infinity + masses[::-1].cumsum()[::-1]  # P(loss >= losses[i])
    lower = signal.lfilter([1.0], [1.0, -decay], masses[::-1])[::-1]  # times exp(losses[i]): of the other distribution
    exceeding = np.flatnonzero(upper - lower > delta)
    i = exceeding[-1] + 1 if len(exceeding) else 0  # epsilon lies between the losses before i and at i
    if i == len(losses):
        return float(losses[-1])
    return max(float(losses[i] + math.log((upper[i] - delta) / lower[i])) if upper[i] > delta else 0.0, 0.0)

"""The input of accountants: the compositions of a ledger's events."""

from collections.abc import Iterable
from typing import NamedTuple

from dpdm.privacy.ledger import Event

NO_NOISE = 1e-3  # smaller noise multipliers are accounted for as no noise


class Part(NamedTuple):
    """`steps` equal compositions; a history, the input of every accountant, is a list of parts."""

    noise_multiplier: float
    sample_rate: float
    steps: int
    categorical: bool = False


def history_of(events: Iterable[Event]) -> tuple[Part, ...]:
    """The events to compose, with all full-batch Gaussians merged into one.

    Gaussians with multipliers z_i compose exactly to one with 1/z^2 = sum_i 1/z_i^2 (Dong et al. 2022). This avoids the
    PRV accountant's discretization error per event.
    """
    history, precision = [], 0.0
    for event in events:
        if event.steps == 0:
            continue
        categorical = event.mechanism == "categorical_subsampled_gaussian"
        # The arithmetic needs an upper limit of the noise and a lower limit of the rate. They can only raise epsilon.
        part = Part(min(event.noise_multiplier, 1e12), max(event.sample_rate, 1e-15), event.steps, categorical)
        if part.sample_rate == 1 and part.noise_multiplier >= NO_NOISE:
            precision += part.steps / part.noise_multiplier**2
        else:
            history.append(part)
    if precision > 0:
        history.append(Part(precision**-0.5, 1.0, 1))
    return tuple(history)

"""Schedules and samplers as pure functions of a denoiser.

A denoiser maps x [n, C, H, W] and one noise level (float) to the denoised x. `noise()` gives fresh standard normal
numbers of the shape of x, each image from a separate stream, so results do not depend on the batch size.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

DenoiseFn = Callable[[Tensor, float], Tensor]
NoiseFn = Callable[[], Tensor]
SPREADS = np.geomspace(0.03, 0.8, 5)  # standard deviations of images in [-1, 1] along one direction


def karras_schedule(steps: int, sigma_min: float, sigma_max: float, rho: float) -> list[float]:
    """Noise levels falling from sigma_max to sigma_min (Karras et al. 2022, eq. 5, without the final zero)."""
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return [(high + (i / (steps - 1) if steps > 1 else 0) * (low - high)) ** rho for i in range(steps)]


def ddim(denoise: DenoiseFn, noise: NoiseFn, sigmas: list[float]) -> Tensor:
    """DDIM (Song et al. 2021): Euler steps of dx/dsigma = (x - D) / sigma, and a final denoising; N evaluations."""
    x = noise() * sigmas[0]
    for sigma, following in itertools.pairwise(sigmas):
        x = x + (following - sigma) * (x - denoise(x, sigma)) / sigma
    return denoise(x, sigmas[-1])


def stochastic_ddim(denoise: DenoiseFn, noise: NoiseFn, sigmas: list[float]) -> Tensor:
    """Euler-Maruyama steps of the reverse SDE, one last denoising; N evaluations (the paper's "stochastic DDIM")."""
    x = noise() * sigmas[0]
    for sigma, following in itertools.pairwise(sigmas):
        step = following - sigma
        x = x + 2 * step * (x - denoise(x, sigma)) / sigma + math.sqrt(2 * abs(step) * sigma) * noise()
    return denoise(x, sigmas[-1])


def churn(
    denoise: DenoiseFn,
    noise: NoiseFn,
    sigmas: list[float],
    *,
    s_churn: float,
    s_min: float,
    s_max: float,
    s_noise: float,
) -> Tensor:
    """Heun steps with added noise (Karras et al. 2022, algorithm 2), with the last step to 0; 2 N - 1 evaluations.

    The added noise is capped at gamma = 1, as in the paper's code, not at EDM's sqrt(2) - 1.
    """
    x = noise() * sigmas[0]
    for sigma, following in zip(sigmas, [*sigmas[1:], 0.0], strict=True):
        gamma = min(s_churn / len(sigmas), 1.0) if s_min <= sigma <= s_max else 0.0
        raised = sigma * (1 + gamma)
        if gamma > 0:
            x = x + s_noise * math.sqrt(raised**2 - sigma**2) * noise()
        slope = (x - denoise(x, raised)) / raised
        proposal = x + (following - raised) * slope
        if following > 0:
            slope = (slope + (proposal - denoise(proposal, following)) / following) / 2
            proposal = x + (following - raised) * slope
        x = proposal
    return x


def dpmpp_2m(denoise: DenoiseFn, noise: NoiseFn, sigmas: list[float]) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2): deterministic, of second order; N evaluations.

    Between two noise levels, the denoiser is approximated by the line through its last two values, over ln sigma.
    """
    x = noise() * sigmas[0]
    before, width_before = None, 1.0
    for sigma, following in itertools.pairwise(sigmas):
        denoised, width = denoise(x, sigma), math.log(sigma / following)
        ahead = 0.0 if before is None else (denoised - before) * (width / (2 * width_before))
        x = x * (following / sigma) + (denoised + ahead) * (1 - following / sigma)
        before, width_before = denoised, width
    return denoise(x, sigmas[-1])


def spread(draw: Callable[[DenoiseFn, NoiseFn], Any], noises: int) -> np.ndarray:
    """The standard deviation of a sampler's result, divided by that of the data, for Gaussian data of std SPREADS.

    The denoiser is exact: s^2 / (s^2 + sigma^2) x. The denoiser and all samplers are linear, so the sampler runs on the
    coefficients of its independent noises, and the result has no simulation error.

    Args:
        draw: the sampler as a function of denoiser and noise; guidance plays no role.
        noises: the maximum number of its draws of noise.
    """
    drawn, variance = itertools.count(), np.square(SPREADS)[:, None]

    def noise() -> np.ndarray:
        unit = np.zeros((len(SPREADS), noises))
        unit[:, next(drawn)] = 1
        return unit

    images = draw(lambda x, sigma: x * (variance / (variance + sigma**2)), noise)
    return np.linalg.norm(images, axis=1) / SPREADS


def guided(conditional: DenoiseFn, unconditional: DenoiseFn, weight: float) -> DenoiseFn:
    """Classifier-free guidance (Ho and Salimans 2021): (1 + w) D(x, y) - w D(x, null); only the former if w = 0."""
    if weight == 0:
        return conditional
    return lambda x, sigma: torch.lerp(unconditional(x, sigma), conditional(x, sigma), 1 + weight)

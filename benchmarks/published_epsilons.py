"""The least epsilon that can be proven for published settings whose stated epsilon is too small (privacy_status.csv).

python benchmarks/published_epsilons.py

GS-WGAN (Chen, Orekondy, Fritz 2020): 20,000 steps, each the noised gradients of B = 32 images by one of 1,000 critics.
The gradients of a step share one draw of a critic, so a step is one 1-of-K Gaussian of noise 1.07 / sqrt(B). It
states 10.

DP-CGAN (Torkzadehmahani, Kairouz, Paten 2019): 35,000 steps of DP-SGD at q = 600 / 60,000, noise 1.12 times C. The
discriminator's four tensors are clipped to C one by one, so a record moves their joint gradient by up to 2 C. It states
9.6.
"""

import math

from dpdm.privacy import Event, epsilons_spent

DELTA = 1e-5


def gs_wgan() -> dict[str, float]:
    """By accountant, epsilon of GS-WGAN's published training at DELTA."""
    noise = 1.07 / math.sqrt(32)
    event = Event("categorical_subsampled_gaussian", "critic", noise, 1.0, 1 / 1000, 20_000)
    return epsilons_spent([event], DELTA)


def dpcgan() -> dict[str, float]:
    """By accountant, epsilon of DP-CGAN's published training at DELTA."""
    event = Event("poisson_subsampled_gaussian", "discriminator", 1.12 / 2, 1.0, 600 / 60_000, 35_000)
    return epsilons_spent([event], DELTA)


def main() -> None:
    """Prints a line per method."""
    for name, found in {"GS-WGAN": gs_wgan(), "DP-CGAN": dpcgan()}.items():
        print(f"{name}:", ", ".join(f"{accountant} {epsilon:.1f}" for accountant, epsilon in found.items()))


if __name__ == "__main__":
    main()

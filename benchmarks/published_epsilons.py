"""The least epsilon that can be proven for a published setting whose stated one is too small, see privacy_status.csv.

python benchmarks/published_epsilons.py

GS-WGAN (Chen, Orekondy, Fritz 2020): 20,000 steps, each the noised gradients of B = 32 images by one of 1,000 critics.
The gradients of a step share one draw of a critic, so a step is one 1-of-K Gaussian of noise 1.07 / sqrt(B). It
states 10.
"""

import math

from dpdm.privacy import Event, epsilons_spent

DELTA = 1e-5


def gs_wgan() -> dict[str, float]:
    """By accountant, epsilon of GS-WGAN's published training at DELTA."""
    noise = 1.07 / math.sqrt(32)
    event = Event("categorical_subsampled_gaussian", "critic", noise, 1.0, 1 / 1000, 20_000)
    return epsilons_spent([event], DELTA)


def main() -> None:
    """Prints one line."""
    print("GS-WGAN:", ", ".join(f"{name} {epsilon:.1f}" for name, epsilon in gs_wgan().items()))


if __name__ == "__main__":
    main()

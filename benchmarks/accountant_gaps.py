"""How far each accountant's epsilon is above the exact one of composed Gaussians (full batches: q = 1).

python benchmarks/accountant_gaps.py [--write docs/privacy.md]

Steps are accounted one by one, at a rate of 1 - 1e-9: at exactly 1 they are folded into one.
"""

import argparse
import math
from pathlib import Path

from _page import write_block
from scipy.optimize import brentq

from dpdm.attacks.bounds import epsilon_of_mu
from dpdm.privacy import Event, epsilon_spent
from dpdm.privacy.ledger import ACCOUNTANTS

EPSILONS, STEPS, DELTAS = (0.01, 0.1, 1, 10, 100), (1, 100, 10_000), (1e-3, 1e-5, 1e-9)


def noise_multiplier(epsilon: float, delta: float) -> float:
    """Of the Gaussian that costs exactly `epsilon` (Balle and Wang 2018)."""
    return 1 / math.exp(brentq(lambda log_mu: epsilon_of_mu(math.exp(log_mu), delta) - epsilon, -9, 4, xtol=1e-12))


def main() -> None:
    """Computes and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, help="also replace the block <!-- gaps --> of this page")
    args = parser.parse_args()
    lines = [
        "| exact ε | " + " | ".join(f"{name.upper()} / exact" for name in ACCOUNTANTS) + " |",
        "| ---: |" + " ---: |" * len(ACCOUNTANTS),
    ]
    for epsilon in EPSILONS:
        cells = []
        for name in ACCOUNTANTS:
            ratios = []
            for steps in STEPS:
                for delta in DELTAS:
                    z = noise_multiplier(epsilon, delta) * math.sqrt(steps)
                    event = Event("poisson_subsampled_gaussian", "steps", z, 1.0, 1 - 1e-9, steps)
                    ratios.append(epsilon_spent([event], delta, name) / epsilon)
            cells.append(f"{min(ratios):.4f} to {max(ratios):.4f}")
        lines.append(f"| {epsilon:g} | " + " | ".join(cells) + " |")
    print("\n".join(lines))
    if args.write:
        write_block(args.write, "gaps", "\n".join(lines))


if __name__ == "__main__":
    main()

"""How far accountants exceed the exact epsilon of composed Gaussians (q = 1), and the epsilon of kept runs by PLD.

python benchmarks/accountant_gaps.py [--write docs/privacy.md]

Steps are accounted one by one at a rate of 1 - 1e-9; at exactly 1 they would be merged into one.
"""

import argparse
import math
from pathlib import Path

import pandas as pd
from _page import write_block
from scipy.optimize import brentq

from dpdm.attacks.bounds import epsilon_of_mu
from dpdm.layout import ROOT
from dpdm.privacy import Event, epsilon_spent
from dpdm.privacy.ledger import ACCOUNTANTS

EPSILONS, STEPS, DELTAS = (0.01, 0.1, 1, 10, 100), (1, 100, 10_000), (1e-3, 1e-5, 1e-9)


def noise_multiplier(epsilon: float, delta: float) -> float:
    """The noise multiplier of the Gaussian that costs exactly `epsilon` (Balle and Wang 2018)."""
    return 1 / math.exp(brentq(lambda log_mu: epsilon_of_mu(math.exp(log_mu), delta) - epsilon, -9, 4, xtol=1e-12))


def kept_runs(results: Path = ROOT / "results") -> str:
    """The runs that spend least and most by PLD, for each kept study and target; without starts that have no DP-SGD."""
    lines = ["| study | target ε | least by PLD | most by PLD |", "| --- | ---: | --- | --- |"]
    for file in sorted(results.glob("*/kept/audits.csv")):
        runs = pd.read_csv(file)
        if "epsilon_pld" not in runs:  # of an older version
            continue
        whole = (runs["accountant"] == "rdp") & (runs["epsilon_rdp"] > 0.98 * runs["target_epsilon"])
        for epsilon, cell in runs[whole & runs["target_epsilon"].map(math.isfinite)].groupby("target_epsilon"):
            ends = (cell.loc[index] for index in (cell["epsilon_pld"].idxmin(), cell["epsilon_pld"].idxmax()))
            texts = " | ".join(f"{end['epsilon_pld']:.3g} {end['method']}" for end in ends)
            lines.append(f"| {file.parts[-3]} | {epsilon:g} | {texts} |")
    return "\n".join(lines)


def main() -> None:
    """Computes and prints two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--write", type=Path, help="also replace the blocks <!-- gaps --> and <!-- spent --> of this page"
    )
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
    blocks = {"gaps": "\n".join(lines), "spent": kept_runs()}
    for name, text in blocks.items():
        print(f"\n{text}")
        if args.write:
            write_block(args.write, name, text)


if __name__ == "__main__":
    main()

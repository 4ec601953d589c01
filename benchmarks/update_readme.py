"""Puts tables and pictures of results/digits and results/one_gpu/kept into README.md: no number there is typed by hand.

make report && .venv/bin/python benchmarks/update_readme.py
"""

import shutil
import sys
from pathlib import Path

from _page import write_block

from dpdm.report.collect import METRICS, read_csv
from dpdm.report.tables import dataset_results, to_markdown

ROOT = Path(__file__).parents[1]
STUDY = ROOT / "results" / "digits"
IMAGES = ROOT / "docs" / "images"
KEPT = Path("results/one_gpu/kept")


def results_block() -> str:
    """The results table, curves and samples, as they stand in docs/images."""
    return (
        (IMAGES / "digits_results.md").read_text().strip() + "\n\n"
        "![Scores against epsilon](docs/images/digits_curves.png)\n\n"
        "![Samples of every method and epsilon](docs/images/digits_samples.png)"
    )


def gpu_block() -> str:
    """The results of config/one_gpu.yaml on MNIST, with its samples."""
    table = dataset_results(read_csv(ROOT / KEPT / "metrics.csv", METRICS), "mnist").without("Dataset")
    picture = f"![Samples on MNIST after half an hour of a GPU]({KEPT}/figures/mnist_samples.png)"
    return f"{to_markdown(table).strip()}\n\n{picture}"


def main() -> None:
    """Copies the pictures and rewrites the blocks."""
    write_block(ROOT / "README.md", "gpu", gpu_block())
    if not (STUDY / "report.html").exists():
        sys.exit(f"error: {STUDY} holds no finished report; first run `make report`")
    shutil.copy(STUDY / "tables" / "results.md", IMAGES / "digits_results.md")
    for name in ("curves", "samples"):
        shutil.copy(STUDY / "figures" / f"digits_{name}.png", IMAGES)
    write_block(ROOT / "README.md", "results", results_block())


if __name__ == "__main__":
    main()

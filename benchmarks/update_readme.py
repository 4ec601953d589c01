"""Puts the tables and pictures of results/digits into README.md, so that no number there is typed by hand.

make report && .venv/bin/python benchmarks/update_readme.py
"""

import shutil
import sys
from pathlib import Path

from _page import write_block

ROOT = Path(__file__).parents[1]
STUDY = ROOT / "results" / "digits"
IMAGES = ROOT / "docs" / "images"


def results_block() -> str:
    """The results table, curves and samples, as they stand in docs/images."""
    return (
        (IMAGES / "digits_results.md").read_text().strip() + "\n\n"
        "![Scores against epsilon](docs/images/digits_curves.png)\n\n"
        "![Samples of every method and epsilon](docs/images/digits_samples.png)"
    )


def main() -> None:
    """Copies the pictures and rewrites the block."""
    if not (STUDY / "report.html").exists():
        sys.exit(f"error: {STUDY} holds no finished report; first run `make report`")
    shutil.copy(STUDY / "tables" / "results.md", IMAGES / "digits_results.md")
    for name in ("curves", "samples"):
        shutil.copy(STUDY / "figures" / f"digits_{name}.png", IMAGES)
    write_block(ROOT / "README.md", "results", results_block())


if __name__ == "__main__":
    main()

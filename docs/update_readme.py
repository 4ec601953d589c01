"""Puts the tables and pictures of results/digits into README.md, so that no number there is typed by hand.

make report && .venv/bin/python docs/update_readme.py
"""

import re
import shutil
from pathlib import Path

ROOT = Path(__file__).parents[1]
STUDY = ROOT / "results" / "digits"
IMAGES = ROOT / "docs" / "images"


def between(text: str, name: str, content: str) -> str:
    """`text` with what stands between <!-- name --> and <!-- /name --> replaced."""
    return re.sub(rf"(<!-- {name} -->).*?(<!-- /{name} -->)", lambda m: m[1] + content + m[2], text, flags=re.S)


def results_block() -> str:
    """The results table, curves and samples, as they stand in docs/images."""
    return (
        "\n\n" + (IMAGES / "digits_results.md").read_text().strip() + "\n\n"
        "![Scores against epsilon](docs/images/digits_curves.png)\n\n"
        "![Samples of every method and epsilon](docs/images/digits_samples.png)\n\n"
    )


def main() -> None:
    """Copies the pictures and rewrites the block."""
    shutil.copy(STUDY / "tables" / "results.md", IMAGES / "digits_results.md")
    for name in ("curves", "samples"):
        shutil.copy(STUDY / "figures" / f"digits_{name}.png", IMAGES)
    readme = ROOT / "README.md"
    readme.write_text(between(readme.read_text(), "results", results_block()))


if __name__ == "__main__":
    main()

"""Tests whether few steps of Churn, or guidance, make the images of a better model score worse.

    python benchmarks/guidance.py [--images 1000] [--write docs/tuning.md]

The study one_gpu has a worse distance at epsilon 10 than at 1, by Churn with 8 steps and guidance 1. This script draws
images from the kept models of two other studies, by that sampler and by the study's, each with guidance 0 and 1. It
prints the FD to the training images, and where it is worse at epsilon 10.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from _page import write_block

from dpdm.api import Run, open_results
from dpdm.config import load_study
from dpdm.data import ImageSet
from dpdm.evaluation import fidelity
from dpdm.jobs import draw, load_extractor, make_missing
from dpdm.layout import Layout

ROOT = Path(__file__).parents[1]
MODELS = {  # study: run without epsilon and seed, and the seed that was kept
    "digits": ("digits/dpdm", 0),
    "laptop": ("mnist/dpdm_gauss", 0),
}
EPSILONS = (1, 10)
GUIDANCE = (0.0, 1.0)
SAMPLER = "accuracy"  # its name in all three studies
CELL = ["model", "sampler", "guidance", "extractor"]


def images(run: Run, sampler: dict[str, Any], count: int) -> ImageSet:
    """As many images of a run by a sampler, its classes in turn."""
    classes = run.ledger.num_classes
    labels = np.arange(count) % classes
    return ImageSet(draw(run.spec, run.model, SAMPLER, sampler, labels, run.spec.name), labels, classes, run.spec.name)


def distances(study: str, place: str, seed: int, count: int) -> Iterator[dict[str, Any]]:
    """A row per epsilon, sampler, guidance and extractor."""
    churn = load_study(ROOT / "config" / "one_gpu.yaml").methods["dpdm"].samplers[SAMPLER]
    results = open_results(ROOT / "results" / study / "kept")
    layout, dataset = Layout(str(ROOT / "results"), study), place.partition("/")[0]
    names = results.study.evaluation.extractors
    make_missing(results.study, layout, dataset, "extractor.pt", *(f"{name}.npz" for name in names))
    for epsilon in EPSILONS:
        run = results.run(f"{place}/{epsilon}/{seed}")
        own = dict(run.samplers[SAMPLER])
        samplers = {f"{churn['kind']}, {churn['num_sampling_steps']} steps": churn, f"{own['kind']}, the study's": own}
        for name, sampler in samplers.items():
            for guidance in GUIDANCE:
                drawn = images(run, sampler | {"guidance": guidance}, count)
                for extractor in names:
                    network, kept = load_extractor(results.study, layout, dataset, extractor), f"{extractor}.npz"
                    rows, _ = fidelity.measure(drawn, layout.data(dataset, kept), network, seed, ("train",))
                    (fd,) = (row["value"] for row in rows if row["metric"] == "fd")
                    yield dict(zip(CELL, (place, name, guidance, extractor), strict=True)) | {
                        "epsilon": epsilon,
                        "fd": fd,
                    }


def page(rows: list[dict[str, Any]]) -> str:
    """The rows as a table, and the sentence that follows from them."""
    found = pd.DataFrame(rows).pivot(index=CELL, columns="epsilon", values="fd")
    low, high = found.columns
    worse = found[found[high] > found[low]].index
    where = "; ".join(f"{model} by {sampler}, guidance {w:g}, {by}" for model, sampler, w, by in worse)
    wide = found.unstack("extractor").swaplevel(axis=1).sort_index(axis=1)
    wide.columns = [f"FD by {extractor}, ε = {epsilon}" for extractor, epsilon in wide.columns]
    return (
        f"{wide.reset_index().to_markdown(index=False, floatfmt=',.4g')}\n\nThe FD is worse at ε = {high} than at "
        f"ε = {low} in {len(worse)} of {len(found)} cells{f': {where}' if where else ''}."
    )


def main() -> None:
    """Prints each row as it is measured, then the table with its sentence."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--write", type=Path, help="a page whose block `guidance` is replaced")
    args = parser.parse_args()
    rows = []
    for study, model in MODELS.items():
        for row in distances(study, *model, args.images):
            print(row, flush=True)
            rows.append(row)
    print(text := page(rows))
    if args.write:
        write_block(args.write, "guidance", text)


if __name__ == "__main__":
    main()

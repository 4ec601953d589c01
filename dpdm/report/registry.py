"""The figures and tables of a report: an entry here adds one to the workflow, the page and `dpdm figures`.

docs/extending.md shows how to add one. Imports no numerical library, since the Snakefile loads it at every start.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dpdm.config import Study
from dpdm.layout import Layout
from dpdm.parts import Part
from dpdm.report import selection


@dataclass(frozen=True)
class Material:
    """The input of a figure or table.

    Args:
        study, layout: the study, and the paths of its files.
        metrics, audits: pandas DataFrames of all scores and audits, columns METRICS and AUDITS of dpdm.report.collect.
        dataset: of a figure of one data set; else "".
        published: the DataFrame of `read_published`; None where nothing quoted is to be shown.
    """

    study: Study
    layout: Layout
    metrics: Any
    audits: Any
    dataset: str = ""
    published: Any = None


@dataclass(frozen=True)
class Item:
    """One figure or table.

    Args:
        function: "module:function", from Material to a matplotlib Figure or a dpdm.report.tables.Table.
        caption: its content, below it on the page.
        per_dataset: for a figure: one for each data set, in the section of its results; else one for the study.
        shown: whether a study has material for it.
        files: its other input from a study's data set, besides metrics.csv and audits.csv.
    """

    function: str
    caption: str
    per_dataset: bool = False
    shown: Callable[[Study], bool] = lambda study: True
    files: Callable[[Study, Layout, str], list[str]] = lambda study, layout, dataset: []

    @property
    def part(self) -> Part:
        """Its line in the registry."""
        lines = (("FIGURES", FIGURES), ("TABLES", TABLES))
        own = ((kind, name) for kind, items in lines for name, item in items.items() if item is self)
        return Part("dpdm/report/registry.py", *next(own), self.function)

    def make(self, material: Material) -> Any:
        """The Figure or Table; UserError if the function cannot be loaded, fails, or returns something else."""
        part = self.part
        made = part.call(part.function(), material)
        kind, member = KINDS[part.registry]
        if not hasattr(made, member):
            raise part.wrong(f"it returned {type(made).__name__}; return a {kind}")
        return made


KINDS = {  # what the items of a registry make, and a member by which it is known without an import
    "FIGURES": ("matplotlib.figure.Figure", "savefig"),
    "TABLES": ("dpdm.report.tables.Table", "cells"),
}
FIGURES: dict[str, Item] = {
    "curves": Item(
        "dpdm.report.figures:curves",
        "Means over seeds; bars (from three seeds on) are one sample standard deviation. Of a method that draws "
        "several sets, the best by each panel and ε, which may be smoothed; lines join points of one sampler. Dashed: "
        "real images. Dotted, if there: the label-only floor.",
        per_dataset=True,
    ),
    "samples": Item(
        "dpdm.report.figures:samples",
        "The first images of each class, one class per column, of the smallest seed. Nothing is picked by looks.",
        per_dataset=True,
        files=selection.sample_files,
    ),
    "parameter": Item(
        "dpdm.report.figures:parameter_figure",
        "The number that this study varies, all else equal: means over seeds; bars (from three seeds on) are one "
        "sample standard deviation.",
        shown=lambda study: bool(selection.sweeps(study)),
    ),
}
TABLES: dict[str, Item] = {
    "results": Item(
        "dpdm.report.tables:results",
        "Every method at every ε, between the floor (uniform noise, balanced labels) and the real training images.",
    ),
    "audit": Item(
        "dpdm.report.tables:audit",
        "ε of every private run next to its target. Accounting gives an upper bound, an attack a lower one.",
    ),
}
PLACED = ("results", "audit")  # these have sections on the page; other tables follow the figures of the whole study


def figures(study: Study) -> dict[str, tuple[Item, str]]:
    """The figures of a study by file name, each with its data set ("" for the whole study)."""
    datasets = dict.fromkeys(run.dataset for run in study.runs())
    found: dict[str, tuple[Item, str]] = {}
    for name, item in FIGURES.items():
        if item.shown(study):
            found |= {f"{d}_{name}": (item, d) for d in datasets} if item.per_dataset else {name: (item, "")}
    return found


def tables(study: Study) -> Mapping[str, Item]:
    """The tables of a study by file name, without the paper's."""
    return {name: item for name, item in TABLES.items() if item.shown(study)}


def check(study: Study) -> None:
    """UserError if a function of a study's figures and tables cannot be loaded; imports their modules."""
    for item in (*(item for item, _ in figures(study).values()), *tables(study).values()):
        item.part.function()

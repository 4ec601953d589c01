"""All paths below a results folder, for the workflow and for Python.

A run is named by its coordinates `DATASET/METHOD/EPSILON/SEED`; a synthetic set adds `/SAMPLER`; the scores of an
anchor are `DATASET/ANCHOR/SEED`. Every method takes these parts as text, so a Snakefile can pass wildcards
("{dataset}") and get a pattern. Paths are text with forward slashes, and relative if the results folder is. Without
`file`, a method returns the folder. Standard library only.
"""

from pathlib import Path

RUN = ("{dataset}", "{method}", "{epsilon}", "{seed}")  # wildcards of a run, of a synthetic set, of an anchor's scores
SET = (*RUN, "{sampler}")
ANCHOR = ("{dataset}", "{anchor}", "{seed}")

TABLE_KINDS = (".csv", ".md", ".tex", ".html")
FIGURE_KINDS = (".svg", ".pdf", ".png")
KEPT = "kept"  # folder of a study with the results that a repository keeps
BY_HAND = "by_hand"  # folder next to the studies, for runs outside every study

# The files that Snakemake and people read: the root of a clone, or its copy in the package that a wheel installs.
PACKAGE = Path(__file__).resolve().parent
SHIPPED = PACKAGE / "_shipped"  # setup.py makes it
INSTALLED = SHIPPED.is_dir()  # from a wheel
ROOT = SHIPPED if INSTALLED else PACKAGE.parent
SNAKEFILE = str(ROOT / "Snakefile")
BASELINES = ROOT / "baselines"
STUDIES = ROOT / "config"
# Numbers quoted from papers, and what is known about their privacy claims.
PUBLISHED = str(ROOT / "results" / "published" / "published.csv")
PRIVACY_STATUS = str(ROOT / "results" / "published" / "privacy_status.csv")
MACHINES = str(ROOT / "results" / "machines.csv")  # how far scores move between processors: benchmarks/machines.py


def _below(folder: str, file: str) -> str:
    return f"{folder}/{file}" if file else folder


class Layout:
    """The paths of `study`; `results_dir` holds its folder, those of other studies, and `data/`."""

    def __init__(self, results_dir: str, study: str):
        self.results_dir = results_dir
        self.root = f"{results_dir}/{study}"
        self.study = f"{self.root}/study.json"  # the study as the workflow resolved it; every job reads this file
        self.metrics = f"{self.root}/metrics.csv"
        self.audits = f"{self.root}/audits.csv"
        self.report = f"{self.root}/report.html"
        self.partial = f"{self.root}/partial"  # tables of the finished runs
        self.benchmarks = f"{self.root}/benchmarks"  # time and memory of each job, by Snakemake

    @classmethod
    def of(cls, root: str | Path) -> "Layout":
        """The layout of the study whose folder is `root`, even if it was moved; kept results share the study's data."""
        folder = Path(root) if Path(root).name else Path(root).absolute()
        folder = folder.resolve() if folder.is_symlink() or ".." in folder.parts else folder
        if folder.name == KEPT:
            return cls(folder.parent.parent.as_posix(), f"{folder.parent.name}/{KEPT}")
        return cls(folder.parent.as_posix(), folder.name)

    def data(self, dataset: str, file: str = "") -> str:
        """A data set's train.npz, test.npz, dataset.json, extractor.pt, inception.npz, shared by all studies."""
        return _below(f"{self.results_dir}/data/{dataset}", file)

    def by_hand(self, name: str) -> str:
        """The folder of a run outside every study."""
        return f"{self.results_dir}/{BY_HAND}/{name}"

    def run(self, dataset: str, method: str, epsilon: str, seed: str, file: str = "") -> str:
        """A run's model.pt, ledger.json, train.jsonl, train.log; for a classifier also utility.json."""
        return _below(f"{self.root}/runs/{dataset}/{method}/eps{epsilon}/seed{seed}", file)

    def set(self, dataset: str, method: str, epsilon: str, seed: str, sampler: str, file: str = "") -> str:
        """A synthetic set's synthetic.npz, fidelity.json, utility.json, and inception.json if there is an FID."""
        return _below(f"{self.run(dataset, method, epsilon, seed)}/{sampler}", file)

    def anchor(self, dataset: str, anchor: str, seed: str, file: str = "") -> str:
        """An anchor's scores, in files named like those of a synthetic set."""
        return _below(f"{self.root}/anchors/{dataset}/{anchor}/seed{seed}", file)

    def label_only(self, dataset: str, kind: str = ".npz") -> str:
        """The images of the label-only floor, or their log."""
        return f"{self.root}/anchors/{dataset}/label_only{kind}"

    def anchor_images(self, dataset: str, anchor: str) -> str:
        """The images that an anchor uses in place of synthetic ones."""
        return self.data(dataset, "train.npz") if anchor == "real" else self.label_only(dataset)

    def audit(self, dataset: str, method: str, kind: str = ".json") -> str:
        """The audit of all runs of a method on a data set."""
        return f"{self.root}/audits/{dataset}/{method}{kind}"

    def attack(self, dataset: str, method: str, kind: str = ".json") -> str:
        """The attacks on a method's private runs on a data set."""
        return f"{self.root}/attacks/{dataset}/{method}{kind}"

    def table(self, name: str, kind: str = "") -> str:
        """A table's file of a kind in TABLE_KINDS; without `kind`, the common stem."""
        return f"{self.root}/tables/{name}{kind}"

    def figure(self, name: str, kind: str = "") -> str:
        """A figure's file of a kind in FIGURE_KINDS; without `kind`, the stem (DATASET_NAME for a data set)."""
        return f"{self.root}/figures/{name}{kind}"

    def log(self, name: str) -> str:
        """The log of a job of the whole study."""
        return f"{self.root}/{name}.log"

    def benchmark(self, rule: str, *coordinates: str) -> str:
        """Time and memory of one job."""
        return f"{self.benchmarks}/{rule}/{'-'.join(coordinates)}.tsv"

    def result_folders(self, attacks: bool) -> list[str]:
        """The folders that hold scores, audits and, if the study has them, attacks."""
        return [f"{self.root}/{name}" for name in ("runs", "anchors", "audits", *["attacks"] * attacks)]

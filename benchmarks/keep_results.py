"""Keeps the results of a study in results/STUDY/kept: tables, pictures, ledgers, scores, and a page about them.

For each first seed it also keeps the model (except of an ablation or of a start without DP-SGD), and for figures 500
images by the first sampler and 50 by each other. `dpdm sample results/STUDY/kept RUN` draws the whole sets.

snakemake --cores 2 --configfile STUDY && .venv/bin/python benchmarks/keep_results.py STUDY

STUDY is a study file, such as config/laptop.yaml, or several with commas between them, each overriding those before it.

If a study ran in part (`dpdm run STUDY --only ...`), the page says which part. Another machine can add to it: run the
missing cells, copy the kept files to results/STUDY by --restore, which replaces no file, then run `dpdm collect`,
`dpdm tables`, `dpdm paper-table`, `dpdm figures` and this script with every --command.

Run this script on the machine that ran the study, which the page names, or name machine and commands by --machine and
--command. Git tracks the folder, and no job uses it.
"""

import argparse
import math
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
from _page import where
from PIL import Image

from dpdm.cli.workflow import collected
from dpdm.config import Study, load_study
from dpdm.data import read_images, write_images
from dpdm.layout import Layout
from dpdm.progress import duration
from dpdm.report.collect import JOBS, SPENT, job_times
from dpdm.report.registry import Material, figures
from dpdm.report.tables import FEW, dataset_results, machine_note, method_table, resource_table, to_markdown
from dpdm.report.verdicts import FINDING, leads_table, verdicts
from dpdm.specs import RunSpec
from dpdm.study import open_study

ROOT = Path(__file__).parents[1]
KEPT = (
    "study.json",
    "metrics.csv",
    "audits.csv",
    "tables/*.csv",
    "tables/*.md",
    "tables/*.tex",
    "figures/*.png",
    "runs/**/ledger.json",
    *(f"{folder}/**/{name}.json" for folder in ("runs", "anchors") for name in ("fidelity", "utility", "inception")),
    "audits/**/*.json",
    "attacks/**/*.json",
)
IMAGES = (300, 50)  # of the first sampler, of each other


def keep(study: str, spec: Study, commands: list[str], machine: str) -> None:
    """Makes results/NAME/kept from scratch."""
    folder = ROOT / "results" / spec.study
    jobs, clock = job_times(Layout.of(folder), spec, machine)
    text = page(study, spec, commands, jobs, clock)
    shutil.rmtree(folder / "kept", ignore_errors=True)
    for path in (path for pattern in KEPT for path in folder.glob(pattern)):
        copy = folder / "kept" / path.relative_to(folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".png":  # 256 colors are enough, in half the space
            Image.open(path).convert("RGB").quantize().save(copy, optimize=True)
        else:
            shutil.copyfile(path, copy)
    for run in {run.place[:3]: run for run in reversed(spec.runs())}.values():  # of each cell the first seed
        keep_run(folder, spec, run)
    jobs.to_csv(folder / "kept" / JOBS, index=False)
    (folder / "kept" / "README.md").write_text(text + "\n")


def restore(folder: Path) -> None:
    """Copies kept files to their original places, if there is no file."""
    for path in (path for path in (folder / "kept").rglob("*") if path.is_file() and path.name != "README.md"):
        copy = folder / path.relative_to(folder / "kept")
        if not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)


def is_ablation(spec: Study) -> bool:
    """Whether all methods of a study are of one class."""
    return len({method.impl for method in spec.methods.values()}) == 1


def keep_run(folder: Path, spec: Study, run: RunSpec) -> None:
    """The model of a run (not of an ablation, nor of a start without DP-SGD), and the first IMAGES of its sets."""
    made = Path(Layout.of(folder).run(*run.place))
    copy = folder / "kept" / made.relative_to(folder)
    copy.mkdir(parents=True, exist_ok=True)
    if not (is_ablation(spec) or run.params.get("init_only")):
        shutil.copyfile(made / "model.pt", copy / "model.pt")
    for number, sampler in enumerate(spec.samplers_of(run)):
        images, kept_images = read_images(made / sampler / "synthetic.npz"), IMAGES[min(number, 1)]
        some = replace(images, images=images.images[:kept_images], labels=images.labels[:kept_images])
        write_images(copy / sampler / "synthetic.npz", some)


def page(study: str, spec: Study, commands: list[str], jobs: pd.DataFrame, clock: float) -> str:
    """The page for results/NAME, from the files of the run and the times of its jobs."""
    folder = ROOT / "results" / spec.study
    files = [Path(file).resolve().relative_to(ROOT) for file in study.split(",")]
    targets = sorted(spec.tables)
    named = {path.stem: path for path in (folder / "tables").glob("*.md")}
    if missing := {"results", *targets} - set(named):
        sys.exit(f"error: {folder / 'tables'} lacks {', '.join(sorted(missing))}; first run `{commands[-1]}`")
    material = collected(spec, Layout.of(folder))
    metrics, audits = material.metrics, material.audits
    best, captions = leads_table(material), {stem: item.caption for stem, (item, _) in figures(spec).items()}
    commits = sorted({*metrics["commit"], *audits["commit"]})
    starts = any(method.params.get("init_only") for method in spec.methods.values())
    kept = "Images" if is_ablation(spec) else f"Models{' (not of starts without DP-SGD)' * starts} and images"
    return "\n\n".join(
        [
            f"# Results of {' with '.join(f'[{file}](../../../{file})' for file in files)}",
            *([f"A part of the study: `{part}`."] if (part := spec.part()) else []),
            f"Made at commit {', '.join(f'`{commit}`' for commit in commits)} by",
            "\n".join(["```sh", *commands, "```"]),
            f"on {' and '.join(jobs['machine'].unique())}. {cost(jobs, clock)} "
            f"{kept} are kept of the first\nseed; `report.html` is not.\n"
            f"Other commits and versions of torch give other digits. {machine_note(metrics)}",
            rules(spec, metrics, audits),
            "Distances by the small CNN, which was trained on the real images here, compare within this page only. "
            "Those by\nEfficientNet-Lite0 are comparable between pages with equally many images. KID is not multiplied "
            "by 1,000, and has\nanother scale by each extractor. Precision and the nearest distance are checks, and "
            "never bold.",
            *(["## Who is best", best.to_markdown()] if len(best) else []),
            *ablation(material),
            *(
                f"## {dataset}\n\n{to_markdown(dataset_results(metrics, dataset)).strip()}"
                for dataset in dict.fromkeys(run.dataset for run in spec.runs())
            ),
            *(f"## {name}\n\n{named[name].read_text().strip()}" for name in targets),
            *(
                f"![{path.stem}](figures/{path.name})\n\n{captions[path.stem]}"
                for path in sorted((folder / "figures").glob("*.png"))
            ),
            f"## On what the recipes were tuned\n\n{to_markdown(method_table(spec)).strip()}",
            f"## Time and memory\n\n{to_markdown(resource_table(jobs)).strip()}",
            "This page was written by `benchmarks/keep_results.py`.",
        ]
    )


def ablation(material: Material) -> list[str]:
    """For a study of one class of method, a section on how its methods or samplers differ."""
    if not is_ablation(material.study):
        return []
    found = [f"- {text}" for level, text in verdicts(replace(material, published=None)) if level == FINDING]
    return ["## What differs", "\n".join(found)] if found else []


def rules(study: Study, metrics: pd.DataFrame, audits: pd.DataFrame) -> str:
    """The meaning of ± and bold, delta, and whether the noise was secret."""
    seeds = metrics.loc[metrics["epsilon"] != "", "seed"].nunique()
    deltas = audits.drop_duplicates("dataset").set_index("dataset")["delta"].items()
    lines = [
        f"Cells are means ± standard deviations over at most {seeds} seeds (their number). Bold: of each ε the best",
        f"generator with {FEW} seeds, and those that a 95 % t-interval over the seeds, or the moves above, cannot",
        "distinguish from it; none, where that is all of them, or where all are sets of one method. Few seeds detect",
        "only large differences, and nothing is corrected for many comparisons. A method with several sets has more",
        "chances to be the best.",
        f"δ: {', '.join(f'{delta:.2g} on {name}' for name, delta in deltas)}.",
    ]
    spent = audits.groupby(["method", "epsilon"], sort=False)[SPENT[study.accountant]].max()
    for name in (name for name, spec in study.methods.items() if spec.params.get("init_only") and name in spent):
        parts = (f"{least:.3g} of {epsilon}" for epsilon, least in spent[name].items())
        lines.append(f"{name} is a warm start without DP-SGD: of ε it spends at most {', '.join(parts)}.")
    if study.noise == "repeatable":
        lines.append("Noise is repeatable and seeds are known, so these models are not private:")
        lines.append("epsilon describes the same mechanism with secret noise.")
    return "\n".join(lines)


def cost(jobs: pd.DataFrame, clock: float) -> str:
    """A sentence about the time of all jobs, and of each data set if there are several; `clock`: in seconds."""
    times = jobs[jobs["dataset"] != ""].groupby("dataset")["seconds"].sum()
    each = f" ({', '.join(f'{duration(value)} on {name}' for name, value in times.items())})" if len(times) > 1 else ""
    by_clock = f", {duration(clock)} by the clock" if math.isfinite(clock) else ""
    return (
        f"The {jobs['jobs'].sum()} jobs of the last table together took {duration(jobs['seconds'].sum())}{each}, "
        f"each on one core{by_clock}."
    )


def main() -> None:
    """One folder per study named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", nargs="+", metavar="STUDY")
    parser.add_argument("--command", action="append", help="how it was run (default: snakemake --cores 2)")
    parser.add_argument("--machine", help="on what it was run (default: this machine)")
    parser.add_argument("--restore", action="store_true", help="copy back what was kept, and keep nothing")
    args = parser.parse_args()
    for study in args.study:
        if missing := [path for path in study.split(",") if not Path(path).is_file()]:  # the page links to them
            parser.error(f"{missing[0]!r} is no file; name study files, such as config/digits.yaml")
        if args.restore:
            restore(ROOT / "results" / load_study(study).study)
            continue
        spec, _ = open_study(ROOT / "results" / load_study(study).study)  # as it ran last, which may be a part
        parts = {"only": [spec.only] * bool(spec.only), "without": spec.without}
        chosen = [f"{name}='{' or '.join(map(str, some))}'" for name, some in parts.items() if some]
        default = ["snakemake --cores 2 --configfile", study.replace(",", " "), *["--config"] * bool(chosen), *chosen]
        keep(study, spec, args.command or [" ".join(default)], args.machine or where(2))


if __name__ == "__main__":
    main()

# The study, and the only owner of the directory scheme: Python receives explicit paths.

import csv
import os
import re
import subprocess
import sys

from snakemake.exceptions import WorkflowError

from dpdm import config as schema
from dpdm import specs
from dpdm.errors import UserError
from dpdm.report import selection

try:
    for path in workflow.configfiles:
        schema.read_yaml(path)  # Snakemake's own reader takes the last of two equal keys
    STUDY = schema.parse_study(
        dict(config),
        " ".join(map(str, workflow.configfiles)) or "the configuration",
        overlaid=len(workflow.configfiles) > 1,
    )
    selection.check_entries(STUDY)
    schema.check_writable(STUDY.results_dir)
except UserError as error:
    raise WorkflowError(str(error))

# Jobs run the Python that runs Snakemake, whether or not its environment was activated. glibc is told to keep freed
# memory: else the buffers of per-example gradients go back to the kernel, and are faulted in again, at every step.
MALLOC = "MALLOC_MMAP_THRESHOLD_=2147483648 MALLOC_TRIM_THRESHOLD_=4294967296 MALLOC_TOP_PAD_=67108864"
shell.prefix(f"export PATH={os.path.dirname(sys.executable)}:$PATH {MALLOC}; ")

DATA = f"{STUDY.results_dir}/data/{{dataset}}"
ROOT = f"{STUDY.results_dir}/{STUDY.study}"
RUN = f"{ROOT}/runs/{{dataset}}/{{method}}/eps{{epsilon}}/seed{{seed}}"
SET = f"{RUN}/{{sampler}}"
ANCHOR = f"{ROOT}/anchors/{{dataset}}/{{anchor}}"
SCORES = ["fidelity.json", "utility.json"] + (["inception.json"] if STUDY.evaluation.fid else [])  # of one set, or anchor
FIGURES = f"{ROOT}/figures"
BENCHMARKS = f"{ROOT}/benchmarks"
PUBLISHED = f"{workflow.basedir}/results/published"  # tracked, so it stands beside the Snakefile
STUDY_JSON = f"{ROOT}/study.json"
STUDY_SPEC = STUDY.model_dump_json()  # in the order of the file: tables follow it
RUNS = STUDY.runs()  # the grid, worked out once: with ten seeds it has a thousand runs
ATTACKED = STUDY.attacked_runs()  # likewise
COMPARISONS = selection.comparisons(STUDY)  # likewise


wildcard_constraints:
    dataset="|".join(STUDY.datasets),
    method="|".join(STUDY.methods),
    anchor="|".join(STUDY.anchors) or "none",
    epsilon="|".join(re.escape(specs.epsilon_text(epsilon)) for epsilon in STUDY.epsilons),
    seed=r"\d+",
    comparison="|".join(selection.COMPARISONS),
    sampler="[a-z][a-z0-9_]*",


def growing(amount):
    """Memory or minutes of a job: more at each attempt, up to fourfold. How many attempts there are, a profile says."""
    return lambda wildcards, attempt: amount * min(attempt, 4)


def run_of(wildcards):
    """The RunSpec that a path names."""
    return STUDY.run(wildcards.dataset, wildcards.method, float(wildcards.epsilon), int(wildcards.seed))


def anchor_of(wildcards):
    """The coordinates that the path of an anchor's scores names."""
    return schema.Coordinates(
        study=STUDY.study, dataset=wildcards.dataset, method=wildcards.anchor, epsilon=None, seed=int(wildcards.seed)
    )


def anchor_images(wildcards):
    """What stands for the synthetic images of an anchor."""
    return rules.prepare.output.train if wildcards.anchor == "real" else rules.label_only.output


def run_paths(pattern, runs):
    """One path per run."""
    return [run.path(pattern) for run in runs]


def method_paths(pattern, dataset=None):
    """One path per dataset (or of this one) and method that serves it."""
    runs = [run for run in RUNS if dataset in (None, run.dataset)]
    return list(dict.fromkeys(pattern.format(dataset=r.dataset, method=r.method) for r in runs))


def report_figures(name):
    """DATASET=PATH of one figure of every dataset."""
    return [f"{d}={FIGURES}/{d}_{name}" for d in STUDY.datasets]


def set_paths(pattern, runs):
    """One path per synthetic set: every sampler of every run; a classifier has none."""
    return [
        path.replace("SAMPLER", sampler)
        for r in runs
        for sampler in STUDY.methods[r.method].samplers
        for path in run_paths(pattern.replace("{sampler}", "SAMPLER"), [r])
    ]


def anchor_paths(pattern):
    """One path per anchor row."""
    return [
        pattern.format(dataset=c.dataset, anchor=c.method, seed=c.seed) for c in STUDY.anchor_coordinates()
    ]


def classifier_runs():
    """The runs that are scored themselves, having no images."""
    return [run for run in RUNS if STUDY.is_classifier(run.method)]


def shown_sets(wildcards):
    """Name and path of the synthetic sets on a dataset's sample page: the first seed of every generator and epsilon."""
    found = {}
    for run in RUNS:
        if run.dataset == wildcards.dataset and run.seed == min(STUDY.seeds):
            samplers = STUDY.methods[run.method].samplers
            for sampler, path in zip(samplers, set_paths(f"{SET}/synthetic.npz", [run])):
                shown = [run.method, sampler] if len(samplers) > 1 else [run.method]
                found[",".join([*shown, specs.epsilon_text(run.epsilon), str(run.seed)])] = path
    return found


def published_places():
    """By table of the paper its data sets, with the sides of their images; of a broken file none: `validate` names it."""
    places = {}
    try:
        with open(f"{PUBLISHED}/published.csv", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if row["protocol"] == "paper":
                    places.setdefault(f"table_{row['table']}", set()).add((row["dataset"], int(row["resolution"])))
    except (OSError, KeyError, TypeError, ValueError, csv.Error):
        return {}
    return places


PUBLISHED_PLACES = published_places()  # read once, for all tables


def table_inputs(number):
    """Scores and audits of what a table shows."""
    table = f"table_{number}"
    shown = set(selection.table_runs(STUDY, table, PUBLISHED_PLACES.get(table, ())))
    paths = []
    for run in RUNS:
        for sampler in STUDY.methods[run.method].samplers or ("",):
            if (run.dataset, run.method, sampler) in shown:
                scores = [f"{SET}/{name}" for name in SCORES] if sampler else [rules.score_classifier.output[0]]
                paths += [run.path(score.replace("{sampler}", sampler)) for score in [*scores, rules.audit.output.audit]]
    return list(dict.fromkeys(paths))

# The study, and the functions that rules call on it. dpdm/layout.py owns all paths. Jobs read RESULTS/STUDY/study.json.
# It is written before the first job, so that an edit of the study does not change a running job.

import os
import re
import shlex
import subprocess
import sys

from snakemake.exceptions import WorkflowError
from snakemake.logging import logger

from dpdm import config as schema
from dpdm import specs
from dpdm.cli import terminal
from dpdm.errors import UserError
from dpdm.layout import ANCHOR, INSTALLED, PRIVACY_STATUS, PUBLISHED, ROOT, RUN, SET, TABLE_KINDS, Layout
from dpdm.report import registry, selection

terminal.show(workflow, logger)
FILES = [schema.shown_file(path) for path in workflow.configfiles]
try:
    for path in workflow.configfiles:
        schema.read_yaml(path)  # Snakemake's reader keeps the last of two equal keys
    for key in ("only", "without"):  # an unset variable of the shell would mean the whole study
        if workflow.config_settings.config.get(key, key) in ("", None):
            raise UserError(f"--config {key}= is empty; write {key}='method=A,B', or leave it out")
    STUDY = schema.parse_study(dict(config), " ".join(FILES) or "the configuration", overlaid=len(FILES) > 1)
    selection.check_entries(STUDY)
    schema.check_writable(STUDY.results_dir)
except UserError as error:
    raise WorkflowError(str(error))

# Jobs use the Python that runs Snakemake, even if its environment is not activated. With --sdm conda or apptainer they
# use the Python of that environment, on this code. MALLOC lets glibc keep freed memory; otherwise every step returns
# the buffers of per-example gradients to the kernel and requests them again.
MALLOC = "MALLOC_MMAP_THRESHOLD_=2147483648 MALLOC_TRIM_THRESHOLD_=4294967296 MALLOC_TOP_PAD_=67108864"
FOUND = f"PYTHONPATH={shlex.quote(str(ROOT))}"
if not workflow.deployment_settings.deployment_method:
    FOUND = f"PATH={shlex.quote(os.path.dirname(sys.executable))}:$PATH"
elif INSTALLED:
    raise WorkflowError("--sdm needs a clone of the repository, and dpdm is installed from a wheel; leave --sdm out")
shell.prefix(f"export {FOUND.replace('{', '{{').replace('}', '}}')} {MALLOC}; ")  # Snakemake formats the prefix


# An image that you build (docs/deploying.md), in the working folder.
container: "dpdm-bench.sif"


PATHS = Layout(STUDY.results_dir, STUDY.study)
if workflow.modifier.path_modifier.replace_prefix(PATHS.root) != PATHS.root:
    raise WorkflowError(
        f"a module with `prefix` or `replace_prefix` moves {PATHS.root}, which jobs do not follow; delete that line, and "
        "set `results_dir` in the study"
    )
STUDY_SPEC = STUDY.model_dump_json()  # in the order of the file, which is the order of the tables
# Computed once: with ten seeds the grid has a thousand runs.
RUNS = STUDY.runs()
DATASETS = list(dict.fromkeys(run.dataset for run in RUNS))  # the data sets that have a run
ATTACKED = STUDY.attacked_runs()
FIGURES, TABLES = registry.figures(STUDY), registry.tables(STUDY)
SCORES = selection.score_files(STUDY)


wildcard_constraints:
    dataset="|".join(STUDY.datasets),
    method="|".join(STUDY.methods),
    anchor="|".join(STUDY.anchors) or "none",
    extractor="|".join(STUDY.evaluation.extractors),
    epsilon="|".join(re.escape(specs.epsilon_text(epsilon)) for epsilon in STUDY.epsilons),
    seed=r"\d+",
    figure="|".join(FIGURES) or "none",
    sampler="[a-z][a-z0-9_]*",


def command_for(target):
    """The command that makes a target of this study again."""
    if INSTALLED and workflow.modifier.is_main_snakefile():
        return shlex.join(["dpdm", "run", ",".join(FILES), target])
    return shlex.join(["snakemake", "--cores", "2", target, *["--configfile"] * bool(FILES), *FILES])


def growing(amount):
    """Memory (MB) or minutes of a job: more at each attempt, up to fourfold. A profile sets the number of retries."""
    return lambda wildcards, attempt: amount * min(attempt, 4)


def run_of(wildcards):
    """The RunSpec that a path names."""
    return STUDY.run(wildcards.dataset, wildcards.method, float(wildcards.epsilon), int(wildcards.seed))


def anchor_of(wildcards):
    """The coordinates that the path of an anchor's scores contains."""
    return specs.Coordinates(
        study=STUDY.study, dataset=wildcards.dataset, method=wildcards.anchor, epsilon=None, seed=int(wildcards.seed)
    )


def references(wildcards):
    """The statistics of the study's extractors on the real images, and extractor.pt if one is trained."""
    names = STUDY.evaluation.extractors
    return [PATHS.data(wildcards.dataset, f"{name}.npz") for name in names] + trained_extractor(wildcards, names)


def trained_extractor(wildcards, names):
    """The extractor.pt of a data set, if one of the extractors is trained on it."""
    trained = set(names) - set(STUDY.evaluation.public_extractors)
    return [PATHS.data(wildcards.dataset, "extractor.pt")] if trained else []


def run_files(file, runs=RUNS):
    """One path per run."""
    return [PATHS.run(*run.place, file) for run in runs]


def runs_of(wildcards, runs=RUNS):
    """The runs of a method on a dataset."""
    return [run for run in runs if (run.dataset, run.method) == (wildcards.dataset, wildcards.method)]


def set_files(file):
    """One path per synthetic set, that is per sampler of a run; a classifier has none."""
    return [PATHS.set(*run.place, sampler, file) for run in RUNS for sampler in STUDY.samplers_of(run)]


def anchor_files(file):
    """One path per anchor row."""
    return [PATHS.anchor(c.dataset, c.method, str(c.seed), file) for c in STUDY.anchor_coordinates()]


def once(function, runs=RUNS):
    """One path per dataset and method of the runs."""
    return list(dict.fromkeys(function(run.dataset, run.method) for run in runs))


# Before any job, validate the whole study with its methods and params, and write study.json, from which jobs read their
# recipes. study.json is no file of the DAG, since its modification time would rerun everything; each job gets its part
# of the study as params. A rule before training does not work. When it has to run, Snakemake does not check whether the
# params of the jobs behind its `ancient` output changed. An edited recipe would be validated but not trained, and the
# report would show its old scores.
def write_study():
    forced = workflow.dag_settings.forcerun
    again = workflow.dag_settings.forceall or any(name.endswith(("train", "model.pt")) for name in forced)
    command = [sys.executable, "-m", "dpdm", "validate", "-", *(["--again"] if again else [])]
    if subprocess.run(command, input=STUDY_SPEC, text=True).returncode:
        raise WorkflowError("the study was refused for the reason above; nothing was run")


onstart:
    write_study()


if not workflow.modifier.is_main_snakefile():  # Snakemake does not run the onstart of a module
    workflow._onstart = lambda log, outer=workflow._onstart: (write_study(), outer(log))

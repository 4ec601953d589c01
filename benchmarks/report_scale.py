"""How long tables, figures and report take for a study of thousands of runs.

python benchmarks/report_scale.py [--datasets 5] [--methods 10] [--epsilons 10] [--seeds 10] [--steps 1000]

The script makes result files with random, meaningless numbers in a temporary folder; the study never runs.
"""

import argparse
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from dpdm import artifacts
from dpdm.config import Study, parse_study
from dpdm.layout import Layout
from dpdm.provenance import provenance
from dpdm.report import registry
from dpdm.specs import Coordinates
from dpdm.study import study_json

ROOT = Path(__file__).parents[1]
PATHS = Layout("results", "scale")


def make_study(args: argparse.Namespace) -> Study:
    """A grid of the wanted size."""
    recipe = {"lr": 1e-3, "dp": {"expected_batch_size": 128, "steps": args.steps, "max_grad_norm": 1.0}}
    value = {
        "study": "scale",
        "datasets": {f"data{i}": {"source": "digits", "delta": 1e-5} for i in range(args.datasets)},
        "epsilons": [i + 1 for i in range(args.epsilons)],
        "seeds": list(range(args.seeds)),
        "methods": {
            f"method{i}": {"impl": f"a.b{i}:C", "params": recipe | {"network": {"channels": i + 1}}}
            for i in range(args.methods)
        },
        "evaluation": {"synthetic_images": 1000},
    }
    return parse_study(value, "scale")


def make_results(args: argparse.Namespace) -> None:
    """Every file that the verbs below read, in the working folder."""
    from dpdm.privacy.ledger import Event, Ledger

    study, rng, made_by = make_study(args), np.random.default_rng(0), provenance()
    artifacts.write_text(PATHS.study, study_json(study))
    images = {"images": np.zeros((100, 1, 8, 8), np.uint8), "labels": np.arange(100) % 10}
    for dataset in study.datasets:
        artifacts.write_npz(PATHS.data(dataset, "train.npz"), images)
    for c in study.anchor_coordinates():
        write_scores(Path(PATHS.anchor(c.dataset, c.method, str(c.seed))), c, made_by, rng)
    event = Event("poisson_subsampled_gaussian", "net", 2.0, 1.0, 0.01, args.steps)
    audits: dict[tuple[str, str], list[dict]] = {}
    for run in study.runs():
        folder, c = Path(PATHS.run(*run.place)), run.coordinates()
        place = c.model_dump(mode="json")
        ledger = Ledger(60000, 1e-5, run.epsilon, "rdp", place, run.model_dump(mode="json"), made_by, [event])
        facts = ledger.to_json()
        artifacts.write_json(folder / "ledger.json", facts)
        artifacts.write_text(folder / "train.log", "")
        write_scores(folder / "default", run.coordinates("default"), made_by, rng)
        if run.seed == study.seeds[0]:
            artifacts.write_npz(folder / "default" / "synthetic.npz", images)
        for rule in ("train", "sample", "score"):
            artifacts.write_text(PATHS.benchmark(rule, *run.place), "s\th:m:s\tmax_rss\n1.5\t0:00:01\t500\n")
        keys = ("recipe", "provenance", "neighbouring_relation", "noise", "n", "delta", "accountant", "target_epsilon")
        audited = {key: facts[key] for key in (*keys, "events")} | {"coordinates": place, "passed": True}
        audited |= {f"epsilon_{name}": run.epsilon for name in ("rdp", "prv", "pld")} | {"recipe_checked": True}
        audits.setdefault((run.dataset, run.method), []).append(audited)
    for (dataset, method), rows in audits.items():
        artifacts.write_json(PATHS.audit(dataset, method), {"runs": rows})


def write_scores(folder: Path, c: Coordinates, made_by: dict[str, str], rng: np.random.Generator) -> None:
    """fidelity.json and utility.json with every metric."""
    names = {"fd": "lower", "kid": "lower", "precision": "higher", "recall": "higher"}
    distances = [
        {"metric": n, "extractor": "small_cnn", "direction": d, "reference": r, "value": rng.uniform(1, 9)}
        for n, d in names.items()
        for r in ("train", "test")
    ]
    pixels = {"extractor": "", "direction": "higher", "reference": "test"}
    accuracies = [{"metric": f"acc_{n}", **pixels, "value": rng.uniform(10, 90)} for n in ("logreg", "mlp", "cnn")]
    common = {"coordinates": c.model_dump(mode="json"), "provenance": made_by, "num_synthetic": 1000}
    artifacts.write_json(folder / "fidelity.json", common | {"metrics": distances})
    artifacts.write_json(folder / "utility.json", common | {"protocol": "standard", "metrics": accuracies})


def measure(name: str, command: list[str], **options) -> float:
    """Runs a command to its end; prints seconds of wall time and peak memory, and returns the seconds."""
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, **options)
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - start
    if status:
        raise SystemExit(f"{name} failed:\n{said}")
    cpu = usage.ru_utime + usage.ru_stime
    print(f"{name:24} {seconds:8.1f} s wall {cpu:8.1f} s CPU {usage.ru_maxrss / 1024:8.0f} MiB", flush=True)
    return seconds


def main() -> None:
    """Measures and prints a line per verb."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("datasets", 5), ("methods", 10), ("epsilons", 10), ("seeds", 10), ("steps", 1000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    study = make_study(args)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        start = time.monotonic()
        # In a separate process, since a child's peak memory includes its parent's memory at the start.
        maker = multiprocessing.get_context("spawn").Process(target=make_results, args=(args,))
        maker.start()
        maker.join()
        if maker.exitcode:
            raise SystemExit("the results could not be made")
        print(f"{len(study.runs()):,} runs made in {time.monotonic() - start:.0f} s")

        def verb(name: str, *more: str) -> float:
            return measure(name, [sys.executable, "-m", "dpdm", name, PATHS.root, *more], env=environment)

        first, *others = study.datasets
        drawn = [name for name, (_, dataset) in registry.figures(study).items() if dataset in (first, "")]
        total = verb("collect") + verb("tables") + verb("figures", *drawn)
        for name in ("curves", "samples"):  # the report shows the pictures of all data sets
            picture = artifacts.read_bytes(PATHS.figure(f"{first}_{name}", ".svg"))
            for other in others:
                artifacts.write_bytes(PATHS.figure(f"{other}_{name}", ".svg"), picture)
        total += verb("report")
        print(f"all but the figures of the other datasets: {total:.1f} s")
        print(f"report.html: {Path(PATHS.report).stat().st_size / 2**20:.1f} MiB")
        os.chdir(ROOT)


if __name__ == "__main__":
    main()

"""The command line: `python -m dpdm VERB`. One thin function per verb; numerical libraries load only where used."""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import threadpoolctl

from dpdm import artifacts, config, specs
from dpdm.errors import UserError
from dpdm.report.selection import COMPARISONS, check_entries


def verb_schema(_: argparse.Namespace) -> None:
    """print the JSON Schema of a study file, for editors"""
    print(artifacts.canonical_json(config.Study.model_json_schema()), end="")


def verb_check(args: argparse.Namespace) -> None:
    """print the grid a study resolves to: runs, jobs, epsilon and noise per run; tries methods on random images"""
    study = config.load_study(args.study)  # before the imports below, which take seconds
    check_entries(study)
    from dpdm.plan import describe
    from dpdm.rehearsal import rehearse_study

    print(describe(study))
    print(f"\nbegun on random images, where no record moved another's gradient: {', '.join(rehearse_study(study))}")


def verb_validate(args: argparse.Namespace) -> None:
    """import every method of a study, build every params, check its tables and FID weights; with --out, write it"""
    from dpdm.plan import planned_runs

    study = specs.parse_spec(config.Study, args.spec)
    if args.published:
        from dpdm.report.published import check_tables

        check_tables(study, args.published)
    planned_runs(study)
    if study.evaluation.fid:
        from dpdm.evaluation.inception import WEIGHTS_SHA256

        inception = _inception(study.evaluation.fid)
        if inception.weights_sha256 != WEIGHTS_SHA256:
            print(
                f"warning: {inception.path} is not the file that torch-fidelity publishes, so what is called FID here "
                "may be no FID; its SHA-256 is recorded beside every value",
                file=sys.stderr,
            )
    if args.out:
        artifacts.write_text(args.out, study.model_dump_json(indent=2) + "\n")  # in the order of the file


def verb_prepare(args: argparse.Namespace) -> None:
    """load a dataset, verify it, and write its splits as npz"""
    from dpdm import data
    from dpdm.sources import AnySource

    spec = specs.parse_spec(AnySource, args.spec)
    splits = spec.load()
    for split, images in splits.items():
        data.write_images(args.out / f"{split}.npz", images)
    artifacts.write_json(args.out / "dataset.json", spec.facts(splits))


def verb_label_only(args: argparse.Namespace) -> None:
    """write the label-only floor: uniform noise images with balanced labels"""
    from dpdm import data

    data.write_images(args.out, data.label_only(data.read_meta(args.dataset), args.images))


def verb_train(args: argparse.Namespace) -> None:
    """train one run; writes the model, its ledger and the training curve"""
    if args.processes > 1 and "WORLD_SIZE" not in os.environ:  # this one becomes torchrun, which starts them all
        command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={args.processes}"]
        os.execv(sys.executable, [sys.executable, *command, "-m", "dpdm", *sys.argv[1:]])
    from dpdm import data, method, processes
    from dpdm.checkpoint import Checkpoint
    from dpdm.privacy.key import key_path
    from dpdm.progress import Log

    spec = specs.parse_spec(specs.RunSpec, args.spec)
    if args.noise:
        spec = spec.model_copy(update={"noise": args.noise})
    if args.keep_key and (spec.noise != "secret" or not args.checkpoint):
        raise UserError("--keep-key needs secret noise (--noise secret) and --checkpoint, beside which the key stays")
    title = f"train {spec.method} on {spec.dataset}, epsilon {specs.epsilon_text(spec.epsilon)}, seed {spec.seed}"
    images = data.read_images(args.data)
    with processes.joined() as group:
        log = Log(title, quiet=not group.is_first)
        model, ledger = method.train(spec, images, log, group, args.checkpoint, args.checkpoint_interval)
        if not group.is_first:
            return
    state = {"impl": spec.impl, "state": model.state()}
    artifacts.write_tensors(args.model, state)
    artifacts.write_jsonl(args.curve, log.rows)
    artifacts.write_json(args.ledger, ledger.to_json())
    if args.checkpoint:
        kept = [] if args.keep_key else [key_path(args.checkpoint)]
        for path in (args.checkpoint, Checkpoint.aside(args.checkpoint), *kept):
            path.unlink(missing_ok=True)  # only now: the results are safe


def verb_audit(args: argparse.Namespace) -> None:
    """re-derive epsilon from ledgers, under all accountants; fails above a target, or where recipe and events differ"""
    from dpdm.plan import MethodMissing, check_recipe
    from dpdm.privacy.audit import audit, describe_audit, exported

    ledgers = [artifacts.read_json(path) for path in args.ledgers]
    audits = [audit(ledger, str(path)) for ledger, path in zip(ledgers, args.ledgers, strict=True)]
    above = [str(path) for row, path in zip(audits, args.ledgers, strict=True) if not row["passed"]]
    faults = (
        [f"epsilon is above its target in {', '.join(above)}: do not publish; train the run again"] if above else []
    )
    for row, ledger, path in zip(audits, ledgers, args.ledgers, strict=True):
        try:
            row["recipe_checked"] = check_recipe(ledger, str(path), args.without_recipe)
        except UserError as error:
            row |= {"recipe_checked": not isinstance(error, MethodMissing), "passed": False}
            faults.append(str(error))
        print(describe_audit(row, str(path)))
    if faults:
        raise UserError("; ".join(faults))
    if args.out:
        artifacts.write_json(args.out, {"runs": audits})
    if args.export:
        rows = [exported(ledger, str(path)) for ledger, path in zip(ledgers, args.ledgers, strict=True)]
        artifacts.write_json(args.export, {"runs": rows})


def verb_attack(args: argparse.Namespace) -> None:
    """attack what private runs did, on canaries: a lower bound of epsilon each; fails if one is above its target"""
    from dpdm.attacks.white_box import attack, describe_attack

    if bool(args.study) == bool(args.ledgers):
        raise UserError("attack needs a study (and, if not all of it is meant, a run), or else --ledgers")
    if args.black_box:
        found = _black_box(args)
    else:
        paths = args.ledgers or _attacked_ledgers(args)
        ledgers = [artifacts.read_json(path) for path in paths]  # all of them before any compute
        found = [attack(ledger, str(path)) for ledger, path in zip(ledgers, paths, strict=True)]
    for one in found:
        print(describe_attack(one))
    if args.out:
        artifacts.write_json(args.out, {"attacks": found})
    if broken := [describe_attack(one) for one in found if one["attack"]["exceeded"]]:
        raise UserError("the code does not keep its promise, publish nothing that it made:\n" + "\n".join(broken))


def verb_sample(args: argparse.Namespace) -> None:
    """draw one synthetic set from a model, with balanced labels"""
    from dpdm import data, method, processes
    from dpdm.rng import Streams

    spec = specs.parse_spec(specs.SampleSpec, args.spec)
    coordinates = spec.coordinates
    chosen = method.load_method(spec.impl, "generator")
    model = _restored(chosen, args.model, spec.impl)
    if hasattr(model, "to"):  # the floors have nothing to move
        model.to(processes.device())
    classes = data.read_meta(args.dataset).num_classes
    where = f"methods.{coordinates.method}.samplers.{coordinates.sampler}"
    sampler = config.parse_params(chosen.SamplerParams, spec.sampler_params, where)
    labels = data.balanced_labels(spec.synthetic_images, classes)
    images = model.sample(labels, sampler, Streams(coordinates.seed, f"sample/{coordinates.sampler}"))
    origin = f"samples of {coordinates.method}"
    synthetic = data.ImageSet(images, labels, classes, origin, specs.spec_json(spec))
    data.write_images(args.out, synthetic)


def verb_extractor(args: argparse.Namespace) -> None:
    """train the small feature extractor of a dataset's image distance, on real data"""
    from dpdm import data
    from dpdm.evaluation.extractor import train_extractor

    artifacts.write_tensors(args.out, train_extractor(data.read_images(args.train), data.read_images(args.test)))


def verb_reference(args: argparse.Namespace) -> None:
    """compute Inception's statistics of a dataset's real images, once for all scores"""
    from dpdm import data
    from dpdm.evaluation.inception import reference

    inception = _inception(specs.parse_spec(specs.FidSpec, args.spec))
    real = {"train": data.read_images(args.train), "test": data.read_images(args.test)}
    artifacts.write_npz(args.out, reference(real, inception))


def verb_score(args: argparse.Namespace) -> None:
    """score a synthetic set: distances to the real images, and classifiers trained on it"""
    from dpdm import data
    from dpdm.evaluation import classifiers, extractor, fidelity

    spec = specs.parse_spec(specs.ScoreSpec, args.spec)
    coordinates, evaluation = spec.coordinates, spec.evaluation
    synthetic, test = data.read_images(args.synthetic), data.read_images(args.test)
    references = {"train": data.read_images(args.train), "test": test}
    distances = fidelity.measure(synthetic, references, args.extractor, coordinates.dataset, coordinates.seed)
    facts = {"extractor": extractor.load_extractor(args.extractor)[1]}
    accuracies = classifiers.measure(synthetic, test, evaluation.classifiers, coordinates.seed, evaluation.protocol)
    common = _judged(synthetic, coordinates)
    artifacts.write_json(args.fidelity, common | facts | {"metrics": distances})
    artifacts.write_json(args.utility, common | {"protocol": evaluation.protocol, "metrics": accuracies})


def verb_score_inception(args: argparse.Namespace) -> None:
    """score a synthetic set by Inception: FID and its like, against the statistics that `reference` wrote"""
    from dpdm import data
    from dpdm.evaluation.inception import measure

    spec = specs.parse_spec(specs.InceptionScoreSpec, args.spec)
    synthetic = data.read_images(args.synthetic)
    distances, facts = measure(synthetic, args.reference, _inception(spec.fid), spec.coordinates.seed)
    common = _judged(synthetic, spec.coordinates)
    artifacts.write_json(args.out, common | {"inception": facts, "metrics": distances})


def verb_score_classifier(args: argparse.Namespace) -> None:
    """score a classifier method: the accuracy of its model on real test images"""
    from dpdm import data, method
    from dpdm.evaluation import classifiers
    from dpdm.provenance import provenance

    spec = specs.parse_spec(specs.ClassifierScoreSpec, args.spec)
    chosen = method.load_method(spec.impl, "classifier")
    model = _restored(chosen, args.model, spec.impl)
    content = {
        "coordinates": spec.coordinates.model_dump(mode="json"),
        "provenance": provenance(),
        "num_synthetic": 0,
        "protocol": config.DIRECT,
        "metrics": classifiers.measure_trained(model.predict, model.family, data.read_images(args.test)),
    }
    artifacts.write_json(args.utility, content)


def verb_collect(args: argparse.Namespace) -> None:
    """gather the scores and audits of a study into two tidy csv files"""
    from dpdm.report import collect

    study = _study(args.study)
    metrics, audits = collect.collect(study, args.folders, args.unfinished)
    for hole in collect.holes(study, metrics, audits):
        print(f"missing: {hole}", file=sys.stderr)
    collect.write_csv(args.metrics, metrics)
    collect.write_csv(args.audits, audits)


def verb_tables(args: argparse.Namespace) -> None:
    """write the results and the audit as csv, md, tex and html"""
    from dpdm.report import collect, tables

    metrics = collect.read_csv(args.metrics, collect.METRICS)
    tables.write_table(tables.results_table(metrics), args.results, printed=tables.printed_results(metrics))
    tables.write_table(tables.audit_table(collect.read_csv(args.audits, collect.AUDITS)), args.audit)


def verb_paper_table(args: argparse.Namespace) -> None:
    """write one of the paper's tables, our runs beside its numbers, as csv, md, tex and html"""
    from dpdm.report import collect, tables
    from dpdm.report.paper import paper_table, table_files
    from dpdm.report.published import read_published

    study, published = _study(args.study), read_published(args.published, args.privacy_status)
    # No other file is read: what a table does not show may be of other code, or be made again at this moment.
    files = table_files(args.table, study, published, args.run_folder, args.run_audit)
    metrics, audits = collect.collect(study, files, args.run_folder if args.unfinished else None)
    table = paper_table(args.table, study, metrics, audits, published)
    for note in table.notes:
        print(note, file=sys.stderr)
    tables.write_table(table, args.out, printed=table.by("Dataset"))


def verb_figures(args: argparse.Namespace) -> None:
    """draw what one dataset's runs scored and what they made"""
    from dpdm.report import collect, figures

    metrics = collect.read_csv(args.metrics, collect.METRICS)
    figures.save_figure(figures.epsilon_curves(metrics, args.dataset), args.curves)
    samples = list(map(figures.sample_set, args.samples))
    figures.save_figure(figures.sample_grid(args.dataset, args.real, samples), args.grid)


def verb_comparison(args: argparse.Namespace) -> None:
    """draw the rank of each method over a study, or the parameter that it varies against the scores"""
    from dpdm.report import collect, comparisons, figures

    study = _study(args.study)
    metrics = collect.read_csv(args.metrics, collect.METRICS)
    draw = {"ranks": comparisons.rank_figure, "parameter": comparisons.parameter_figure}[args.kind]
    figures.save_figure(draw(metrics, study), args.out)


def verb_report(args: argparse.Namespace) -> None:
    """write the self-contained report.html"""
    from dpdm.report import collect, html
    from dpdm.report.published import read_published
    from dpdm.report.runs import Places

    study = _study(args.study)
    text = html.render_report(
        study,
        collect.read_csv(args.metrics, collect.METRICS),
        collect.read_csv(args.audits, collect.AUDITS),
        collect.read_benchmarks(args.benchmarks, study),
        dict(map(_named_path, args.curves)),
        dict(map(_named_path, args.grids)),
        args.command,
        published=read_published(args.published, args.privacy_status),
        comparisons=dict(map(_named_path, args.comparisons)),
        places=Places(args.run_folder, args.anchors, args.data, args.out),
    )
    artifacts.write_text(args.out, text)


def _black_box(args: argparse.Namespace) -> list[dict[str, Any]]:
    from dpdm import data
    from dpdm.attacks.black_box import attack_black_box
    from dpdm.progress import Log

    if args.ledgers:
        raise UserError("a black-box attack trains anew: give a study and a run instead of --ledgers")
    study = config.load_study(args.study)
    folder = args.data or f"{study.results_dir}/data/{{dataset}}"
    runs = _attacked_runs(study, args)
    images = {run.dataset: data.read_images(f"{folder.format(dataset=run.dataset)}/train.npz") for run in runs}
    found = []
    for run in runs:
        samplers = study.methods[run.method].samplers
        sample = study.sample(run, next(iter(samplers))) if samplers else None
        log = Log(f"black-box attack on {run.method} on {run.dataset}, epsilon {specs.epsilon_text(run.epsilon)}")
        found.append(attack_black_box(run, images[run.dataset], sample, args.canaries, log))
    return found


def _attacked_ledgers(args: argparse.Namespace) -> list[Path]:
    study = config.load_study(args.study)
    root = f"{study.results_dir}/{study.study}"  # as in workflow/rules/common.smk
    folder = args.runs or f"{root}/runs/{{dataset}}/{{method}}/eps{{epsilon}}/seed{{seed}}"
    return [Path(run.path(folder)) / "ledger.json" for run in _attacked_runs(study, args)]


def _attacked_runs(study: config.Study, args: argparse.Namespace) -> list[specs.RunSpec]:
    """The runs of a study that `attack` means."""
    if not args.run_name:
        return study.attacked_runs()
    named = {"/".join([r.dataset, r.method, specs.epsilon_text(r.epsilon), str(r.seed)]): r for r in study.runs()}
    if args.run_name not in named:
        raise UserError(
            f"{args.study} has no run {args.run_name}, written DATASET/METHOD/EPSILON/SEED; "
            f"{config.nearest(args.run_name, named)}"
        )
    return [named[args.run_name]]


def _restored(method: Any, path: Path, impl: str) -> Any:
    """The model of a method in a file that `train` wrote."""
    saved = artifacts.read_tensors(path)
    if saved.get("impl") != impl:
        raise UserError(f"{path} was made by {saved.get('impl')}, not by {impl}; train the run again")
    try:
        return method.Model.from_state(saved["state"])
    except Exception as error:  # an edit of the method's code can break this in any way
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(
            f"{path} does not fit the code of {impl} as it is now ({reason}); train the run again with "
            "`snakemake --forcerun train`"
        ) from error


def _judged(synthetic: Any, coordinates: specs.Coordinates) -> dict[str, Any]:
    """What every file of scores says of its synthetic set: which, how many images, drawn how, judged by which code."""
    from dpdm.provenance import provenance

    facts = {
        "coordinates": coordinates.model_dump(mode="json"),
        "provenance": provenance(),
        "num_synthetic": len(synthetic.images),
    }
    if synthetic.drawn_by:
        facts["drawn_by"] = specs.parse_spec(specs.SampleSpec, synthetic.drawn_by).model_dump(mode="json")
    return facts


def _inception(spec: specs.FidSpec):
    from dpdm.evaluation.inception import find_weights, load_inception

    return load_inception(find_weights(spec.weights_path))


def _study(path: Path) -> config.Study:
    return config.parse_study(artifacts.read_json(path), str(path))


def _named_path(text: str) -> tuple[str, Path]:
    name, _, path = text.partition("=")
    return name, Path(path)


def _limit_threads(count: int) -> None:
    """Keeps torch, OpenMP and BLAS to `count` threads, those loaded already and those to come.

    Two jobs of two threads each on two cores were seen ten times slower than one after the other.
    """
    for library in ("OMP", "MKL", "OPENBLAS", "NUMEXPR"):
        os.environ[f"{library}_NUM_THREADS"] = str(count)
    threadpoolctl.threadpool_limits(count)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dpdm", description="A benchmark around DP diffusion models.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def add(verb, *paths: str, spec: bool = False) -> argparse.ArgumentParser:
        sub = verbs.add_parser(verb.__name__.removeprefix("verb_"), help=verb.__doc__, description=verb.__doc__)
        sub.set_defaults(run=verb)
        sub.add_argument("--threads", type=int, default=1, help="threads this job may use")
        if spec:
            sub.add_argument("--spec", required=True, help="resolved spec, JSON")
        for path in paths:
            sub.add_argument(f"--{path}", type=Path, required=True)
        return sub

    add(verb_schema)
    add(verb_check).add_argument("study", help="a study file, e.g. config/digits.yaml")
    validate = add(verb_validate, spec=True)
    validate.add_argument("--out", type=Path, help="where to write the resolved study")
    validate.add_argument("--published", type=Path, help="published numbers, against which `tables` is checked")
    add(verb_prepare, "out", spec=True)
    add(verb_label_only, "dataset", "out").add_argument("--images", type=int, required=True, help="how many")
    train = add(verb_train, "data", "model", "ledger", "curve", spec=True)
    train.add_argument("--checkpoint", type=Path, help="file to continue from, and to save to now and then")
    train.add_argument("--checkpoint-interval", type=float, default=300.0, metavar="SECONDS")
    noise_help = "secret: from a key of the operating system, destroyed at the end; default: what the spec says"
    train.add_argument("--noise", choices=["repeatable", "secret"], help=noise_help)
    train.add_argument("--keep-key", action="store_true", help="leave the key of secret noise beside the checkpoint")
    processes_help = "GPUs of this machine to train on together; 0 or 1: one process"
    train.add_argument("--processes", type=int, default=1, metavar="N", help=processes_help)
    audit = add(verb_audit)
    audit.add_argument("ledgers", type=Path, nargs="+", help="ledger.json files")
    audit.add_argument("--out", type=Path, help="where to write the audit")
    audit.add_argument("--export", type=Path, help="where to write the events in the form of Google's dp-accounting")
    without_help = "pass a ledger whose method cannot be imported here by its epsilon alone, and say so"
    audit.add_argument("--without-recipe", action="store_true", help=without_help)
    attack = add(verb_attack)
    attack.add_argument("study", nargs="?", type=Path, help="a study file; its runs must have been trained")
    attack.add_argument("run_name", nargs="?", metavar="run", help="DATASET/METHOD/EPSILON/SEED; else all private ones")
    attack.add_argument("--ledgers", type=Path, nargs="+", help="ledger.json files, instead of a study")
    attack.add_argument("--out", type=Path, help="where to write what was found")
    attack.add_argument("--runs", metavar="PATTERN", help="folder of a run, if not where the workflow has it")
    black_box_help = "train again with canaries among the images, and look at nothing but what is published (weak)"
    attack.add_argument("--black-box", action="store_true", help=black_box_help)
    attack.add_argument("--canaries", type=int, default=1000, help="of a black-box attack")
    attack.add_argument("--data", metavar="PATTERN", help="folder of a dataset, if not where the workflow has it")
    add(verb_sample, "model", "dataset", "out", spec=True)
    add(verb_extractor, "train", "test", "out")
    add(verb_reference, "train", "test", "out", spec=True)
    add(verb_score, "synthetic", "train", "test", "extractor", "fidelity", "utility", spec=True)
    add(verb_score_inception, "synthetic", "reference", "out", spec=True)
    add(verb_score_classifier, "model", "test", "utility", spec=True)
    gather = add(verb_collect, "study", "metrics", "audits")
    gather.add_argument("folders", type=Path, nargs="+", help="where the scores and audits lie")
    unfinished_help = "of a study that still runs: what is to be made again is left out, not refused"
    gather.add_argument("--unfinished", metavar="PATTERN", help=f"folder of a run, {unfinished_help}")
    add(verb_tables, "metrics", "audits", "results", "audit")
    paper_table = add(verb_paper_table, "study", "published", "privacy-status", "out")
    paper_table.add_argument("--runs", dest="run_folder", required=True, metavar="PATTERN", help="folder of a run")
    paper_table.add_argument(
        "--audits", dest="run_audit", required=True, metavar="PATTERN", help="audit of a dataset and method"
    )
    paper_table.add_argument("--unfinished", action="store_true", help=unfinished_help)
    paper_table.add_argument("--table", type=int, required=True, help="its number in the paper (arXiv v1): 1 to 6")
    figures = add(verb_figures, "metrics", "real", "curves", "grid")
    figures.add_argument("--dataset", required=True)
    figures.add_argument("samples", nargs="*", metavar="METHOD[,SAMPLER],EPSILON,SEED=NPZ")
    comparison = add(verb_comparison, "study", "metrics", "out")
    comparison.add_argument("--kind", required=True, choices=COMPARISONS)
    report = add(verb_report, "study", "metrics", "audits", "benchmarks", "published", "privacy-status", "out")
    for name in ("curves", "grids"):
        report.add_argument(f"--{name}", nargs="*", default=[], metavar="DATASET=PICTURE")
    report.add_argument("--comparisons", nargs="*", default=[], metavar="NAME=PICTURE")
    report.add_argument("--runs", dest="run_folder", required=True, metavar="PATTERN", help="folder of a run")
    report.add_argument("--anchors", required=True, metavar="PATTERN", help="folder of an anchor's scores")
    report.add_argument("--data", required=True, metavar="PATTERN", help="folder of a dataset")
    report.add_argument("--command", required=True, help="what made the results, to print in the report")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Runs one verb; a UserError becomes one line on stderr and exit status 2."""
    args = _parser().parse_args(arguments)
    _limit_threads(args.threads)
    try:
        return args.run(args) or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # of `python -m dpdm check ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


if __name__ == "__main__":
    sys.exit(main())

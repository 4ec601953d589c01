"""Verbs for one run by hand; the workflow calls the same ones."""

import os
import sys
import time
from typing import Any

import click

from dpdm.cli._verbs import PATH, RUNS, out_option, set_option, study_argument, verbs
from dpdm.errors import UserError, pasted

CANARIES = 1000  # of a black-box attack

what_argument = click.argument(
    "what",
    nargs=-1,
    required=True,
    metavar="STUDY [RUN] | LEDGER...",
    help="STUDY and perhaps RUN, or DATASET/METHOD for all of its runs; or ledger.json files.",
)


@verbs.command("train", section=RUNS)
@study_argument(required=False)
@click.argument("run", required=False, help="DATASET/METHOD/EPSILON/SEED.")
@set_option()
@click.option("--spec", type=PATH, metavar="FILE", help="Train this recipe: `dpdm spec` printed it, or a ledger.json.")
@click.option("--data", type=PATH, metavar="NPZ", help="Training images for --spec, if the results folder has none.")
@out_option("Folder for the results. Default: the run's folder in the study; for a changed run results/by_hand/NAME.")
@click.option("--noise", type=click.Choice(["repeatable", "secret"]), help="Noise from the seed, or from a secret key.")
@click.option("--again", is_flag=True, help="Train the run even if it is finished.")
@click.option("--keep-key", is_flag=True, help="Leave the key of secret noise next to the results.")
@click.option(
    "--checkpoint-interval",
    type=click.IntRange(0),
    default=300,
    show_default=True,
    metavar="SECONDS",
    help="Time between checkpoints; 0 is after every step.",
)
@click.option("--processes", type=click.IntRange(1), default=1, show_default=True, help="GPUs to train on together.")
def train(study, layout, run, changes, spec, data, out, noise, again, keep_key, checkpoint_interval, processes) -> None:
    """Train one run of a study, or a changed one; print its epsilon, noise and files.

    A run of the study is written where the workflow looks for it, so the workflow does not train it again. With --set
    or --noise it is another run, in a folder outside the study's results. A stopped training continues from its
    checkpoint. A finished run of the same recipe and code is left as it is.
    """
    spec, images_file, folder, own, prepare = _what_to_train(study, layout, run, changes, spec, data, out, noise)
    if keep_key and spec.noise != "secret":
        raise UserError("--keep-key needs secret noise: `noise: secret` in the study, or --noise secret")
    joined = "WORLD_SIZE" in os.environ
    from dpdm import jobs
    from dpdm.plan import check_entry

    if not joined:
        if study:
            check_entry(study, spec)
        if done := not (data or keep_key) and jobs.finished(spec, images_file, folder):
            jobs.remove_leftovers(folder)  # of a run that was killed when it was done
        if done and not again:
            print(f"{spec.name} is finished: {folder}/model.pt has this recipe and code; --again trains it anew")
            return
        if not again:
            jobs.refuse_to_replace(spec, folder, bool(out), own)
        prepare()
    if processes > 1 and not joined:  # this process becomes torchrun, which starts them all
        command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        os.execv(sys.executable, [sys.executable, *command, "-m", "dpdm", *sys.argv[1:]])
    from dpdm import processes as started
    from dpdm.data import read_images

    images = read_images(images_file)
    with started.joined() as group:
        done = jobs.train(spec, images, folder, group, checkpoint_interval, keep_key)
    if done:
        print(done)


def _what_to_train(study, layout, run, changes, spec_file, data, out, noise) -> tuple[Any, str, str, str, Any]:
    """The recipe, its images, the folder for its results, that of the study's run, and a call that prepares both."""
    from dpdm import study as named

    if study and not run and not spec_file:
        raise UserError("train STUDY needs a RUN as well (DATASET/METHOD/EPSILON/SEED); without STUDY, --spec FILE")
    if bool(spec_file) == bool(study) or bool(study) != bool(run):
        raise UserError("train needs either STUDY and RUN (DATASET/METHOD/EPSILON/SEED), or --spec FILE")
    if data and study and not out:
        raise UserError(f"--data {data} is not the study's own data: give --out, so that the study's run stays")
    if spec_file:
        spec = named.read_recipe(spec_file)
        layout = named.layout_of_run(spec_file, spec) or named.Layout("results", spec.study)
    else:
        spec = named.find_run(study, run)
    planned, spec = spec, _changed(spec, changes)
    spec = spec.model_copy(update={"noise": noise}) if noise else spec
    images = data or layout.data(spec.dataset, "train.npz")
    in_study = study and spec == planned
    if in_study and not out:
        named.refuse_kept(layout)
    if out:
        named.refuse_results(out, layout.run(*spec.place) if in_study and not named.is_kept(layout) else None)
    folder = out or (layout.run(*spec.place) if in_study else layout.by_hand(named.by_hand_name(spec)))

    def prepare() -> None:
        from dpdm import artifacts, jobs

        if not data and (study or os.path.exists(layout.study)):
            owner = study or named.open_study(layout.root)[0]
            jobs.make_missing(owner, layout, named.find_dataset(owner, spec.dataset))
        elif not os.path.exists(images):
            fix = "check the path" if data else "name them by --data train.npz"
            raise UserError(f"there are no training images {images}; {fix}")
        if in_study and not out and not _has(layout, spec):  # so that the folder can be opened later
            artifacts.write_text(layout.study, named.study_json(study))

    return spec, images, folder, layout.run(*spec.place), prepare


def _has(layout: Any, spec: Any) -> bool:
    """Whether study.json of the results folder has this run."""
    from dpdm.study import find_run, open_study

    try:
        return find_run(open_study(layout.root)[0], spec.name) == spec
    except UserError:  # no study.json, one of another version, or without such a run
        return False


def _changed(spec: Any, changes: tuple[str, ...]) -> Any:
    """The recipe with the changes of --set, checked by the method's own schema."""
    from dpdm.study import changed

    spec = changed(spec, changes)
    if changes:
        from dpdm.explain import parse_params
        from dpdm.method import load_method

        parse_params(load_method(spec.impl).Params, spec.params, f"--set on {spec.name}")
    return spec


@verbs.command("sample", section=RUNS)
@study_argument()
@click.argument("run", help="DATASET/METHOD/EPSILON/SEED[/SAMPLER]; without a sampler all of the method.")
@click.option("--model", type=PATH, metavar="FILE", help="The model, if not the study's own.")
@out_option("Folder that gets SAMPLER/synthetic.npz. Default: the run's.")
@click.pass_obj
def sample(named: str, study, layout, run: str, model: str | None, out: str | None) -> None:
    """Draw the synthetic images of a run from its model."""
    from dpdm.study import find_sets, is_kept, refuse_kept, refuse_results

    spec, samplers = find_sets(study, run)
    if not samplers:
        raise UserError(f"{spec.method} is a classifier and draws no images; `{pasted('score', named, run)}` judges it")
    own = layout.run(*spec.place, "model.pt")
    if out:
        refuse_results(out)
    else:
        refuse_kept(layout)
    if model and not out:
        raise UserError(f"--model {model} can be another model: give --out, so that the study's images stay")
    if not os.path.exists(model or own):
        fix = "" if model or is_kept(layout) else f"; `{pasted('train', named, spec.name)}` makes it"
        raise UserError(f"there is no model {model or own}{fix}")
    from dpdm import artifacts, jobs
    from dpdm.processes import device

    folders = {sampler: f"{out or layout.run(*spec.place)}/{sampler}" for sampler in samplers}
    for folder in folders.values():
        artifacts.check_folder(folder, "synthetic.npz")
    if model and not os.path.exists(layout.run(*spec.place, "ledger.json")):
        jobs.make_missing(study, layout, spec.dataset)
    for sampler, folder in folders.items():
        start, file = time.monotonic(), f"{folder}/synthetic.npz"
        jobs.sample(study, layout, spec, sampler, model or own, file)
        seconds = time.monotonic() - start
        print(f"drew {study.evaluation.synthetic_images:,} images in {seconds:.0f} s on {device()}: {file}")


@verbs.command("score", section=RUNS)
@study_argument()
@click.argument("coordinates", metavar="RUN", help="DATASET/METHOD/EPSILON/SEED[/SAMPLER], or DATASET/ANCHOR/SEED.")
@click.option("--inception", is_flag=True, help="FID, KID, precision and recall by Inception, not the other scores.")
@click.option("--synthetic", type=PATH, metavar="NPZ", help="The images to score, if not the study's own.")
@click.option("--model", type=PATH, metavar="FILE", help="The model of a classifier method, if not the study's own.")
@out_option("Folder for the scores. Default: that of the synthetic set, classifier or anchor.")
@click.pass_obj
def score(named, study, layout, coordinates, inception, synthetic, model, out) -> None:
    """Score synthetic images: distances to real ones, and classifiers trained on them.

    For a classifier method, give RUN without a sampler: the score is the accuracy of its model on the test images.
    """
    from dpdm.study import find_anchor, find_sets, refuse_kept, refuse_results

    if out:
        refuse_results(out)
    else:
        refuse_kept(layout)
    if anchor := find_anchor(study, coordinates):
        place = (anchor.dataset, anchor.method, str(anchor.seed))
        sets = [(anchor, layout.anchor_images(*place[:2]), layout.anchor(*place))]
    else:
        run, samplers = find_sets(study, coordinates)
        places = {name: layout.set(*run.place, name) for name in samplers}
        sets = [(run.coordinates(name), f"{folder}/synthetic.npz", folder) for name, folder in places.items()]
    if len(sets) > 1 and (synthetic or out):
        raise UserError(f"{coordinates} means {len(sets)} sets; name one by its sampler to give --synthetic or --out")
    for option, value, fits in (("--synthetic", synthetic, sets), ("--model", model, not sets)):
        if value and not fits:
            raise UserError(
                f"{option} {value}: {coordinates} {'draws images' if sets else 'draws no images'}; leave it out"
            )
        if value and not out:
            raise UserError(f"{option} {value} is not the study's own: give --out, so that the study's scores stay")
    from dpdm import artifacts, data, jobs

    for _, images, _ in sets:
        if synthetic:
            data.read_images(synthetic)  # before features of the real images are made
        elif not (anchor or os.path.exists(images)):
            command = pasted("sample", named, coordinates)
            raise UserError(f"there are no synthetic images {images}; `{command}` makes them")
    if not sets and not os.path.exists(model := model or layout.run(*run.place, "model.pt")):
        raise UserError(f"there is no model {model}; `{pasted('train', named, run.name)}` makes it")

    made = ["inception.json"] if inception else ["fidelity.json", "utility.json"]
    for folder in [folder for *_, folder in sets] or [layout.run(*run.place)]:
        artifacts.check_folder(out or folder, *(made + ["nearest.png"] * (not inception) if sets else ["utility.json"]))
    dataset = (anchor or run).dataset
    own = ("extractor.pt", *(f"{name}.npz" for name in study.evaluation.extractors))
    jobs.make_missing(study, layout, dataset, *(("inception.npz",) if inception else own) * bool(sets))
    if not sets:
        folder = out or layout.run(*run.place)
        jobs.score_classifier(layout, run, model, folder)
        print(_scores(folder, "utility.json"))
    for place, images, folder in sets:
        folder = out or folder
        if anchor and anchor.method != "real" and not os.path.exists(images):
            jobs.make(study, layout, dataset, "label_only.npz")
        (jobs.score_inception if inception else jobs.score)(study, layout, place, synthetic or images, folder)
        print(_scores(folder, *made))


def _scores(folder: str, *files: str) -> str:
    """The content of score files, one line each."""
    from dpdm import artifacts

    lines = []
    for file in (f"{folder}/{name}" for name in files):
        rows = artifacts.read_json(file, ("metrics",))["metrics"]
        names = [" ".join(filter(None, (row["metric"], row["extractor"], row["reference"]))) for row in rows]
        values = (f"{row['value']:,.4g}" if row["value"] is not None else "none" for row in rows)
        lines += [f"scored: {file}", *(f"  {name:32} {value}" for name, value in zip(names, values, strict=True))]
    return "\n".join(lines)


@verbs.command("audit", section=RUNS)
@what_argument
@click.option("--out", type=PATH, metavar="FILE", help="Where to write the audit as JSON.")
@click.option("--export", type=PATH, metavar="FILE", help="Where to write the events in the form of dp-accounting.")
@click.option("--without-recipe", is_flag=True, help="If a ledger's method cannot be imported, check only its epsilon.")
def audit(what, out, export, without_recipe) -> None:
    """Recompute epsilon from the ledgers of runs, under all accountants.

    It fails if epsilon is above its target, or if the events of a ledger are not those of its recipe.
    """
    ledgers = _ledgers(what)
    _check_writable("audit", what, ledgers, out, export)
    from dpdm import artifacts
    from dpdm.plan import MethodMissing, check_recipe, run_departures
    from dpdm.privacy import audit as auditing

    audits = [auditing.audit(*one) for one in ledgers]
    above = [path for row, (_, path) in zip(audits, ledgers, strict=True) if not row["passed"]]
    faults = (
        [f"epsilon is above its target in {', '.join(above)}: do not publish; train the run again"] if above else []
    )
    for row, (ledger, path) in zip(audits, ledgers, strict=True):
        try:
            row["recipe_checked"] = check_recipe(ledger, path, without_recipe)
            row["departures"] = run_departures(ledger, path) if row["recipe_checked"] else ""
        except UserError as error:
            row |= {"recipe_checked": not isinstance(error, MethodMissing), "passed": False}
            faults.append(str(error))
        print(auditing.describe_audit(row, path))
    if faults:
        raise UserError("; ".join(faults))
    if out:
        artifacts.write_json(out, {"runs": audits})
    if export:
        artifacts.write_json(export, {"runs": [auditing.exported(*one) for one in ledgers]})


@verbs.command("attack", section=RUNS)
@what_argument
@click.option("--out", type=PATH, metavar="FILE", help="Where to write the findings as JSON.")
@click.option("--black-box", is_flag=True, help="Train again with canaries, and look at what is published (weak).")
@click.option("--canaries", type=click.IntRange(1), help=f"Canaries of a black-box attack.  [default: {CANARIES}]")
def attack(what, out, black_box, canaries) -> None:
    """Attack private runs on canaries: a lower bound of epsilon for each.

    If several runs are named, it attacks one seed of each private epsilon. It fails if a bound is above the run's
    target.
    """
    if black_box:
        _check_writable(None, what, [], out)
        found = _black_box(what, canaries or CANARIES)
    elif canaries:
        raise UserError("--canaries belongs to a black-box attack: add --black-box, or leave it out")
    else:
        ledgers = _ledgers(what, attacked=True)  # reads all of them before any compute
        _check_writable("attack", what, ledgers, out)
        from dpdm.attacks import white_box

        found = [white_box.attack(*one) for one in ledgers]
    from dpdm import artifacts
    from dpdm.attacks.white_box import describe_attack

    for one in found:
        print(describe_attack(one))
    if out:
        artifacts.write_json(out, {"attacks": found})
    if broken := [describe_attack(one) for one in found if one["attack"]["exceeded"]]:
        raise UserError("the code does not keep its promise; publish nothing that it made:\n" + "\n".join(broken))


def _check_writable(
    kind: str | None, what: tuple[str, ...], ledgers: list[tuple[dict[str, Any], str]], *files: str | None
) -> None:
    """UserError if a JSON file cannot be written, is read, holds something else, or is in the results of a study.

    The first of `files` may be where the workflow writes the file of a `kind` (see Layout) of STUDY DATASET/METHOD.
    """
    from dpdm import artifacts
    from dpdm.config import study_files
    from dpdm.study import refuse_results

    read = [*what, *(path for _, path in ledgers)]
    if not what[0].endswith(".json") and not os.path.isdir(what[0]):
        read += study_files(what[0])
    for number, file in enumerate(files):
        if not file:
            continue
        if os.path.realpath(file) in map(os.path.realpath, read) or os.path.basename(file) == "study.json":
            raise UserError(f"{file} is a file that is read: name another file to write to")
        if not file.endswith(".json"):
            raise UserError(f"{file}: what is written there is JSON, so name it .json")
        refuse_results(file, None if number else _workflow_file(kind, what))
        key = "runs" if kind == "audit" else "attacks"
        if os.path.isfile(file) and not _holds(file, key):
            raise UserError(f"{file} holds something else than `dpdm {kind or 'attack'}` writes; name another file")
        artifacts.check_folder(os.path.dirname(file), os.path.basename(file))
    if len(written := [os.path.realpath(file) for file in files if file]) > len(set(written)):
        raise UserError(f"{files[0]} is given twice; name two files")


def _holds(file: str, key: str) -> bool:
    """Whether a file holds a JSON object with this one key."""
    from dpdm import artifacts

    try:
        return list(artifacts.read_json(file)) == [key]
    except UserError:
        return False


def _workflow_file(kind: str | None, what: tuple[str, ...]) -> str | None:
    """The file of a `kind` that the workflow makes of all runs of STUDY DATASET/METHOD; None for any other `what`."""
    from dpdm.study import is_kept, open_study

    if not kind or len(what) != 2 or what[0].endswith(".json") or len(place := what[1].split("/")) != 2:
        return None
    layout = open_study(what[0])[1]
    return None if is_kept(layout) else getattr(layout, kind)(*place)


def _ledgers(what: tuple[str, ...], attacked: bool = False) -> list[tuple[dict[str, Any], str]]:
    """The ledgers named by the arguments of `audit` or `attack`, each with its path."""
    from dpdm import artifacts
    from dpdm.specs import refuse_other_recipe

    if all(word.endswith(".json") for word in what):
        return [(artifacts.read_json(path), path) for path in what]

    _, layout, runs = _named(what, attacked)
    ledgers = [layout.run(*run.place, "ledger.json") for run in runs]
    there = {path: run for run, path in zip(runs, ledgers, strict=True) if os.path.exists(path)}
    if not there:
        command = pasted("train", what[0], runs[0].name)
        raise UserError(f"cannot read {ledgers[0]}: the run is not trained; `{command}` trains it")
    found = [(artifacts.read_json(path, ("recipe",)), path) for path in there]
    for ledger, path in found:
        refuse_other_recipe(there[path], ledger["recipe"], path)
    if missing := len(ledgers) - len(there):
        print(f"not trained yet, and left out: {missing} of {len(ledgers)} runs", file=sys.stderr)
    return found


def _named(what: tuple[str, ...], attacked: bool) -> tuple[Any, Any, list[Any]]:
    """Study, layout, and the runs of STUDY [RUN]; for several attacks, those of `Study.attacked_runs`."""
    if len(what) > 2 or what[0].endswith(".json"):
        raise UserError(f"{' '.join(what)}: name STUDY and at most one RUN, or nothing but ledger.json files")
    from dpdm.study import find_runs, open_study

    study, layout = open_study(what[0])
    found = find_runs(study, "".join(what[1:]))
    if attacked and len(found) > 1:
        found = [run for run in study.attacked_runs() if run in found]
    return study, layout, found


def _black_box(what: tuple[str, ...], canaries: int) -> list[dict[str, Any]]:
    if any(word.endswith(".json") for word in what):
        raise UserError("a black-box attack trains again: name STUDY and RUN, no ledger")
    study, layout, runs = _named(what, attacked=True)
    from dpdm import data, jobs
    from dpdm.attacks.black_box import attack_black_box
    from dpdm.progress import Log

    found = []
    for run in runs:
        jobs.make_missing(study, layout, run.dataset)
        samplers = study.samplers_of(run)
        drawn = study.sample(run, samplers[0]) if samplers else None
        images = data.read_images(layout.data(run.dataset, "train.npz"))
        found.append(attack_black_box(run, images, drawn, canaries, Log(f"black-box attack on {run.name}")))
    return found


@verbs.command("spec", section=RUNS)
@study_argument()
@click.argument("run", help="DATASET/METHOD/EPSILON/SEED.")
@set_option()
def spec(study, layout, run: str, changes: tuple[str, ...]) -> None:
    """Print the resolved recipe of a run as JSON, which `dpdm train --spec FILE` reads."""
    import json

    from dpdm.study import find_run

    print(json.dumps(_changed(find_run(study, run), changes).model_dump(mode="json"), indent=2))

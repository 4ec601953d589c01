"""The jobs: prepare a data set, train a run, draw a synthetic set, score it. They read and write artifacts.

The command line and the workflow call these functions with a study and its layout; paths come from the layout unless
given. A UserError names an input file that is missing, damaged or of another run.
"""

import contextlib
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dpdm import artifacts, data
from dpdm.config import DIRECT, Study
from dpdm.errors import UserError, pasted
from dpdm.evaluation import registry
from dpdm.explain import parse_params
from dpdm.layout import Layout
from dpdm.method import finite, load_method, method_code, prepare_run
from dpdm.method import train as train_method
from dpdm.privacy import Ledger
from dpdm.privacy.key import key_path
from dpdm.processes import Processes, device
from dpdm.progress import Log
from dpdm.provenance import provenance
from dpdm.rehearsal import rehearse
from dpdm.rng import Streams
from dpdm.smoothing import parse_sampler
from dpdm.specs import Coordinates, RunSpec, SampleSpec, epsilon_text, parse_spec, refuse_other_recipe, spec_json

DATA_FILES = ("train.npz", "test.npz", "dataset.json")


# --- data -----------------------------------------------------------------------------------------------------


def prepare(study: Study, layout: Layout, dataset: str) -> None:
    """Loads a data set from its source, verifies it, and writes its splits and facts."""
    spec = study.datasets[dataset].source_spec()
    splits = spec.load()
    for doubt in data.doubts(splits):
        print(f"warning: {doubt}", file=sys.stderr)
    for split, images in splits.items():
        data.write_images(layout.data(dataset, f"{split}.npz"), images)
    artifacts.write_json(layout.data(dataset, "dataset.json"), spec.facts(splits))


def train_extractor(layout: Layout, dataset: str) -> None:
    """Trains the feature extractor of a data set's image distances, on its real images."""
    from dpdm.evaluation import extractor

    real = (data.read_images(layout.data(dataset, f"{split}.npz")) for split in ("train", "test"))
    artifacts.write_tensors(layout.data(dataset, "extractor.pt"), extractor.train_extractor(*real))


def make_reference(study: Study, layout: Layout, dataset: str, extractor: str) -> None:
    """Computes an extractor's statistics of a data set's real images, once for all scores."""
    from dpdm.evaluation.fidelity import reference

    real = {split: data.read_images(layout.data(dataset, f"{split}.npz")) for split in ("train", "test")}
    arrays = reference(real, load_extractor(study, layout, dataset, extractor))
    artifacts.write_npz(layout.data(dataset, f"{extractor}.npz"), arrays)


def make(study: Study, layout: Layout, dataset: str, file: str) -> None:
    """Makes a data set's file: one of DATA_FILES (with the others), extractor.pt, label_only.npz or EXTRACTOR.npz."""
    if file in DATA_FILES:
        prepare(study, layout, dataset)
    elif file == "extractor.pt":
        train_extractor(layout, dataset)
    elif file == "label_only.npz":
        meta = data.read_meta(layout.data(dataset, "dataset.json"))
        data.write_images(layout.label_only(dataset), data.label_only(meta, study.evaluation.synthetic_images))
    else:
        make_reference(study, layout, dataset, file.removesuffix(".npz"))


def make_missing(study: Study, layout: Layout, dataset: str, *files: str) -> None:
    """Makes the missing files of a data set: DATA_FILES, and those in `files` (see `make`).

    UserError if the present files were made from another source.
    """
    refuse_other_source(study, layout, dataset)
    for file in (*DATA_FILES, *files):
        if not Path(layout.data(dataset, file)).exists():
            print(f"making {layout.data(dataset, file)}, which is not there yet", file=sys.stderr)
            make(study, layout, dataset, file)


def refuse_other_source(study: Study, layout: Layout, dataset: str) -> None:
    """UserError if the images of a data set exist and were made from another source than the study's."""
    if found := other_source(study, layout, dataset):
        source = study.datasets[dataset].source_spec()
        raise UserError(
            f"{layout.data(dataset, '')} has images of source: {found}, and datasets.{dataset} of the study is "
            f"source: {source.source} {source.keys()}; rename the data set, or set another results_dir"
        )


def other_source(study: Study, layout: Layout, dataset: str) -> str | None:
    """The source of a data set's images, in words, if they exist and the study has another source; else None.

    UserError if dataset.json is damaged.
    """
    source = study.datasets[dataset].source_spec()
    wanted, file = {"source": source.source, "keys": source.keys()}, Path(layout.data(dataset, "dataset.json"))
    if not file.exists():
        return None
    facts = artifacts.read_json(file, tuple(wanted))
    found = {key: facts[key] for key in wanted}
    return None if found == wanted else f"{found['source']} {found['keys']}"


def load_extractor(study: Study, layout: Layout, dataset: str, extractor: str) -> Any:
    """An extractor by its name: trained on the data set, or public."""
    from dpdm.evaluation.fidelity import Trained

    if extractor in registry.EXTRACTORS:
        return Trained(extractor, Path(layout.data(dataset, "extractor.pt")))
    return load_public(study, extractor)


def load_public(study: Study, extractor: str) -> Any:
    """A public extractor; Inception with the weights that the study names."""
    from dpdm.evaluation import inception

    if extractor != inception.NAME:
        part = registry.part(registry.PUBLIC_EXTRACTORS, extractor, "public extractor")
        return part.call(part.function())
    return inception.load_inception(inception.find_weights(study.fid().weights_path))


# --- training -------------------------------------------------------------------------------------------------


def train(
    spec: RunSpec,
    images: data.ImageSet,
    out: str | Path,
    group: Processes | None = None,
    checkpoint_interval: float = 300.0,
    keep_key: bool = False,
) -> str:
    """Trains one run, or continues from its checkpoint; writes model.pt, train.jsonl and ledger.json into `out`.

    Returns a summary for people; in all processes except the first, an empty text.
    """
    group, start, folder = group or Processes(device=device()), time.monotonic(), Path(out)
    _, params, *_ = prepare_run(spec, images.meta)  # a refused recipe leaves no folder
    if getattr(params, "init_from", ()) or getattr(params, "teacher", None):
        rehearse(spec, images.meta)  # what its later parts refuse, before its first one spends anything
    made = not folder.exists()
    names = "model.pt", "train.jsonl", "ledger.json", "checkpoint.pt"
    artifacts.check_folder(folder, *names)  # before hours of training
    title = f"train {spec.method} on {spec.dataset}, epsilon {epsilon_text(spec.epsilon)}, seed {spec.seed}"
    log, checkpoint = Log(title, quiet=not group.is_first), folder / "checkpoint.pt"
    if group.is_first and not checkpoint.exists() and _is_older(key_path(checkpoint), folder / "model.pt"):
        key_path(checkpoint).unlink()  # of the run in this folder: this one is another release
    try:
        model, ledger = train_method(spec, images, log, group, checkpoint, checkpoint_interval)
    except UserError:
        if made:
            with contextlib.suppress(OSError):  # it is not empty
                folder.rmdir()  # a refused run leaves nothing
        raise
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not re.search(r"out of memory|allocate memory", str(error)):
            raise
        raise UserError(
            f"{spec.name}: too little memory; lower dp.max_physical_batch_size, or make the network smaller"
        ) from error
    if not group.is_first:
        return ""
    content = _content(model, folder / "model.pt", spec)
    (folder / "model.pt").unlink(missing_ok=True)  # a model never lies next to the ledger of another
    artifacts.write_jsonl(folder / "train.jsonl", log.rows)
    artifacts.write_json(folder / "ledger.json", ledger.to_json())
    artifacts.write_bytes(folder / "model.pt", content)
    remove_leftovers(folder, keep_key)  # only now: the results are safe
    return _described(ledger, folder, group, time.monotonic() - start)


def remove_leftovers(folder: str | Path, keep_key: bool = False) -> None:
    """Removes the secret key and the checkpoints of a run whose results are safe, unless they are newer than model.pt.

    Newer files belong to a run that trains again, or was stopped.
    """
    from dpdm.checkpoint import Checkpoint

    checkpoint = Path(folder) / "checkpoint.pt"
    kept = [] if keep_key else [key_path(checkpoint)]
    for path in (*kept, checkpoint, Checkpoint.aside(checkpoint)):
        if _is_older(path, Path(folder, "model.pt")):
            path.unlink(missing_ok=True)


def _is_older(path: Path, than: Path) -> bool:
    """Whether both files exist, and the first is not newer."""
    return path.exists() and than.exists() and path.stat().st_mtime_ns <= than.stat().st_mtime_ns


def _content(model: Any, path: Path, spec: RunSpec) -> bytes:
    """The content of model.pt; UserError if the model cannot be restored from it."""
    if not hasattr(model, "state"):
        raise UserError(f"methods.{spec.method}: fit() of {spec.impl} returned {model!r}; it must return a model")
    state = finite(model.state(), spec)
    try:
        content = artifacts.packed({"impl": spec.impl, "state": state})
        load_method(spec.impl).Model.from_state(artifacts.unpacked(content, path)["state"])
    except Exception as error:  # whatever pickling or a method's code raises
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"methods.{spec.method}: the model of {spec.impl} cannot be written and read back ({type(error).__name__}: "
            f"{reason}); its state() must be tensors and JSON values by name, from which from_state makes the model"
        ) from error
    return content


def finished(spec: RunSpec, images_file: str, folder: str | Path) -> bool:
    """Whether `folder` holds the run of this recipe and code, and the images have its size and are not newer."""
    model, images, made = Path(folder, "model.pt"), Path(images_file), _made(folder)
    if made.get("recipe") != spec.model_dump(mode="json"):
        return False
    try:
        Ledger.from_json(made, str(folder))
        artifacts.read_tensors(model)
    except UserError:  # missing, damaged, or changed after it was written
        return False
    params = parse_params(load_method(spec.impl).Params, spec.params, f"methods.{spec.method}.params")
    code = {"code": provenance()["code"], "method_code": method_code(spec, params)}
    if not isinstance(made["provenance"], dict) or not code.items() <= made["provenance"].items():
        return False
    if not images.exists():
        return True
    meta = data.read_images(images).meta
    same = (made.get("n"), made.get("shape"), made.get("num_classes")) == (meta.n, list(meta.shape), meta.num_classes)
    return same and images.stat().st_mtime <= model.stat().st_mtime


def refuse_to_replace(spec: RunSpec, folder: str | Path, chosen: bool, own: str | Path) -> None:
    """Compares a run before training with the run in its folder, and with that of the study.

    Args:
        chosen: whether the user named the folder.
        own: where the study has a run of these coordinates.

    Raises:
        UserError: the folder holds another run, or a run with secret noise, whose training would be one more release,
            or a model without a ledger that shows its noise; or the study has this run, with secret noise, elsewhere.
    """
    elsewhere = Path(own) != Path(folder) and Path(own, "model.pt").exists()
    if spec.noise == "secret" and elsewhere and _made(own).get("recipe") == spec.model_dump(mode="json"):
        raise UserError(
            f"{own} holds this run with secret noise, and to train it again in {folder} is one more release of the "
            "same images; --again does that"
        )
    found = _made(folder)
    if chosen and found and found["recipe"] != spec.model_dump(mode="json"):
        raise UserError(f"{folder} holds another run, which {spec.name} would replace; name another --out, or --again")
    model = Path(folder, "model.pt").exists()
    unfinished = not model and key_path(Path(folder, "checkpoint.pt")).exists()
    lost = model and not found and spec.noise == "secret"
    if lost or (found.get("noise") == "secret" and not unfinished):
        raise UserError(
            f"{folder} holds a {'model without a readable ledger.json' if lost else 'run with secret noise'}, and to "
            "train it again is one more release of the same images; --again does that"
        )


def _made(folder: str | Path) -> dict[str, Any]:
    """The ledger in a folder; nothing if it is missing or damaged."""
    try:
        return artifacts.read_json(Path(folder, "ledger.json"), ("recipe", "provenance"))
    except UserError:
        return {}


def _described(ledger: Any, folder: Path, group: Processes, seconds: float) -> str:
    from dpdm.plan import describe_events
    from dpdm.privacy import epsilons_spent

    spent = epsilons_spent(ledger.events, ledger.delta)
    lines = [
        f"trained in {seconds:.0f} s on {group.device}" + (f" ({group.size} processes)" if group.size > 1 else ""),
        f"  files    {folder}/: model.pt, ledger.json, train.jsonl",
        f"  epsilon  {', '.join(f'{value:.4f} ({name.upper()})' for name, value in spent.items())}, "
        f"target {epsilon_text(ledger.target_epsilon)}, delta {ledger.delta:.3g}",
        *(f"  release  {line}" for line in describe_events(ledger.events, ledger.delta)),
        *(f"  public   uses public data: {name}" for name in ledger.public_data),
    ]
    return "\n".join(lines)


# --- synthetic sets and scores --------------------------------------------------------------------------------


def sample(study: Study, layout: Layout, run: RunSpec, sampler: str, model_file: str, out: str | Path) -> None:
    """Draws one synthetic set from a model, with balanced labels."""
    spec = study.sample(run, sampler)
    ledger = layout.run(*run.place, "ledger.json")
    if Path(model_file) == Path(layout.run(*run.place, "model.pt")):
        meta: Any = trained(layout, run)
    elif Path(ledger).exists():  # a kept run has no data set
        meta = Ledger.from_json(artifacts.read_json(ledger), ledger)
    else:
        meta = data.read_meta(layout.data(run.dataset, "dataset.json"))
    model = on_device(restored(load_method(spec.impl, "generator"), model_file, spec.impl))
    labels = data.balanced_labels(spec.synthetic_images, meta.num_classes)
    where = f"methods.{run.method}.samplers.{sampler}"
    images = draw(run, model, sampler, spec.sampler_params, labels, where)
    if images.shape[1:] != meta.shape:
        raise UserError(
            f"{where}: {run.impl} draws images {list(images.shape[1:])} and {run.dataset} has {list(meta.shape)}; "
            "correct its sample(), or name a model of this data set"
        )
    synthetic = data.ImageSet(images, labels, meta.num_classes, f"samples of {run.method}", spec_json(spec))
    data.write_images(out, synthetic)


def trained(layout: Layout, run: RunSpec, named: str = "") -> Ledger:
    """The ledger of a run of the study `named`; UserError if there is none, or it is damaged, or of another recipe."""
    path = layout.run(*run.place, "ledger.json")
    if not Path(path).exists():
        named = named or (layout.root if Path(layout.study).exists() else "STUDY")
        raise UserError(
            f"{run.name} is not trained: there is no {path}; `{pasted('train', named, run.name)}` trains it"
        )
    ledger = Ledger.from_json(artifacts.read_json(path), path)
    refuse_other_recipe(run, ledger.recipe, path)
    return ledger


def draw(
    run: RunSpec, model: Any, sampler: str, sampler_params: Mapping[str, Any], labels: np.ndarray, where: str
) -> np.ndarray:
    """One image per label (int64 [n]) from a generator's model: uint8 [n, C, H, W].

    If the parameters break the schema of the method's samplers, a UserError names the YAML path `where`.
    """
    chosen = parse_sampler(load_method(run.impl, "generator"), sampler_params, where)
    return chosen.draw(model, labels, Streams(run.seed, f"sample/{sampler}"), f"{where}: sample() of {run.impl}")


def score(study: Study, layout: Layout, coordinates: Coordinates, synthetic_file: str, folder: str | Path) -> None:
    """Scores images: distances to the real ones (fidelity.json), and classifiers trained on them (utility.json).

    nearest.png shows the synthetic images that are nearest to training images.
    """
    from dpdm.evaluation import classifiers, extractor, fidelity, memorization

    evaluation, dataset, seed = study.evaluation, coordinates.dataset, coordinates.seed
    synthetic, test = data.read_images(synthetic_file), data.read_images(layout.data(dataset, "test.npz"))
    train = data.read_images(layout.data(dataset, "train.npz"))
    compared, sides = _for_distances(study, coordinates, synthetic, test)
    judged = fidelity.chosen(compared, len(test.images))  # as many as the ceiling: FD falls with their number
    distances, facts = [], {"num_judged": len(judged.images)}
    for name in evaluation.extractors:
        network = load_extractor(study, layout, dataset, name)
        rows, facts[name] = fidelity.measure(judged, layout.data(dataset, f"{name}.npz"), network, seed, sides)
        distances += rows
        if isinstance(network, fidelity.Trained):
            facts[name] |= {"trained": extractor.load_extractor(network.path)[1]}
    copies, facts["memorization"], picture = memorization.measure(compared, train, test)
    accuracies = classifiers.measure(synthetic, test, evaluation.classifiers, seed, evaluation.protocol)
    accuracies += _of_teacher(study, layout, coordinates, test)
    folder, utility = Path(folder), {"protocol": evaluation.protocol, "metrics": accuracies}
    memorization.write_picture(folder / "nearest.png", picture)
    scores = _judged(compared, coordinates) | facts | {"metrics": [*distances, *copies]}
    artifacts.write_json(folder / "fidelity.json", scores)
    artifacts.write_json(folder / "utility.json", _judged(synthetic, coordinates) | utility)


def _of_teacher(study: Study, layout: Layout, c: Coordinates, test: data.ImageSet) -> list[dict[str, Any]]:
    """The accuracy on test images of the teacher that chose a run's images, if it has one (dpdm.teacher)."""
    from dpdm.evaluation import classifiers

    run = None if c.epsilon is None else study.run(c.dataset, c.method, c.epsilon, c.seed)  # anchors have no run
    if run is None or not run.params.get("teacher"):
        return []
    trained(layout, run)
    model = restored(load_method(run.impl, "generator"), layout.run(*run.place, "model.pt"), run.impl)
    (row,) = classifiers.measure_trained(model.teacher.predict, model.teacher.family, test)
    return [row | {"metric": "teacher_acc"}]


def score_inception(
    study: Study, layout: Layout, coordinates: Coordinates, synthetic_file: str, folder: str | Path
) -> None:
    """Scores images by Inception (inception.json): FID, KID, precision and recall against the real images."""
    from dpdm.evaluation.fidelity import INCEPTION, measure

    test = data.read_images(layout.data(coordinates.dataset, "test.npz"))
    judged, sides = _for_distances(study, coordinates, data.read_images(synthetic_file), test)
    reference, network = layout.data(coordinates.dataset, "inception.npz"), load_public(study, INCEPTION)
    distances, facts = measure(judged, reference, network, coordinates.seed, sides)
    content = _judged(judged, coordinates) | {"inception": facts, "metrics": distances}
    artifacts.write_json(Path(folder) / "inception.json", content)


def _for_distances(
    study: Study, coordinates: Coordinates, synthetic: data.ImageSet, test: data.ImageSet
) -> tuple[data.ImageSet, tuple[str, ...]]:
    """The images whose distances are measured, and the real images to compare them with.

    The ceiling of a distance is the distance of held-out real images. So for the anchor `real`, test images replace the
    synthetic ones: as many as a synthetic set has, if there are enough, since FD and recall depend on the number. The
    training images would have distance 0 to themselves. The test images choose nothing here; they are only a reference
    for other rows.
    """
    from dpdm.evaluation.fidelity import chosen

    if coordinates.method != "real":
        return synthetic, ("train", "test")
    return chosen(test, study.evaluation.synthetic_images), ("train",)


def score_classifier(layout: Layout, run: RunSpec, model_file: str, folder: str | Path) -> None:
    """Scores a classifier method (utility.json): the accuracy of its model on real test images."""
    from dpdm.evaluation import classifiers

    if Path(model_file) == Path(layout.run(*run.place, "model.pt")):
        trained(layout, run)
    model = restored(load_method(run.impl, "classifier"), model_file, run.impl)
    test = data.read_images(layout.data(run.dataset, "test.npz"))
    accuracy = classifiers.measure_trained(model.predict, model.family, test)
    content = _judged(None, run.coordinates()) | {"protocol": DIRECT, "metrics": accuracy}
    artifacts.write_json(Path(folder) / "utility.json", content)


def restored(method: Any, path: str | Path, impl: str) -> Any:
    """The model of a method in a file that `train` wrote."""
    if not Path(path).exists():
        raise UserError(f"there is no model {path}; `dpdm train STUDY RUN` makes it, and so does `dpdm run STUDY`")
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


def on_device(model: Any) -> Any:
    """The model, moved to the GPU if there is one; a model without networks is unchanged."""
    if hasattr(model, "to"):
        model.to(device())
    return model


def _judged(synthetic: data.ImageSet | None, coordinates: Coordinates) -> dict[str, Any]:
    """The facts in every file of scores: coordinates, number of images, how they were drawn, the code."""
    facts = {
        "coordinates": coordinates.model_dump(mode="json"),
        "provenance": provenance(),
        "num_synthetic": len(synthetic.images) if synthetic else 0,
    }
    if synthetic and synthetic.drawn_by:
        facts["drawn_by"] = parse_spec(SampleSpec, synthetic.drawn_by).model_dump(mode="json")
    return facts

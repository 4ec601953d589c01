"""The contract, over every method of every shipped study: a new method is tested by being in a study.

`run` is a run of any method; `case` one of a generator, with its sampler; `classifier` one of a classifier.
"""

import contextlib
import io
import math
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import yaml
from pydantic import BaseModel
from refusals import refuses

from dpdm.config import load_study, merge, parse_study
from dpdm.data import ImageMeta, ImageSet, balanced_labels
from dpdm.errors import UserError
from dpdm.evaluation.classifiers import CLASSIFIERS as CLASSIFIER_FAMILIES
from dpdm.explain import parse_params
from dpdm.method import load_method, prepare_run, train
from dpdm.privacy import DpSgd, PrivateData, dpsgd, epsilon_spent, isolation
from dpdm.privacy.block import BlockGradients
from dpdm.privacy.loop import PrivateLoop
from dpdm.progress import Log
from dpdm.rehearsal import words
from dpdm.rng import Streams
from dpdm.scaffold import new_method
from dpdm.sources import SOURCES
from dpdm.sources.fashion_mnist import FashionMnist
from dpdm.specs import RunSpec

# The default study comes first: its entries are the quick cases, and those that tests/mutants names.
STUDIES = sorted((Path(__file__).parents[2] / "config").glob("*.yaml"), key=lambda path: (path.stem != "digits", path))
N = 64


def cases(kind: str) -> dict[str, tuple[RunSpec, dict]]:
    """One run per study and method of a kind, at its first epsilon, and the params of its first sampler.

    An entry whose words (see `words`) all occur in entries before it, of the same code, is left out. So is every taught
    generator (dpdm.teacher) but one. The default study comes first, then what has many words, last what stops before
    DP-SGD.
    """
    found = []
    for path in STUDIES:
        study = load_study(path)
        for method in (name for name, spec in study.methods.items() if spec.kind == kind):
            dataset = study.datasets_of(method)[0]
            run = next(run for run in study.runs() if (run.dataset, run.method) == (dataset, method))
            if run.params.get("teacher") and any(case[0].params.get("teacher") for *_, case in found):
                continue  # a teacher is the same code with every generator
            samplers = [study.sample(run, name).sampler_params for name in study.methods[method].samplers][:1]
            chosen = {word for recipe in (run.params, *samplers) for word in words(recipe)}
            place = path != STUDIES[0], run.params.get("init_only", False), -len(chosen)
            found.append((place, f"{path.stem}-{method}", chosen, (run, *samplers)))
    found.sort(key=lambda entry: entry[0])
    return with_new_words((name, chosen, case) for _, name, chosen, case in found)


def with_new_words(entries: Iterable[tuple[str, Iterable[str], tuple]]) -> dict[str, tuple]:
    """The cases, each with its name and words, that hold a word which none before them of the same code holds."""
    out, known = {}, set()
    for name, chosen, case in entries:
        new = {(case[0].impl, word) for word in ["", *chosen]} - known
        if new:
            known |= new
            out[name] = case
    return out


def trainings(found: dict[str, tuple]) -> dict[str, tuple]:
    """The cases that are trained as no earlier one is: the others differ from earlier ones by their sampler."""
    return with_new_words((name, words(case[0].params), case) for name, case in found.items())


def scaffold() -> dict[str, tuple[RunSpec, dict]]:
    """What `dpdm new method` writes, run by the entry that it prints: it passes the contract as it is."""
    folder = Path(SCAFFOLDS.name)
    with contextlib.chdir(folder):
        _, entry = new_method("scaffold", "new_methods/scaffold.py")
    sys.path.append(str(folder))
    rest = {
        "study": "scaffold", "datasets": {"digits": {"source": "digits", "delta": "1/(2n)"}}, "epsilons": [10],
        "seeds": [0], "evaluation": {"synthetic_images": 10},
    }  # fmt: skip
    study = parse_study(rest | yaml.safe_load(entry), "the scaffold")
    run = study.runs()[0]
    return {"scaffold": (run, study.sample(run, "default").sampler_params)}


SCAFFOLDS = tempfile.TemporaryDirectory()  # as long as this process
GENERATORS, CLASSIFIERS = cases("generator") | scaffold(), cases("classifier")


def names(found: dict[str, tuple]) -> list:
    """The cases as parameters; `make test` takes the first of each code, `make test-all` the others."""
    firsts = set({case[0].impl: name for name, case in reversed(found.items())}.values())
    return [name if name in firsts else pytest.param(name, marks=pytest.mark.slow) for name in found]


# What makes a recipe large, and a size that a test can wait for; all else of the recipe stays.
SMALL = {
    "dp": {"expected_batch_size": 16, "steps": 3, "max_physical_batch_size": 8},
    "network": {"channels": 8, "blocks_per_level": 1, "attention_resolutions": [4]},
    "noise_multiplicity": 2,
    "num_sampling_steps": 3,
    "steps": 3,
    "num_frequencies": 50,
    "images": 20,
    "d_steps_per_g_step": 1,
    "lr": 1.0e-2,  # three steps must move something
    "generated_batch_size": 20,
    "warm_up_steps": 2,
    "critic_steps": 2,
    "sinkhorn_iterations": 5,
    "shards": 20,
    "width": 8,
    "hidden": 16,
}


def small(recipe: dict) -> dict:
    """The recipe with the sizes of SMALL wherever it has them; a network given by its name keeps its size."""
    inner = {key: small(value) if isinstance(value, dict) else value for key, value in recipe.items()}
    if "max_component_norm" in recipe:
        inner["components"] = 2  # with one, a mixture does not read all of its keys
    if "squared_length_scale" in recipe:  # a kernel method's own steps are hundreds
        inner |= {"steps": SMALL["steps"], "generated_batch_size": SMALL["generated_batch_size"]}
    inner |= {key: [small(stage) for stage in recipe[key]] for key in ["init_from"] if key in recipe}
    fits = {key: value for key, value in SMALL.items() if isinstance(recipe.get(key), type(value))}
    return merge(inner, fits)


def small_run(run: RunSpec) -> RunSpec:
    """The run at that size."""
    return run.model_copy(update={"params": small(run.params), "delta": "1/(2n)"})


class SmallFashion(FashionMnist):
    """Public images of the digits' size, for starts from Fashion-MNIST."""

    def meta(self) -> ImageMeta:
        return self.load()["train"].meta

    def load(self) -> dict[str, ImageSet]:
        pixels = np.random.default_rng(0).integers(0, 256, (40, 1, 8, 8), np.uint8)
        return {"train": ImageSet(pixels, np.arange(40) % 10, 10)}


@pytest.fixture(scope="module", autouse=True)
def public_images_of_that_size():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SOURCES, "fashion_mnist", SmallFashion)
        yield


@pytest.fixture(scope="module")
def images() -> ImageSet:
    from dpdm.sources.digits import Digits

    digits = Digits().load()["train"]
    return ImageSet(digits.images[:N], digits.labels[:N], 10)


@pytest.fixture(params=names(trainings(GENERATORS | CLASSIFIERS)))
def run(request):
    return small_run((GENERATORS | CLASSIFIERS)[request.param][0])


@pytest.fixture(params=names(GENERATORS))
def case(request):
    run, sampler = GENERATORS[request.param]
    return small_run(run), small(sampler)


@pytest.fixture(params=names(CLASSIFIERS))
def classifier(request):
    return small_run(CLASSIFIERS[request.param][0])


@pytest.fixture(scope="module")
def fitted(images):
    """Fits each case once per epsilon and seed."""
    cache = {}

    def fit(run: RunSpec):
        key = repr(run)
        if key not in cache:
            cache[key] = train(run, images, Log("test"))
        return cache[key]

    return fit


class Again(NamedTuple):
    """A second training of a case, from other global random states than the first."""

    model: bytes
    ledger: str
    curve: list[dict]
    moved: bool  # whether a global random state is another afterwards


@pytest.fixture(scope="module")
def again(images):
    """Fits each case once more, for all tests that compare two trainings."""
    cache = {}

    def fit(run: RunSpec) -> Again:
        key = repr(run)
        if key not in cache:
            torch.manual_seed(1234)
            np.random.seed(1234)
            before = torch.get_rng_state(), np.random.get_state()[1].copy()
            log = Log("test")
            model, ledger = train(run, images, log)
            kept = torch.equal(torch.get_rng_state(), before[0]) and np.array_equal(np.random.get_state()[1], before[1])
            cache[key] = Again(saved(model), ledger.to_json(), log.rows, not kept)
        return cache[key]

    return fit


def sample(model, run, sampler, labels, seed=0):
    method = load_method(run.impl)
    return model.sample(labels, parse_params(method.SamplerParams, sampler, "samplers"), Streams(seed, "sample"))


def saved(model) -> bytes:
    buffer = io.BytesIO()
    torch.save(model.state(), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("epsilon", [1.0, 10.0])
def test_the_ledger_stays_within_the_budget(run, fitted, epsilon):
    run = run.model_copy(update={"epsilon": epsilon})
    _, ledger = fitted(run)
    spent = epsilon_spent(ledger.events, ledger.delta, run.accountant)
    assert ledger.target_epsilon == epsilon
    assert ledger.delta == 1 / (2 * N)
    assert spent <= epsilon
    # A method that leaves its budget unspent is compared unfairly; the row at step 0 shows what was spent by then.
    assert spent > 0.9 * epsilon or run.params.get("init_only")


def test_the_ledger_holds_exactly_the_plan(run, images, fitted):
    _, _, plan, _ = prepare_run(run, images.meta)
    _, ledger = fitted(run)
    assert sorted(m.name for m in plan) == sorted(e.name for e in ledger.events)
    for mechanism in plan:
        event = next(e for e in ledger.events if e.name == mechanism.name)
        assert (event.mechanism, event.sample_rate, event.steps) == (
            mechanism.mechanism, mechanism.sample_rate, mechanism.steps,
        )  # fmt: skip


def test_infinite_epsilon_runs_the_same_mechanisms_without_noise(run, fitted):
    _, private = fitted(run)
    _, open_ = fitted(run.model_copy(update={"epsilon": float("inf")}))
    assert [(e.name, e.mechanism, e.steps) for e in open_.events] == [
        (e.name, e.mechanism, e.steps) for e in private.events
    ]
    assert all(e.noise_multiplier == 0 for e in open_.events)


def test_samples_have_the_data_sets_form(case, images, fitted):
    run, sampler = case
    labels = balanced_labels(23, 10)
    out = sample(fitted(run)[0], run, sampler, labels)
    assert out.dtype == np.uint8
    assert out.shape == (23, *images.meta.shape)


def test_image_i_depends_on_label_i_and_its_own_stream_alone(case, fitted):
    run, sampler = case
    model = fitted(run)[0]
    labels = balanced_labels(12, 10)
    whole = sample(model, run, sampler, labels)
    assert np.array_equal(sample(model, run, sampler, labels[:5]), whole[:5])
    changed = labels.copy()
    changed[7] = (changed[7] + 1) % 10
    other = sample(model, run, sampler, changed)
    same = np.arange(12) != 7
    assert np.array_equal(other[same], whole[same])


def test_the_label_decides_the_image(case, fitted):
    """Without noise and with all data, two classes of one method differ on average, unless it ignores labels."""
    run, sampler = case
    model = fitted(run.model_copy(update={"epsilon": float("inf")}))[0]
    means = [sample(model, run, sampler, np.full(20, label)).mean(0) for label in (0, 1)]
    assert np.array_equal(means[0], means[1]) == (run.params.get("conditional") is False)


def test_sampling_in_batches_changes_nothing(case, fitted):
    run, sampler = case
    try:
        parse_params(load_method(run.impl).SamplerParams, sampler | {"max_batch_size": 3}, "samplers")
    except UserError:
        pytest.skip("the sampler has no batches")
    model, labels = fitted(run)[0], balanced_labels(10, 10)
    whole = sample(model, run, sampler, labels).astype(int)
    parts = sample(model, run, sampler | {"max_batch_size": 3}, labels).astype(int)
    assert np.abs(whole - parts).max() <= 1  # float summation order may move a pixel by one grey level


def test_same_seed_same_bytes_other_seed_other_model(run, fitted, again):
    model, ledger = fitted(run)
    assert again(run).model == saved(model)
    assert again(run).ledger == ledger.to_json()
    assert saved(fitted(run.model_copy(update={"seed": 1}))[0]) != saved(model)


def test_global_random_state_is_neither_used_nor_moved(run, fitted, again):
    assert not again(run).moved
    assert again(run).model == saved(fitted(run)[0])


def test_a_private_loss_draws_anew_for_every_chunk(run, images, fitted, monkeypatch):
    """So what a record draws does not depend on the order of the chunks, nor on the process that computes it."""
    straight, _ = fitted(run)
    monkeypatch.setattr(dpsgd, "enumerate", lambda chunks: reversed(list(enumerate(chunks))), raising=False)
    backwards, _ = train(run, images, Log("test"))
    change = float((numbers(straight.state()) - numbers(backwards.state())).norm())
    assert change < 1e-5  # sums round otherwise in another order


def test_a_private_loss_passes_the_whole_swap_test(run, images, monkeypatch):
    """At every size that its chunks can have, whatever time that takes: records do not meet in it."""
    loops, tried = [], []
    dpsgd_of, trials = PrivateData.dpsgd, isolation._Trials
    monkeypatch.setattr(isolation, "SECONDS", math.inf)
    for name in ("among_others", "in_brief"):
        of_size = getattr(trials, name)
        monkeypatch.setattr(trials, name, lambda self, *a, of_size=of_size: tried.append(a[0]) or of_size(self, *a))
    monkeypatch.setattr(PrivateData, "dpsgd", lambda self, *a, **k: loops.append(a[0]) or dpsgd_of(self, *a, **k))
    train(run, images, Log("test"))
    # In full before the first step, in brief at the steps 1 and 2.
    assert tried == [3, 8, 3, 3] * len(loops)


def numbers(state) -> torch.Tensor:
    """All tensors of a model's state side by side."""
    if isinstance(state, dict):
        return torch.cat([numbers(value) for _, value in sorted(state.items())] or [torch.zeros(0)])
    return state.flatten().double() if isinstance(state, torch.Tensor) else torch.zeros(0)


def restored(run, model):
    """What another process makes of the model's file."""
    return load_method(run.impl).Model.from_state(torch.load(io.BytesIO(saved(model)), weights_only=True))


def test_state_round_trip(case, fitted):
    run, sampler = case
    model = fitted(run)[0]
    labels = balanced_labels(6, 10)
    again = sample(restored(run, model), run, sampler, labels)
    assert np.array_equal(again, sample(model, run, sampler, labels))


def test_a_model_of_networks_can_be_moved(case, fitted):
    run, _ = case
    model = restored(run, fitted(run)[0])
    networks = [value for value in vars(model).values() if isinstance(value, torch.nn.Module)]
    if networks:
        model.to("meta")
    assert all(p.device.type == "meta" for network in networks for p in network.parameters())


def test_data_reach_the_model_only_through_mechanisms(run, images, monkeypatch):
    """With every mechanism's data part silenced, two different data sets must give the same model, byte by byte.

    Would catch private labels given to a generator, a statistic computed beside the door, validation on real
    images: anything that carries data past the noise. The second run draws other batches, too, of other sizes.
    """
    other = ImageSet(255 - images.images[::-1], (images.labels[::-1] + 3) % 10, 10)
    # Other data draw other noise: here they must draw the same.
    monkeypatch.setattr(ImageSet, "digest", lambda self: "the same")
    assert outcome(run, images) != outcome(run, other)
    silence(monkeypatch)
    quiet = outcome(run, images)

    def other_draw(self, index):
        return np.flatnonzero(self._rng.uniform("poisson", index, count=self._n) >= 1 - self.declared.sample_rate)

    monkeypatch.setattr(PrivateLoop, "_draw", other_draw)
    assert quiet == outcome(run, other)


def outcome(run, images) -> tuple[bytes, list]:
    """All that a run publishes but its ledger: the model, and the training curve value by value."""
    log = Log("test")
    model, _ = train(run, images, log)
    return saved(model), log.rows


def silence(monkeypatch) -> None:
    """The callbacks of every mechanism run as ever, on all records, and their results are dropped.

    What they carry out on the side is seen. Public rows are not dropped: a record passed off as one is seen.
    """
    released, block, sums = PrivateData._clipped_total, BlockGradients._clipped, DpSgd._clipped_sum

    def silent_sum(self, losses, count, load, stream, index):
        found = sums(self, losses, count, load, stream, index)
        return torch.zeros_like(found) if stream == "private" else found

    monkeypatch.setattr(PrivateData, "_clipped_total", lambda *a: torch.zeros_like(released(*a)))
    monkeypatch.setattr(BlockGradients, "_clipped", lambda *a: torch.zeros_like(block(*a)))
    monkeypatch.setattr(DpSgd, "_clipped_sum", silent_sum)


def unread(declared: list[BaseModel], act, monkeypatch) -> set[tuple[str, str]]:
    """The fields of the declared models that `act` does not read; a documented option that no code reads is worse
    than none."""
    names, read = set(), set()

    def declare(model: BaseModel) -> None:
        for name in type(model).model_fields:
            names.add((type(model).__name__, name))
            if isinstance(getattr(model, name), BaseModel):
                declare(getattr(model, name))

    for model in declared:
        declare(model)
    original = BaseModel.__getattribute__

    def spy(self, name):
        read.add((type(self).__name__, name))
        return original(self, name)

    with monkeypatch.context() as patch:
        patch.setattr(BaseModel, "__getattribute__", spy)
        act()
    return {(model, field) for model, field in names - read if field != "kind"}  # what chose the model


def test_every_declared_parameter_is_read(case, images, monkeypatch):
    run, sampler = case
    # What stops before DP-SGD does not read the keys of DP-SGD.
    run = run.model_copy(update={"params": {k: v for k, v in run.params.items() if k != "init_only"}})
    method = load_method(run.impl)
    params = parse_params(method.Params, run.params, "params")
    sampler_params = parse_params(method.SamplerParams, sampler, "samplers")

    def act():
        model, _ = train(run, images, Log("test"))
        model.sample(balanced_labels(3, 10), sampler_params, Streams(0, "sample"))

    assert not unread([params, sampler_params], act, monkeypatch)


def test_the_training_curve_holds_only_released_quantities(run, again):
    allowed = {"step", "released_grad_norm", "d_steps_per_g_step"}  # the last: of released weights and fakes alone
    assert all(set(row) <= allowed for row in again(run).curve)


# --- classifiers ----------------------------------------------------------------------------------------------


def test_the_kinds_have_methods_each():
    """Else the tests below would pass over nothing."""
    assert GENERATORS
    assert CLASSIFIERS


def test_a_classifier_gives_every_image_a_class(classifier, images, fitted):
    model = fitted(classifier)[0]
    out = model.predict(images.images)
    assert out.dtype == np.int64
    assert out.shape == (N,)
    assert out.min() >= 0
    assert out.max() < 10
    assert model.predict(images.images[:0]).shape == (0,)
    assert model.family in CLASSIFIER_FAMILIES


def test_a_class_does_not_depend_on_the_batch_or_on_a_second_look(classifier, images, fitted):
    model = fitted(classifier)[0]
    whole = model.predict(images.images)
    parts = [model.predict(images.images[start : start + 5]) for start in range(0, N, 5)]
    assert np.array_equal(np.concatenate(parts), whole)
    assert np.array_equal(model.predict(images.images[::-1].copy())[::-1], whole)


def test_a_classifiers_state_round_trip(classifier, images, fitted):
    model = fitted(classifier)[0]
    again = restored(classifier, model)
    assert np.array_equal(again.predict(images.images), model.predict(images.images))
    assert again.family == model.family
    assert saved(again) == saved(model)


def test_every_declared_parameter_of_a_classifier_is_read(classifier, images, monkeypatch):
    params = parse_params(load_method(classifier.impl).Params, classifier.params, "params")
    act = lambda: train(classifier, images, Log("test"))[0].predict(images.images)  # noqa: E731
    assert not unread([params], act, monkeypatch)


@pytest.mark.parametrize("name", GENERATORS | CLASSIFIERS)
def test_a_method_is_of_its_kind_alone(name):
    run = (GENERATORS | CLASSIFIERS)[name][0]
    kind, other = ("generator", "classifier") if name in GENERATORS else ("classifier", "generator")
    load_method(run.impl, kind)
    with refuses(kind):
        load_method(run.impl, other)

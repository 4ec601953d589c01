"""The contract, over every method of every shipped study: a new method is tested by being in a study."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from opacus.optimizers import DPOptimizer
from pydantic import BaseModel

from dpdm.config import RunSpec, load_study, merge, parse_params
from dpdm.data import ImageSet, balanced_labels, load_dataset
from dpdm.errors import UserError
from dpdm.method import load_method, prepare_run, train
from dpdm.privacy import PrivateData, epsilon_spent
from dpdm.progress import Log
from dpdm.rng import Streams

STUDIES = sorted((Path(__file__).parents[2] / "config").glob("*.yaml"))
N = 64


def cases() -> dict[str, tuple[RunSpec, dict]]:
    """One run per study and method, at the study's first epsilon."""
    out = {}
    for path in STUDIES:
        study = load_study(path)
        for method in study.methods:
            run = study.run(next(iter(study.datasets)), method, study.epsilons[0], 0)
            sampler = study.sample(run, next(iter(study.methods[method].samplers))).sampler_params
            out[f"{path.stem}-{method}"] = run, sampler
    return out


CASES = cases()


# What makes a recipe large, and a size that a test can wait for; all else of the recipe stays.
SMALL = {
    "dp": {"expected_batch_size": 16, "steps": 3, "max_physical_batch_size": 8},
    "network": {"channels": 8, "blocks_per_level": 1},
    "noise_multiplicity": 2,
    "num_sampling_steps": 3,
}


def small(recipe: dict) -> dict:
    """The recipe with the sizes of SMALL, where it has them."""
    return merge(recipe, {key: value for key, value in SMALL.items() if key in recipe})


@pytest.fixture(scope="module")
def images() -> ImageSet:
    from dpdm.config import SourceSpec

    digits = load_dataset(SourceSpec(source="digits"))["train"]
    return ImageSet(digits.images[:N], digits.labels[:N], 10)


@pytest.fixture(params=CASES, ids=list(CASES))
def case(request):
    run, sampler = CASES[request.param]
    return run.model_copy(update={"params": small(run.params), "delta": "1/(2n)"}), small(sampler)


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


def sample(model, run, sampler, labels, seed=0):
    method = load_method(run.impl)
    return model.sample(labels, parse_params(method.SamplerParams, sampler, "samplers"), Streams(seed, "sample"))


def saved(model) -> bytes:
    buffer = io.BytesIO()
    torch.save(model.state(), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("epsilon", [1.0, 10.0])
def test_the_ledger_stays_within_the_budget(case, fitted, epsilon):
    run = case[0].model_copy(update={"epsilon": epsilon})
    _, ledger = fitted(run)
    spent = epsilon_spent(ledger.events, ledger.delta, run.accountant)
    assert ledger.target_epsilon == epsilon
    assert ledger.delta == 1 / (2 * N)
    assert spent <= epsilon
    assert spent > 0.9 * epsilon  # a method that leaves its budget unspent is compared unfairly


def test_the_ledger_holds_exactly_the_plan(case, images, fitted):
    run = case[0]
    _, _, plan, _ = prepare_run(run, images.meta)
    _, ledger = fitted(run)
    assert sorted(m.name for m in plan) == sorted(e.name for e in ledger.events)
    for mechanism in plan:
        event = next(e for e in ledger.events if e.name == mechanism.name)
        assert (event.mechanism, event.sample_rate, event.steps) == (
            mechanism.mechanism, mechanism.sample_rate, mechanism.steps,
        )  # fmt: skip


def test_infinite_epsilon_runs_the_same_mechanisms_without_noise(case, fitted):
    _, private = fitted(case[0])
    _, open_ = fitted(case[0].model_copy(update={"epsilon": float("inf")}))
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
    """Without noise and with all data, two classes of one method differ on average."""
    run, sampler = case
    model = fitted(run.model_copy(update={"epsilon": float("inf")}))[0]
    means = [sample(model, run, sampler, np.full(20, label)).mean(0) for label in (0, 1)]
    assert not np.array_equal(means[0], means[1])


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


def test_same_seed_same_bytes_other_seed_other_model(case, images, fitted):
    run = case[0]
    model, ledger = fitted(run)
    again, ledger_again = train(run, images, Log("test"))
    assert saved(again) == saved(model)
    assert ledger_again.to_json() == ledger.to_json()
    assert saved(fitted(run.model_copy(update={"seed": 1}))[0]) != saved(model)


def test_global_random_state_is_neither_used_nor_moved(case, images, fitted):
    run = case[0]
    torch.manual_seed(1234)
    np.random.seed(1234)
    expected = torch.get_rng_state(), np.random.get_state()[1].copy()
    model, _ = train(run, images, Log("test"))
    assert torch.equal(torch.get_rng_state(), expected[0])
    assert np.array_equal(np.random.get_state()[1], expected[1])
    assert saved(model) == saved(fitted(run)[0])


def test_state_round_trip(case, fitted):
    run, sampler = case
    model = fitted(run)[0]
    buffer = io.BytesIO(saved(model))
    restored = load_method(run.impl).Model.from_state(torch.load(buffer, weights_only=True))
    labels = balanced_labels(6, 10)
    assert np.array_equal(sample(restored, run, sampler, labels), sample(model, run, sampler, labels))


def test_data_reach_the_model_through_mechanisms_alone(case, images, monkeypatch):
    """With every mechanism's data part silenced, two different data sets must give the same model, byte by byte.

    Would catch private labels given to a generator, a statistic computed beside the door, validation on real
    images: anything that carries data past the noise.
    """
    run = case[0]
    other = ImageSet(255 - images.images[::-1], (images.labels[::-1] + 3) % 10, 10)
    assert saved(train(run, images, Log("test"))[0]) != saved(train(run, other, Log("test"))[0])

    def silent_sum(self, vectors, l2_bound, reduce):
        x, y = self._batch(np.arange(1))
        return torch.zeros_like(reduce(vectors(x, y)), dtype=torch.float64)

    def silent_clip(self):
        for p in self.params:
            p.summed_grad = torch.zeros_like(p)

    monkeypatch.setattr(PrivateData, "_clipped_total", silent_sum)
    monkeypatch.setattr(DPOptimizer, "clip_and_accumulate", silent_clip)
    assert saved(train(run, images, Log("test"))[0]) == saved(train(run, other, Log("test"))[0])


def test_every_declared_parameter_is_read(case, images, monkeypatch):
    """A documented option that no code reads is worse than none."""
    run, sampler = case
    method = load_method(run.impl)
    params = parse_params(method.Params, run.params, "params")
    sampler_params = parse_params(method.SamplerParams, sampler, "samplers")
    declared, read = set(), set()

    def declare(model: BaseModel) -> None:
        for name in type(model).model_fields:
            declared.add((type(model).__name__, name))
            if isinstance(getattr(model, name), BaseModel):
                declare(getattr(model, name))

    declare(params)
    declare(sampler_params)
    original = BaseModel.__getattribute__

    def spy(self, name):
        read.add((type(self).__name__, name))
        return original(self, name)

    with monkeypatch.context() as patch:
        patch.setattr(BaseModel, "__getattribute__", spy)
        model, _ = train(run, images, Log("test"))
        model.sample(balanced_labels(3, 10), sampler_params, Streams(0, "sample"))
    assert not {(model, field) for model, field in declared - read if field != "kind"}  # what chose the model


def test_the_training_curve_holds_only_released_quantities(case, images):
    log = Log("test")
    train(case[0], images, log)
    allowed = {"step", "released_grad_norm"}
    assert all(set(row) <= allowed for row in log.rows)

"""Fidelity: zero for equal sets, growing with damage, finite for degenerate images, loud about mistakes."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from refusals import refuses

from dpdm import artifacts
from dpdm.data import ImageSet, balanced_labels
from dpdm.errors import UserError
from dpdm.evaluation import extractor, fidelity, registry
from dpdm.rng import Streams
from dpdm.sources.digits import Digits

pytestmark = pytest.mark.slow

DIRECTIONS = {"fd": "lower", "kid": "lower", "precision": "higher", "recall": "higher"}


@pytest.fixture(scope="module")
def digits():
    return Digits().load()


@pytest.fixture(scope="module")
def weights(digits, tmp_path_factory):
    path = tmp_path_factory.mktemp("extractor") / "extractor.pt"
    artifacts.write_tensors(path, extractor.train_extractor(digits["train"], digits["test"]))
    return path


def with_images(images):
    return ImageSet(images, balanced_labels(len(images), 10), 10, "synthetic")


def noisy(images, amplitude):
    noise = np.random.default_rng(0).normal(0, 1, images.shape)
    return with_images((images + amplitude * noise).clip(0, 255).round().astype(np.uint8))


def rows_of(synthetic, references, weights, seed=0, name="small_cnn"):
    """The rows by an extractor against each of the references, whose other side is any."""
    network, sides = fidelity.Trained(name, weights), tuple(references)
    kept = weights.parent / "kept.npz"
    both = dict.fromkeys(fidelity.SIDES, next(iter(references.values()))) | references
    artifacts.write_npz(kept, fidelity.reference(both, network))
    return fidelity.measure(synthetic, kept, network, seed, sides)[0]


def measured(synthetic, references, weights, seed=0):
    rows = rows_of(synthetic, references, weights, seed)
    return {(row["reference"], row["metric"]): row["value"] for row in rows}


def test_the_rows_name_metric_extractor_direction_and_side_and_never_say_fid(digits, weights):
    rows = rows_of(digits["test"], digits, weights)
    assert [(r["reference"], r["extractor"], r["metric"], r["direction"]) for r in rows] == [
        (side, "small_cnn", *named) for side in ("train", "test") for named in DIRECTIONS.items()
    ]
    assert all(type(row["value"]) is float for row in rows)


def test_equal_sets_have_distance_zero_and_the_other_side_has_not(digits, weights):
    values = measured(digits["test"], digits, weights)
    assert abs(values["test", "fd"]) < 1e-6
    assert (values["test", "precision"], values["test", "recall"]) == (1, 1)
    assert values["train", "fd"] > 0.01
    assert values["train", "precision"] < 1


def test_more_noise_is_a_larger_distance(digits, weights):
    train = {"train": digits["train"]}
    steps = [measured(noisy(digits["train"].images, a), train, weights) for a in (0, 20, 60, 120)]
    for metric, damaged in (("fd", 1.0), ("kid", 0.05)):
        values = [step["train", metric] for step in steps]
        assert values == sorted(values)
        assert values[-1] > damaged
    assert steps[0]["train", "precision"] == 1 > steps[2]["train", "precision"] > steps[3]["train", "precision"]


def test_precision_and_recall_judge_their_own_side(digits, weights):
    """One digit repeated is real (precision 1) but covers little (recall small)."""
    one = with_images(np.repeat(digits["train"].images[:1], 50, axis=0))
    values = measured(one, {"train": digits["train"]}, weights)
    assert values["train", "precision"] == 1
    assert values["train", "recall"] < 0.01


def test_the_order_of_images_does_not_matter(digits, weights):
    synthetic = noisy(digits["train"].images[:700], 40)  # more than one batch, fewer than a kid subset
    shuffled = with_images(synthetic.images[np.random.default_rng(1).permutation(700)])
    one_side = {"train": ImageSet(digits["train"].images[:900], digits["train"].labels[:900], 10)}
    plain, other = measured(synthetic, one_side, weights), measured(shuffled, one_side, weights)
    for metric in ("fd", "precision", "recall"):
        assert other["train", metric] == pytest.approx(plain["train", metric], rel=1e-9)


def test_a_gpu_is_not_used(digits, weights, monkeypatch):
    """Its convolutions would give other numbers; torch-fidelity would fail here if it were told to use one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert measured(digits["test"], {"train": digits["test"]}, weights)["train", "fd"] < 1e-3


def test_the_batch_size_does_not_matter(digits, weights, monkeypatch):
    plain = measured(digits["test"], {"train": digits["train"]}, weights)
    monkeypatch.setattr(extractor, "_BATCH_SIZE", 7)
    monkeypatch.setattr(fidelity, "PRC_BATCH_SIZE", 11)
    assert measured(digits["test"], {"train": digits["train"]}, weights) == pytest.approx(plain, rel=1e-5, abs=1e-6)


def test_all_but_fd_look_at_a_choice_of_many_images(digits, weights, monkeypatch):
    synthetic, real = noisy(digits["train"].images[:700], 40), digits["train"]
    whole = measured(synthetic, {"train": real}, weights)
    rows, real_rows = fidelity.fixed_choice(700, 400), fidelity.fixed_choice(len(real.images), 400)
    few = ImageSet(real.images[real_rows], real.labels[real_rows], 10)
    chosen = measured(with_images(synthetic.images[rows]), {"train": few}, weights)
    monkeypatch.setattr(fidelity, "SUBSET_SIZE", 400)
    expected = whole | {key: value for key, value in chosen.items() if key[1] != "fd"}
    assert measured(synthetic, {"train": real}, weights) == pytest.approx(expected, rel=1e-6)
    assert expected != whole


@pytest.mark.parametrize("most", [10, 500, 999])
def test_a_choice_has_every_class_whatever_their_order(most):
    """Synthetic sets go through the classes again and again: every second image would be of an even class."""
    rows = fidelity.fixed_choice(1000, most)
    assert len(rows) == most == len(set(rows))
    assert (np.diff(rows) > 0).all()
    assert np.array_equal(fidelity.fixed_choice(5, most), np.arange(5))
    shares = np.bincount(balanced_labels(1000, 10)[rows], minlength=10) / most
    assert most == 10 or (np.abs(shares - 0.1) < 0.03).all()


def test_equal_seeds_give_equal_numbers_and_the_seed_moves_kid_only(digits, weights):
    train = {"train": digits["train"]}
    first, again, other = (measured(digits["test"], train, weights, seed) for seed in (0, 0, 1))
    assert first == again
    assert {key for key in first if first[key] != other[key]} == {("train", "kid")}


@pytest.mark.parametrize("value", [0, 128, 255])
@pytest.mark.parametrize("count", [4, 100])
def test_constant_images_give_finite_bad_values(value, count, digits, weights):
    values = measured(with_images(np.full((count, 1, 8, 8), value, np.uint8)), digits, weights)
    assert np.isfinite(list(values.values())).all()
    for side in ("train", "test"):
        assert values[side, "fd"] > 5
        assert values[side, "kid"] > 0.3
        assert values[side, "recall"] == 0
        # by each of three networks 0 or 1: white lies within the wide reach of one odd digit
        assert 3 * values[side, "precision"] == pytest.approx(round(3 * values[side, "precision"]))


def test_kid_has_no_scale_across_extractors():
    """As the page says: features twice as large give up to 64 times the KID, and never less of it."""
    one, other = torch.rand(2, 40, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def kid(scale):
        sides = (fidelity.Features(np.zeros(8), np.eye(8), scale * side) for side in (one, other + 1))
        return fidelity.KID.measure(*sides, Streams(0))["kid"]

    for scale in (0.1, 1, 30):
        assert 1 < kid(2 * scale) / kid(scale) < 64
    assert kid(2000) / kid(1000) == pytest.approx(64, rel=0.01)


def test_equal_constant_sets_are_at_distance_zero(weights):
    same = with_images(np.zeros((10, 1, 8, 8), np.uint8))
    values = measured(same, {"train": same}, weights)
    assert values["train", "fd"] == pytest.approx(0, abs=1e-6)
    assert np.isfinite(list(values.values())).all()


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 8, 9), (1, 16, 16)])
def test_images_of_another_shape_are_refused_on_either_side(shape, digits, weights):
    odd = ImageSet(np.zeros((10, *shape), np.uint8), balanced_labels(10, 10), 10, "odd.npz")
    with refuses("odd.npz", "shape"):
        rows_of(odd, digits, weights)
    with refuses("odd.npz", "shape"):
        rows_of(digits["test"], {"train": digits["train"], "test": odd}, weights)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_too_few_images_are_refused_by_name(count, digits, weights):
    few = ImageSet(digits["test"].images[:count], digits["test"].labels[:count], 10, "few.npz")
    with refuses("few.npz", count):
        rows_of(few, digits, weights)
    with refuses("few.npz", count):
        rows_of(digits["test"], {"test": few}, weights)


def test_a_missing_extractor_is_named(digits, tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.pt"):
        rows_of(digits["test"], digits, tmp_path / "nowhere.pt")


def registered(monkeypatch, metric):
    """One more metric, as a line of the registry names it."""
    monkeypatch.setattr(fidelity, "MORE", metric, raising=False)
    monkeypatch.setitem(registry.METRICS, "more", "dpdm.evaluation.fidelity:MORE")


@pytest.mark.parametrize(
    ("found", "facts"),
    [
        ({"odd": float("nan")}, ["odd", "digits test", "nan"]),
        ({"odd": None}, ["TypeError"]),
        ({"odd": 1.0, "more": 2.0}, ["'more'", "directions", "lower", "higher"]),
        ({}, ["'odd'", "directions"]),
        (None, ["NoneType", "'odd'"]),
    ],
)
def test_a_metric_with_a_mistake_is_named_and_not_the_features(found, facts, digits, weights, monkeypatch):
    registered(monkeypatch, fidelity.Metric({"odd": "lower"}, lambda *_: found))
    with refuses('METRICS["more"]', "dpdm.evaluation.fidelity:MORE", *facts) as caught:
        rows_of(digits["test"], digits, weights)
    assert "kept.npz" not in str(caught.value)


def test_a_metric_that_fails(digits, weights, monkeypatch):
    registered(monkeypatch, fidelity.Metric({"odd": "lower"}, lambda *_: 1 / 0))
    with refuses('METRICS["more"]', "ZeroDivisionError"):
        rows_of(digits["test"], digits, weights)


def test_real_features_that_are_not_finite_are_the_fault_of_their_file(digits, weights):
    rows_of(digits["test"], digits, weights)
    kept = weights.parent / "kept.npz"
    arrays = artifacts.read_npz(kept, fidelity._ARRAYS)
    arrays["train_mu"][:] = np.nan
    artifacts.write_npz(kept, arrays)
    with refuses(kept, "not finite"):
        fidelity.measure(digits["test"], kept, fidelity.Trained("small_cnn", weights), 0)


@pytest.mark.parametrize(
    ("features", "facts"),
    [
        (lambda images, _: None, ["NoneType"]),
        (lambda images, _: torch.ones(3, 2), ["[3, 2]", "[n, d]"]),
        (lambda images, _: torch.full((len(images.images), 2), torch.nan), ["not finite"]),
        (lambda images, _: 1 / 0, ["ZeroDivisionError"]),
    ],
)
def test_an_extractor_with_a_mistake(features, facts, digits, weights, monkeypatch):
    monkeypatch.setattr(extractor, "odd", features, raising=False)
    monkeypatch.setitem(registry.EXTRACTORS, "odd", "dpdm.evaluation.extractor:odd")
    with refuses('EXTRACTORS["odd"]', *facts):
        rows_of(digits["test"], digits, weights, name="odd")


def test_a_new_metric_and_a_new_extractor_are_a_line_each(digits, weights, monkeypatch):
    registered(monkeypatch, fidelity.Metric({"gap": "lower"}, lambda s, r, _: {"gap": abs(s.mu - r.mu).max()}))
    monkeypatch.setattr(
        extractor, "pixels", lambda images, _: torch.from_numpy(images.images).flatten(1), raising=False
    )
    monkeypatch.setitem(registry.EXTRACTORS, "pixels", "dpdm.evaluation.extractor:pixels")
    rows = rows_of(digits["test"], {"train": digits["train"]}, weights, name="pixels")
    assert [(r["extractor"], r["metric"]) for r in rows] == [("pixels", metric) for metric in (*DIRECTIONS, "gap")]
    means = (digits[side].images.reshape(-1, 64).mean(0) for side in ("test", "train"))
    assert rows[-1]["value"] == pytest.approx(np.abs(next(means) - next(means)).max())


def test_a_value_of_several_networks_is_their_mean_with_its_spread(digits, weights, monkeypatch):
    monkeypatch.setattr(extractor, "one", lambda i, path: extractor.features(i, path)[1], raising=False)
    monkeypatch.setattr(extractor, "two", lambda i, path: extractor.features(i, path)[1:], raising=False)
    for name in ("one", "two"):
        monkeypatch.setitem(registry.EXTRACTORS, name, f"dpdm.evaluation.extractor:{name}")
    by = {n: rows_of(digits["test"], {"train": digits["train"]}, weights, name=n) for n in ("one", "two")}
    monkeypatch.setattr(extractor, "one", lambda i, path: extractor.features(i, path)[2])
    other = rows_of(digits["test"], {"train": digits["train"]}, weights, name="one")
    for one, last, both in zip(by["one"], other, by["two"], strict=True):
        assert "spread" not in one
        assert both["value"] == pytest.approx((one["value"] + last["value"]) / 2)
        assert both["spread"] == pytest.approx(abs(one["value"] - last["value"]) / 2**0.5)


def test_a_misspelt_option_is_an_error():
    with refuses("'kid_subset_sise'"):
        fidelity.known_options({"fid": True, "kid_subset_sise": 10})


def test_importing_the_module_does_not_import_torch_fidelity():
    code = "import sys, dpdm.evaluation.fidelity; print('torch_fidelity' in sys.modules, 'torchvision' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["False", "False"], done.stderr

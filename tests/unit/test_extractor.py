"""The feature extractor: trained alike from equal seeds, good enough to trust, and read back as written."""

import numpy as np
import pytest
import torch
from refusals import refuses

from dpdm import artifacts
from dpdm.data import ImageSet
from dpdm.errors import UserError
from dpdm.evaluation import extractor
from dpdm.sources.digits import Digits


@pytest.fixture(scope="module")
def digits():
    return Digits().load()


@pytest.fixture(scope="module")
def state(digits):
    return extractor.train_extractor(digits["train"], digits["test"])


@pytest.fixture
def few_steps(monkeypatch):
    monkeypatch.setattr(extractor, "RECIPE", extractor.Recipe(steps=3, batch_size=16, lr=1e-3))


def toy(shape=(1, 8, 8), n=20, num_classes=2):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (n, *shape), np.uint8)
    return ImageSet(images, np.arange(n, dtype=np.int64) % num_classes, num_classes, "toy")


def same_weights(left, right):
    """By network."""
    return [
        all(torch.equal(a[name], b[name]) for name in a.keys() | b.keys()) for a, b in zip(left, right, strict=True)
    ]


@pytest.mark.slow
def test_it_knows_the_digits(state):
    assert min(state["facts"]["test_accuracy"]) >= 97
    assert 97 <= min(state["facts"]["train_accuracy"]) <= 100
    assert len(state["facts"]["test_accuracy"]) == 3


def test_the_facts_say_what_it_is_and_what_it_saw(state, digits):
    facts = state["facts"]
    assert facts["trained_on"] == digits["train"].digest() != digits["test"].digest()
    assert (facts["seeds"], facts["n"], facts["feature_size"]) == ([0, 1, 2], 1437, extractor.FEATURE_SIZE)
    assert (facts["steps"], facts["batch_size"], facts["lr"]) == (
        extractor.RECIPE.steps, extractor.RECIPE.batch_size, extractor.RECIPE.lr,
    )  # fmt: skip
    assert facts["epochs"] == facts["steps"] * facts["batch_size"] / 1437
    assert (state["shape"], state["num_classes"]) == ([1, 8, 8], 10)
    artifacts.canonical_json(facts)  # JSON all through


def test_equal_seeds_give_equal_bytes_and_other_seeds_other_weights(few_steps, tmp_path):
    for name, seeds in (("a", (0, 1)), ("b", (0, 1)), ("c", (0, 2))):
        torch.rand(sum(seeds) + 5)  # the state of the global generator must not matter
        artifacts.write_tensors(tmp_path / name, extractor.train_extractor(toy(), toy(), seeds))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    weights = {name: artifacts.read_tensors(tmp_path / name)["weights"] for name in "ac"}
    assert same_weights(weights["a"], weights["c"]) == [True, False]
    assert same_weights(weights["a"], weights["a"][::-1]) == [False, False]


def test_training_and_loading_leave_the_global_generator_alone(few_steps, tmp_path):
    before = torch.get_rng_state()
    artifacts.write_tensors(tmp_path / "x.pt", extractor.train_extractor(toy(), toy()))
    extractor.load_extractor(tmp_path / "x.pt")
    assert torch.equal(torch.get_rng_state(), before)


def test_the_test_set_decides_nothing_but_its_accuracy(few_steps):
    other = toy(n=40)
    left, right = extractor.train_extractor(toy(), toy()), extractor.train_extractor(toy(), other)
    assert all(same_weights(left["weights"], right["weights"]))


def test_a_written_extractor_is_read_back(state, digits, tmp_path):
    artifacts.write_tensors(tmp_path / "x.pt", state)
    networks, facts = extractor.load_extractor(tmp_path / "x.pt")
    assert facts == state["facts"]
    assert all(same_weights([network.state_dict() for network in networks], state["weights"]))
    for network, accuracy in zip(networks, facts["test_accuracy"], strict=True):
        assert not network.training
        logits = network(torch.from_numpy(digits["test"].images).float() / 127.5 - 1)
        right = (logits.argmax(1).numpy() == digits["test"].labels).mean()
        assert 100 * right == pytest.approx(accuracy)


def test_features_have_unit_mean_square_on_the_training_images(state, digits, tmp_path):
    artifacts.write_tensors(tmp_path / "x.pt", state)
    features = extractor.features(digits["train"], tmp_path / "x.pt")
    assert features.shape == (3, 1437, extractor.FEATURE_SIZE)
    assert features.dtype == torch.float32
    for one in features:
        assert one.square().mean().item() == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 8, 8), (1, 13, 9), (1, 28, 28), (3, 32, 32), (3, 64, 64)])
def test_any_size_and_colour_works(shape, few_steps, tmp_path):
    artifacts.write_tensors(tmp_path / "x.pt", extractor.train_extractor(toy(shape), toy(shape)))
    assert extractor.features(toy(shape), tmp_path / "x.pt").shape == (3, 20, extractor.FEATURE_SIZE)


@pytest.mark.parametrize(
    ("train_set", "test_set", "message"),
    [
        (toy(), toy((3, 8, 8)), "sets of one kind"),
        (toy(), toy(num_classes=3), r"8\), 3"),
        (toy(n=0), toy(), "empty"),
        (toy(), toy(n=0), "empty"),
    ],
)
def test_sets_that_do_not_fit_are_refused(train_set, test_set, message):
    with pytest.raises(UserError, match=message):
        extractor.train_extractor(train_set, test_set)


def test_images_that_kill_every_feature_are_refused(few_steps, monkeypatch):
    monkeypatch.setattr(extractor.SmallCnn, "features", lambda self, images: torch.zeros(len(images), 64))
    with pytest.raises(UserError, match="no features"):
        extractor.train_extractor(toy(), toy())


@pytest.mark.parametrize("damage", ["weights", "shape", "facts", "smaller", "nan"])
def test_another_kind_of_file_is_named(damage, few_steps, tmp_path):
    state = extractor.train_extractor(toy(), toy())
    if damage == "smaller":
        state["weights"][1]["head.weight"] = state["weights"][1]["head.weight"][:1].clone()
    elif damage == "nan":
        state["weights"][2]["head.bias"][0] = float("nan")
    else:
        del state[damage]
    artifacts.write_tensors(tmp_path / "broken.pt", state)
    with refuses("broken.pt"):
        extractor.load_extractor(tmp_path / "broken.pt")


def test_a_file_is_read_once_and_again_when_it_was_written_again(few_steps, tmp_path):
    state, path = extractor.train_extractor(toy(), toy()), tmp_path / "extractor.pt"
    artifacts.write_tensors(path, state)
    first, _ = extractor.load_extractor(path)
    assert extractor.load_extractor(path)[0] is first
    state["weights"][0]["head.bias"] += 1
    artifacts.write_tensors(path, state)
    assert not torch.equal(extractor.load_extractor(path)[0][0].head.bias, first[0].head.bias)


@pytest.mark.slow
def test_with_one_class_it_learns_how_an_image_was_turned():
    """Cross-entropy over one class is 0 whatever the weights: they would stay as they were drawn."""
    rng = np.random.default_rng(0)
    shade = np.linspace(0, 200, 8, dtype=np.uint8)[:, None] + rng.integers(0, 50, (300, 1, 8, 8), np.uint8)
    one = ImageSet(shade, np.zeros(300, np.int64), 1)
    facts = extractor.train_extractor(one, ImageSet(shade[:40], np.zeros(40, np.int64), 1))["facts"]
    assert facts["task"] == "rotations"
    assert min(facts["test_accuracy"]) > 90
    assert facts["trained_on"] == one.digest()


def test_images_that_are_not_square_are_turned_upside_down():
    images = ImageSet(np.arange(24, dtype=np.uint8).reshape(4, 1, 2, 3), np.zeros(4, np.int64), 1)
    turned = extractor._turned(images)
    assert turned.labels.tolist() == [0, 1, 0, 1]
    assert np.array_equal(turned.images[0], images.images[0])
    assert np.array_equal(turned.images[1, 0], images.images[1, 0, ::-1, ::-1])

"""Utility: the classifiers learn what is there, from synthetic images only, the same way every time."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from refusals import refuses

from dpdm.data import ImageSet, balanced_labels
from dpdm.errors import UserError
from dpdm.evaluation import classifiers, registry, residual
from dpdm.evaluation._network import EpochRecipe, Recipe, train, train_and_select
from dpdm.progress import Log
from dpdm.rng import Streams
from dpdm.sources.base import DATA_DIR_VARIABLE
from dpdm.sources.digits import Digits
from dpdm.sources.fashion_mnist import FashionMnist
from dpdm.sources.mnist import Mnist

pytestmark = pytest.mark.slow

ALL = ["logreg", "mlp", "cnn"]
CEILING = {"acc_logreg": 94, "acc_mlp": 96, "acc_cnn": 96}  # percent, trained on the real digits


@pytest.fixture(scope="module")
def digits():
    return Digits().load()


@pytest.fixture(params=["standard", "paper"])
def short(monkeypatch, request):
    """Both protocols of the paper's networks in seconds, for all that does not ask how good a classifier gets."""
    recipes = {"standard": Recipe(40, 32, 1e-2, one_cycle=True), "paper": EpochRecipe(20, 16, 3e-3)}
    monkeypatch.setitem(registry.PROTOCOLS, "short", registry.CLASSIFIERS)
    monkeypatch.setitem(classifiers.RECIPES, "short", recipes[request.param])
    return request.param


def halves(n=120, shape=(1, 8, 8), num_classes=2, seed=0):
    """Class 0 is bright above, class 1 below, with a little noise: separable by any classifier."""
    labels = balanced_labels(n, num_classes)
    images = np.random.default_rng(seed).integers(0, 60, (n, *shape))
    middle = shape[1] // 2
    images[labels == 0, :, :middle] += 180
    images[labels == 1, :, middle:] += 180
    return ImageSet(images.astype(np.uint8), labels, num_classes, "halves")


def values(rows):
    return {row["metric"]: row["value"] for row in rows}


def test_the_ceiling_on_real_digits(digits):
    rows = classifiers.measure(digits["train"], digits["test"], ALL, 0, "standard")
    assert [(row["metric"], row["reference"]) for row in rows] == [(f"acc_{name}", "test") for name in ALL]
    for metric, value in values(rows).items():
        assert type(value) is float
        assert CEILING[metric] <= value <= 100


def test_the_better_networks_are_better_on_real_mnist():
    """1,000 training images, judged by other training images: a protocol that is too short turns the order around."""
    if not (Path(os.environ.get(DATA_DIR_VARIABLE, "data")) / "mnist").is_dir():
        pytest.skip(f"mnist is not at ${DATA_DIR_VARIABLE}")
    mnist = Mnist().load()["train"]
    parts = [ImageSet(mnist.images[part], mnist.labels[part], 10) for part in (slice(1000), slice(1000, 5000))]
    logreg, mlp, cnn = values(classifiers.measure(*parts, ALL, 0, "standard")).values()
    assert 80 < logreg < mlp < cnn
    assert cnn > 92


@pytest.mark.slow
@pytest.mark.parametrize(("source", "least"), [(Mnist, (91.0, 96.3, 98.9)), (FashionMnist, (83.0, 86.5, 87.5))])
def test_20_000_real_images_train_each_classifier_well(source, least):
    """The protocol, as the row of real images is scored."""
    if not (Path(os.environ.get(DATA_DIR_VARIABLE, "data")) / source().source).is_dir():
        pytest.skip(f"{source().source} is not at ${DATA_DIR_VARIABLE}")
    splits = source().load()
    some = ImageSet(splits["train"].images[:20_000], splits["train"].labels[:20_000], 10)
    found = list(values(classifiers.measure(some, splits["test"], ALL, 0, "standard")).values())
    assert found == sorted(found)
    assert all(value >= floor for value, floor in zip(found, least, strict=True)), found


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 18, 20)])
def test_a_separable_set_is_learned_whole(name, shape, short):
    train, test = halves(shape=shape), halves(40, shape, seed=1)
    assert values(classifiers.measure(train, test, [name], 0, "short")) == {f"acc_{name}": 100}


def test_a_classifier_that_is_trained_already_is_measured_in_its_family():
    test = halves(40)
    asked = []

    def predict(images):
        asked.append(images)
        return np.where(np.arange(40) < 30, test.labels, 1 - test.labels)

    rows = classifiers.measure_trained(predict, "mlp", test)
    named = {"metric": "acc_mlp", "extractor": "", "direction": "higher", "reference": "test"}
    assert rows == [named | {"value": 75.0}]
    assert [images is test.images for images in asked] == [True]


@pytest.mark.parametrize(
    ("predicted", "family", "part"),
    [
        (np.zeros(40, np.int64), "forest", "unknown family of classifiers 'forest'; choose from logreg, mlp, cnn"),
        (np.zeros(39, np.int64), "mlp", r"predict gave int64 \(39,\) for 40 images; it must give one int64 class"),
        (np.zeros((40, 2), np.int64), "mlp", r"\(40, 2\)"),
        (np.zeros(40), "mlp", "float64"),
    ],
)
def test_predictions_that_cannot_be_counted(predicted, family, part):
    with pytest.raises(UserError, match=part):
        classifiers.measure_trained(lambda images: predicted, family, halves(40))


def test_no_test_images_for_a_trained_classifier():
    empty = ImageSet(np.zeros((0, 1, 8, 8), np.uint8), np.zeros(0, np.int64), 2)
    with refuses("test images"):
        classifiers.measure_trained(lambda images: np.zeros(0, np.int64), "mlp", empty)


@pytest.mark.parametrize("name", ALL)
def test_swapped_training_labels_are_learned_swapped(name, short):
    """So the accuracy comes from the synthetic labels, and from nowhere else."""
    train, test = halves(), halves(40, seed=1)
    swapped = ImageSet(train.images, 1 - train.labels, 2)
    assert values(classifiers.measure(swapped, test, [name], 0, "short")) == {f"acc_{name}": 0}


@pytest.mark.parametrize("name", ALL)
def test_the_test_labels_change_nothing_but_the_accuracy(name, short, monkeypatch):
    train, test = halves(), halves(40, seed=1)
    seen, original = [], classifiers.train_and_predict

    def recorded(*given):
        seen.append(original(*given))
        return seen[-1]

    monkeypatch.setattr(classifiers, "train_and_predict", recorded)
    shuffled = np.random.default_rng(0).permutation(test.labels)
    permuted = ImageSet(test.images, shuffled, 2)
    before, after = (values(classifiers.measure(train, s, [name], 0, "short")) for s in (test, permuted))
    np.testing.assert_array_equal(seen[0], seen[1])
    assert seen[0].dtype == np.int64
    assert before == {f"acc_{name}": 100}
    assert after == {f"acc_{name}": 100 * np.mean(seen[0] == shuffled)}
    assert after != before


@pytest.mark.parametrize("name", ALL)
def test_a_prediction_does_not_depend_on_its_company(name, short):
    train, test = halves(), halves(600, seed=1)
    whole = classifiers.train_and_predict(name, train, test.images, 0, "short")
    backwards = classifiers.train_and_predict(name, train, test.images[::-1].copy(), 0, "short")
    np.testing.assert_array_equal(whole, backwards[::-1])


@pytest.mark.parametrize("name", ALL)
def test_equal_seeds_predict_alike_and_the_global_generators_are_left_alone(name, digits, short):
    train, images = ImageSet(digits["train"].images[:500], digits["train"].labels[:500], 10), digits["test"].images
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = classifiers.train_and_predict(name, train, images, 0, "short")
    assert torch.equal(torch.get_rng_state(), torch_state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)
    torch.rand(3)
    np.testing.assert_array_equal(classifiers.train_and_predict(name, train, images, 0, "short"), first)
    assert (classifiers.train_and_predict(name, train, images, 1, "short") != first).any()


@pytest.mark.parametrize("name", ALL)
def test_constant_images_give_a_number_about_chance(name, digits, short):
    blank = ImageSet(np.zeros((100, 1, 8, 8), np.uint8), balanced_labels(100, 10), 10)
    (row,) = classifiers.measure(blank, digits["test"], [name], 0, "short")
    assert 0 <= row["value"] <= 30


@pytest.mark.parametrize("name", ALL)
def test_a_class_that_is_missing_is_never_predicted_and_the_others_keep_their_number(name, short):
    train, test = halves(num_classes=5), halves(100, num_classes=5, seed=1)
    kept = train.labels < 2
    two = ImageSet(train.images[kept], train.labels[kept] + 1, 5)  # 1 and 2 of 0..4
    predicted = classifiers.train_and_predict(name, two, test.images, 0, "short")
    assert (predicted[test.labels == 0] == 1).all()
    assert (predicted[test.labels == 1] == 2).all()
    if short == "standard":
        assert set(predicted) == {1, 2}  # an epoch chosen early may say anything about images like none it saw


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("count", [0, 1, 20])
def test_fewer_than_two_classes_are_refused(name, count, short):
    one = ImageSet(np.zeros((count, 1, 8, 8), np.uint8), np.zeros(count, np.int64), 2, "lonely.npz")
    with refuses("lonely.npz", "two classes"):
        classifiers.measure(one, halves(), [name], 0, "short")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ALL)
def test_two_images_are_enough_and_no_warning_reaches_the_log(name, short):
    assert classifiers.train_and_predict(name, halves(2), halves(9).images, 0, "short").shape == (9,)


def test_mistakes_are_named():
    good = halves()
    with refuses("'thorough'", "standard, paper, dpimagebench"):
        classifiers.measure(good, good, ["logreg"], 0, "thorough")
    with refuses("'resnet'", "protocol standard", "logreg, mlp, cnn"):
        classifiers.measure(good, good, ["resnet"], 0, "standard")
    with refuses("'cnn'", "protocol dpimagebench", "resnet, wrn, resnext"):
        classifiers.measure(good, good, ["cnn"], 0, "dpimagebench")
    with refuses("'forest'", "logreg, mlp, cnn"):
        classifiers.measure(good, good, ["forest"], 0, "standard")
    with refuses("halves"):
        classifiers.measure(good, halves(shape=(1, 8, 9)), ["logreg"], 0, "standard")
    with refuses("2 classes", "halves", "3"):
        classifiers.measure(good, halves(num_classes=3), ["logreg"], 0, "standard")
    with refuses("test images"):
        classifiers.measure(good, halves(0), ["logreg"], 0, "standard")
    with refuses("4 pixels"):
        classifiers.measure(halves(shape=(1, 3, 8)), halves(shape=(1, 3, 8)), ["cnn"], 0, "standard")


def test_the_cnn_is_the_one_of_the_paper_at_28_pixels():
    """method.md section 5: 241,546 parameters, 1152 numbers into the first linear layer."""
    network = classifiers.paper_cnn((1, 28, 28), 10)
    assert sum(p.numel() for p in network.parameters()) == 241_546
    assert [m.in_features for m in network if isinstance(m, torch.nn.Linear)] == [1152, 128]
    assert [m.p for m in network if isinstance(m, torch.nn.Dropout)] == [0.5] * 3


@pytest.mark.parametrize("shape", [(1, 4, 4), (1, 8, 8), (3, 17, 40), (3, 18, 18), (1, 32, 32), (3, 64, 48)])
def test_the_cnn_takes_every_size_from_four_pixels(shape):
    assert classifiers.paper_cnn(shape, 7)(torch.zeros(2, *shape)).shape == (2, 7)


def test_the_steps_of_a_recipe_grow_only_where_epochs_are_asked_for():
    recipe = Recipe(steps=100, batch_size=10, lr=1.0)
    assert [recipe.steps_for(count) for count in (1, 1000, 100_000)] == [100, 100, 100]
    passes = Recipe(steps=100, batch_size=10, lr=1.0, least_epochs=2)
    assert [passes.steps_for(count) for count in (1, 500, 501, 5000)] == [100, 100, 101, 1000]
    few = Recipe(steps=100, batch_size=10, lr=1.0, most_epochs=4)
    assert [few.steps_for(count) for count in (1, 100, 249, 250, 5000)] == [1, 40, 100, 100, 100]


@pytest.mark.parametrize(
    ("name", "steps"), [("mlp", [1000, 1000, 1000, 1875, 5625]), ("cnn", [1, 313, 1000, 1875, 5625])]
)
def test_the_standard_protocol_takes_1000_steps_or_12_epochs_but_of_the_cnn_40(name, steps, digits, monkeypatch):
    recipes = []
    monkeypatch.setattr(classifiers, "train", lambda *given: recipes.append(given[2]))
    monkeypatch.setattr(classifiers, "predict", lambda *_: None)
    classifiers.train_and_predict(name, digits["train"], digits["test"].images, 0, "standard")
    assert [recipes[0].steps_for(count) for count in (1, 1000, 6400, 20_000, 60_000)] == steps


@pytest.mark.parametrize("one_cycle", [True, False])
def test_the_rate_of_a_recipe(one_cycle, monkeypatch):
    """Up to the highest rate and down to nearly nothing, or down only."""
    rates, step = [], torch.optim.Adam.step

    def recorded(self, *given, **named):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *given, **named)

    monkeypatch.setattr(torch.optim.Adam, "step", recorded)
    recipe = Recipe(steps=10, batch_size=12, lr=0.01, one_cycle=one_cycle)
    train(lambda: classifiers.logreg((1, 8, 8), 2), halves(), recipe, Streams(0))
    top = rates.index(max(rates))
    assert len(rates) == 10
    assert rates == sorted(rates[: top + 1]) + sorted(rates[top + 1 :], reverse=True)
    assert (top, max(rates)) == ((2 if one_cycle else 0), pytest.approx(0.01))
    assert rates[-1] < 0.0011


@pytest.mark.parametrize(("name", "count"), [("logreg", 7_850), ("mlp", 79_510), ("cnn", 241_546)])
def test_the_networks_of_the_paper_have_its_numbers_of_parameters(name, count):
    network = registry.load(registry.CLASSIFIERS, name, "classifier")((1, 28, 28), 10)
    assert sum(p.numel() for p in network.parameters()) == count


def test_the_protocol_of_the_paper():
    assert EpochRecipe(epochs=50, batch_size=128, lr=3e-4, held_out=0.1) == classifiers.RECIPES["paper"]


def test_the_protocol_of_dpimagebench():
    recipe = classifiers.RECIPES["dpimagebench"]
    assert (recipe.epochs, recipe.batch_size, recipe.lr, recipe.average) == (50, 256, 0.01, 0.9999)
    assert (recipe.cut_every, recipe.cut, recipe.held_out * 60_000) == (20, 0.2, pytest.approx(5000))


# Published: 1.7 million (He et al. 2016), 8.9 (Zagoruyko and Komodakis 2016), 34.4 (Xie et al. 2017).
@pytest.mark.parametrize(("name", "count"), [("resnet", 1_730_426), ("wrn", 8_948_922), ("resnext", 34_425_546)])
def test_the_networks_of_dpimagebench(name, count):
    network = getattr(residual, name)((1, 28, 28), 10)
    assert sum(p.numel() for p in network.parameters()) == count
    convolutions = [layer for layer in network.modules() if isinstance(layer, torch.nn.Conv2d)]
    assert len(convolutions) == {"resnet": 109 + 2, "wrn": 40, "resnext": 28 + 3}[name]  # + shortcuts, but in WRN-40
    dropout = [layer.p for layer in network.modules() if isinstance(layer, torch.nn.Dropout)]
    assert dropout == ([0.3] * 18 if name == "wrn" else [])
    assert {layer.groups for layer in convolutions} == ({1, 8} if name == "resnext" else {1})


@pytest.mark.parametrize("name", registry.DPIMAGEBENCH)
def test_the_benchmarks_networks_learn_and_repeat(name, monkeypatch):
    """The whole protocol on a small network of each kind: one block a stage, 8x8 pixels, a few epochs."""
    whole = residual._stages

    def small(shape, num_classes, block, blocks, widths, *rest, **named):
        widths = widths if widths[-1] <= 256 else [width // 4 for width in widths]
        return whole(shape, num_classes, block, 1, widths, *rest, **named)

    monkeypatch.setattr(residual, "_stages", small)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # on a GPU, sums have no fixed order
    recipe = EpochRecipe(4, batch_size=16, lr=0.01, held_out=1 / 12, cut_every=2, cut=0.2, average=0.9999)
    monkeypatch.setitem(classifiers.RECIPES, "dpimagebench", recipe)
    train, test = halves(), halves(40, seed=1)
    first, again = (classifiers.train_and_predict(name, train, test.images, 0, "dpimagebench") for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert np.mean(first == test.labels) >= 0.9


def test_the_weights_that_are_judged_are_an_average_and_the_rate_is_cut():
    """Five epochs of one step each on one weight, followed by hand."""

    class Weight(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(torch.zeros(2))

        def forward(self, x):
            if self.training:
                seen.append(self.w.detach().clone())
            return self.w.expand(len(x), 2)

    seen, data = [], ImageSet(np.zeros((8, 1, 2, 2), np.uint8), np.repeat([0, 1], [7, 1]), 2)
    recipe = EpochRecipe(5, 8, 0.1, held_out=0, cut_every=2, cut=0.2, average=0.3)
    kept = train_and_select(Weight, data, recipe, Streams(0), Log(quiet=True))
    longer = EpochRecipe(6, 8, 0.1, held_out=0, cut_every=2, cut=0.2, average=0.3)
    seen.clear()
    train_and_select(Weight, data, longer, Streams(0), Log(quiet=True))
    after = seen[1:]  # the weights after steps 1 to 5
    average = after[0]
    for number, weights in enumerate(after[1:], start=1):
        decay = min(0.3, (1 + number) / (10 + number))
        average = decay * average + (1 - decay) * weights
    torch.testing.assert_close(kept.w.detach(), average)
    rates = [float((b - a).abs().max()) for a, b in zip(seen, after, strict=False)]
    assert rates[2] < 0.5 * rates[1]
    assert rates[4] < 0.5 * rates[3]


class Scripted(torch.nn.Module):
    """Right about the held-out images in given epochs alone, whatever it is taught; remembers what it saw."""

    def __init__(self, right: list[float], data: ImageSet):
        super().__init__()
        self.right, self.answers = right, {x.tobytes(): y for x, y in zip(data.images, data.labels, strict=True)}
        self.epoch = torch.nn.Parameter(torch.tensor(0.0), requires_grad=False)
        self.weight = torch.nn.Parameter(torch.zeros(2))
        self.taught: list[set[bytes]] = []
        self.judged: list[bytes] = []

    def train(self, mode: bool = True):
        if mode:
            self.epoch += 1
            self.taught.append(set())
        return super().train(mode)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        images = [row.tobytes() for row in ((x + 1) * 127.5).round().byte().numpy()]
        if self.training:
            self.taught[-1] |= set(images)
            return self.weight.expand(len(x), 2)
        self.judged += images
        good = round(self.right[int(self.epoch) - 1] * len(images))
        labels = [self.answers[image] if i < good else 1 - self.answers[image] for i, image in enumerate(images)]
        return torch.nn.functional.one_hot(torch.tensor(labels), 2).float()


def test_the_first_of_the_best_epochs_on_held_out_images_is_kept():
    data = halves()
    network = Scripted([0.2, 0.7, 0.4, 0.7, 0.6], data)
    kept = train_and_select(lambda: network, data, EpochRecipe(5, 32, 1e-3), Streams(0), Log(quiet=True))
    assert int(kept.epoch) == 2
    everything = {x.tobytes() for x in data.images}
    held_out = set(network.judged)
    assert len(held_out) == 12  # a tenth of each class
    assert sorted(data.labels[[x.tobytes() in held_out for x in data.images]]) == [0] * 6 + [1] * 6
    for taught in network.taught:
        assert taught == everything - held_out  # every epoch sees the rest, and never what judges it


def test_where_nothing_can_be_held_out_the_last_epoch_is_taken():
    data = halves(n=12)
    network = Scripted([0.0] * 3, data)
    kept = train_and_select(lambda: network, data, EpochRecipe(3, 32, 1e-3), Streams(0), Log(quiet=True))
    assert int(kept.epoch) == 3
    assert not network.judged


def test_an_unlabelled_data_set_has_no_accuracy_and_no_error():
    images = ImageSet(np.zeros((20, 1, 8, 8), np.uint8), np.zeros(20, np.int64), 1)
    rows = classifiers.measure(images, images, ("logreg", "cnn"), 0, "standard")
    assert [(row["metric"], row["value"]) for row in rows] == [("acc_logreg", None), ("acc_cnn", None)]

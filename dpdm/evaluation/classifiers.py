"""Utility: the accuracy on real test images of classifiers trained only on synthetic images.

Nothing is selected on real data. The test labels are read once, to count correct predictions. The networks are those of
the paper. Two protocols train them. Every number carries its protocol's name, since accuracies of different protocols
must not share a table row:

    quick  short, fixed constants, the last step.
    paper  that of the paper (Dockhorn et al. 2022; Cao et al. 2021): Adam at 3e-4, batches of 128, 50 epochs, the epoch
           being chosen on synthetic images. Its authors judge the epochs by a second synthetic set and do not shuffle;
           here a tenth of every class of the one set is held out for it, and every epoch has its own order.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from dpdm.data import ImageSet, to_network
from dpdm.errors import UserError
from dpdm.evaluation import registry
from dpdm.evaluation._network import EpochRecipe, Recipe, accuracy_percent, predict, train, train_and_select
from dpdm.evaluation.registry import CLASSIFIERS
from dpdm.progress import Log
from dpdm.rng import Streams

_PAPER_SIDE = 18  # the smallest side that the paper's CNN leaves a pixel of
_SMALLEST_SIDE = 4  # as much for the padded one
MLP_HIDDEN = 100
LOGREG_ITERATIONS = 100
MLP_RECIPE = Recipe(steps=800, batch_size=128, lr=2e-3)

Predictor = Callable[[np.ndarray], np.ndarray]  # uint8 images [n, C, H, W] -> int64 labels [n]


def measure(
    synthetic: ImageSet, test: ImageSet, classifiers: Sequence[str], seed: int, protocol: str
) -> list[dict[str, Any]]:
    """Accuracy of each classifier, as rows `{"metric": "acc_cnn", "direction": "higher", "reference": "test", ...}`.

    Values are in percent, 0..100. The value is None where the data set has one class.

    Args:
        synthetic: what the classifiers learn from.
        test: real images and labels, touched once per classifier.
        classifiers: names of CLASSIFIERS.
        seed: equal seeds give equal numbers.
        protocol: a name of PROTOCOLS.

    Raises:
        UserError: unknown names, sets that do not match, an empty set, or synthetic images of one class only.
    """
    _refuse_empty(test)
    if synthetic.meta.num_classes != test.meta.num_classes:
        raise UserError(
            f"{synthetic.origin} has {synthetic.meta.num_classes} classes but {test.origin} has "
            f"{test.meta.num_classes}; score against the data set it was made for"
        )
    if test.meta.num_classes == 1:  # one class: an unlabeled data set has only distances
        return [_row(name, None) for name in classifiers]
    return [
        _row(name, accuracy_percent(train_and_predict(name, synthetic, test.images, seed, protocol), test.labels))
        for name in classifiers
    ]


def _row(classifier: str, value: float | None) -> dict[str, Any]:
    """No extractor: a classifier reads the pixels."""
    facts = {"metric": f"acc_{classifier}", "extractor": "", "direction": "higher", "reference": "test"}
    return facts | {"value": value}


def measure_trained(predict: Callable[[np.ndarray], np.ndarray], family: str, test: ImageSet) -> list[dict[str, Any]]:
    """Accuracy of a classifier that somebody else trained, as the one row of its family, in the form of `measure`.

    Args:
        predict: maps uint8 images [n, C, H, W] to classes (int64 [n]).
        family: a name of CLASSIFIERS: in which column it competes.
        test: real images and labels; only this function reads the labels.

    Raises:
        UserError: an unknown family, no test images, or predictions that are no classes.
    """
    registry.check(CLASSIFIERS, family, "family of classifiers")
    _refuse_empty(test)
    predicted = np.asarray(predict(test.images))
    if predicted.dtype != np.int64 or predicted.shape != test.labels.shape:
        raise UserError(
            f"predict gave {predicted.dtype} {predicted.shape} for {len(test.labels)} images; "
            "it must give one int64 class per image"
        )
    return [_row(family, accuracy_percent(predicted, test.labels))]


def train_and_predict(classifier: str, synthetic: ImageSet, images: np.ndarray, seed: int, protocol: str) -> np.ndarray:
    """Trains on `synthetic` and predicts the classes (int64 [n]) of uint8 `images` [n, C, H, W].

    Real labels are no argument: nothing in here could be chosen by them.

    Raises:
        UserError: as `measure`.
    """
    registry.check(CLASSIFIERS, classifier, "classifier")
    registry.check(PROTOCOLS, protocol, "protocol")
    if synthetic.images.shape[1:] != images.shape[1:]:
        raise UserError(
            f"{synthetic.origin}: images have shape {synthetic.images.shape[1:]} but the test images have "
            f"{images.shape[1:]}; score against the data set they were made for"
        )
    if len(np.unique(synthetic.labels)) < 2:
        raise UserError(f"{synthetic.origin}: a classifier needs images of two classes at least; sample more classes")
    return PROTOCOLS[protocol](classifier, synthetic, Streams(seed, "classifier"))(images)


def _refuse_empty(test: ImageSet) -> None:
    if not len(test.labels):
        raise UserError(f"{test.origin}: there are no test images; prepare the data set again")


@dataclass(frozen=True)
class Classifier:
    """How one classifier is trained under each protocol.

    Args:
        network: shape (C, H, W) and number of classes -> images in [-1, 1] to logits; what protocol "paper" trains.
        quick: protocol "quick": a recipe for `network`, or a fit of another kind.
    """

    network: Callable[[tuple[int, int, int], int], nn.Module]
    quick: Recipe | Callable[[ImageSet, Streams], Predictor]


def fit_quick(classifier: str, data: ImageSet, streams: Streams) -> Predictor:
    """The last step of a fixed number: steps are of `batch_size` images, so that time does not grow with the data."""
    chosen = registry.load(CLASSIFIERS, classifier, "classifier")
    if not isinstance(chosen.quick, Recipe):
        return chosen.quick(data, streams)
    network = train(lambda: chosen.network(data.meta.shape, data.meta.num_classes), data, chosen.quick, streams)
    return lambda images: predict(network, images)


def fit_paper(classifier: str, data: ImageSet, streams: Streams) -> Predictor:
    """The best epoch by held-out images of `data`; all classifiers are networks, trained alike."""
    chosen, log = registry.load(CLASSIFIERS, classifier, "classifier"), Log(f"{classifier} on {data.origin}")
    network = train_and_select(
        lambda: chosen.network(data.meta.shape, data.meta.num_classes), data, PAPER_RECIPE, streams, log
    )
    return lambda images: predict(network, images)


PAPER_RECIPE = EpochRecipe(epochs=50, batch_size=128, lr=3e-4)
PROTOCOLS: dict[str, Callable[[str, ImageSet, Streams], Predictor]] = {"quick": fit_quick, "paper": fit_paper}


# --- the classifiers of the paper -----------------------------------------------------------------------------


def _flat(images: np.ndarray) -> np.ndarray:
    return to_network(images).flatten(1).numpy()


def _fit_sklearn(model: Any, data: ImageSet) -> Predictor:
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the number of steps is the protocol, not a shortfall
        model.fit(_flat(data.images), data.labels)
    return lambda images: model.predict(_flat(images)).astype(np.int64)


def _fit_logreg(data: ImageSet, _: Streams) -> Predictor:
    """L-BFGS with scikit-learn's default penalty; draws no random number."""
    from sklearn.linear_model import LogisticRegression

    return _fit_sklearn(LogisticRegression(max_iter=LOGREG_ITERATIONS), data)


def _fit_mlp(data: ImageSet, streams: Streams) -> Predictor:
    from sklearn.neural_network import MLPClassifier

    size = min(MLP_RECIPE.batch_size, len(data.labels))
    epochs = math.ceil(MLP_RECIPE.steps / math.ceil(len(data.labels) / size))
    model = MLPClassifier(
        (MLP_HIDDEN,),
        batch_size=size,
        learning_rate_init=MLP_RECIPE.lr,
        max_iter=epochs,
        n_iter_no_change=epochs,  # no early stop
        random_state=streams.integer("mlp"),
    )
    return _fit_sklearn(model, data)


def _logreg(shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), num_classes))


def _mlp(shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    hidden = nn.Linear(math.prod(shape), MLP_HIDDEN)
    return nn.Sequential(nn.Flatten(), hidden, nn.ReLU(), nn.Linear(MLP_HIDDEN, num_classes))


def paper_cnn(shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """The CNN of the paper's downstream task: images in [-1, 1] of `shape` (C, H, W) -> logits.

    Images too small for its unpadded convolutions (a side below 18) get padded ones; at 8x8 the linear layer then
    reads 512 numbers instead of 1152.

    Raises:
        UserError: a side below 4.
    """
    channels, *sides = shape
    if min(sides) < _SMALLEST_SIDE:
        raise UserError(f"the cnn needs sides of {_SMALLEST_SIDE} pixels, got {tuple(sides)}; leave it out")
    padding = 0 if min(sides) >= _PAPER_SIDE else 1
    for _ in range(2):
        sides = [(side - 2 + 2 * padding) // 2 for side in sides]
    height, width = (side - 2 + 2 * padding for side in sides)
    return nn.Sequential(
        nn.Conv2d(channels, 32, 3, padding=padding), nn.MaxPool2d(2), nn.ReLU(), nn.Dropout(0.5),
        nn.Conv2d(32, 64, 3, padding=padding), nn.MaxPool2d(2), nn.ReLU(), nn.Dropout(0.5),
        nn.Conv2d(64, 128, 3, padding=padding), nn.ReLU(), nn.Flatten(),
        nn.Linear(128 * height * width, 128), nn.ReLU(), nn.Dropout(0.5),
        nn.Linear(128, num_classes),
    )  # fmt: skip


# At 28x28 they have 7,850, 79,510 and 241,546 parameters.
LOGREG = Classifier(_logreg, quick=_fit_logreg)
MLP = Classifier(_mlp, quick=_fit_mlp)
CNN = Classifier(paper_cnn, quick=Recipe(steps=600, batch_size=64, lr=4e-3))

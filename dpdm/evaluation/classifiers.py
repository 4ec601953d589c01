"""Utility: the accuracy on real test images of classifiers trained on synthetic images alone.

Nothing is selected on real data, and the test labels are read once, to count what was right. The networks are those of
the paper. Two protocols train them, and a protocol's name stands beside every number, since accuracies of different
protocols must not share a table row:

    quick  short, fixed constants, the last step.
    paper  that of the paper (Dockhorn et al. 2022; Cao et al. 2021): Adam at 3e-4, batches of 128, 50 epochs, the epoch
           being chosen on synthetic images. Its authors judge the epochs by a second synthetic set and do not shuffle;
           here a tenth of every class of the one set is held out for it, and every epoch has its own order.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from dpdm.data import ImageSet, to_network
from dpdm.errors import UserError
from dpdm.evaluation._network import EpochRecipe, Recipe, accuracy_percent, predict, train, train_and_select
from dpdm.progress import Log
from dpdm.rng import Streams

_PAPER_SIDE = 18  # the smallest side that the paper's CNN leaves a pixel of
_SMALLEST_SIDE = 4  # as much for the padded one
CLASSIFIERS = ("logreg", "mlp", "cnn")
MLP_HIDDEN = 100

Predictor = Callable[[np.ndarray], np.ndarray]  # uint8 images [n, C, H, W] -> int64 labels [n]


def measure(
    synthetic: ImageSet, test: ImageSet, classifiers: Sequence[str], seed: int, protocol: str
) -> list[dict[str, Any]]:
    """Accuracy of each classifier, as rows `{"metric": "acc_cnn", "reference": "test", "value": percent 0..100}`.

    The value is None where the data set has one class.

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
    if test.meta.num_classes == 1:  # nothing to tell apart: an unlabelled data set has distances alone
        return [{"metric": f"acc_{name}", "reference": "test", "value": None} for name in classifiers]
    rows = []
    for name in classifiers:
        predicted = train_and_predict(name, synthetic, test.images, seed, protocol)
        value = accuracy_percent(predicted, test.labels)
        rows.append({"metric": f"acc_{name}", "reference": "test", "value": value})
    return rows


def measure_trained(predict: Callable[[np.ndarray], np.ndarray], family: str, test: ImageSet) -> list[dict[str, Any]]:
    """Accuracy of a classifier that somebody else trained, as the one row of its family, in the form of `measure`.

    Args:
        predict: maps uint8 images [n, C, H, W] to classes (int64 [n]).
        family: a name of CLASSIFIERS: in which column it competes.
        test: real images and labels; the labels are touched here alone.

    Raises:
        UserError: an unknown family, no test images, or predictions that are no classes.
    """
    _check_named(CLASSIFIERS, family, "family of classifiers")
    _refuse_empty(test)
    predicted = np.asarray(predict(test.images))
    if predicted.dtype != np.int64 or predicted.shape != test.labels.shape:
        raise UserError(
            f"predict gave {predicted.dtype} {predicted.shape} for {len(test.labels)} images; "
            "it must give one int64 class per image"
        )
    return [{"metric": f"acc_{family}", "reference": "test", "value": accuracy_percent(predicted, test.labels)}]


def train_and_predict(classifier: str, synthetic: ImageSet, images: np.ndarray, seed: int, protocol: str) -> np.ndarray:
    """Trains on `synthetic` and predicts the classes (int64 [n]) of uint8 `images` [n, C, H, W].

    Real labels are no argument: nothing in here could be chosen by them.

    Raises:
        UserError: as `measure`.
    """
    _check_named(CLASSIFIERS, classifier, "classifier")
    _check_named(PROTOCOLS, protocol, "protocol")
    if synthetic.images.shape[1:] != images.shape[1:]:
        raise UserError(
            f"{synthetic.origin}: images have shape {synthetic.images.shape[1:]} but the test images have "
            f"{images.shape[1:]}; score against the data set they were made for"
        )
    if len(np.unique(synthetic.labels)) < 2:
        raise UserError(f"{synthetic.origin}: a classifier needs images of two classes at least; sample more classes")
    return PROTOCOLS[protocol].fit(classifier, synthetic, Streams(seed, "classifier"))(images)


def _refuse_empty(test: ImageSet) -> None:
    if not len(test.labels):
        raise UserError(f"{test.origin}: there are no test images; prepare the data set again")


def _check_named(known: Iterable[str], name: str, kind: str) -> None:
    if name not in known:
        raise UserError(f"unknown {kind} {name!r}; choose from {', '.join(known)}")


# --- protocol "quick" -----------------------------------------------------------------------------------------


def _flat(images: np.ndarray) -> np.ndarray:
    return to_network(images).flatten(1).numpy()


def _fit_sklearn(model: Any, data: ImageSet) -> Predictor:
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the number of steps is the protocol, not a shortfall
        model.fit(_flat(data.images), data.labels)
    return lambda images: model.predict(_flat(images)).astype(np.int64)


@dataclass(frozen=True)
class QuickProtocol:
    """Steps are of `batch_size` images, so that time does not grow with the data.

    Logistic regression runs L-BFGS with scikit-learn's default penalty, the others Adam.
    """

    logreg_iterations: int
    mlp: Recipe
    cnn: Recipe

    def fit(self, classifier: str, data: ImageSet, streams: Streams) -> Predictor:
        """Trains one of CLASSIFIERS."""
        if classifier == "cnn":
            meta = data.meta
            network = train(lambda: paper_cnn(meta.shape, meta.num_classes), data, self.cnn, streams)
            return lambda images: predict(network, images)
        model = self._logreg() if classifier == "logreg" else self._mlp(len(data.labels), streams)
        return _fit_sklearn(model, data)

    def _logreg(self) -> Any:
        from sklearn.linear_model import LogisticRegression

        return LogisticRegression(max_iter=self.logreg_iterations)  # draws no random number

    def _mlp(self, count: int, streams: Streams) -> Any:
        from sklearn.neural_network import MLPClassifier

        size = min(self.mlp.batch_size, count)
        epochs = math.ceil(self.mlp.steps / math.ceil(count / size))
        return MLPClassifier(
            (MLP_HIDDEN,),
            batch_size=size,
            learning_rate_init=self.mlp.lr,
            max_iter=epochs,
            n_iter_no_change=epochs,  # no early stop
            random_state=streams.integer("mlp"),
        )


# --- protocol "paper" -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PaperProtocol:
    """All three are networks, trained alike."""

    recipe: EpochRecipe

    def fit(self, classifier: str, data: ImageSet, streams: Streams) -> Predictor:
        """Trains one of CLASSIFIERS and keeps its best epoch by held-out images of `data`."""
        meta = data.meta
        log = Log(f"{classifier} on {data.origin}")
        network = train_and_select(
            lambda: paper_network(classifier, meta.shape, meta.num_classes), data, self.recipe, streams, log
        )
        return lambda images: predict(network, images)


def paper_network(classifier: str, shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """Images in [-1, 1] of `shape` (C, H, W) -> logits; at 28x28: logreg 7,850, mlp 79,510, cnn 241,546 parameters.

    Raises:
        UserError: see `paper_cnn`.
    """
    pixels = math.prod(shape)
    if classifier == "logreg":
        return nn.Sequential(nn.Flatten(), nn.Linear(pixels, num_classes))
    if classifier == "mlp":
        return nn.Sequential(nn.Flatten(), nn.Linear(pixels, MLP_HIDDEN), nn.ReLU(), nn.Linear(MLP_HIDDEN, num_classes))
    return paper_cnn(shape, num_classes)


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


PROTOCOLS: dict[str, QuickProtocol | PaperProtocol] = {
    "quick": QuickProtocol(
        logreg_iterations=100,
        mlp=Recipe(steps=800, batch_size=128, lr=2e-3),
        cnn=Recipe(steps=600, batch_size=64, lr=4e-3),
    ),
    "paper": PaperProtocol(EpochRecipe(epochs=50, batch_size=128, lr=3e-4)),
}

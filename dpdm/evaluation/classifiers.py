"""Utility: the accuracy on real test images of classifiers trained only on synthetic images.

Nothing is selected on real data. The test labels are read once, to count correct predictions. There are three protocols
of training. Every number carries its protocol's name: accuracies of different protocols must not share a table row.

    standard      the networks of the paper, trained long enough at a cost that suits a laptop: Adam under a
                  one-cycle rate of at most 3e-3, batches of 128; 12 epochs or 1,000 steps, whichever is more, but at
                  most 40 epochs for the CNN; the last step.
    paper the networks and the protocol of the paper (Dockhorn et al. 2022; Cao et al. 2021): Adam at 3e-4, batches of
                  128, 50 epochs; synthetic images choose the epoch. Its authors judge the epochs by a second synthetic
                  set and do not shuffle; here a tenth of every class is held out of one set, and every epoch is
                  shuffled.
    dpimagebench  three residual networks (`residual`), as DPImageBench trains them (Gong et al. 2025): Adam at 0.01, a
                  fifth of it after every 20 epochs, batches of 256, 50 epochs, an average of the weights (decay 0.9999)
                  that is judged after every epoch on a twelfth of the synthetic images. The benchmark takes the last
                  5,000 of 60,000 images and the last of equal epochs; here they are drawn from every class, and the
                  first counts. Its tables show the best of the three by the test images; here all three are shown.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from dpdm.data import ImageSet
from dpdm.errors import UserError
from dpdm.evaluation import registry
from dpdm.evaluation._network import EpochRecipe, Recipe, accuracy_percent, predict, train, train_and_select
from dpdm.evaluation.registry import CLASSIFIERS, PROTOCOLS
from dpdm.networks import logreg, mlp, paper_cnn  # noqa: F401  (the registry names them here)
from dpdm.parts import Part
from dpdm.progress import Log
from dpdm.rng import Streams

CNN_EPOCHS = 40  # at most, under `standard`
RECIPES = {  # by protocol
    "standard": Recipe(1000, batch_size=128, lr=3e-3, least_epochs=12, one_cycle=True),
    "paper": EpochRecipe(epochs=50, batch_size=128, lr=3e-4),
    "dpimagebench": EpochRecipe(50, batch_size=256, lr=0.01, held_out=1 / 12, cut_every=20, cut=0.2, average=0.9999),
}


def measure(
    synthetic: ImageSet, test: ImageSet, classifiers: Sequence[str], seed: int, protocol: str
) -> list[dict[str, Any]]:
    """Accuracy of each classifier, as rows `{"metric": "acc_cnn", "direction": "higher", "reference": "test", ...}`.

    Values are in percent, 0..100, or None where the data set has one class. Classifiers learn from `synthetic`, and
    each is judged once on `test`, real images and labels. Equal seeds give equal numbers. UserError for unknown names,
    sets that do not match, an empty set, or synthetic images of one class only.
    """
    _refuse_empty(test)
    if synthetic.meta.num_classes != test.meta.num_classes:
        raise UserError(
            f"{synthetic.origin} has {synthetic.meta.num_classes} classes but {test.origin} has "
            f"{test.meta.num_classes}; score against the data set it was made for"
        )
    if test.meta.num_classes == 1:  # an unlabeled data set has only distances
        return [_row(name, None) for name in classifiers]
    return [
        _row(name, accuracy_percent(train_and_predict(name, synthetic, test.images, seed, protocol), test.labels))
        for name in classifiers
    ]


def _row(classifier: str, value: float | None) -> dict[str, Any]:
    """A row of scores; it has no extractor, since a classifier reads the pixels."""
    facts = {"metric": f"acc_{classifier}", "extractor": "", "direction": "higher", "reference": "test"}
    return facts | {"value": value}


def measure_trained(predict: Callable[[np.ndarray], np.ndarray], family: str, test: ImageSet) -> list[dict[str, Any]]:
    """Accuracy of a trained classifier, as the one row of its family, in the form of `measure`.

    `predict` maps uint8 images [n, C, H, W] to classes (int64 [n]). Only this function reads the labels of `test`, real
    images. UserError if CLASSIFIERS has no such `family`, `test` is empty, or predictions are no classes.
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

    It gets no real labels, so these can choose nothing. UserError as in `measure`.
    """
    registry.check(PROTOCOLS, protocol, "protocol")
    part = registry.part(PROTOCOLS[protocol], classifier, f"classifier of protocol {protocol}")
    if synthetic.images.shape[1:] != images.shape[1:]:
        raise UserError(
            f"{synthetic.origin}: images have shape {synthetic.images.shape[1:]} but the test images have "
            f"{images.shape[1:]}; score against the data set they were made for"
        )
    if len(np.unique(synthetic.labels)) < 2:
        raise UserError(f"{synthetic.origin}: a classifier needs images of two classes at least; sample more classes")
    recipe, streams = RECIPES[protocol], Streams(seed, "classifier")
    if (protocol, classifier) == ("standard", "cnn"):  # takes nearly all of the time on few images
        recipe = replace(recipe, most_epochs=CNN_EPOCHS)

    def made() -> nn.Module:
        return untrained(part, synthetic.meta.shape, synthetic.meta.num_classes)

    if isinstance(recipe, Recipe):
        return predict(part.call(train, made, synthetic, recipe, streams), images)
    device = "cuda" if protocol == "dpimagebench" and torch.cuda.is_available() else "cpu"
    log = Log(f"{classifier} on {synthetic.origin}")
    return predict(part.call(train_and_select, made, synthetic, recipe, streams, log, device), images)


def untrained(part: Part, shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """A new network of a classifier; UserError if it is none, or does not map images to a logit per class."""
    network = part.call(part.function(), shape, num_classes)
    if not isinstance(network, nn.Module):
        raise part.wrong(f"it returned {type(network).__name__}; return a torch.nn.Module")
    with torch.no_grad():
        logits = part.call(network.eval(), torch.zeros(2, *shape))
    if not isinstance(logits, torch.Tensor) or logits.shape != (2, num_classes):
        got = list(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise part.wrong(
            f"its network maps 2 images {list(shape)} to {got}; it must give logits [2, {num_classes}], one per class"
        )
    return network.train()


def _refuse_empty(test: ImageSet) -> None:
    if not len(test.labels):
        raise UserError(f"{test.origin}: there are no test images; prepare the data set again")

"""An attack, on request, that sees only what a run publishes: its synthetic images or its predictions.

The method is trained once more with the study's recipe, on the training images and on canaries: random images with
random labels, each included by a fair coin. The attack guesses "in" for the canaries nearest to the synthetic images of
their class (or labeled correctly by a classifier), and "out" for the farthest. One-run auditing certifies the guesses.

The attack is weak, since a model shows nothing of most canaries. Unlike the white-box attack, it runs the method's
code. n includes the canaries that are in, but no guess uses n.
"""

import json
import math
from typing import Any

import numpy as np

from dpdm.attacks.white_box import CONFIDENCE, Played, attacked, one_run_audit
from dpdm.data import ImageSet, balanced_labels
from dpdm.errors import UserError
from dpdm.method import load_method, train
from dpdm.progress import Log
from dpdm.rng import Streams
from dpdm.smoothing import parse_sampler
from dpdm.specs import RunSpec, SampleSpec

SHARES = 0.1, 0.1  # shares of the canaries guessed in and guessed out, fixed beforehand


def attack_black_box(
    spec: RunSpec, images: ImageSet, sample: SampleSpec | None, canaries: int, log: Log
) -> dict[str, Any]:
    """Trains a run with canaries among its records, and guesses which of them were included.

    Args:
        images: the training split.
        sample: the spec of a generator's synthetic set; None for a classifier.
        canaries: at least 2; about half of them are added to the images.

    Returns what `dpdm.attacks.white_box.attack` returns. UserError for a run without noise or too few canaries.
    """
    if math.isinf(spec.epsilon):
        raise UserError(f"{spec.method} at epsilon inf has no noise: it promises nothing that could be attacked")
    if canaries < 2:
        raise UserError(f"canaries must be at least 2, got {canaries}")
    rng = Streams(0, f"black box/{json.dumps(spec.model_dump(mode='json', exclude={'seed'}), sort_keys=True)}")
    pixels = rng.numpy("images").integers(0, 256, (canaries, *images.meta.shape), np.uint8)
    labels = rng.numpy("labels").integers(0, images.num_classes, canaries)
    included = rng.numpy("coins").random(canaries) < 0.5
    together = ImageSet(
        np.concatenate([images.images, pixels[included]]),
        np.concatenate([images.labels, labels[included]]),
        images.num_classes,
        f"{images.origin} and canaries",
    )
    model, ledger = train(spec, together, log)
    if sample is None:
        scores = (model.predict(pixels) == labels).astype(float)
    else:
        sampler = parse_sampler(load_method(spec.impl), sample.sampler_params, "sampler")
        drawn_labels = balanced_labels(sample.synthetic_images, images.num_classes)
        streams = Streams(spec.seed, f"sample/{sample.coordinates.sampler}")
        scores = -distances(pixels, labels, sampler.draw(model, drawn_labels, streams), drawn_labels)
    bound, guesses = one_run_audit(Played(scores, included), SHARES, ledger.delta, CONFIDENCE)
    found = {"method": "black_box", "confidence": CONFIDENCE, "runs": 1, "canaries": canaries}
    found |= {"epsilon": bound, "certified": bound} | guesses
    return attacked(ledger, found)


def distances(images: np.ndarray, labels: np.ndarray, others: np.ndarray, other_labels: np.ndarray) -> np.ndarray:
    """L2 distance (float64 [n], in gray levels) of each image to the nearest of the others with its label.

    Infinite if there is none. Images are uint8 [n, C, H, W] and [m, C, H, W], labels int64.
    """
    found = np.full(len(images), np.inf)
    flat, other = (part.reshape(len(part), -1).astype(np.float64) for part in (images, others))
    for label in np.unique(labels):
        mine, theirs = flat[labels == label], other[other_labels == label]
        if len(theirs):
            squares = (mine**2).sum(1)[:, None] - 2 * mine @ theirs.T + (theirs**2).sum(1)
            found[labels == label] = np.sqrt(np.maximum(squares.min(1), 0))
    return found

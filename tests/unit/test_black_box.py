"""The black-box attack: on a generator and a classifier at tiny size, and its distances by hand."""

import dataclasses
import json

import numpy as np
import pytest

from dpdm.attacks import black_box
from dpdm.attacks.black_box import attack_black_box, distances
from dpdm.config import parse_study
from dpdm.errors import UserError
from dpdm.progress import Log


@pytest.fixture
def study(tiny_study_dict):
    tiny_study_dict["methods"]["net"] = {
        "impl": "baselines.dpsgd_classifier:DPSGDClassifier",
        "kind": "classifier",
        "params": {"network": "logreg", "lr": 0.5, "dp": {"expected_batch_size": 16, "steps": 2, "max_grad_norm": 1.0}},
    }
    return parse_study(tiny_study_dict, "test")


@pytest.mark.parametrize("method", ["class_mean", "net"])
def test_a_method_is_trained_with_canaries_and_guessed_about(study, digits64, monkeypatch, method):
    seen = []
    monkeypatch.setattr(
        black_box,
        "train",
        lambda spec, images, log, train=black_box.train: seen.append(images) or train(spec, images, log),
    )
    run = study.run("digits", method, 10.0, 0)
    sample = study.sample(run, "default") if method == "class_mean" else None
    found = attack_black_box(run, digits64, sample, 40, Log("", quiet=True))
    one = found["attack"]
    assert (one["method"], one["canaries"], one["guesses"]) == ("black_box", 40, 8)
    assert 0 <= one["epsilon"] == one["certified"] < 10
    assert one["exceeded"] is False
    assert found["recipe"] == run.model_dump(mode="json")
    (images,) = seen
    assert np.array_equal(images.images[:64], digits64.images)
    assert 10 < len(images.images) - 64 < 30  # about half of the canaries
    json.dumps(found, allow_nan=False)


def test_a_model_that_copies_its_canaries_is_caught(study, digits64, monkeypatch):
    """Power: the synthetic set is what was added to the training images."""
    run = study.run("digits", "class_mean", 10.0, 0)
    honest = black_box.train

    def leaking(spec, images, log):
        _, ledger = honest(spec, images, log)
        added, labels = images.images[64:], images.labels[64:]

        class Copies:
            def sample(self, wanted, sampler, rng):
                return added

        monkeypatch.setattr(black_box, "balanced_labels", lambda *_: labels)
        return Copies(), dataclasses.replace(ledger, target_epsilon=1.0, delta=1e-9)

    monkeypatch.setattr(black_box, "train", leaking)
    found = attack_black_box(run, digits64, study.sample(run, "default"), 400, Log("", quiet=True))
    assert found["attack"]["correct"] == found["attack"]["guesses"] == 80
    assert found["attack"]["exceeded"] is True


def test_distances_by_hand():
    images = np.array([[[[0, 0]]], [[[10, 0]]], [[[5, 5]]]], np.uint8)
    others = np.array([[[[3, 4]]], [[[10, 0]]], [[[0, 1]]]], np.uint8)
    found = distances(images, np.array([0, 0, 2]), others, np.array([0, 1, 0]))
    assert found == pytest.approx([1.0, np.hypot(7, 4), np.inf])


def test_what_cannot_be_attacked_is_refused(study, digits64):
    with pytest.raises(UserError, match="no noise"):
        attack_black_box(study.run("digits", "class_mean", float("inf"), 0), digits64, None, 40, Log("", quiet=True))
    with pytest.raises(UserError, match=r"canaries.*got 1"):
        attack_black_box(study.run("digits", "class_mean", 10.0, 0), digits64, None, 1, Log("", quiet=True))

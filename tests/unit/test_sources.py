"""The sources of images: what all have in common, the digits, and npz files."""

import gzip
import re
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from pydantic import ValidationError
from refusals import refuses

from dpdm.data import ImageMeta
from dpdm.sources import SOURCES
from dpdm.sources.base import DATA_DIR_VARIABLE
from dpdm.sources.celeba import Celeba
from dpdm.sources.cifar10 import Cifar10
from dpdm.sources.digits import Digits
from dpdm.sources.mnist import Mnist
from dpdm.sources.npz import Npz

DIGITS = Digits()


@pytest.mark.parametrize(
    ("source", "meta"),
    [
        (Mnist(), ImageMeta(60_000, (1, 28, 28), 10)),
        (Cifar10(), ImageMeta(50_000, (3, 32, 32), 10)),
        (Celeba(image_size=32), ImageMeta(162_770, (3, 32, 32), 1)),
        (Celeba(image_size=64, label="Male"), ImageMeta(162_770, (3, 64, 64), 2)),
    ],
)
def test_public_facts_are_known_without_the_files(monkeypatch, tmp_path, source, meta):
    monkeypatch.setenv(DATA_DIR_VARIABLE, str(tmp_path / "nowhere"))
    assert source.meta() == meta


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_has_its_name_as_literal_and_default(name):
    assert get_args(SOURCES[name].model_fields["source"].annotation) == (name,)


@pytest.mark.parametrize(("name", "kind"), SOURCES.items())
def test_every_key_is_described_and_null_leaves_it_out(name, kind):
    values = {
        "data_dir": "d",
        "image_size": 32,
        "channels": 1,
        "label": "Male",
        "train": "a",
        "test": "b",
        "num_classes": 2,
    }
    assert all(field.description for key, field in kind.model_fields.items() if key != "source")
    needed = {key: values[key] for key, field in kind.model_fields.items() if field.is_required()}
    plain = kind(**needed)
    assert kind(**{key: needed.get(key) for key in kind.model_fields}) == plain  # a study.json of before has null keys
    for key in needed:
        with pytest.raises(ValidationError, match=key):
            kind(**needed | {key: None})
    for key in set(values) - set(kind.model_fields):
        with pytest.raises(ValidationError, match=key):
            kind(**needed | {key: values[key]})


def test_published_names():
    assert Mnist().published_as() == ("mnist", 28)
    assert Cifar10().published_as() == ("cifar_10", 32)
    assert Celeba(image_size=32).published_as() == ("celeba", 32)
    assert Celeba(image_size=64, label="Male").published_as() == ("celeba (male_conditional)", 64)
    assert Celeba(image_size=32, label="Smiling").published_as() == ("", None)
    assert Npz(train="a", test="b", num_classes=2).published_as() == ("", None)


# --- digits ---------------------------------------------------------------------------------------------------


def test_the_split_of_the_digits_is_fixed_stratified_and_disjoint():
    splits = DIGITS.load()
    train, test = splits["train"], splits["test"]
    assert (len(train.images), len(test.images)) == (1437, 360)
    assert train.meta == DIGITS.meta()
    shares = [np.bincount(s.labels, minlength=10) / len(s.labels) for s in (train, test)]
    assert np.abs(shares[0] - shares[1]).max() < 1 / 360
    assert train.images.max() == 255
    # Whoever changes the split changes every published number; this digest makes it deliberate.
    assert train.digest() == "4832738f98e2e321291416ef09f3d6dde70d9500df67c150863a6184909051b3"
    assert test.digest() == "73a45c21e00b683ac412374c1b32be7a3318389184dffd7d9b69f90221582925"


def test_train_and_test_together_are_all_digits():
    from sklearn.datasets import load_digits

    splits = DIGITS.load()
    both = np.concatenate([splits["train"].images, splits["test"].images]).reshape(1797, -1)
    original = np.rint(load_digits().data * (255 / 16)).astype(np.uint8)
    assert sorted(map(bytes, both)) == sorted(map(bytes, original))


def test_dataset_facts(digits64):
    facts = DIGITS.facts({"train": digits64, "test": digits64})
    assert facts == {
        "source": "digits", "keys": {}, "shape": [1, 8, 8], "num_classes": 10, "n": {"train": 64, "test": 64},
        "sha256": {"train": digits64.digest(), "test": digits64.digest()},
    }  # fmt: skip


# --- npz ------------------------------------------------------------------------------------------------------


def npz_spec(tmp_path, train: dict, test: dict) -> Npz:
    for split, arrays in (("train", train), ("test", test)):
        np.savez(tmp_path / f"{split}.npz", **arrays)
    return Npz(train=str(tmp_path / "train.npz"), test=str(tmp_path / "test.npz"), num_classes=3)


GOOD = {"images": np.zeros((4, 3, 5, 6), np.uint8), "labels": np.array([0, 1, 2, 0])}


@pytest.mark.parametrize("kind", [np.uint8, np.int32, np.int64, np.uint64])
def test_npz_files_of_any_integer_labels(tmp_path, kind):
    spec = npz_spec(tmp_path, GOOD | {"labels": GOOD["labels"].astype(kind)}, GOOD)
    splits = spec.load()
    assert splits["train"].meta == spec.meta() == ImageMeta(4, (3, 5, 6), 3)
    assert splits["train"].labels.dtype == np.int64


UNIT = np.linspace(0, 1, 4 * 3 * 5 * 6).reshape(4, 3, 5, 6)


@pytest.mark.parametrize(
    ("split", "change", "parts"),
    [
        ("train", {"images": UNIT}, ["float64", "(images * 255)"]),
        ("test", {"images": UNIT * 2 - 1}, ["float64", "(images + 1) * 127.5"]),
        ("test", {"images": (UNIT * 255).astype(np.float32)}, ["float32", "(images).round()"]),
        ("train", {"images": np.full((4, 1, 5, 6), np.nan)}, ["[4, 1, 5, 6]", "not finite"]),
        ("train", {"images": np.zeros((4, 1, 0, 6), np.uint8)}, ["[4, 1, 0, 6]", "one row"]),
        ("train", {"images": np.zeros((4, 3, 5, 6), np.int64)}, ["int64", "astype('uint8')"]),
        ("test", {"images": np.zeros((4, 5, 6), np.uint8)}, ["[4, 5, 6]", "images[:, None]"]),
        ("test", {"images": np.zeros((4, 5, 6, 3), np.uint8)}, ["[4, 5, 6, 3]", "transpose(0, 3, 1, 2)"]),
        ("train", {"images": np.zeros((4, 2, 5, 6), np.uint8)}, ["[4, 2, 5, 6]"]),
        ("train", {"labels": np.array([0.0, 1, 2, 0])}, ["float64", "astype('int64')"]),
        ("train", {"labels": np.eye(4, 3, dtype=int)}, ["[4, 3]", "argmax(1)"]),
        ("train", {"labels": np.array([[0], [1], [2], [0]])}, ["[4, 1]", "ravel()"]),
        ("train", {"labels": np.array([0, 1, 2])}, ["labels", "[4]"]),
        ("train", {"labels": np.array([3, 1, 2, 1])}, ["1..3", "0..2", "labels - 1"]),
        ("train", {"labels": np.array([0, 1, 3, 0])}, ["0..3", "0..2", "num_classes"]),
        ("test", {"labels": np.array([0, 1, -1, 0])}, ["-1..1", "0..2"]),
        ("test", {"images": np.zeros((4, 3, 6, 5), np.uint8)}, ["(3, 5, 6)", "(3, 6, 5)"]),
        ("train", {"images": np.zeros((0, 3, 5, 6), np.uint8), "labels": np.zeros(0, int)}, ["no images", "4"]),
        ("test", {"images": np.zeros((3, 3, 5, 6), np.uint8), "labels": np.zeros(3, int)}, ["3 images", "4"]),
    ],
)
def test_npz_files_of_another_form_are_refused_with_the_line_that_corrects_them(tmp_path, split, change, parts):
    arrays = {"train": GOOD, "test": GOOD} | {split: GOOD | change}
    spec = npz_spec(tmp_path, **arrays)
    for read in (spec.load, spec.meta):  # `dpdm check` asks for meta only
        with refuses(tmp_path / f"{split}.npz", *parts):
            read()


@pytest.mark.parametrize(
    ("content", "fact"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "Git LFS"),
        (gzip.compress(b"PK", mtime=0), "gunzip"),
        (b"\n<!DOCTYPE html><html>404</html>", "web page"),
        (b"", "truncated"),
    ],
)
def test_what_is_no_npz_file_is_called_what_it_is(tmp_path, content, fact):
    spec = npz_spec(tmp_path, GOOD, GOOD)
    (tmp_path / "test.npz").write_bytes(content)
    with refuses(tmp_path / "test.npz", fact):
        spec.meta()


def test_arrays_of_objects_are_not_unpickled(tmp_path):
    with refuses(tmp_path / "train.npz", "Python objects"):
        npz_spec(tmp_path, GOOD | {"images": np.array([1, "a"], object)}, GOOD).meta()


def test_npz_files_in_the_home_of_the_user(tmp_path, monkeypatch):
    npz_spec(tmp_path, GOOD, GOOD)
    monkeypatch.setenv("HOME", str(tmp_path))
    spec = Npz(train="~/train.npz", test="~/test.npz", num_classes=3)
    assert spec.meta() == ImageMeta(4, (3, 5, 6), 3)
    assert spec.files() == [str(tmp_path / "train.npz"), str(tmp_path / "test.npz")]


def test_the_documented_lines_write_npz_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "real_data.md").read_text()
    exec(re.search(r"```python\n(.*?)```", page, re.S)[1], {})
    assert Npz(train="train.npz", test="test.npz", num_classes=2).meta() == ImageMeta(200, (1, 28, 28), 2)


@pytest.mark.parametrize("name", ["images", "labels"])
def test_an_npz_file_without_an_array(tmp_path, name):
    spec = npz_spec(tmp_path, {key: GOOD[key] for key in GOOD if key != name}, GOOD)
    for load in (spec.load, spec.meta):
        with refuses(tmp_path / "train.npz", repr(name)):
            load()

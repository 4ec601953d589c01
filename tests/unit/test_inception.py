"""FID by Inception: torch-fidelity's numbers, kept real statistics, and errors before any compute.

The weights are random: torch-fidelity's cannot be had everywhere. Most tests take its features after the first layers
(64 of them), which are quick; the whole network is run by those marked slow.
"""

import io
import pickle
import subprocess
import sys
import urllib.request

import numpy as np
import pytest
import scipy.linalg
import torch
from refusals import refuses

from dpdm import artifacts
from dpdm.data import ImageSet, balanced_labels
from dpdm.errors import UserError
from dpdm.evaluation import fidelity, inception
from dpdm.rng import Streams

pytestmark = pytest.mark.slow

METRICS = ["fid", "kid", "precision", "recall"]
FILE = "weights-inception-2015-12-05-6726825d.pth"


@pytest.fixture(scope="module")
def quick(inception_weights):
    """Inception with random weights, up to its first 64 features, for all tests but those that set LAYER back."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inception, "LAYER", "64")
        yield inception.load_inception(inception_weights)


def chosen(images, rows, origin):
    return ImageSet(images.images[rows], images.labels[rows], 10, origin)


@pytest.fixture(scope="module")
def sides(digits_train):
    """Real images: 14 to train, 9 to test."""
    return {
        "train": chosen(digits_train, slice(0, 14), "real train"),
        "test": chosen(digits_train, slice(14, 23), "real test"),
    }


@pytest.fixture(scope="module")
def synthetic(digits_train):
    """11 images: some of the real ones, and some that are none."""
    images = digits_train.images[8:19].copy()
    images[::3] = np.random.default_rng(0).integers(0, 256, (4, 1, 8, 8), np.uint8)
    return ImageSet(images, digits_train.labels[8:19], 10, "synthetic")


@pytest.fixture(scope="module")
def kept(sides, quick, tmp_path_factory):
    path = tmp_path_factory.mktemp("kept") / "inception.npz"
    artifacts.write_npz(path, fidelity.reference(sides, quick))
    return path


def measured(synthetic, kept, network, seed=0):
    rows, _ = fidelity.measure(synthetic, kept, network, seed)
    return {(row["reference"], row["metric"]): row["value"] for row in rows}


def by_torch_fidelity(synthetic, real, weights, layer, seed=0):
    """The four metrics as `calculate_metrics` gives them for grey images that were made RGB by hand."""
    torch_fidelity = fidelity.import_torch_fidelity()
    first, second = (torch.from_numpy(x.images.repeat(3, axis=1)) for x in (synthetic, real))
    layers = {f"feature_layer_{metric}": layer for metric in ("fid", "kid", "prc")}
    found = torch_fidelity.calculate_metrics(
        input1=_Tensors(first), input2=_Tensors(second),
        **fidelity.known_options({
            "feature_extractor": "inception-v3-compat", "feature_extractor_weights_path": str(weights), **layers,
            "fid": True, "kid": True, "prc": True, "cuda": False, "cache": False, "verbose": False,
            "save_cpu_ram": True, "kid_subsets": 20, "kid_subset_size": min(len(first), len(second)),
            "prc_neighborhood": 3, "rng_seed": Streams(seed, "fidelity").integer("kid"),
        }),
    )  # fmt: skip
    keys = ("frechet_inception_distance", "kernel_inception_distance_mean", "precision", "recall")
    return dict(zip(METRICS, (found[key] for key in keys), strict=True))


class _Tensors(torch.utils.data.Dataset):
    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index]


# --- numbers --------------------------------------------------------------------------------------------------


def gaussian(mean, covariance):
    return {"mu": np.asarray(mean, np.float64), "sigma": np.asarray(covariance, np.float64)}


def frechet(one, two):
    """The FID alone of two Gaussians, through the code that scores."""
    features = torch.arange(10.0).reshape(5, 2)
    sides = (fidelity.Features(**side, some=features) for side in (one, two))
    return fidelity.FD.measure(*sides, Streams(0, "x"))["fd"]


def test_the_fid_of_gaussians_with_diagonal_covariances_is_the_closed_form():
    """|m1 - m2|^2 + sum (s1 - s2)^2, to a relative 1e-12 in float64."""
    rng = np.random.default_rng(0)
    means, scales = rng.normal(size=(2, 30)), rng.uniform(0.1, 3, (2, 30))
    value = frechet(*(gaussian(m, np.diag(s**2)) for m, s in zip(means, scales, strict=True)))
    assert value == pytest.approx(((means[0] - means[1]) ** 2).sum() + ((scales[0] - scales[1]) ** 2).sum(), rel=1e-12)


def test_the_fid_of_gaussians_with_any_covariances_is_scipy_s():
    """Against scipy's matrix square root, to a relative 1e-9 in float64."""
    rng = np.random.default_rng(1)
    means, factors = rng.normal(size=(2, 30)), rng.normal(size=(2, 30, 40))
    sigmas = factors @ factors.transpose(0, 2, 1)
    root = scipy.linalg.sqrtm(sigmas[0] @ sigmas[1]).real
    expected = ((means[0] - means[1]) ** 2).sum() + np.trace(sigmas[0] + sigmas[1] - 2 * root)
    assert frechet(*map(gaussian, means, sigmas)) == pytest.approx(expected, rel=1e-9)


def test_statistics_are_in_float64():
    """Mean and covariance (divided by n - 1) of float32 features far from 0, to a relative 1e-9."""
    features = torch.from_numpy(np.random.default_rng(2).normal(1e4, 1, (5000, 3)).astype(np.float32))
    found = fidelity.statistics(features)
    exact = features.numpy().astype(np.float64)
    centred = exact - exact.mean(0)
    np.testing.assert_allclose(found["mu"], exact.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found["sigma"], centred.T @ centred / 4999, rtol=1e-9)
    assert found["mu"].dtype == found["sigma"].dtype == np.float64


def fid_of_few(one, two):
    """FID of features [n, d] in float64 where n < d: the trace of the root of a product of two covariances is the
    sum of the singular values of the centred features' product, divided by the roots of n - 1."""
    a, b = ((x - x.mean(0)) / np.sqrt(len(x) - 1) for x in (one, two))
    return (
        ((one.mean(0) - two.mean(0)) ** 2).sum() + (a**2).sum() + (b**2).sum() - 2 * scipy.linalg.svdvals(a @ b.T).sum()
    )


def test_kept_statistics_give_what_torch_fidelity_calculates(synthetic, sides, kept, quick):
    """Equal up to torch-fidelity's float32: a relative 1e-5 for fid, 3e-7 for kid (kernels are near 1), else none."""
    found = measured(synthetic, kept, quick)
    assert list(found) == [(side, metric) for side in ("train", "test") for metric in METRICS]
    for side in ("train", "test"):
        expected = by_torch_fidelity(synthetic, sides[side], quick.path, "64")
        assert found[side, "fid"] == pytest.approx(expected["fid"], rel=1e-5)
        assert found[side, "kid"] == pytest.approx(expected["kid"], abs=3e-7)
        assert [found[side, metric] for metric in METRICS[2:]] == [expected[metric] for metric in METRICS[2:]]
    shares = {found["train", metric] for metric in METRICS[2:]}
    assert len(shares) == 2  # else the sides could be swapped unseen
    assert all(0 < share < 1 for share in shares)


def test_fid_is_that_of_all_images_in_float64(synthetic, sides, kept, quick):
    """Against singular values, to a relative 1e-6: singular covariances cost digits."""
    features = {name: quick.features(x).numpy().astype(np.float64) for name, x in (sides | {"": synthetic}).items()}
    for side in ("train", "test"):
        expected = fid_of_few(features[""], features[side])
        assert measured(synthetic, kept, quick)[side, "fid"] == pytest.approx(expected, rel=1e-6)


def test_the_whole_network_gives_what_torch_fidelity_calculates(
    synthetic, sides, inception_weights, tmp_path, monkeypatch
):
    """All 2048 features. Equal up to torch-fidelity's float32: a relative 1e-4 for fid, 3e-7 for kid."""
    monkeypatch.setattr(inception, "LAYER", "2048")
    network = inception.load_inception(inception_weights)
    few = {"train": sides["train"], "test": chosen(sides["test"], slice(0, 4), "few")}
    arrays = fidelity.reference(few, network)
    assert (arrays["train_features"].shape, arrays["train_sigma"].shape) == ((1, 14, 2048), (1, 2048, 2048))
    artifacts.write_npz(tmp_path / "inception.npz", arrays)
    found = measured(synthetic, tmp_path / "inception.npz", network)
    expected = by_torch_fidelity(synthetic, few["train"], inception_weights, "2048")
    assert found["train", "fid"] == pytest.approx(expected["fid"], rel=1e-4)
    assert found["train", "kid"] == pytest.approx(expected["kid"], abs=3e-7)
    assert [found["train", m] for m in METRICS[2:]] == [expected[m] for m in METRICS[2:]]
    exact = fid_of_few(*(network.features(x).numpy().astype(np.float64) for x in (synthetic, few["train"])))
    assert found["train", "fid"] == pytest.approx(exact, rel=1e-4)


def test_equal_sets_are_at_distance_zero(sides, kept, quick):
    """The square root of a singular covariance's rounding errors leaves 1e-5."""
    found = measured(sides["test"], kept, quick)
    assert found["test", "fid"] == pytest.approx(0, abs=1e-5)
    assert (found["test", "precision"], found["test", "recall"]) == (1, 1)
    assert found["train", "fid"] > 1e-3


def test_equal_seeds_give_equal_numbers(synthetic, kept, quick, monkeypatch):
    """The seed moves kid alone, and only where it draws subsets."""
    monkeypatch.setattr(fidelity, "KID_SUBSET_SIZE", 5)
    first, again, other = (measured(synthetic, kept, quick, seed) for seed in (0, 0, 1))
    assert first == again
    assert {key[1] for key in first if first[key] != other[key]} == {"kid"}


@pytest.mark.parametrize("value", [0, 255])
@pytest.mark.parametrize("count", [4, 12])
def test_constant_images_give_finite_bad_values(value, count, kept, quick):
    blank = ImageSet(np.full((count, 1, 8, 8), value, np.uint8), balanced_labels(count, 10), 10, "blank")
    found = measured(blank, kept, quick)
    assert np.isfinite(list(found.values())).all()
    for side in ("train", "test"):
        assert found[side, "fid"] > 0.1
        assert found[side, "recall"] == 0
        assert found[side, "precision"] in (0, 1)


def test_equal_constant_sets_are_at_distance_zero(quick, tmp_path):
    blank = ImageSet(np.zeros((6, 1, 8, 8), np.uint8), balanced_labels(6, 10), 10, "blank")
    artifacts.write_npz(tmp_path / "x.npz", fidelity.reference({"train": blank, "test": blank}, quick))
    found = measured(blank, tmp_path / "x.npz", quick)
    assert np.isfinite(list(found.values())).all()
    assert found["train", "fid"] == pytest.approx(0, abs=1e-6)


# --- what is kept ---------------------------------------------------------------------------------------------


def test_the_file_says_what_made_it_and_holds_float64(sides, kept, quick):
    arrays = artifacts.read_npz(kept, fidelity._ARRAYS)
    assert (str(arrays["extractor"]), str(arrays["weights_sha256"])) == ("inception-v3-compat", quick.weights_sha256)
    assert (int(arrays["train_n"]), int(arrays["test_n"])) == (14, 9)
    assert {arrays[f"{side}_{name}"].dtype.name for side in sides for name in ("mu", "sigma")} == {"float64"}
    for side in sides:
        np.testing.assert_array_equal(arrays[f"{side}_features"], quick.features(sides[side]).numpy()[None])


def test_of_many_images_a_fixed_choice_is_kept_but_statistics_are_of_all(
    sides, synthetic, quick, tmp_path, monkeypatch
):
    full = fidelity.reference(sides, quick)
    monkeypatch.setattr(fidelity, "SUBSET_SIZE", 6)
    arrays = fidelity.reference(sides, quick)
    np.testing.assert_array_equal(arrays["train_sigma"], full["train_sigma"])
    assert arrays["train_n"] == 14
    rows = [full["train_features"][0].tolist().index(row) for row in arrays["train_features"][0].tolist()]
    assert len(rows) == 6
    assert rows == sorted(rows) != list(range(6))
    artifacts.write_npz(tmp_path / "x.npz", arrays)
    found = measured(synthetic, tmp_path / "x.npz", quick)
    features = quick.features(synthetic)
    some = (fidelity._subset(features[None])[0], torch.from_numpy(full["train_features"][0][rows]))
    of_all = (fidelity.statistics(features), {n: full[f"train_{n}"][0] for n in ("mu", "sigma")})
    sides = (fidelity.Features(**known, some=few.double()) for known, few in zip(of_all, some, strict=True))
    rows = fidelity.distances(*sides, "x", "train", Streams(0, "fidelity"), "", "")
    assert [found["train", metric] for metric in METRICS] == [row["value"] for row in rows]


def test_a_grey_image_counts_as_three_equal_channels_and_rgb_is_left(sides, quick):
    grey = sides["test"]
    rgb = ImageSet(grey.images.repeat(3, axis=1), grey.labels, 10, "rgb")
    torch.testing.assert_close(quick.features(grey), quick.features(rgb), rtol=0, atol=0)
    rgb.images[:, 2] = 0
    assert (quick.features(grey) - quick.features(rgb)).abs().max() > 0.01


def test_the_batch_size_does_not_matter(sides, quick, monkeypatch):
    """Up to float32's rounding."""
    whole = quick.features(sides["train"])
    monkeypatch.setattr(inception, "_BATCH_SIZE", 5)
    torch.testing.assert_close(quick.features(sides["train"]), whole, rtol=1e-5, atol=1e-5)


def test_facts_name_the_weights_and_the_sizes(synthetic, kept, quick):
    _, facts = fidelity.measure(synthetic, kept, quick, 0)
    assert facts == {
        "extractor": "inception-v3-compat", "layer": "64", "weights_sha256": quick.weights_sha256,
        "n": {"train": 14, "test": 9}, "subset_size": 5000,
    }  # fmt: skip


def test_statistics_of_other_weights_are_refused(synthetic, kept, quick, tmp_path):
    arrays = artifacts.read_npz(kept, fidelity._ARRAYS)
    artifacts.write_npz(tmp_path / "old.npz", arrays | {"weights_sha256": np.array("0" * 64)})
    with refuses("old.npz", "random.pth"):
        fidelity.measure(synthetic, tmp_path / "old.npz", quick, 0)


# --- images that cannot be judged -----------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 3])
def test_too_few_images_are_refused_by_name(count, sides, kept, quick):
    few = chosen(sides["test"], slice(0, count), "few.npz")
    with refuses("few.npz", count):
        fidelity.measure(few, kept, quick, 0)
    with refuses("few.npz", count):
        fidelity.reference(sides | {"test": few}, quick)


def test_images_neither_grey_nor_rgb_are_refused(quick):
    odd = ImageSet(np.zeros((5, 2, 8, 8), np.uint8), balanced_labels(5, 10), 10, "odd.npz")
    with refuses("odd.npz", "2 channels", "evaluation.fid"):
        quick.features(odd)


def test_features_that_are_not_finite_are_an_error(sides, inception_weights, quick, tmp_path):
    state = artifacts.read_tensors(inception_weights)
    state["Conv2d_1a_3x3.conv.weight"] = torch.full_like(state["Conv2d_1a_3x3.conv.weight"], 3e38)
    artifacts.write_tensors(tmp_path / "huge.pth", state)
    network = inception.load_inception(tmp_path / "huge.pth")
    with refuses("real test", "huge"):
        network.features(sides["test"])


def test_a_value_that_is_not_finite_is_an_error_not_a_row(synthetic, kept, quick, monkeypatch):
    monkeypatch.setattr(fidelity, "KID", fidelity.Metric({"kid": "lower"}, lambda *_: {"kid": float("nan")}))
    with refuses("kid", "synthetic", "nan", "dpdm.evaluation.fidelity:KID"):
        fidelity.measure(synthetic, kept, quick, 0)


# --- weights --------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty folder of torch hub and no network; returns where the weights belong."""

    def urlopen(*_, **__):
        raise OSError("no network\nhere")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    return tmp_path / "home" / "hub" / "checkpoints" / FILE


def published(monkeypatch, content):
    """Lets `content` be what torch-fidelity publishes."""
    monkeypatch.setattr(inception, "WEIGHTS_SHA256", inception._sha256(content))


def test_the_place_is_where_torch_fidelity_itself_looks(hub, inception_weights):
    """Without a path it loads that very file, and asks no network."""
    hub.parent.mkdir(parents=True)
    hub.write_bytes(inception_weights.read_bytes())
    fidelity.import_torch_fidelity()
    from torch_fidelity.utils import create_feature_extractor

    network = create_feature_extractor("inception-v3-compat", ["64"], cuda=False, verbose=False)
    state = artifacts.read_tensors(inception_weights)
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


def test_without_weights_and_network_one_sentence_says_what_to_put_where(hub):
    with pytest.raises(UserError) as error:
        inception.find_weights(None)
    message = str(error.value)
    assert "\n" not in message
    assert f"could not be had (no network here): put {FILE} into {hub.parent}" in message
    assert "evaluation.fid.weights_path" in message
    assert not hub.exists()


def test_the_file_in_the_cache_is_taken(hub, monkeypatch):
    hub.parent.mkdir(parents=True)
    hub.write_bytes(b"weights")
    published(monkeypatch, b"weights")
    assert inception.find_weights(None) == hub


def test_a_damaged_file_in_the_cache_is_refused_by_name(hub):
    hub.parent.mkdir(parents=True)
    hub.write_bytes(b"half a download")
    with refuses("6726825d.pth", "torch-fidelity"):
        inception.find_weights(None)


def test_a_cache_that_cannot_be_written_to_is_named(hub, monkeypatch):
    hub.parent.parent.parent.mkdir(parents=True)
    hub.parent.parent.write_text("a file where a folder should be")
    published(monkeypatch, b"weights")
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: io.BytesIO(b"weights"))
    with pytest.raises(UserError) as error:
        inception.find_weights(None)
    message = str(error.value)
    assert f"(it came, but {hub.parent} cannot be written to)" in message
    assert "another folder: $TORCH_HOME" in message
    assert "results folder" not in message


def test_weights_are_fetched_once_and_checked(hub, monkeypatch):
    asked = []

    def urlopen(url, timeout):
        asked.append((url, timeout))
        return io.BytesIO(b"weights")

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    with refuses("SHA-256"):
        inception.find_weights(None)
    assert not hub.exists()
    published(monkeypatch, b"weights")
    assert inception.find_weights(None) == inception.find_weights(None) == hub
    assert hub.read_bytes() == b"weights"
    assert len(asked) == 2
    assert asked[0][0].endswith(FILE)


def test_a_path_is_taken_as_it_is_or_named(hub, tmp_path, inception_weights, monkeypatch):
    assert inception.find_weights(str(inception_weights)) == inception_weights
    monkeypatch.setenv("HOME", str(inception_weights.parent))
    assert inception.find_weights(f"~/{inception_weights.name}") == inception_weights
    for wrong in (tmp_path, tmp_path / "none.pth"):
        with refuses("weights_path", wrong, FILE) as error:
            inception.find_weights(str(wrong))
        assert "\n" not in str(error.value)


class Code:
    """What a weights file must not be able to do: run a function when it is opened."""

    def __reduce__(self):
        return print, ("a weights file ran code",)


@pytest.mark.parametrize("kind", ["text", "truncated", "others", "shape", "nan", "code"])
def test_files_that_hold_no_weights_are_refused_by_name(kind, inception_weights, tmp_path, capsys):
    path = tmp_path / "wrong.pth"
    state = artifacts.read_tensors(inception_weights)
    name = "fc.bias"
    if kind == "text":
        path.write_text("<html>not found</html>")
    elif kind == "truncated":
        path.write_bytes(inception_weights.read_bytes()[:-5000])
    elif kind == "code":
        path.write_bytes(pickle.dumps(state | {name: Code()}, protocol=2))
    else:
        wrong = {"others": {}, "shape": {name: state[name][:7]}, "nan": {name: state[name] * float("nan")}}[kind]
        artifacts.write_tensors(path, {"a": torch.zeros(1)} if kind == "others" else state | wrong)
    with refuses("wrong.pth", FILE) as error:
        inception.load_inception(path)
    assert "\n" not in str(error.value)
    assert capsys.readouterr().out == ""


def test_importing_the_module_does_not_import_torch_fidelity():
    code = "import sys, dpdm.evaluation.inception; print('torch_fidelity' in sys.modules, 'torchvision' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["False", "False"], done.stderr

"""What we rely on in torch-fidelity 0.4, each fact computable by hand."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from dpdm.evaluation import _torchvision_cpu

_torchvision_cpu.ensure()  # before torch-fidelity, which imports torchvision

import torch_fidelity  # noqa: E402
from torch_fidelity.defaults import DEFAULTS  # noqa: E402
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric  # noqa: E402
from torch_fidelity.metric_kid import kid_features_to_metric  # noqa: E402
from torch_fidelity.metric_prc import prc_features_to_metric  # noqa: E402

NAME = "pixels-for-tests"


class Pixels(torch_fidelity.FeatureExtractorBase):
    """Features are the pixels themselves."""

    def __init__(self, name, features_list, **_):
        super().__init__(name, features_list)

    @staticmethod
    def get_provided_features_list():
        return ("pixels",)

    @staticmethod
    def get_default_feature_layer_for_metric(metric):
        return "pixels"

    @staticmethod
    def can_be_compiled():
        return False

    def forward(self, images):
        return (images.flatten(1).double(),)


class Tensors(torch.utils.data.Dataset):
    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index]


@pytest.fixture(scope="module", autouse=True)
def registered():
    if NAME not in torch_fidelity.registry.FEATURE_EXTRACTORS_REGISTRY:
        torch_fidelity.register_feature_extractor(NAME, Pixels)


def quiet(first, second, **options):
    fixed = {"feature_extractor": NAME, "cuda": False, "verbose": False, "cache": False, "save_cpu_ram": True}
    return torch_fidelity.calculate_metrics(input1=Tensors(first), input2=Tensors(second), **fixed, **options)


def test_it_imports_in_a_fresh_process_after_ensure():
    code = (
        "from dpdm.evaluation import _torchvision_cpu as cpu; cpu.ensure(); cpu.ensure();"
        "import torch_fidelity, torchvision; print(torch_fidelity.__version__, torchvision.ops.nms.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["0.4.0", "nms"], done.stderr


def test_the_frechet_distance_of_two_gaussians_in_one_dimension_by_hand():
    """Conclusion: d^2 = (m1 - m2)^2 + (s1 - s2)^2, the unrooted distance, with the unbiased (n-1) variance."""
    statistics = [{"mu": np.array([m]), "sigma": np.array([[s * s]])} for m, s in ((1.0, 2.0), (4.0, 7.0))]
    value = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert value == pytest.approx((4 - 1) ** 2 + (7 - 2) ** 2)
    found = fid_features_to_statistics(torch.tensor([[0.0, 0.0], [2.0, 4.0]]))
    np.testing.assert_array_equal(found["mu"], [1, 2])
    np.testing.assert_array_equal(found["sigma"], [[2, 4], [4, 8]])  # divided by n - 1 = 1


def test_the_frechet_distance_uses_the_whole_covariance():
    """[[2, 1], [1, 2]] has eigenvalues 3, 1 and commutes with the identity: sum (sqrt(l) - 1)^2 = (sqrt(3) - 1)^2."""
    tilted = {"mu": np.zeros(2), "sigma": np.array([[2.0, 1.0], [1.0, 2.0]])}
    round_one = {"mu": np.zeros(2), "sigma": np.eye(2)}
    value = fid_statistics_to_metric(tilted, round_one, verbose=False)["frechet_inception_distance"]
    assert value == pytest.approx((np.sqrt(3) - 1) ** 2)


def test_the_frechet_distance_of_drawn_gaussians_approaches_the_closed_form():
    rng = np.random.default_rng(0)
    draws = [torch.from_numpy(rng.normal(m, s, (100_000, 3))) for m, s in ((0, 1), (1, 3))]
    statistics = [fid_features_to_statistics(x) for x in draws]
    value = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert value == pytest.approx(3 * (1**2 + 2**2), rel=0.01)


def test_singular_covariances_are_fine():
    """Conclusion: constant features (sigma = 0) leave |m1 - m2|^2 + trace of the other side."""
    constant = fid_features_to_statistics(torch.full((5, 2), 3.0, dtype=torch.float64))
    other = {"mu": np.zeros(2), "sigma": np.diag([4.0, 5.0])}
    value = fid_statistics_to_metric(constant, other, verbose=False)["frechet_inception_distance"]
    assert value == pytest.approx(9 + 9 + 4 + 5)


def test_kid_is_the_unbiased_estimate_with_the_cubic_kernel():
    """(x*y/d + 1)^3 with x = (0, 0), (2, 2); y = (0, 0), (0, 0): K_xx off diagonal 1, K_yy 1, K_xy 1 -> 0."""
    x, y = torch.tensor([[0.0, 0.0], [2.0, 2.0]]), torch.zeros(2, 2)
    options = {"kid_subsets": 3, "kid_subset_size": 2, "verbose": False}
    assert kid_features_to_metric(x, y, **options)["kernel_inception_distance_mean"] == 0
    z = torch.full((2, 2), 2.0)  # K_zz = (8/2 + 1)^3 = 125, K_yy = 1, K_zy = 1 -> 125 + 1 - 2
    assert kid_features_to_metric(z, y, **options)["kernel_inception_distance_mean"] == 124


def test_a_kid_subset_larger_than_a_side_is_an_error():
    with pytest.raises(ValueError, match="KID subset size 3"):
        kid_features_to_metric(torch.zeros(2, 2), torch.zeros(5, 2), kid_subset_size=3, verbose=False)


def test_precision_counts_the_first_input_and_recall_the_second():
    """Generated 0, 1, 100 and real 0, 1, 2 with one neighbour: 2 of 3 generated lie by real ones, all real are reached.

    Conclusion: input1 is the generated side. Radii are 1, 1, 99 and 1, 1, 1.
    """
    generated, real = torch.tensor([[0.0], [1.0], [100.0]]), torch.tensor([[0.0], [1.0], [2.0]])
    options = {"prc_neighborhood": 1, "verbose": False}
    forth = prc_features_to_metric(generated, real, **options)
    back = prc_features_to_metric(real, generated, **options)
    assert (forth["precision"], forth["recall"]) == (pytest.approx(2 / 3), 1)
    assert (back["precision"], back["recall"]) == (1, pytest.approx(2 / 3))


def test_distances_by_parts_equal_those_at_once():
    """Conclusion: save_cpu_ram and prc_batch_size are about memory only."""
    rng = np.random.default_rng(0)
    left, right = (torch.from_numpy(rng.normal(m, 1, (60, 4))) for m in (0, 1))
    parts = prc_features_to_metric(left, right, save_cpu_ram=True, prc_batch_size=7, verbose=False)
    assert parts == prc_features_to_metric(left, right, save_cpu_ram=False, verbose=False)
    assert 0 < parts["precision"] < 1


def test_an_option_it_does_not_know_is_silently_ignored():
    """Conclusion: whoever calls it must compare the names with DEFAULTS (fidelity.known_options does)."""
    images = torch.arange(24, dtype=torch.uint8).reshape(6, 1, 2, 2)
    plain = quiet(images, images.flip(3), fid=True)
    assert quiet(images, images.flip(3), fid=True, featur_layer_fid="no such layer") == plain
    assert "featur_layer_fid" not in DEFAULTS


def test_a_name_is_registered_once_only():
    with pytest.raises(ValueError, match="already registered"):
        torch_fidelity.register_feature_extractor(NAME, Pixels)


def test_its_defaults_ask_for_a_gpu_a_cache_and_chatter():
    """Conclusion: our Options must set these three."""
    assert [DEFAULTS[key] for key in ("cuda", "cache", "verbose")] == [True, True, True]


def test_one_call_with_a_registered_extractor_gives_all_metrics():
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (8, 1, 2, 2), np.uint8))
    options = {"kid_subset_size": 8, "kid_subsets": 2}
    results = quiet(images, images, fid=True, kid=True, prc=True, **options)
    assert results[torch_fidelity.KEY_METRIC_FID] == pytest.approx(0, abs=1e-6)
    assert (results[torch_fidelity.KEY_METRIC_PRECISION], results[torch_fidelity.KEY_METRIC_RECALL]) == (1, 1)
    assert torch_fidelity.KEY_METRIC_KID_MEAN in results

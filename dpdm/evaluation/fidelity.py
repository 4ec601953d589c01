"""Fidelity: how close the distribution of synthetic images is to the real one, measured by torch-fidelity.

All four compare features of `dpdm.evaluation.extractor` and carry the data set in their names, because values of
another extractor, or of Inception ("fid"), live on another scale. X is one of the two real sides, train or test.

    fd_X         Frechet distance of Gaussians fitted to the features; 0 is best. Of identical sets |fd| < 1e-6.
                 Biased upwards for few images: compare only values from equally many.
    kid_X        squared MMD with a cubic kernel, mean over subsets; unbiased, so about 0, also below it, is best.
    precision_X  share of synthetic images within the reach of a real one (3 nearest neighbours); 1 is best.
                 A real outlier reaches far and may admit nonsense: read it beside fd and recall.
    recall_X     share of real images within the reach of a synthetic one; 1 is best, about 0 is mode collapse.
                 Both look at PRC_IMAGES of either side at most, drawn at random: their cost grows with the square.

The order of images matters neither to fd nor, where none is left out, to precision and recall (relative 1e-9); kid
draws its subsets by position.
"""

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from dpdm.data import ImageSet
from dpdm.errors import UserError
from dpdm.evaluation import _torchvision_cpu
from dpdm.evaluation.extractor import load_extractor
from dpdm.rng import Streams

EXTRACTOR = "dpdm-small-cnn"  # our name in torch-fidelity's registry
NEIGHBOURS = 3
KID_SUBSET_SIZE = 1000
KID_SUBSETS = 20
PRC_IMAGES = 10_000
_RESULT_KEYS = {  # our metric -> torch-fidelity's constant that names it
    "fd": "KEY_METRIC_FID",
    "kid": "KEY_METRIC_KID_MEAN",
    "precision": "KEY_METRIC_PRECISION",
    "recall": "KEY_METRIC_RECALL",
}


@dataclass(frozen=True)
class Options:
    """All that we tell torch-fidelity, field by field under its names; it silently ignores a name it does not know."""

    feature_extractor_weights_path: str
    kid_subset_size: int  # <= the number of images on either side
    rng_seed: int
    cuda: bool = False  # a small network, and so the same numbers on every machine
    feature_extractor: str = EXTRACTOR
    fid: bool = False
    kid: bool = False
    prc: bool = False
    kid_subsets: int = KID_SUBSETS
    prc_neighborhood: int = NEIGHBOURS
    prc_batch_size: int = 1000  # memory only: rows of the distance matrix at a time
    batch_size: int = 500
    save_cpu_ram: bool = True  # no loader processes, distances by parts
    cache: bool = False  # a cache in the home folder would outlive what it was computed from
    verbose: bool = False


def measure(
    synthetic: ImageSet, references: dict[str, ImageSet], extractor: str | Path, dataset: str, seed: int
) -> list[dict[str, Any]]:
    """Rows `{"metric": "fd_digits", "reference": "train", "value": ...}`: each metric against each reference.

    Args:
        synthetic: the images to judge; labels play no role.
        references: the real sides by name ("train", "test").
        extractor: file written from `train_extractor`'s state.
        dataset: its name ends the names of the metrics.
        seed: of the subsets that kid draws.

    Raises:
        UserError: images of different shapes, fewer than 4 on a side, an unusable extractor file, a value not finite.
    """
    network, _ = load_extractor(extractor)
    for images in (synthetic, *references.values()):
        _check_images(images, network.shape)
    torch_fidelity = import_torch_fidelity()
    rows = []
    for reference, real in references.items():
        options = Options(
            feature_extractor_weights_path=str(extractor),
            kid_subset_size=min(KID_SUBSET_SIZE, len(synthetic.images), len(real.images)),
            rng_seed=Streams(seed, "fidelity").integer("kid"),
        )
        fewer, fewer_real = _thinned(synthetic), _thinned(real)
        if fewer is synthetic and fewer_real is real:  # one call, since each computes the features anew
            calls = [(synthetic, real, ["fid", "kid", "prc"])]
        else:
            calls = [(synthetic, real, ["fid", "kid"]), (fewer, fewer_real, ["prc"])]
        results = {}
        for generated, other, metrics in calls:
            # input1 is the generated side: precision and recall are not symmetric
            results |= torch_fidelity.calculate_metrics(
                input1=Images(generated), input2=Images(other),
                **known_options(asdict(options) | dict.fromkeys(metrics, True)),
            )  # fmt: skip
        for metric, constant in _RESULT_KEYS.items():
            value = float(results[getattr(torch_fidelity, constant)])
            if not math.isfinite(value):
                raise UserError(f"{metric} of {synthetic.origin} is {value}; delete {extractor} and make it again")
            rows.append({"metric": f"{metric}_{dataset}", "reference": reference, "value": value})
    return rows


def known_options(options: dict[str, Any]) -> dict[str, Any]:
    """`options` themselves, once torch-fidelity is seen to know every name among them.

    Raises:
        UserError: it does not know one (a misspelling, or another version).
    """
    import_torch_fidelity()
    from torch_fidelity.defaults import DEFAULTS

    unknown = sorted(set(options) - set(DEFAULTS))
    if unknown:
        raise UserError(f"torch-fidelity has no option {unknown[0]!r}; install torch-fidelity 0.4")
    return options


def _thinned(images: ImageSet) -> ImageSet:
    """PRC_IMAGES of the images, or the set itself if it has no more."""
    if len(images.images) <= PRC_IMAGES:
        return images
    rows = fixed_choice(len(images.images), PRC_IMAGES)
    return replace(images, images=images.images[rows], labels=images.labels[rows])


def fixed_choice(count: int, most: int) -> np.ndarray:
    """Positions of `most` of `count` images, or of all, in their order: drawn at random, since classes may follow each
    other in any pattern, and always the same."""
    return np.sort(Streams(0, "fidelity").numpy("choice").permutation(count)[:most])


def _check_images(images: ImageSet, shape: tuple[int, int, int]) -> None:
    if images.meta.shape != shape:
        raise UserError(
            f"{images.origin}: images have shape {images.meta.shape} but the extractor reads {shape}; "
            "compare images of one data set"
        )
    check_count(images)


def check_count(images: ImageSet) -> None:
    """Refuses a set in which not every image has NEIGHBOURS others.

    Raises:
        UserError: there are fewer.
    """
    if len(images.images) <= NEIGHBOURS:
        raise UserError(
            f"{images.origin}: {len(images.images)} images are too few to judge; give {NEIGHBOURS + 1} or more"
        )


class Images(torch.utils.data.Dataset):
    """An image set as torch-fidelity reads it: uint8 tensors without labels."""

    def __init__(self, images: ImageSet):
        self.images = torch.from_numpy(images.images)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.images[index]


def import_torch_fidelity() -> ModuleType:
    """torch-fidelity, importable beside CPU torch and with our extractor registered: the one place that imports it."""
    _torchvision_cpu.ensure()
    import torch_fidelity
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

    if EXTRACTOR in FEATURE_EXTRACTORS_REGISTRY:  # registering a name twice is an error
        return torch_fidelity

    class Extractor(torch_fidelity.FeatureExtractorBase):
        """The extractor file as torch-fidelity wants it; the other options it passes are not for us."""

        def __init__(self, name, features_list, feature_extractor_weights_path=None, **_):
            super().__init__(name, features_list)
            self.network, _ = load_extractor(feature_extractor_weights_path)

        @staticmethod
        def get_provided_features_list():
            return ("features",)

        @staticmethod
        def get_default_feature_layer_for_metric(metric):
            return "features"

        @staticmethod
        def can_be_compiled():
            return False

        def forward(self, images):
            return (self.network.features(images).double(),)  # float64: distances of equal images are then about 0

    torch_fidelity.register_feature_extractor(EXTRACTOR, Extractor)
    return torch_fidelity

"""Fidelity: how close the distribution of synthetic images is to the real one.

Metrics compare features of two sets of images, by torch-fidelity's own functions. Values under different extractors
live on different scales, so every row names its extractor; `direction` says which way is better.

    fd         Frechet distance of Gaussians fitted to the features; 0 is best. Of identical sets |fd| < 1e-6.
               Biased upwards for few images: compare only values from equally many. Under Inception it is called fid.
    kid        squared MMD with a cubic kernel, mean over subsets; unbiased, so about 0, also below it, is best.
    precision  share of synthetic images within the reach of a real one (3 nearest neighbors); 1 is best.
               A real outlier reaches far and may admit nonsense: read it together with fd and recall.
    recall     share of real images within the reach of a synthetic one; 1 is best, about 0 is mode collapse.
               Both look at PRC_IMAGES of either side at most, drawn at random: their cost grows with the square.

Where an extractor is several networks, a value is the mean over them, and `spread` is their sample deviation.

The order of images matters neither to fd nor, where none is left out, to precision and recall (relative 1e-9); kid
draws its subsets by position.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch

from dpdm.data import ImageSet
from dpdm.errors import UserError
from dpdm.evaluation import _torchvision_cpu, registry
from dpdm.rng import Streams

NEIGHBOURS = 3
KID_SUBSET_SIZE = 1000
KID_SUBSETS = 20
PRC_IMAGES = 5000
PRC_BATCH_SIZE = 1000  # memory only: rows of the distance matrix at a time


@dataclass(frozen=True)
class Features:
    """What a metric sees of one set of images.

    Args:
        mu, sigma: mean [d] and covariance [d, d] of the features of all images, float64.
        some: float64 [k, d], of all images (of Inception, SUBSET_SIZE at most).
        few: float64 [m, d], of PRC_IMAGES at most.
    """

    mu: np.ndarray
    sigma: np.ndarray
    some: torch.Tensor
    few: torch.Tensor

    @classmethod
    def of(cls, features: torch.Tensor, few: torch.Tensor | None = None) -> "Features":
        """Of the features [n, d] of all images; `few` of fewer, if n is too many for precision and recall."""
        features = features.double()  # distances of equal images are then about 0
        return cls(**statistics(features), some=features, few=features if few is None else few.double())


class Metric(NamedTuple):
    """One or more values from the features of two sets.

    Args:
        directions: by the name of each value, "lower" or "higher": which is better.
        measure: (synthetic, real, streams of its randomness) -> the values by name.
    """

    directions: Mapping[str, str]
    measure: Callable[[Features, Features, Streams], dict[str, float]]


def measure(
    synthetic: ImageSet,
    references: Mapping[str, ImageSet],
    weights: str | Path,
    seed: int,
    extractors: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """Every metric against each reference, under each extractor, as rows of `distances`, some with a `spread`.

    Args:
        synthetic: the images to judge; labels play no role.
        references: the real sides by name ("train", "test").
        weights: file written from `train_extractor`'s state.
        seed: of the subsets that kid draws.
        extractors: names of EXTRACTORS; all of them if left out.

    Raises:
        UserError: images of different shapes, fewer than 4 on a side, an unusable extractor file, a value not finite.
    """
    for images in (synthetic, *references.values()):
        check_count(images)
    rows = []
    for name in extractors or registry.EXTRACTORS:
        extract = registry.load(registry.EXTRACTORS, name, "extractor")

        def features(images: ImageSet, extract: Any = extract) -> list[Features]:
            fewer = chosen(images, PRC_IMAGES)
            # computed anew, not chosen from those of all: the batch that an image is in moves its last bits
            whole = extract(images, weights)
            few = whole if fewer is images else extract(fewer, weights)
            networks = (whole, few) if whole.dim() == 3 else (whole[None], few[None])
            return [Features.of(*pair) for pair in zip(*networks, strict=True)]

        generated = features(synthetic)
        for reference, real in references.items():
            found = [
                list(distances(*sides, name, reference, Streams(seed, "fidelity"), synthetic.origin, weights))
                for sides in zip(generated, features(real), strict=True)
            ]
            rows += map(_mean, zip(*found, strict=True))
    return rows


def _mean(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The rows of several networks as one."""
    values = [row["value"] for row in rows]
    spread = {"spread": float(np.std(values, ddof=1))} if len(values) > 1 else {}
    return rows[0] | {"value": float(np.mean(values))} | spread


def distances(
    synthetic: Features, real: Features, extractor: str, reference: str, streams: Streams, origin: str, made_by: Any
) -> Iterable[dict[str, Any]]:
    """Rows `{"metric": "fd", "extractor": ..., "direction": "lower", "reference": "train", "value": ...}`.

    Args:
        origin, made_by: what was judged and the file that decided the features, for messages.

    Raises:
        UserError: a value is not finite, or a metric lacks the direction of one.
    """
    for name in registry.METRICS:
        metric = registry.load(registry.METRICS, name, "metric")
        for value_name, value in metric.measure(synthetic, real, streams).items():
            direction = metric.directions.get(value_name)
            if direction not in ("lower", "higher"):
                raise UserError(
                    f"{registry.METRICS[name]} gives {value_name} the direction {direction!r}; "
                    'state in its `directions` whether "lower" or "higher" is better'
                )
            if not math.isfinite(value):
                raise UserError(f"{value_name} of {origin} is {value}; delete {made_by} and make it again")
            row = {"metric": value_name, "extractor": extractor, "direction": direction}
            yield row | {"reference": reference, "value": float(value)}


# --- metrics --------------------------------------------------------------------------------------------------


def _fd(synthetic: Features, real: Features, _: Streams) -> dict[str, float]:
    torch_fidelity = import_torch_fidelity()
    from torch_fidelity.metric_fid import fid_statistics_to_metric

    sides = ({"mu": side.mu, "sigma": side.sigma} for side in (synthetic, real))
    return {"fd": fid_statistics_to_metric(*sides, verbose=False)[torch_fidelity.KEY_METRIC_FID]}


def _kid(synthetic: Features, real: Features, streams: Streams) -> dict[str, float]:
    torch_fidelity = import_torch_fidelity()
    from torch_fidelity.metric_kid import kid_features_to_metric

    options = known_options({
        "kid_subsets": KID_SUBSETS, "kid_subset_size": min(KID_SUBSET_SIZE, len(synthetic.some), len(real.some)),
        "rng_seed": streams.integer("kid"), "verbose": False,
    })  # fmt: skip
    return {"kid": kid_features_to_metric(synthetic.some, real.some, **options)[torch_fidelity.KEY_METRIC_KID_MEAN]}


def _precision_recall(synthetic: Features, real: Features, _: Streams) -> dict[str, float]:
    torch_fidelity = import_torch_fidelity()
    from torch_fidelity.metric_prc import prc_features_to_metric

    options = known_options({
        "prc_neighborhood": NEIGHBOURS, "prc_batch_size": PRC_BATCH_SIZE, "save_cpu_ram": True, "verbose": False
    })  # fmt: skip
    found = prc_features_to_metric(synthetic.few, real.few, **options)  # not symmetric
    return {
        "precision": found[torch_fidelity.KEY_METRIC_PRECISION],
        "recall": found[torch_fidelity.KEY_METRIC_RECALL],
    }


FD = Metric({"fd": "lower"}, _fd)
KID = Metric({"kid": "lower"}, _kid)
PRECISION_RECALL = Metric({"precision": "higher", "recall": "higher"}, _precision_recall)


def statistics(features: torch.Tensor) -> dict[str, np.ndarray]:
    """`mu` [d] and `sigma` [d, d], in float64: a float32 mean over many rows loses digits."""
    import_torch_fidelity()
    from torch_fidelity.metric_fid import fid_features_to_statistics

    return fid_features_to_statistics(features.double())


def known_options(options: dict[str, Any]) -> dict[str, Any]:
    """`options` themselves, once torch-fidelity is seen to know every name: it ignores one that it does not know.

    Raises:
        UserError: it does not know one (a misspelling, or another version).
    """
    import_torch_fidelity()
    from torch_fidelity.defaults import DEFAULTS

    unknown = sorted(set(options) - set(DEFAULTS))
    if unknown:
        raise UserError(f"torch-fidelity has no option {unknown[0]!r}; install torch-fidelity 0.4")
    return options


def import_torch_fidelity() -> ModuleType:
    """torch-fidelity, importable next to CPU torch: the one place that imports it."""
    _torchvision_cpu.ensure()
    import torch_fidelity

    return torch_fidelity


# --- sets -----------------------------------------------------------------------------------------------------


def chosen(images: ImageSet, most: int) -> ImageSet:
    """`most` of the images by `fixed_choice`, or the set itself if it has no more."""
    if len(images.images) <= most:
        return images
    rows = fixed_choice(len(images.images), most)
    return replace(images, images=images.images[rows], labels=images.labels[rows])


def fixed_choice(count: int, most: int) -> np.ndarray:
    """Positions of `most` of `count` images, or of all, in their order: drawn at random, since classes may follow each
    other in any pattern, and always the same."""
    return np.sort(Streams(0, "fidelity").numpy("choice").permutation(count)[:most])


def check_count(images: ImageSet) -> None:
    """Refuses a set in which not every image has NEIGHBOURS others.

    Raises:
        UserError: there are fewer.
    """
    if len(images.images) <= NEIGHBOURS:
        raise UserError(
            f"{images.origin}: {len(images.images)} images are too few to judge; give {NEIGHBOURS + 1} or more"
        )

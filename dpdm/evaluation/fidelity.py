"""Fidelity: how close the distribution of synthetic images is to the real one.

Metrics compare features of two sets of images, by torch-fidelity's functions. Values under different extractors have
different scales, so every row names its extractor; `direction` says whether lower or higher is better.

    fd         Frechet distance of Gaussians fitted to the features; 0 is best. Of identical sets |fd| < 1e-6.
               Biased upwards for few images: compare only values from equally many. Under Inception it is called fid.
    kid        squared MMD with the kernel (x . y / d + 1)^3, mean over subsets, not times 1,000; unbiased, so about 0,
               also below it, is best. Features twice as large give up to 64 times the kid: by EfficientNet-Lite0, whose
               features nothing scales, it reaches hundreds.
    precision  share of synthetic images within the reach of a real one (3 nearest neighbors); 1 is best.
               A real outlier reaches far and may admit nonsense: read it together with fd and recall.
    recall     share of real images within the reach of a synthetic one; 1 is best, about 0 is mode collapse.

kid, precision and recall use at most SUBSET_SIZE images of either side, in a fixed random choice, since the cost of
precision and recall grows with the square of their number. If an extractor has several networks, a value is the mean
over them, and `spread` is their sample standard deviation. The order of the images does not change fd (relative 1e-9),
and changes neither precision nor recall if no image is left out; kid draws its subsets by position.

The real side is computed once per data set and extractor (`reference`) and kept: mean and covariance of all images, and
the features of the chosen ones. It was computed from private images without any noise: use it only for evaluation, and
do not publish it.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from dpdm import artifacts
from dpdm.data import ImageSet
from dpdm.errors import UserError
from dpdm.evaluation import _torchvision_cpu, registry
from dpdm.rng import Streams

SIDES = ("train", "test")
INCEPTION = "inception"  # in the rows
NEIGHBOURS = 3
KID_SUBSET_SIZE = 1000
KID_SUBSETS = 20
SUBSET_SIZE = 5000  # images of either side that kid, precision and recall use
PRC_BATCH_SIZE = 1000  # memory only: rows of the distance matrix at a time
_ARRAYS = ("extractor", "weights_sha256", *(f"{side}_{x}" for side in SIDES for x in ("n", "mu", "sigma", "features")))


@dataclass(frozen=True)
class Features:
    """The input of a metric for one set of images.

    Args:
        mu, sigma: mean [d] and covariance [d, d] of the features of all images, float64.
        some: float64 [m, d], features of at most SUBSET_SIZE images. In float64, distances of equal images are about 0.
    """

    mu: np.ndarray
    sigma: np.ndarray
    some: torch.Tensor


class Metric(NamedTuple):
    """One or more values from the features of two sets.

    Args:
        directions: by the name of each value, "lower" or "higher": which is better.
        measure: (synthetic, real, streams of its randomness) -> the values by name.
    """

    directions: Mapping[str, str]
    measure: Callable[[Features, Features, Streams], dict[str, float]]


class Extractor(Protocol):
    """A network, or several, whose features represent the images.

    Args:
        name: in the rows.
        extractor, layer: the network, and its output that gives the features.
        path: the file of its weights.
        weights_sha256: the digest of that file.
    """

    name: str
    extractor: str
    layer: str
    path: Path
    weights_sha256: str

    def features(self, images: ImageSet) -> torch.Tensor:
        """Features float32 [n, d], or [k, n, d] of k networks, of uint8 images [n, C, H, W]."""


@dataclass(frozen=True)
class Trained:
    """An extractor trained on a data set's real images: a line of EXTRACTORS, and the data set's extractor.pt."""

    name: str
    path: Path
    layer = "features"

    @property
    def extractor(self) -> str:
        return registry.EXTRACTORS[self.name]

    @property
    def weights_sha256(self) -> str:
        return hashlib.sha256(artifacts.read_bytes(self.path)).hexdigest()

    def features(self, images: ImageSet) -> torch.Tensor:
        check_count(images)
        part = registry.part(registry.EXTRACTORS, self.name, "extractor")
        found = part.call(part.function(), images, self.path)
        if not isinstance(found, torch.Tensor) or found.dim() not in (2, 3) or found.shape[-2] != len(images.images):
            got = f"a tensor {list(found.shape)}" if isinstance(found, torch.Tensor) else type(found).__name__
            raise part.wrong(f"it returned {got} for {len(images.images)} images; return a tensor [n, d] or [k, n, d]")
        if not found.isfinite().all():
            raise part.wrong(f"its features of {images.origin} are not finite; correct it, or its weights {self.path}")
        return found


def reference(real: Mapping[str, ImageSet], extractor: Extractor) -> dict[str, np.ndarray]:
    """The kept statistics of the real images, sides "train" and "test", as arrays for `artifacts.write_npz`.

    `extractor`, `weights_sha256` (text); per side `SIDE_n`, `SIDE_mu` [k, d] and `SIDE_sigma` [k, d, d] of all images
    in float64, `SIDE_features` float32 [k, min(n, SUBSET_SIZE), d]. UserError as in `Extractor.features`.
    """
    arrays = {"extractor": np.array(extractor.extractor), "weights_sha256": np.array(extractor.weights_sha256)}
    for side in SIDES:
        networks = _networks(extractor.features(real[side]))
        found = [statistics(features) for features in networks]
        arrays |= {f"{side}_n": np.int64(networks.shape[1]), f"{side}_features": _subset(networks).numpy()}
        arrays |= {f"{side}_{name}": np.stack([of_all[name] for of_all in found]) for name in ("mu", "sigma")}
    return arrays


def measure(
    synthetic: ImageSet, kept: str | Path, extractor: Extractor, seed: int, sides: Sequence[str] = SIDES
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Each metric against each side, as rows of `distances`, some with a `spread`; and facts (JSON).

    Args:
        synthetic: the images to judge; labels play no role.
        kept: file written from the result of `reference`.
        extractor: the one that made `kept`.
        seed: for the subsets of kid.
        sides: the real sides to compare with.

    Raises:
        UserError: as in `Extractor.features`; `kept` is unusable or was made with other weights; a value is not finite.
    """
    arrays = artifacts.read_npz(kept, _ARRAYS)
    if (str(arrays["extractor"]), str(arrays["weights_sha256"])) != (extractor.extractor, extractor.weights_sha256):
        raise UserError(f"{kept} was made with other weights than {extractor.path}; delete it and run snakemake again")
    networks = _networks(extractor.features(synthetic))
    pairs = zip(networks, _subset(networks), strict=True)
    generated = [Features(**statistics(features), some=some.double()) for features, some in pairs]
    rows = []
    for side in sides:
        parts = (arrays[f"{side}_{name}"] for name in ("mu", "sigma", "features"))
        real = [Features(mu, sigma, torch.from_numpy(some).double()) for mu, sigma, some in zip(*parts, strict=True)]
        found = [
            list(distances(*pair, extractor.name, side, Streams(seed, "fidelity"), synthetic.origin, kept))
            for pair in zip(generated, real, strict=True)
        ]
        rows += map(_mean, zip(*found, strict=True))
    facts = {
        "extractor": extractor.extractor,
        "layer": extractor.layer,
        "weights_sha256": extractor.weights_sha256,
        "n": {side: int(arrays[f"{side}_n"]) for side in SIDES},
        "subset_size": SUBSET_SIZE,
    }
    names = {"fd": "fid"} if extractor.name == INCEPTION else {}
    return [row | {"metric": names.get(row["metric"], row["metric"])} for row in rows], facts


def _networks(features: torch.Tensor) -> torch.Tensor:
    """[k, n, d], where k is 1 for one network."""
    return features if features.dim() == 3 else features[None]


def _subset(networks: torch.Tensor) -> torch.Tensor:
    """At most SUBSET_SIZE images, always the same."""
    return networks[:, fixed_choice(networks.shape[1], SUBSET_SIZE)]


def _mean(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The rows of several networks as one."""
    values = [row["value"] for row in rows]
    spread = {"spread": float(np.std(values, ddof=1))} if len(values) > 1 else {}
    return rows[0] | {"value": float(np.mean(values))} | spread


def distances(
    synthetic: Features, real: Features, extractor: str, reference: str, streams: Streams, origin: str, made_by: Any
) -> Iterable[dict[str, Any]]:
    """Rows `{"metric": "fd", "extractor": ..., "direction": "lower", "reference": "train", "value": ...}`.

    UserError as in `metrics`, or for a metric that fails or gives values that are not finite or not declared. It names
    what was judged (`origin`), or the file of the real features (`made_by`) if these are not finite.
    """
    for name, metric in metrics().items():
        part = registry.part(registry.METRICS, name, "metric")
        found = part.call(metric.measure, synthetic, real, streams)
        if not isinstance(found, Mapping) or found.keys() != metric.directions.keys():
            got = f"the values {sorted(found)}" if isinstance(found, Mapping) else type(found).__name__
            raise part.wrong(
                f"it returned {got}; return a number for each name in its `directions`, {sorted(metric.directions)}, "
                'which state whether "lower" or "higher" is better'
            )
        for value_name, value in found.items():
            value = part.call(float, value)
            if not math.isfinite(value):
                if not (np.isfinite(real.mu).all() and np.isfinite(real.sigma).all() and real.some.isfinite().all()):
                    raise UserError(f"{made_by} holds features that are not finite; delete it and make it again")
                raise part.wrong(
                    f"{value_name} of {origin} is {value}, though the real features are finite; correct it"
                )
            row = {"metric": value_name, "extractor": extractor, "direction": metric.directions[value_name]}
            yield row | {"reference": reference, "value": value}


def metrics() -> dict[str, Metric]:
    """The registered metrics by name.

    UserError if one cannot be loaded or is no Metric, a direction is neither "lower" nor "higher", or two values have
    the same name.
    """
    found, owners = {}, {"fid": "fd under Inception"}
    for name in registry.METRICS:
        part = registry.part(registry.METRICS, name, "metric")
        metric = found[name] = part.load()
        if not isinstance(metric, Metric) or not isinstance(metric.directions, Mapping):
            raise part.wrong(f"this is {metric!r}; name a dpdm.evaluation.fidelity.Metric with a dict of directions")
        for value, direction in metric.directions.items():
            if direction not in ("lower", "higher"):
                raise part.wrong(f'{value} has direction {direction!r} in `directions`; write "lower" or "higher"')
            if value in owners:
                raise part.wrong(f"the name {value} belongs to {owners[value]} already; rename the value")
            owners[value] = f'METRICS["{name}"]'
    return found


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
    found = prc_features_to_metric(synthetic.some, real.some, **options)  # not symmetric
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
    """`options` unchanged; UserError for a name that torch-fidelity does not know, since it would ignore the name."""
    import_torch_fidelity()
    from torch_fidelity.defaults import DEFAULTS

    unknown = sorted(set(options) - set(DEFAULTS))
    if unknown:
        raise UserError(f"torch-fidelity has no option {unknown[0]!r}; install torch-fidelity 0.4")
    return options


def import_torch_fidelity() -> ModuleType:
    """torch-fidelity, importable with CPU torch; the only place that imports it."""
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
    """Positions of `most` of `count` images, or of all, in order: always the same random draw, since classes may follow
    each other in any pattern."""
    return np.sort(Streams(0, "fidelity").numpy("choice").permutation(count)[:most])


def check_count(images: ImageSet) -> None:
    """UserError for a set in which not every image has NEIGHBOURS others."""
    if len(images.images) <= NEIGHBOURS:
        raise UserError(
            f"{images.origin}: {len(images.images)} images are too few to judge; give {NEIGHBOURS + 1} or more"
        )


def check_colors(images: ImageSet, reader: str, where: str) -> None:
    """UserError for images that are neither gray nor RGB, as `reader` requires; `where` is its key in the study."""
    if images.meta.shape[0] not in (1, 3):
        raise UserError(
            f"{images.origin}: images have {images.meta.shape[0]} channels but {reader} reads gray or RGB; leave "
            f"{reader} out of {where}"
        )

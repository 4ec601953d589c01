"""FID as papers mean it: the metrics of `dpdm.evaluation.fidelity` under Inception's features.

Features are the 2048 of torch-fidelity's `inception-v3-compat`, which resizes uint8 RGB itself; gray images are given
three equal channels. fd under them is named fid. kid, precision and recall are of at most SUBSET_SIZE images on either
side, a fixed random choice.

The real side is computed once per data set (`reference`) and kept: of all images mean and covariance, of the chosen
ones the features themselves, since 60,000 x 2048 float32 of MNIST would be 490 MB and 5,000 are 41 MB. It was computed
from private images without any noise: for evaluation only, and not to be published. EfficientNet-Lite0
(`dpdm.evaluation.efflite`) is applied by the same two functions.
"""

import hashlib
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dpdm import artifacts
from dpdm.data import ImageSet
from dpdm.errors import UserError
from dpdm.evaluation.efflite import EffLite
from dpdm.evaluation.fidelity import (
    Features,
    check_count,
    distances,
    fixed_choice,
    import_torch_fidelity,
    known_options,
    statistics,
)
from dpdm.rng import Streams

NAME = "inception"  # in the rows
EXTRACTOR = "inception-v3-compat"  # its name in torch-fidelity's registry
LAYER = "2048"
SIDES = ("train", "test")
SUBSET_SIZE = 5000
# Of the file that torch-fidelity publishes; torch.hub's file names end in its first eight digits. The same bytes are
# pytorch-fid's pt_inception-2015-12-05-6726825d.pth.
WEIGHTS_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
_BATCH_SIZE = 64  # memory only: an image is 299x299 inside, and its first layers take 30 MB
_ARRAYS = ("extractor", "weights_sha256", *(f"{side}_{x}" for side in SIDES for x in ("n", "mu", "sigma", "features")))


# --- weights --------------------------------------------------------------------------------------------------


def find_weights(weights_path: str | Path | None) -> Path:
    """The weights file: `weights_path`, else torch-fidelity's own copy in torch hub's folder, fetched if need be.

    Raises:
        UserError: there is none and it cannot be fetched; the sentence says which file to put where.
    """
    url = _weights_url()
    name = url.rpartition("/")[2]
    cached = Path(torch.hub.get_dir()) / "checkpoints" / name
    if weights_path is not None:
        weights_path = Path(weights_path).expanduser()
        if not weights_path.is_file():
            raise UserError(
                f"evaluation.fid.weights_path: there is no file {weights_path}; put {name} there, or write `fid: {{}}` "
                f"to have it looked for in {cached.parent}"
            )
        return weights_path
    if not cached.is_file():
        _fetch(url, cached)
    elif _sha256(artifacts.read_bytes(cached)) != WEIGHTS_SHA256:
        raise UserError(
            f"{cached} is not the file that torch-fidelity publishes under that name (another SHA-256); delete it, or "
            "name a file of your own by evaluation.fid.weights_path"
        )
    return cached


def _fetch(url: str, path: Path) -> None:
    try:
        with urllib.request.urlopen(url, timeout=20) as response:
            content = response.read()
        if (found := _sha256(content)) == WEIGHTS_SHA256:
            artifacts.write_bytes(path, content)
            return
        reason = f"its SHA-256 begins with {found[:8]}"
    except UserError:  # of artifacts, which speaks of a results folder
        reason = f"it came, but {path.parent} cannot be written to"
    except (OSError, HTTPException) as error:  # the latter: a transfer that broke off
        reason = " ".join(str(error).split()) or type(error).__name__
    raise UserError(
        f"evaluation.fid needs Inception's weights, and {url} could not be had ({reason}): put {path.name} into "
        f"{path.parent} (another folder: $TORCH_HOME), or name a copy of it by evaluation.fid.weights_path"
    )


def _weights_url() -> str:
    import_torch_fidelity()
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    return URL_INCEPTION_V3


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# --- features -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Inception:
    """The network, on the GPU where there is one, and which weights it has."""

    network: Any  # torch-fidelity's feature extractor
    path: Path
    weights_sha256: str
    name = NAME
    extractor = EXTRACTOR

    @property
    def layer(self) -> str:
        """The layer whose outputs are the features."""
        return LAYER

    def features(self, images: ImageSet) -> torch.Tensor:
        """Features float32 [n, 2048] of uint8 images [n, 1 or 3, H, W], on the CPU.

        Raises:
            UserError: too few images, neither gray nor RGB, or features that are not finite.
        """
        channels = images.meta.shape[0]
        if channels not in (1, 3):
            raise UserError(
                f"{images.origin}: images have {channels} channels but Inception reads grey or RGB; "
                "leave evaluation.fid out of the study"
            )
        check_count(images)
        from torch_fidelity.utils import get_featuresdict_from_dataset

        cuda = next(self.network.parameters()).is_cuda
        # float32 throughout: a GPU would else multiply in TF32, and its FID differ from a CPU's
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            found = get_featuresdict_from_dataset(
                _Rgb(images), self.network, _BATCH_SIZE, cuda, save_cpu_ram=True, verbose=False
            )[LAYER]
        if not found.isfinite().all():
            raise UserError(f"{images.origin}: Inception's features are not finite; check the weights in {self.path}")
        return found


class _Rgb(torch.utils.data.Dataset):
    """The images as torch-fidelity's Inception reads them: uint8 RGB tensors."""

    def __init__(self, images: ImageSet):
        self.images = torch.from_numpy(images.images)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.images[index].expand(3, -1, -1)  # gray becomes three equal channels, RGB stays


def load_inception(weights: Path) -> Inception:
    """torch-fidelity's Inception with the weights of a file.

    Raises:
        UserError: the file is missing or does not hold Inception's weights.
    """
    sha256 = _sha256(artifacts.read_bytes(weights))
    import_torch_fidelity()
    from torch_fidelity.utils import create_feature_extractor

    try:
        artifacts.read_tensors(weights)  # refuses code, which torch-fidelity would run
        network = create_feature_extractor(
            EXTRACTOR, [LAYER], cuda=False, **known_options(_weights_option(weights) | {"verbose": False})
        )
        if not all(value.isfinite().all() for value in network.state_dict().values()):
            raise RuntimeError("they are not finite")
    except (UserError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"{weights} does not hold the weights of torch-fidelity's Inception ({reason}); put "
            f"{_weights_url().rpartition('/')[2]} there"
        ) from error
    return Inception(network.cuda() if torch.cuda.is_available() else network, weights, sha256)


def _weights_option(weights: Path) -> dict[str, Any]:
    return {"feature_extractor_weights_path": str(weights)}


# --- the real side, and the distances to it -------------------------------------------------------------------


def reference(real: Mapping[str, ImageSet], public: Inception | EffLite) -> dict[str, np.ndarray]:
    """What is kept of the real images, as arrays for `artifacts.write_npz`.

    Args:
        real: the sides "train" and "test".
        public: the extractor.

    Returns:
        `extractor`, `weights_sha256` (text); per side `SIDE_n`, `SIDE_mu` [d] and `SIDE_sigma` [d, d] of all images in
        float64, `SIDE_features` float32 [min(n, SUBSET_SIZE), d]; of Inception d is 2048.

    Raises:
        UserError: as `Inception.features`.
    """
    arrays = {"extractor": np.array(public.extractor), "weights_sha256": np.array(public.weights_sha256)}
    for side in SIDES:
        features = public.features(real[side])
        of_all = statistics(features)
        arrays |= {f"{side}_n": np.int64(len(features)), f"{side}_features": _subset(features).numpy()}
        arrays |= {f"{side}_{name}": of_all[name] for name in ("mu", "sigma")}
    return arrays


def measure(
    synthetic: ImageSet, kept: str | Path, public: Inception | EffLite, seed: int, sides: Sequence[str] = SIDES
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Each metric against each side, as rows of `fidelity.distances`, and facts (JSON).

    Args:
        synthetic: the images to judge; labels play no role.
        kept: file written from what `reference` returned.
        public: the extractor by which `kept` was made.
        seed: of the subsets that kid draws.
        sides: the real sides to compare with.

    Raises:
        UserError: as `Inception.features`; `kept` is unusable or was made with other weights; a value is not finite.
    """
    arrays = artifacts.read_npz(kept, _ARRAYS)
    if (str(arrays["extractor"]), str(arrays["weights_sha256"])) != (public.extractor, public.weights_sha256):
        raise UserError(f"{kept} was made with other weights than {public.path}; delete it and run snakemake again")
    features = public.features(synthetic)
    generated = _features(statistics(features), _subset(features))
    rows = []
    for side in sides:
        real = _features(
            {name: arrays[f"{side}_{name}"] for name in ("mu", "sigma")}, torch.from_numpy(arrays[f"{side}_features"])
        )
        rows += distances(generated, real, public.name, side, Streams(seed, public.name), synthetic.origin, kept)
    facts = {
        "extractor": public.extractor,
        "layer": public.layer,
        "weights_sha256": public.weights_sha256,
        "n": {side: int(arrays[f"{side}_n"]) for side in SIDES},
        "subset_size": SUBSET_SIZE,
    }
    names = {"fd": "fid"} if public.name == NAME else {}
    return [row | {"metric": names.get(row["metric"], row["metric"])} for row in rows], facts


def _features(of_all: Mapping[str, np.ndarray], subset: torch.Tensor) -> Features:
    """Statistics of all images, and the features of a choice of them for the other metrics."""
    return Features(of_all["mu"], of_all["sigma"], subset.double(), subset.double())


def _subset(features: torch.Tensor) -> torch.Tensor:
    """At most SUBSET_SIZE rows, always the same."""
    return features[fixed_choice(len(features), SUBSET_SIZE)]

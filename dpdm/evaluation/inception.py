"""FID as in papers: the metrics of `dpdm.evaluation.fidelity` with Inception's features.

The features are the 2048 of torch-fidelity's `inception-v3-compat`, which resizes uint8 RGB images; gray images get
three equal channels. fd with these features is named fid.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dpdm import artifacts
from dpdm.data import ImageSet
from dpdm.errors import UserError
from dpdm.evaluation.fidelity import INCEPTION as NAME
from dpdm.evaluation.fidelity import check_colors, check_count, import_torch_fidelity, known_options

EXTRACTOR = "inception-v3-compat"  # its name in torch-fidelity's registry
LAYER = "2048"
# SHA-256 of the file that torch-fidelity publishes; torch.hub's file names end in its first eight digits. pytorch-fid's
# pt_inception-2015-12-05-6726825d.pth has the same bytes.
WEIGHTS_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
_BATCH_SIZE = 64  # memory only: an image is resized to 299x299, and its first layers take 30 MB


# --- weights --------------------------------------------------------------------------------------------------


def find_weights(weights_path: str | Path | None) -> Path:
    """The file `weights_path`, else torch-fidelity's in torch hub's folder, downloaded if missing; else UserError."""
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
    reason = ""
    try:
        content = artifacts.download(url, WEIGHTS_SHA256)
        reason = f"it came, but {path.parent} cannot be written to"  # `artifacts` speaks of a results folder
        artifacts.write_bytes(path, content)
    except UserError as error:
        raise UserError(
            f"evaluation.fid needs Inception's weights, and {url} could not be had ({reason or error}): put "
            f"{path.name} into {path.parent} (another folder: $TORCH_HOME), or name a copy of it by "
            "evaluation.fid.weights_path"
        ) from error


def _weights_url() -> str:
    import_torch_fidelity()
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    return URL_INCEPTION_V3


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# --- features -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Inception:
    """The network, on the GPU if there is one, and the digest of its weights."""

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

        UserError for too few images, images neither gray nor RGB, or features that are not finite.
        """
        check_colors(images, "Inception", "the study (evaluation.fid)")
        check_count(images)
        from torch_fidelity.utils import get_featuresdict_from_dataset

        cuda = next(self.network.parameters()).is_cuda
        # float32 throughout: otherwise a GPU multiplies in TF32, and its FID differs from a CPU's
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            found = get_featuresdict_from_dataset(
                _Rgb(images), self.network, _BATCH_SIZE, cuda, save_cpu_ram=True, verbose=False
            )[LAYER]
        if not found.isfinite().all():
            raise UserError(f"{images.origin}: Inception's features are not finite; check the weights in {self.path}")
        return found


class _Rgb(torch.utils.data.Dataset):
    """The images in the form of torch-fidelity's Inception: uint8 RGB tensors."""

    def __init__(self, images: ImageSet):
        self.images = torch.from_numpy(images.images)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.images[index].expand(3, -1, -1)  # gray becomes three equal channels, RGB stays


def load_inception(weights: Path) -> Inception:
    """torch-fidelity's Inception with the weights of a file; UserError if it is missing or holds other tensors."""
    sha256 = _sha256(artifacts.read_bytes(weights))
    import_torch_fidelity()
    from torch_fidelity.utils import create_feature_extractor

    try:
        artifacts.read_tensors(weights)  # refuses code, which torch-fidelity would run
        options = known_options({"feature_extractor_weights_path": str(weights), "verbose": False})
        network = create_feature_extractor(EXTRACTOR, [LAYER], cuda=False, **options)
        if not all(value.isfinite().all() for value in network.state_dict().values()):
            raise RuntimeError("they are not finite")
    except (UserError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"{weights} does not hold the weights of torch-fidelity's Inception ({reason}); put "
            f"{_weights_url().rpartition('/')[2]} there"
        ) from error
    return Inception(network.cuda() if torch.cuda.is_available() else network, weights, sha256)

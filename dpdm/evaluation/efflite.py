"""The extractor `efflite`: EfficientNet-Lite0 of ImageNet, the same for all data sets (dpdm/efflite.py).

Distances by these features are comparable across studies of one data set, for equal numbers of images. They are no FID,
which uses Inception. The features are the 320 of the last block, averaged over positions, not the 1,280 of the
classifier's layer, so the covariance of 1,000 images has full rank.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from dpdm import efflite
from dpdm.data import ImageSet
from dpdm.evaluation.fidelity import check_colors, check_count

NAME = "efflite"  # in the rows
_BATCH_SIZE = 100  # memory only


@dataclass(frozen=True)
class Extractor:
    """The network, on the CPU: the same numbers on every machine of one kind."""

    network: efflite.EffLite
    path: Path
    weights_sha256: str
    name = NAME
    extractor = "efficientnet-lite0"
    layer = "block 15, mean"

    @torch.no_grad()
    def features(self, images: ImageSet) -> torch.Tensor:
        """Features float32 [n, 320] of uint8 images [n, 1 or 3, H, W]; UserError for other or too few images."""
        check_colors(images, NAME, "evaluation.extractors")
        check_count(images)
        found = []
        for chunk in torch.from_numpy(images.images).split(_BATCH_SIZE):
            *_, last = self.network.blocks(chunk.float())
            found.append(last.mean((2, 3)))
        return torch.cat(found)


def load() -> Extractor:
    """The network with the package's weights; UserError as in `dpdm.efflite.load`."""
    network = efflite.load()
    return Extractor(network, network.path, network.weights_sha256)

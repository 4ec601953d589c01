"""A classifier trained by DP-SGD on the private images themselves, without a generator
(Abadi et al. 2016, arXiv 1607.00133).

`logreg`, `mlp` and `cnn` are the networks of Dockhorn et al. 2022, Table 2 (dpdm/networks.py); how they were trained
there could not be verified. `tanh_cnn` is the small CNN of Papernot et al. 2020 and Tramer and Boneh 2021. The last
step is used: nothing is selected on real data.

Released: the noised mean gradient of every step. Sensitivity: max_grad_norm.
Cost: DP-SGD.
Published as: DP-SGD classifier.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from dpdm.data import ImageMeta, to_network, to_unit
from dpdm.errors import UserError
from dpdm.networks import NetworkModel, logreg, mlp, paper_cnn
from dpdm.params import Finite, Positive, Strict
from dpdm.privacy import DpSgdParams, Mechanism, PrivateData
from dpdm.progress import Log
from dpdm.rng import Streams

MECHANISM = "classifier"
CHUNK = 1000  # images per forward pass of `predict`: memory only


class ModelParams(Strict):
    """The part of the recipe that prediction also needs."""

    network: Literal["logreg", "mlp", "cnn", "tanh_cnn"] = Field(description="architecture")
    input_mean: Finite = Field(
        0.5, description="inputs are (pixel - input_mean) / input_std for pixels in [0, 1]: a public constant"
    )
    input_std: Positive = Field(0.5, description="see input_mean; the defaults give [-1, 1]")


class Params(ModelParams):
    """The recipe: SGD at a constant rate, each network with a separate budget."""

    dp: DpSgdParams
    lr: Positive = Field(description="constant rate of SGD")
    momentum: Annotated[Finite, Field(ge=0, lt=1)] = Field(0.9, description="of SGD")


class Model(NetworkModel):
    """A network that maps standardized images to logits."""

    @staticmethod
    def build(shape: Sequence[int], num_classes: int, params: dict[str, Any]) -> nn.Module:
        return NETWORKS[params["network"]](shape, num_classes)

    @property
    def family(self) -> str:
        """The kind of classifier, a column of the tables."""
        return FAMILIES[self.facts["params"]["network"]]

    @torch.no_grad()
    def predict(self, images: np.ndarray) -> np.ndarray:
        """The most likely class (int64 [n]) of each image (uint8 [n, C, H, W])."""
        params = ModelParams.model_validate(self.facts["params"])
        chunks = (to_network(images[start : start + CHUNK]) for start in range(0, max(len(images), 1), CHUNK))
        found = [self.network(standardise(chunk.to(self.device), params)).argmax(1).cpu() for chunk in chunks]
        return torch.cat(found).numpy()


class DPSGDClassifier:
    Params = Params
    Model = Model

    def plan(self, params: Params, meta: ImageMeta) -> tuple[Mechanism, ...]:
        if meta.num_classes < 2:
            raise UserError("a classifier needs two classes at least; leave it out of a study of unlabeled images")
        if params.network in SMALLEST_SIDE and min(meta.shape[1:]) < SMALLEST_SIDE[params.network]:
            raise UserError(
                f"network {params.network} needs sides of {SMALLEST_SIDE[params.network]} pixels, "
                f"got {meta.shape[1:]}; choose logreg or mlp"
            )
        return (params.dp.mechanism(MECHANISM, meta.n),)

    def fit(self, private: PrivateData, params: Params, rng: Streams, log: Log) -> Model:
        """Trains by cross-entropy; returns the weights of the last step."""
        meta = private.meta
        with rng.torch_default("init"):
            network = NETWORKS[params.network](meta.shape, meta.num_classes).to(private.device).train()
        optimizer = torch.optim.SGD(network.parameters(), lr=params.lr, momentum=params.momentum)
        dp = private.dpsgd(MECHANISM, network, optimizer, params.dp)

        def losses(images: Tensor, labels: Tensor) -> Tensor:
            return F.cross_entropy(dp.module(standardise(images, params)), labels, reduction="none")

        for step in log.track(dp, len(dp)):
            step.update(losses)
            log.record(step.index, released_grad_norm=dp.released_grad_norm)
        kept = params.model_dump(mode="json", include=set(ModelParams.model_fields))
        return Model(network, shape=list(meta.shape), num_classes=meta.num_classes, params=kept)


def standardise(images: Tensor, params: ModelParams) -> Tensor:
    """Images in [-1, 1] -> network inputs."""
    return (to_unit(images) - params.input_mean) / params.input_std


class Dropout(nn.Module):
    """Dropout with p = 0.5 and masks drawn on the CPU (see DpSgdStep.update), the same on every device."""

    def forward(self, x: Tensor) -> Tensor:
        """Zeroes about half of x and doubles the rest; returns x in evaluation mode."""
        if not self.training:
            return x
        kept = torch.rand(x.shape) < 0.5
        return x * kept.to(x.device) * 2


def tanh_cnn(shape: Sequence[int], num_classes: int) -> nn.Module:
    """The tanh CNN; 26,010 parameters at 28x28. Sides below 18 get 3x3 kernels, the first of stride 1: 9,258 at 8x8."""
    channels, *sides = shape
    if min(sides) >= 18:
        first, second = {"kernel_size": 8, "stride": 2, "padding": 2}, {"kernel_size": 4, "stride": 2}
        height, width = (((side - 4) // 2 - 4) // 2 for side in sides)
    else:
        first, second = {"kernel_size": 3, "padding": 1}, {"kernel_size": 3, "stride": 2}
        height, width = ((side - 4) // 2 for side in sides)
    return nn.Sequential(
        nn.Conv2d(channels, 16, **first), nn.Tanh(), nn.MaxPool2d(2, 1),
        nn.Conv2d(16, 32, **second), nn.Tanh(), nn.MaxPool2d(2, 1), nn.Flatten(),
        nn.Linear(32 * height * width, 32), nn.Tanh(),
        nn.Linear(32, num_classes),
    )  # fmt: skip


NETWORKS: dict[str, Callable[[Sequence[int], int], nn.Module]] = {
    "logreg": logreg,
    "mlp": mlp,
    "cnn": functools.partial(paper_cnn, dropout=Dropout),
    "tanh_cnn": tanh_cnn,
}
FAMILIES = {"logreg": "logreg", "mlp": "mlp", "cnn": "cnn", "tanh_cnn": "cnn"}
SMALLEST_SIDE = {"cnn": 4, "tanh_cnn": 6}

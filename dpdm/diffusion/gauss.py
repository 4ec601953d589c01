"""DPDM around a released mixture of Gaussians: its denoiser starts as the exact one of that mixture. Not published.

Released: a mixture of Gaussians per class (dpdm/mixture.py), with `prior_share` of the budget; then the noised mean
gradient of every DP-SGD step, as in DPDM. Pixels are in [-1, 1] here and in [0, 1] in the mixture.

EDM (Karras et al. 2022) preconditions a network F by the exact denoiser of isotropic Gaussian data. Here G is the exact
denoiser of the released mixture of class y, and v the mean error that remains at noise level sigma by its covariance:

    D(x; sigma, y) = G(x; sigma, y) + sqrt(v(sigma, y)) F(c_in x; ln(sigma) / 4, y)

The weight of the loss is 1 / v. With mean 0 and covariance sigma_data^2 I this is EDM. The last layer of F starts at
zero, so the model first draws from the mixture, and DP-SGD learns what is not Gaussian. The null label of guidance has
one pooled Gaussian.
Cost: DP-SGD, its batches multiplied by K.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from dpdm.data import ImageMeta
from dpdm.diffusion import method
from dpdm.diffusion.denoiser import Denoiser, Edm
from dpdm.diffusion.network import NetworkParams, UNet
from dpdm.errors import UserError
from dpdm.mixture import Mixture, MixtureParams, release
from dpdm.params import Share
from dpdm.privacy import Mechanism, PrivateData
from dpdm.progress import Log
from dpdm.rng import Streams

SCALE = 2.0  # from pixels in [0, 1] to [-1, 1]


class Params(method.Params):
    """DPDM's recipe, and the release of the mixture."""

    prior: MixtureParams = Field(description="the released mixture of Gaussians")
    prior_share: Share = Field(0.3, description="part of the budget for the mixture")


class Prior(nn.Module):
    """Exact denoiser of a mixture of Gaussians per class; label `classes` is one pooled Gaussian. Only buffers.

    Args:
        classes, components, d, k: sizes of the mixture: classes, Gaussians per class, pixels, basis.
    """

    def __init__(self, classes: int, components: int, d: int, k: int):
        super().__init__()
        sizes = {
            "means": (d,), "basis": (d, k), "vectors": (k, k), "variances": (k,), "offsets": (components, k),
            "log_weights": (components,), "spread": (k,), "residual": (), "power": (),
        }  # fmt: skip
        for name, size in sizes.items():
            self.register_buffer(name, torch.zeros(*(() if name == "basis" else (classes + 1,)), *size))

    @classmethod
    def of(cls, mixture: Mixture) -> "Prior":
        """The prior of a released mixture."""
        m = Mixture(*(value.double() for value in mixture.state().values()))
        classes, components, k = m.offsets.shape
        d = len(m.basis)
        offset = (m.weights[..., None] * m.offsets).sum(1)  # about 0
        within = m.vectors @ torch.diag_embed(m.variances) @ m.vectors.mT
        total = within + torch.einsum("yc,yci,ycj->yij", m.weights, m.offsets, m.offsets)
        total = total - torch.einsum("yi,yj->yij", offset, offset)
        share = m.class_weights[:, None]
        centers = m.means + offset @ m.basis.T
        mean = (share * centers).sum(0)
        apart = centers - mean
        inside = apart @ m.basis
        pooled = (share[..., None] * (total + torch.einsum("yi,yj->yij", inside, inside))).sum(0)
        outside = (share * (apart - inside @ m.basis.T).square()).sum() / max(d - k, 1)
        variances, vectors = torch.linalg.eigh(pooled)
        offsets = torch.einsum("yci,yij->ycj", m.offsets, m.vectors)  # along the axes of the class
        first = torch.eye(components)[0]
        values = {
            "means": torch.cat([m.means, mean[None]]) * SCALE - 1,
            "basis": m.basis,
            "vectors": torch.cat([m.vectors, vectors[None]]),
            "variances": torch.cat([m.variances, variances[None]]) * SCALE**2,
            "offsets": torch.cat([offsets, torch.zeros(1, components, k)]) * SCALE,
            "log_weights": torch.cat([m.weights, first[None]]).clamp(min=1e-30).log(),
            "spread": torch.cat([torch.linalg.eigvalsh(total), variances[None]]).clamp(min=0) * SCALE**2,
            "residual": torch.cat([m.residual.expand(classes), (m.residual + outside)[None]]) * SCALE**2,
        }
        values["power"] = (values["means"].square().sum(1) + values["spread"].sum(1) + (d - k) * values["residual"]) / d
        prior = cls(classes, components, d, k)
        prior.load_state_dict({name: value.float() for name, value in values.items()})
        return prior

    def variance(self, sigma: Tensor, labels: Tensor) -> Tensor:
        """v [n]: the mean squared error per pixel of the best linear denoiser, which is exact for one Gaussian."""
        s2, (d, k) = sigma.square(), self.basis.shape
        spread, residual = self.spread[labels], self.residual[labels]
        inside = (spread * s2[:, None] / (spread + s2[:, None])).sum(1)
        return (inside + (d - k) * residual * s2 / (residual + s2)) / d

    @torch.no_grad()
    def denoise(self, x: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        """E[image | x, label] under the mixture: x [n, d] with noise of std sigma [n], labels [n] -> [n, d]."""
        out = torch.empty_like(x)
        for y in labels.unique():  # one class at a time: [n, k, k] would not fit for many images
            rows = labels == y
            s2 = sigma[rows, None].square()
            centered = x[rows] - self.means[y]
            inside = centered @ self.basis
            u = inside @ self.vectors[y]
            precision = 1 / (self.variances[y] + s2)
            # minus half the distance to each component; the part that all share does not matter
            closeness = (precision * u) @ self.offsets[y].T - precision @ self.offsets[y].square().T / 2
            center = torch.softmax(self.log_weights[y] + closeness, dim=1) @ self.offsets[y]
            found = (center + self.variances[y] * precision * (u - center)) @ self.vectors[y].T @ self.basis.T
            rest = self.residual[y] / (self.residual[y] + s2)
            out[rows] = self.means[y] + found + rest * (centered - inside @ self.basis.T)
        return out


class GaussUNet(UNet):
    """A U-Net with the prior. Its output is 0 at first, since its last layer starts at zero."""

    def __init__(self, shape: tuple[int, int, int], num_classes: int, params: NetworkParams, prior: Prior):
        super().__init__(shape, num_classes, params)
        self.prior = prior
        nn.init.zeros_(self.head.weight)


class GaussDenoiser(Denoiser):
    """D of the module docstring, around a GaussUNet. Its `parametrisation` gives the noise levels of training."""

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        prior = self.network.prior
        best = prior.denoise(x.flatten(1), sigma, labels).view_as(x)
        c_in = (sigma.square() + prior.power[labels]).rsqrt()
        output = self.output(c_in[:, None, None, None] * x, sigma.log() / 4, labels)
        return best + prior.variance(sigma, labels).sqrt()[:, None, None, None] * output

    def weight(self, sigma: Tensor, labels: Tensor) -> Tensor:
        """1 / v."""
        return 1 / self.network.prior.variance(sigma, labels)


class Model(method.Model):
    """DPDM's model with the prior; its facts also hold the number of components and the size of the basis."""

    denoiser_type = GaussDenoiser

    @staticmethod
    def build(
        shape: Sequence[int], num_classes: int, params: dict[str, Any], components: int, basis_size: int
    ) -> GaussUNet:
        """An untrained network around an empty prior."""
        prior = Prior(num_classes, components, math.prod(shape), basis_size)
        return GaussUNet(tuple(shape), num_classes, method.ModelParams.model_validate(params).network, prior)


class DPDMGauss(method.DPDM):
    """The method, by the contract of dpdm.method."""

    Params = Params
    Model = Model
    fixed_in_stages = ("prior", "prior_share")

    def plan(self, params: Params, meta: ImageMeta) -> tuple[Mechanism, ...]:
        """The releases of the mixture, then one DP-SGD run."""
        if not isinstance(params.parametrisation, Edm):
            kind = params.parametrisation.kind
            raise UserError(f"parametrisation.kind is {kind!r}, but the prior takes its place; set kind: edm")
        if not params.conditional:
            raise UserError("conditional is false, but the prior is one mixture per class; set conditional: true")
        return (*params.prior.plan(params.prior_share), *super().plan(params, meta))

    def departures(self, params: Params, meta: ImageMeta) -> tuple[str, ...]:
        """None, since the method is not published."""
        return ()

    def fit(self, private: PrivateData, params: Params, rng: Streams, log: Log) -> Model:
        """Releases the mixture, builds the denoiser around it, trains it."""
        meta = private.meta
        prior = Prior.of(release(private, params.prior, rng))
        with rng.torch_default("init"):
            network = GaussUNet(meta.shape, meta.num_classes, params.network, prior).to(private.device)
        denoiser = GaussDenoiser(network, params.parametrisation, params.precision)
        averaged = method.train_denoiser(private, params, denoiser, meta.num_classes, log)
        kept = params.model_dump(mode="json", include=set(method.ModelParams.model_fields))
        facts = {"shape": list(meta.shape), "num_classes": meta.num_classes, "params": kept}
        return Model(averaged, **facts, components=params.prior.components, basis_size=prior.basis.shape[1])

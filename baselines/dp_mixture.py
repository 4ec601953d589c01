"""DP mixture of Gaussians: `components` per class, learned by noised k-means and second moments. Ours, not published.

Released: class counts, class sums, scatter, rounds of k-means, class scatters; see dpdm/mixture.py.
An image of class y is one draw of its mixture, without the variance outside the basis.
Cost: one-shot releases.
"""

from typing import Any

import numpy as np

from dpdm.data import ImageMeta, from_unit, to_uint8
from dpdm.method import NoParams
from dpdm.mixture import Mixture, MixtureParams, release
from dpdm.privacy import Mechanism, PrivateData
from dpdm.progress import Log
from dpdm.rng import Streams


class Model:
    """The mixture, and the shape (C, H, W) of its images."""

    def __init__(self, mixture: Mixture, shape: tuple[int, int, int]):
        self.mixture, self.shape = mixture, shape

    def sample(self, labels: np.ndarray, sampler: NoParams, rng: Streams) -> np.ndarray:
        """Draws from the mixture of each label: uint8 [n, C, H, W]."""
        return to_uint8(from_unit(self.mixture.draw(labels, rng).reshape(-1, *self.shape)))

    def state(self) -> dict[str, Any]:
        return self.mixture.state() | {"shape": list(self.shape)}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "Model":
        tensors = {name: value for name, value in state.items() if name != "shape"}
        return cls(Mixture(**tensors), tuple(state["shape"]))


class DPMixture:
    Params = MixtureParams
    SamplerParams = NoParams
    Model = Model

    def plan(self, params: MixtureParams, meta: ImageMeta) -> tuple[Mechanism, ...]:
        return params.plan()

    def fit(self, private: PrivateData, params: MixtureParams, rng: Streams, log: Log) -> Model:
        return Model(release(private, params, rng), private.meta.shape)

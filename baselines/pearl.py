"""PEARL: a generator against a released characteristic function (Liew, Takahashi, Ueno, ICLR 2022, arXiv
2106.04590).

The empirical characteristic function of every class (cosine and sine parts at k random frequencies w_j) is released
once. Then G minimizes, and a critic maximizes, sum_j alpha_j |cf_released,j - cf_G,j|^2. The critic is one number per
pixel, theta, that reweights the frequencies as if drawn from N(0, diag(1 / theta)) instead of N(0, I / s2): alpha =
softmax_j( (w_j^2 / 2) . (s2 - theta) ). Theta starts at s2, where the objective is DP-MERF's.

Released: class counts and a sum of features per class, by two Gaussian mechanisms. Sensitivity 1 under adding or
removing one record; more in `_kernel`. Theta, alpha and G see only the released vector.
Cost: one-shot releases, then a generator: minutes at 28 pixels.
Published as: PEARL.

Differences from the paper and its repository:
- The paper also releases a statistic to choose the base distribution of frequencies. Here s2 is a public constant.
- The repository's noise is a constant (25.3 at epsilon 0.2) at every epsilon; here it is calibrated.
- The repository stops after one epoch, and never creates its rate schedule. We use DP-MERF's: x0.9 per epoch.
- One of its losses takes the imaginary part of the generated embedding from the released one; here both parts are G's.
- Its factor of 500 on the objective, which does not change Adam's steps, is left out.
Other defaults are the repository's for 28 pixels, MNIST and Fashion-MNIST alike.
"""

import torch
from pydantic import Field
from torch import Tensor, nn

from baselines import _kernel
from dpdm.data import ImageMeta
from dpdm.networks import BatchSize
from dpdm.params import Count, Positive
from dpdm.privacy import Mechanism, PrivateData
from dpdm.progress import Log
from dpdm.rng import Streams


class Params(_kernel.KernelParams):
    num_frequencies: Count = Field(1500, description="k; 2 k numbers are released per class")
    squared_length_scale: Positive = Field(
        129.0, description="s2, where theta starts, for pixels in [0, 1]; the default is for 28x28"
    )
    steps: Count = Field(3000, description="generator steps; the default is 5 epochs of 60,000 / 100")
    lr_decay_steps: Count = Field(600, description="generator steps between two falls of lr; the default is an epoch")
    critic_lr: Positive = Field(1e-2, description="rate of Adam, of theta")
    critic_every: Count = Field(5, description="generator steps per critic step")


class PEARL:
    Params = Params
    SamplerParams = BatchSize
    Model = _kernel.Model

    def plan(self, params: Params, meta: ImageMeta) -> tuple[Mechanism, ...]:
        return _kernel.plan_releases(params, meta)

    def departures(self, params: Params, meta: ImageMeta) -> tuple[str, ...]:
        return _kernel.departures(params, meta, k="num_frequencies")

    def fit(self, private: PrivateData, params: Params, rng: Streams, log: Log) -> _kernel.Model:
        """Releases the characteristic functions, then plays generator against critic on them."""
        frequencies = _kernel.draw_frequencies(params, private.meta, rng).to(private.device)
        phi = _kernel.fourier(frequencies)
        released, shares = _kernel.release_embeddings(private, phi)
        generated = _kernel.Generated(params, private, phi, rng)
        theta = nn.Parameter(torch.full_like(frequencies[0], params.squared_length_scale))
        critic = torch.optim.Adam([theta], lr=params.critic_lr, maximize=True)
        keep = [*generated.keep, critic, nn.ParameterList([theta])]
        for step in log.track(private.public_steps("generator", params.steps, keep), params.steps):
            gaps = _kernel.gaps(released, generated.embeddings(step), shares)
            if step % params.critic_every == 0:
                critic.zero_grad()
                objective(gaps.detach(), frequency_weights(theta, frequencies, params.squared_length_scale)).backward()
                critic.step()
                theta.data.clamp_(min=0)  # an inverse variance
            alpha = frequency_weights(theta.detach(), frequencies, params.squared_length_scale)
            generated.descend(objective(gaps, alpha))
        return generated.model()


def frequency_weights(theta: Tensor, frequencies: Tensor, squared_length_scale: float) -> Tensor:
    """alpha [k], which sums to 1, for theta [pixels] and W [k, pixels]."""
    return torch.softmax(frequencies.square() / 2 @ (squared_length_scale - theta), dim=0)


def objective(gaps: Tensor, alpha: Tensor) -> Tensor:
    """sum_j alpha_j |cf_released,j - cf_G,j|^2; gaps [k] hold the squares divided by k, the scale of unit-norm phi."""
    return len(alpha) * alpha @ gaps

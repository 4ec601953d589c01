"""What methods that train a network share."""

import numpy as np
import pytest
import torch
from torch import nn

from dpdm.networks import BatchSize, GeneratorModel, update_ema
from dpdm.rng import Streams


class Generator(nn.Module):
    latent_dim = 2

    def __init__(self, side: int):
        super().__init__()
        self.side, self.layer = side, nn.Sequential(nn.Linear(3, side * side), nn.BatchNorm1d(side * side), nn.Tanh())

    def forward(self, latents, labels):
        return self.layer(torch.cat([latents, labels[:, None]], 1)).unflatten(1, (1, self.side, self.side))


class Model(GeneratorModel):
    @staticmethod
    def build(side: int) -> Generator:
        return Generator(side)


def test_a_restored_model_draws_the_same_images_in_batches_of_any_size():
    with Streams(0).torch_default("init"):
        model = Model(Generator(3), side=3)
    state = model.state()
    assert list(state) == ["side", "weights"]
    restored, labels = Model.from_state(state), np.arange(7)
    images = model.sample(labels, BatchSize(), Streams(0))
    assert (images.shape, images.dtype) == ((7, 1, 3, 3), np.uint8)
    assert len({image.tobytes() for image in images}) == 7
    for size in (2, 7):
        parts = restored.sample(labels, BatchSize(max_batch_size=size), Streams(0))
        assert np.abs(parts.astype(int) - images).max() <= 1  # one gray level: float summation order


def test_a_state_of_other_facts_does_not_fit():
    state = Model(Generator(3), side=3).state()
    with pytest.raises(RuntimeError, match="size mismatch"):
        Model.from_state(state | {"side": 4})


def test_ema_warms_up_and_follows_by_hand():
    averaged, network = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    nn.init.zeros_(averaged.weight), nn.init.ones_(network.weight)
    expected = 0.0
    for n in range(1, 6):
        update_ema(averaged, network, 0.999, n)
        decay = (1 + n) / (10 + n)
        expected = decay * expected + (1 - decay)
        assert float(averaged.weight.detach()) == pytest.approx(expected)
    nn.init.zeros_(averaged.weight)
    update_ema(averaged, network, 0.9, 10**6)
    assert float(averaged.weight.detach()) == pytest.approx(0.1, rel=1e-4)

"""Random streams: independent by every part of their name, reproducible, and without side effects."""

import itertools

import numpy as np
import pytest
import torch

from dpdm.rng import Streams

# Every pair differs in one part: seed, scope, name, index, number of indices.
KEYS = [
    (0, "a", "x", ()),
    (1, "a", "x", ()),
    (2**32, "a", "x", ()),
    (2**40 + 1, "a", "x", ()),
    (0, "b", "x", ()),
    (0, "a", "y", ()),
    (0, "a", "x", (0,)),
    (0, "a", "x", (1,)),
    (0, "a", "x", (0, 0)),
    (0, "a", "x", (0, 1)),
    (0, "a", "x", (1, 0)),
]

DRAWS = {
    "numpy": lambda s, n, i: tuple(s.numpy(n, *i).random(4)),
    "torch": lambda s, n, i: tuple(torch.rand(4, generator=s.torch(n, *i)).tolist()),
    "integer": lambda s, n, i: s.integer(n, *i),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_streams_differ_by_seed_scope_name_and_index(draw):
    """An index 0 counts: SeedSequence ignores trailing zeros of its entropy."""
    drawn = {key: draw(Streams(*key[:2]), *key[2:]) for key in KEYS}
    for one, other in itertools.combinations(KEYS, 2):
        assert drawn[one] != drawn[other], (one, other)


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_streams_are_reproducible(draw):
    for seed, scope, name, index in KEYS:
        assert draw(Streams(seed, scope), name, index) == draw(Streams(seed, scope), name, index)


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_use_of_one_stream_does_not_shift_another(draw):
    streams = Streams(3, "a")
    before = draw(streams, "x", ())
    draw(streams, "y", ())
    streams.numpy("x").random(1000)
    assert draw(streams, "x", ()) == before


def test_streams_are_uncorrelated():
    """Neighbouring indices and seeds, the likeliest to be confounded."""
    rows = [Streams(seed, "a").numpy("x", index).standard_normal(4000) for seed in (0, 1) for index in range(4)]
    correlation = np.corrcoef(rows) - np.eye(len(rows))
    assert np.abs(correlation).max() < 5 / np.sqrt(4000)


def test_integers_fit_any_library():
    numbers = [Streams(0).integer("x", i) for i in range(200)]
    assert all(0 <= number < 2**31 for number in numbers)
    assert max(numbers) > 2**30
    assert len(set(numbers)) == 200


# --- one stream per image -------------------------------------------------------------------------------------


def test_image_i_does_not_depend_on_the_batch():
    streams = Streams(0, "sample")
    whole = streams.normal_per_image("image", 0, 10, (1, 4, 4))
    assert np.array_equal(streams.normal_per_image("image", 0, 4, (1, 4, 4)), whole[:4])
    assert np.array_equal(streams.normal_per_image("image", 4, 6, (1, 4, 4)), whole[4:])


def test_images_are_standard_normal_and_differ():
    noise = Streams(0, "sample").normal_per_image("image", 0, 400, (5, 5))
    assert noise.dtype == np.float32
    assert noise.shape == (400, 5, 5)
    assert len(np.unique(noise[:, 0, 0])) == 400
    assert abs(noise.mean()) < 5 / np.sqrt(noise.size)
    assert abs(noise.std() - 1) < 5 / np.sqrt(2 * noise.size)


def test_no_images():
    assert Streams(0).normal_per_image("image", 0, 0, (2,)).shape == (0, 2)


# --- torch's global generator ---------------------------------------------------------------------------------


def test_torch_default_lends_the_stream_and_restores_the_state():
    before = torch.get_rng_state()
    drawn = []
    for _ in range(2):
        with Streams(0, "method").torch_default("init"):
            drawn.append(torch.rand(3))
    assert torch.equal(*drawn)
    assert torch.equal(torch.get_rng_state(), before)
    with Streams(1, "method").torch_default("init"):
        assert not torch.equal(torch.rand(3), drawn[0])


def test_torch_default_restores_the_state_after_a_failure():
    def failing():
        with Streams(0).torch_default("init"):
            torch.rand(3)
            raise KeyError

    before = torch.get_rng_state()
    with pytest.raises(KeyError):
        failing()
    assert torch.equal(torch.get_rng_state(), before)


def test_torch_default_leaves_other_generators_alone(monkeypatch):
    """torch.manual_seed would seed the GPUs' generators too, and nothing would restore them."""
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("seeded the GPUs"))
    state = np.random.get_state()[1].copy()
    with Streams(0).torch_default("init"):
        pass
    assert np.array_equal(np.random.get_state()[1], state)


def test_no_two_steps_share_a_torch_generator():
    """torch's CPU generator keeps 32 bits of its seed: hashed seeds of so many steps would collide."""
    streams = Streams(0, "privacy")
    seeds = {streams.torch("noise", step).initial_seed() % 2**32 for step in range(100_000)}
    assert len(seeds) == 100_000
    assert streams.torch("noise").initial_seed() != streams.torch("noise", 0).initial_seed()
    assert streams.torch("noise", 1, 0).initial_seed() != streams.torch("noise", 0, 1).initial_seed()

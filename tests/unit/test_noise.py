"""The keyed streams of the door, and the noise of a release."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from refusals import refuses
from scipy import stats

from dpdm.privacy import Randomness
from dpdm.privacy.noise import GRID_BITS, clip_factor, clipped_rows, noised


def test_equal_keys_give_equal_streams_and_every_use_has_its_own():
    def draw(rng, *where):
        return rng.words(*where, count=4).tobytes()

    rng = Randomness(bytes(32))
    assert draw(rng, "a", 1) == draw(Randomness(bytes(32)), "a", 1)
    scoped, twice = rng.scoped("m"), rng.scoped("m").scoped("n")
    others = [draw(rng, "a"), draw(rng, "a", 0), draw(rng, "a", 1), draw(rng, "a", 1, 0), draw(rng, "b", 1),
              draw(scoped, "a", 1), draw(twice, "a", 1), draw(rng.scoped("n"), "a", 1),
              draw(Randomness(bytes(31) + b"\1"), "a", 1)]  # fmt: skip
    assert len(set(others)) == len(others)
    assert draw(rng.scoped("a"), "b") != draw(rng, "a/b")
    assert draw(rng.scoped('a", "b'), "c") != draw(rng.scoped("a").scoped("b"), "c")


def test_the_key_has_256_bits_and_all_of_them_count():
    for length in (0, 16, 31, 33):
        with refuses("32", length):
            Randomness(bytes(length))
    seen = {Randomness((1 << bit).to_bytes(32, "big")).words("x", count=1).tobytes() for bit in range(256)}
    assert len(seen) == 256


def test_a_repeatable_key_follows_from_every_fact():
    def draw(*facts):
        return Randomness.repeatable(*facts).words("x", count=2).tobytes()

    assert draw(1, "recipe", "digest") == draw(1, "recipe", "digest")
    others = [draw(1, "recipe", "digest"), draw(2, "recipe", "digest"), draw(1, "other", "digest"),
              draw(1, "recipe", "other"), draw(1, "recipedigest"), draw(1, "recipe"),
              draw(1 + 2**16, "recipe", "digest"), draw(1 + 2**32, "recipe", "digest")]  # fmt: skip
    assert len(set(others)) == len(others)


def test_the_stream_is_chacha20():
    """RFC 8439, section 2.3.2 fixes the cipher; here its key stream is what we draw."""
    rng = Randomness(bytes(range(32)))
    cipher = Cipher(algorithms.ChaCha20(rng._subkey("x", (3,)), bytes(16)), mode=None).encryptor()
    assert rng.words("x", 3, count=16).tobytes() == cipher.update(bytes(128))


def test_uniform_numbers_are_uniform():
    u = Randomness(bytes(32)).uniform("u", count=200_000)
    assert u.dtype == np.float64
    assert u.min() >= 0
    assert u.max() < 1
    assert stats.kstest(u, "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 0.01


@pytest.mark.parametrize("size", [0, 1, 2, 3, 200_001])
def test_normal_numbers_are_normal(size):
    z = Randomness(bytes(32)).normal("z", size, shape=(size,))
    assert z.shape == (size,)
    assert z.dtype == torch.float64
    assert z.isfinite().all()
    if size > 1000:
        assert stats.kstest(z.numpy(), "norm").pvalue > 1e-3
        assert abs(float(torch.corrcoef(torch.stack([z[: size // 2], z[-(size // 2) :]]))[0, 1])) < 0.01
        assert len(z.unique()) == size  # 32 bits would give doubles by chance


def test_normal_numbers_do_not_depend_on_the_number_of_threads():
    threads, rng = torch.get_num_threads(), Randomness(bytes(32))
    try:
        drawn = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            drawn.append(rng.normal("z", shape=(99_999,)))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("std", [1e-6, 0.3, 1.0, 7e5])
def test_a_release_is_the_sum_plus_noise_on_a_grid_of_the_noise(std):
    rng = Randomness(bytes(32))
    total = torch.linspace(-3, 5, 50_000, dtype=torch.float64) * std
    released = noised(total, std, rng, "noise", 7)
    noise = released - total
    assert float(noise.std()) == pytest.approx(std, rel=0.015)
    assert abs(float(noise.mean())) < 5 * std / math.sqrt(len(total))
    grid = 2.0 ** (math.ceil(math.log2(std)) - GRID_BITS)
    assert torch.equal(released, (released / grid).round() * grid)
    assert torch.equal(noised(total, std, rng, "noise", 7), released)
    assert not torch.equal(noised(total, std, rng, "noise", 8), released)
    assert not torch.equal(noised(total, std, rng, "other", 7), released)


@pytest.mark.parametrize("size", [1.0, 1e6])
def test_the_grid_does_not_depend_on_the_total(size):
    """A total that is moved by points of the grid gives a release that is moved by them, however large it is."""
    rng, std = Randomness(bytes(32)), 0.7
    shift = 2.0**-GRID_BITS * round(size * 2**GRID_BITS)  # of the grid, which std gives: 2^-20
    total = torch.linspace(-3, 5, 1000, dtype=torch.float64)
    assert torch.equal(noised(total + shift, std, rng, "noise") - shift, noised(total, std, rng, "noise"))


def test_without_noise_a_release_is_the_sum():
    total = torch.rand(5, dtype=torch.float64)
    assert torch.equal(noised(total, 0.0, Randomness(bytes(32)), "noise"), total)


def test_the_draws_of_a_loss_are_a_stream_too():
    rng, before = Randomness(bytes(32)), torch.get_rng_state()

    def draw(*where):
        with rng.torch_default(*where):
            return torch.rand(3).tolist()

    assert draw("a", 0) == draw("a", 0)
    assert len({tuple(draw(*where)) for where in (("a", 0), ("a", 1), ("b", 0), ("a", 0, 0))}) == 4
    assert len({tuple(draw("a", step)) for step in range(2000)}) == 2000  # seeds of 16 bits would meet
    assert torch.equal(torch.get_rng_state(), before)


def test_clipping_leaves_what_is_within_the_bound_and_ends_below_it():
    norms = torch.tensor([0.0, 0.5, 1.0, 1.0 + 1e-12, 3.0, 1e300], dtype=torch.float64)
    clipped = norms * clip_factor(norms, 1.0)
    assert clipped[:3].tolist() == [0.0, 0.5, 1.0]
    assert (clipped[3:] < 1).all()
    assert (clipped[3:] > 1 - 1e-6).all()
    rows = clipped_rows(torch.tensor([[0.0, 0.0], [0.3, -0.4], [3.0, -4.0]]), 1.0)
    np.testing.assert_allclose(rows, [[0.0, 0.0], [0.3, -0.4], [0.6, -0.8]], atol=1e-6)
    assert rows.norm(dim=1).max() <= 1


@pytest.mark.parametrize("copier", [copy.copy, copy.deepcopy, pickle.dumps])
def test_randomness_cannot_be_copied(copier):
    with refuses("Randomness"):
        copier(Randomness(bytes(32)))

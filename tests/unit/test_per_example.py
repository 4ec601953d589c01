"""The fast engine against brute force (one backward per example), for every layer it knows, and its fallback."""

import warnings

import pytest
import torch
from torch import nn

from dpdm.diffusion.denoiser import Denoiser, Edm
from dpdm.diffusion.network import NetworkParams, UNet
from dpdm.errors import UserError
from dpdm.privacy.per_example import PerExampleGradients
from dpdm.rng import Streams


class Sequential(nn.Sequential):
    """Takes the label as a second input, like every module here, and ignores it."""

    def forward(self, x, labels=None):
        return super().forward(x)


class Embedded(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(5, 3)

    def forward(self, x, labels):
        return self.table(labels) * x[:, 0, 0, :3]


class Tied(nn.Module):
    """One convolution and one linear layer, each used twice."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
        self.linear = nn.Linear(7, 7)

    def forward(self, x, labels=None):
        return self.linear(torch.tanh(self.linear(self.conv(torch.tanh(self.conv(x))))))


class SharedParameter(nn.Module):
    """Two layers that hold the same weight."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(7, 7), nn.Linear(7, 7)
        self.b.weight = self.a.weight

    def forward(self, x, labels=None):
        return self.b(torch.tanh(self.a(x)))


LAYERS = {
    "conv3": lambda: Sequential(nn.Conv2d(2, 3, 3, padding=1)),
    "conv no bias": lambda: Sequential(nn.Conv2d(2, 3, 3, bias=False)),
    "conv stride 2": lambda: Sequential(nn.Conv2d(2, 3, 3, stride=2, padding=1)),
    "conv stride 2 kernel 4": lambda: Sequential(nn.Conv2d(2, 3, 4, stride=2, padding=1)),
    "conv stride 3": lambda: Sequential(nn.Conv2d(2, 3, 3, stride=3)),  # leaves pixels over
    "conv dilated": lambda: Sequential(nn.Conv2d(2, 3, 3, dilation=2, padding=2)),
    "conv groups": lambda: Sequential(nn.Conv2d(2, 4, 3, groups=2, padding=1)),
    "conv 1x1": lambda: Sequential(nn.Conv2d(2, 3, 1)),
    "conv 1x1 stride 2": lambda: Sequential(nn.Conv2d(2, 3, 1, stride=2)),
    "conv 1x1 no bias": lambda: Sequential(nn.Conv2d(2, 3, 1, bias=False)),
    "conv 1x1 groups": lambda: Sequential(nn.Conv2d(2, 4, 1, groups=2)),
    "conv 1x1 padded": lambda: Sequential(nn.Conv2d(2, 3, 1, padding=1)),
    "conv uneven kernel": lambda: Sequential(nn.Conv2d(2, 3, (1, 3), padding=(0, 2))),
    "two convs": lambda: Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.SiLU(), nn.Conv2d(4, 2, 3)),
    "linear": lambda: Sequential(nn.Flatten(), nn.Linear(98, 4)),
    "linear no bias": lambda: Sequential(nn.Flatten(), nn.Linear(98, 4, bias=False)),
    "linear over many axes": lambda: Sequential(nn.Linear(7, 4)),
    "group norm": lambda: Sequential(nn.Conv2d(2, 6, 3), nn.GroupNorm(3, 6)),
    "group norm first": lambda: Sequential(nn.GroupNorm(1, 2)),
    "group norm not affine": lambda: Sequential(nn.GroupNorm(2, 2, affine=False), nn.Conv2d(2, 2, 3)),
    "embedding": Embedded,
    "tied layers": Tied,
    "shared parameter": SharedParameter,
    "frozen layer": lambda: Sequential(nn.Conv2d(2, 3, 3).requires_grad_(False), nn.Conv2d(3, 2, 3)),
    "frozen bias": lambda: Sequential(nn.Conv2d(2, 3, 3), nn.Conv2d(3, 2, 3)),
}


def inputs(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = Streams(1)
    return (
        torch.randn(rows, 2, 7, 7, generator=rng.torch("x")),
        torch.randint(0, 5, (rows,), generator=rng.torch("y")),
    )


def make(name: str) -> nn.Module:
    with Streams(0).torch_default("net"):
        net = LAYERS[name]()
    if name == "frozen bias":
        net[0].bias.requires_grad_(False)
    return net


def row_losses(net: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    out = net(x, y).flatten(1)
    return ((out - torch.linspace(-1, 1, out.shape[1])) ** 2).mean(1)  # no norm can make this constant


def brute_force(net: nn.Module, x: torch.Tensor, y: torch.Tensor, k: int, losses=row_losses) -> list[torch.Tensor]:
    """The gradient of each example's mean loss over its rows k * B + b, one backward per example."""
    b = len(x) // k
    parameters = [p for p in net.parameters() if p.requires_grad]
    stacks = []
    for example in range(b):
        loss = losses(net, x[example::b], y[example::b]).mean()
        stacks.append(torch.autograd.grad(loss, parameters))
    return [torch.stack(gradients) for gradients in zip(*stacks, strict=True)]


def assert_exact(ours: list[torch.Tensor], exact: list[torch.Tensor], tolerance: float = 1e-5) -> None:
    """Relative to each parameter's own gradient, or, where that is zero in exact arithmetic, to a hundredth of all."""
    norms = [e.flatten(1).norm(dim=1).max() for e in exact]
    floor = 0.01 * torch.stack(norms).norm()
    for a, e, norm in zip(ours, exact, norms, strict=True):
        assert a.shape == e.shape
        assert float((a - e).flatten(1).norm(dim=1).max() / norm.clamp(min=floor)) <= tolerance


@pytest.mark.parametrize("b", [1, 7, 16])
@pytest.mark.parametrize("k", [1, 2, 8, 32])
@pytest.mark.parametrize("name", LAYERS)
def test_exact_against_brute_force(name, k, b):
    net, (x, y) = make(name), inputs(k * b)
    exact = brute_force(net, x, y, k)
    engine = PerExampleGradients(net, k)
    assert engine.is_fast
    engine.backward(lambda *_: row_losses(engine.module, x, y), x[:b], y[:b])
    ours = [p.grad_sample for p in net.parameters() if p.requires_grad]
    assert_exact(ours, exact)
    assert all(p.grad is None for p in net.parameters())
    assert not any(hasattr(p, "grad_sample") for p in net.parameters() if not p.requires_grad)
    engine.close()


@pytest.mark.parametrize("engine", ["auto", "hooks"])
@pytest.mark.parametrize(("k", "b"), [(1, 3), (4, 3)])
def test_the_whole_network(engine, k, b):
    with Streams(0).torch_default("net"):
        net = Denoiser(UNet((1, 12, 12), 10, NetworkParams(channels=8, attention_resolutions=(6,))), Edm())
        for p in net.parameters():  # the zero initialisation of the paper would hide most gradients
            nn.init.normal_(p, std=0.1)
    rng = Streams(2)
    x = torch.randn(k * b, 1, 12, 12, generator=rng.torch("x"))
    sigma = torch.rand(k * b, generator=rng.torch("sigma")) + 0.1
    y = torch.randint(0, 11, (k * b,), generator=rng.torch("y"))

    def losses(module, x, y, sigma=sigma):
        return module(x, sigma, y).square().mean((1, 2, 3))

    exact = []
    for example in range(b):
        rows = slice(example, None, b)
        loss = losses(net, x[rows], y[rows], sigma[rows]).mean()
        exact.append(torch.autograd.grad(loss, list(net.parameters())))
    gradients = PerExampleGradients(net, k, engine)
    assert gradients.is_fast == (engine == "auto")
    gradients.backward(lambda *_: losses(gradients.module, x, y), x[:b], y[:b])
    assert_exact([p.grad_sample for p in net.parameters()], [torch.stack(g) for g in zip(*exact, strict=True)], 2e-5)


def test_bfloat16_autocast_gives_float32_gradients_near_the_exact_ones():
    net, (x, y) = make("two convs"), inputs(12)
    exact = brute_force(net, x, y, 3)
    engine = PerExampleGradients(net, 3)

    def losses(*_):
        with torch.autocast("cpu", torch.bfloat16):
            return row_losses(engine.module, x, y)

    engine.backward(losses, x[:4], y[:4])
    assert all(p.grad_sample.dtype == torch.float32 for p in net.parameters())
    assert_exact([p.grad_sample for p in net.parameters()], exact, 0.03)


@pytest.mark.parametrize(
    "layer", [nn.ConvTranspose2d(2, 2, 3), nn.Conv2d(2, 2, 3, padding="same"), nn.InstanceNorm2d(2, affine=True)]
)
def test_other_layers_take_the_slower_path_with_one_warning(layer):
    net, (x, y) = Sequential(layer), inputs(6)
    exact = brute_force(net, x, y, 2)
    with pytest.warns(UserWarning, match="no fast per-example gradient") as caught:
        engine = PerExampleGradients(net, 2)
    assert len([w for w in caught if "fast" in str(w.message)]) == 1
    assert not engine.is_fast
    engine.backward(lambda *_: row_losses(engine.module, x, y), x[:3], y[:3])
    assert_exact([p.grad_sample for p in net.parameters()], exact)


def test_the_known_layers_warn_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PerExampleGradients(make("conv3"), 1).close()


@pytest.mark.parametrize("engine", ["auto", "hooks"])
def test_layers_whose_input_is_not_contiguous(engine):
    class Transposed(Sequential):
        def forward(self, x, labels=None):
            return super().forward(x.transpose(2, 3))

    (x, y), k = inputs(6), 2
    with Streams(0).torch_default("net"):
        net = Transposed(nn.Conv2d(2, 3, 3), nn.GroupNorm(1, 3), nn.Linear(5, 2))
    exact = brute_force(net, x, y, k)
    gradients = PerExampleGradients(net, k, engine)
    gradients.backward(lambda *_: row_losses(gradients.module, x, y), x[:3], y[:3])
    assert_exact([p.grad_sample for p in net.parameters()], exact)


def test_an_unused_parameter_gets_a_zero_gradient():
    class Unused(Sequential):
        def __init__(self):
            super().__init__(nn.Linear(7, 2))
            self.spare = nn.Linear(3, 3)

        def forward(self, x, labels=None):
            return self[0](x)

    net, (x, y) = Unused(), inputs(4)
    engine = PerExampleGradients(net, 1)
    engine.backward(lambda *_: row_losses(engine.module, x, y), x[:4], y[:4])
    assert net.spare.weight.grad_sample.shape == (4, 3, 3)
    assert not net.spare.weight.grad_sample.any()


def test_the_forward_pass_is_unchanged_and_closing_restores_the_module():
    net, (x, y) = make("two convs"), inputs(4)
    before = net(x, y)
    engine = PerExampleGradients(net, 1)
    assert torch.equal(net(x, y), before)
    engine.close()
    assert all("forward" not in vars(m) for m in net.modules())
    row_losses(net, x, y).mean().backward()
    assert all(p.grad is not None and not hasattr(p, "grad_sample") for p in net.parameters())


def test_the_gradient_of_the_input_is_the_ordinary_one():
    """A layer further up must see what it would see without the engine."""
    for name in ("conv stride 3", "conv dilated", "conv groups", "conv 1x1 padded", "linear", "group norm first"):
        net, (x, y) = make(name), inputs(4)
        x.requires_grad_(True)
        (expected,) = torch.autograd.grad(row_losses(net, x, y).sum(), x)
        engine = PerExampleGradients(net, 2)
        engine.backward(lambda *_, net=net, x=x, y=y: row_losses(net, x, y), x[:2], y[:2])
        torch.testing.assert_close(x.grad, expected / 2, rtol=1e-5, atol=1e-6)


def test_memory_of_the_gradients_is_one_copy_per_example():
    net, k, b = make("two convs"), 8, 5
    x, y = inputs(k * b)
    engine = PerExampleGradients(net, k)
    engine.backward(lambda *_: row_losses(engine.module, x, y), x[:b], y[:b])
    held = sum(p.grad_sample.untyped_storage().nbytes() for p in net.parameters())
    assert held <= 1.01 * b * sum(4 * p.numel() for p in net.parameters())


def test_noise_multiplicity_lowers_the_variance_like_one_over_k():
    """Var of a per-image gradient over fresh noise draws falls as 1/K (Dockhorn et al., section 3.2)."""
    from dpdm.diffusion.loss import row_losses as dpdm_losses

    with Streams(0).torch_default("net"):
        net = Denoiser(
            UNet((1, 4, 4), 2, NetworkParams(channels=8, channel_mult=(1,), attention_resolutions=())), Edm()
        )
        nn.init.normal_(net.network.head.weight, std=0.1)
    images, labels = torch.rand(1, 1, 4, 4) * 2 - 1, torch.zeros(1, dtype=torch.long)

    def spread(k: int) -> float:
        engine = PerExampleGradients(net, k)
        draws = []
        for repeat in range(200):
            generator = Streams(repeat).torch("diffusion", k)
            engine.backward(
                lambda x, y, g=generator: dpdm_losses(
                    engine.module, Edm(), x, y, noise_multiplicity=k, label_dropout=0.0, null_label=2, generator=g,
                ), images, labels,
            )  # fmt: skip
            draws.append(net.network.head.weight.grad_sample.flatten())
        engine.close()
        return float(torch.stack(draws).var(0).sum())

    one, eight = spread(1), spread(8)
    assert one / eight == pytest.approx(8, rel=0.35)


@pytest.mark.parametrize("engine", ["auto", "hooks"])
def test_folding_pixels_into_the_batch_axis_is_refused(engine):
    """Each piece would be clipped on its own, and the sensitivity be the number of pieces times the clip norm."""

    class Folding(Sequential):
        def forward(self, x, labels=None):
            return self[0](x.reshape(-1, 7)).reshape(len(x), -1)

    x, y = inputs(4)
    gradients = PerExampleGradients(Folding(nn.Linear(7, 2)), 2, engine)
    with pytest.raises(RuntimeError, match="rows on its first axis"):
        gradients.backward(lambda *_: row_losses(gradients.module, x, y), x[:2], y[:2])


def test_a_weight_used_outside_its_layer_is_refused():
    class Outside(Sequential):
        def forward(self, x, labels=None):
            return self[0](x) @ self[0].weight

    x, y = inputs(4)
    gradients = PerExampleGradients(Outside(nn.Linear(7, 7)), 1)
    with pytest.raises(RuntimeError, match="used outside its layer"):
        gradients.backward(lambda *_: row_losses(gradients.module, x, y), x[:4], y[:4])


def test_a_reparametrised_layer_is_not_taken_for_a_plain_one():
    layer = nn.utils.spectral_norm(nn.Conv2d(2, 2, 3))
    with pytest.warns(UserWarning, match="slower path"), pytest.raises(UserError, match="0:Conv2d"):
        PerExampleGradients(Sequential(layer), 1)


def gradient_penalty(module, x, y):
    """(|grad_x of the network's sum| - 1)^2, by torch.func: what the engine "vmap" is for."""
    gradient = torch.func.grad(lambda x: module(x, y).sum())(x)
    return (gradient.flatten(1).norm(dim=1) - 1).square()


@pytest.mark.parametrize("name", ["two convs", "linear", "group norm first"])
def test_second_order_gradients_are_exact_against_a_double_backward_per_example(name):
    net, (x, y) = make(name), inputs(5)
    parameters = list(net.parameters())
    exact = []
    for i in range(5):
        image = x[i : i + 1].clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(net(image, y[i : i + 1]).sum(), image, create_graph=True)
        loss = (gradient.flatten(1).norm(dim=1) - 1).square().sum() + row_losses(net, image, y[i : i + 1]).sum()
        exact.append(torch.autograd.grad(loss, parameters))
    engine = PerExampleGradients(net, 1, "vmap")
    engine.backward(lambda x, y: gradient_penalty(engine.module, x, y) + row_losses(engine.module, x, y), x, y)
    assert_exact([p.grad_sample for p in parameters], [torch.stack(g) for g in zip(*exact, strict=True)])
    assert torch.equal(engine.module(x, y), net(x, y))  # outside a backward pass: the plain module
    engine.close()


def test_the_vmap_engine_needs_k_losses_per_example():
    net, (x, y) = make("linear"), inputs(3)
    engine = PerExampleGradients(net, 2, "vmap")
    with pytest.raises(RuntimeError, match="needs 2 losses per example"):
        engine.backward(lambda x, y: row_losses(engine.module, x, y), x, y)


def test_the_vmap_engine_averages_the_rows_of_an_example():
    net, (x, y) = make("linear"), inputs(3)
    engine = PerExampleGradients(net, 2, "vmap")
    engine.backward(lambda x, y: row_losses(engine.module, torch.cat([x, 2 * x]), y.repeat(2)), x, y)
    rows = torch.cat([x, 2 * x])
    assert_exact([p.grad_sample for p in net.parameters()], brute_force(net, rows, y.repeat(2), 2))


def test_a_loss_that_is_not_finite_is_refused_by_the_vmap_engine():
    net, (x, y) = make("linear"), inputs(3)
    engine = PerExampleGradients(net, 1, "vmap")
    with pytest.raises(UserError, match="not finite"):
        engine.backward(lambda x, y: row_losses(engine.module, x, y) / 0, x, y)

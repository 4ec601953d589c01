"""Both engines against brute force (one backward per example), and what they refuse; single layers are in the zoo."""

import warnings

import pytest
import torch
import torch.utils.checkpoint
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
    "conv stride 2 kernel 4": lambda: Sequential(nn.Conv2d(2, 3, 4, stride=2, padding=1)),
    "conv stride 3": lambda: Sequential(nn.Conv2d(2, 3, 3, stride=3)),  # leaves pixels over
    "conv 1x1 stride 2": lambda: Sequential(nn.Conv2d(2, 3, 1, stride=2)),
    "conv uneven kernel": lambda: Sequential(nn.Conv2d(2, 3, (1, 3), padding=(0, 2))),
    "two convs": lambda: Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.SiLU(), nn.Conv2d(4, 2, 3)),
    "linear": lambda: Sequential(nn.Flatten(), nn.Linear(98, 4)),
    "group norm first": lambda: Sequential(nn.GroupNorm(1, 2)),
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


@pytest.mark.parametrize(
    ("name", "k", "b"),
    [(name, 3, 4) for name in LAYERS] + [("two convs", k, b) for k, b in ((1, 1), (1, 16), (8, 1), (32, 2))],
)
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


@pytest.mark.parametrize("engine", ["auto", "vmap"])
@pytest.mark.parametrize(("k", "b"), [(1, 3), (4, 3)])
def test_the_whole_network(engine, k, b):
    with Streams(0).torch_default("net"):
        net = Denoiser(UNet((1, 12, 12), 10, NetworkParams(channels=8, attention_resolutions=(6,))), Edm())
        for p in net.parameters():  # the zero initialisation of the paper would hide most gradients
            nn.init.normal_(p, std=0.1)
    rng = Streams(2)
    x = torch.randn(k, b, 1, 12, 12, generator=rng.torch("x"))
    sigma = torch.rand(k, b, generator=rng.torch("sigma")) + 0.1
    y = torch.randint(0, 11, (k, b), generator=rng.torch("y"))

    def losses(module, number):  # of the examples with these numbers, draw-major
        out = module(*(t[:, number].flatten(0, 1) for t in (x, sigma, y)))
        return out.square().mean((1, 2, 3))

    numbers = torch.arange(b)
    exact = [torch.autograd.grad(losses(net, numbers[i : i + 1]).mean(), list(net.parameters())) for i in range(b)]
    gradients = PerExampleGradients(net, k, engine)
    assert gradients.is_fast == (engine == "auto")
    gradients.backward(lambda _, number: losses(gradients.module, number), x[0], numbers)
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


def test_other_layers_take_the_slower_path_with_one_warning_that_names_the_first():
    net, (x, y) = Sequential(nn.Conv2d(2, 2, 3), nn.PReLU(), nn.InstanceNorm2d(2, affine=True)), inputs(3)
    exact = brute_force(net, x, y, 1)
    with pytest.warns(UserWarning, match=r"layer 1 \(PReLU\).*slower path") as caught:
        engine = PerExampleGradients(net)
    assert len(caught) == 1
    assert not engine.is_fast
    engine.backward(lambda x, y: row_losses(engine.module, x, y), x, y)
    assert_exact([p.grad_sample for p in net.parameters()], exact)


def test_the_known_layers_warn_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PerExampleGradients(make("conv3"), 1).close()


def test_layers_whose_input_is_not_contiguous():
    class Transposed(Sequential):
        def forward(self, x, labels=None):
            return super().forward(x.transpose(2, 3))

    (x, y), k = inputs(6), 2
    with Streams(0).torch_default("net"):
        net = Transposed(nn.Conv2d(2, 3, 3), nn.GroupNorm(1, 3), nn.Linear(5, 2))
    exact = brute_force(net, x, y, k)
    gradients = PerExampleGradients(net, k)
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

    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 1)

        def forward(self, x, sigma, labels):
            return self.conv(x)

    net, draws = Denoiser(Scale(), Edm()), 2000
    images, labels = torch.rand(1, 1, 4, 4).expand(draws, -1, -1, -1), torch.zeros(draws, dtype=torch.long)

    def spread(k: int) -> float:
        engine, generator = PerExampleGradients(net, k), Streams(k).torch("diffusion")
        engine.backward(
            lambda x, y: dpdm_losses(
                engine.module, net, x, y, noise_multiplicity=k, label_dropout=0.0, null_label=2, generator=generator
            ),
            images,
            labels,
        )  # every example is the same image with draws of its own
        variance = float(net.network.conv.weight.grad_sample.var(0).sum())
        engine.close()
        return variance

    assert spread(1) / spread(8) == pytest.approx(8, rel=0.35)


def test_folding_pixels_into_the_batch_axis_is_refused():
    """Each piece would be clipped on its own, and the sensitivity be the number of pieces times the clip norm."""

    class Folding(Sequential):
        def forward(self, x, labels=None):
            return self[0](x.reshape(-1, 7)).reshape(len(x), -1)

    x, y = inputs(4)
    gradients = PerExampleGradients(Folding(nn.Linear(7, 2)), 2)
    with pytest.raises(UserError, match=r"layer 0 \(Linear\).*rows on its first axis"):
        gradients.backward(lambda *_: row_losses(gradients.module, x, y), x[:2], y[:2])


# --- gradients that would be lost -----------------------------------------------------------------------------


@pytest.mark.parametrize("also_inside", [False, True])
def test_a_weight_used_outside_its_layer_is_refused_by_name(also_inside):
    class Outside(Sequential):
        def forward(self, x, labels=None):
            return (self[0](x) if also_inside else x) @ self[0].weight

    x, y = inputs(4)
    net = Outside(nn.Linear(7, 7))
    gradients = PerExampleGradients(net, 1)
    with pytest.raises(UserError, match=r"'weight' of layer 0 \(Linear\).*outside its layer"):
        gradients.backward(lambda x, y: row_losses(gradients.module, x, y), x, y)
    assert net[0].weight.grad_sample is None
    gradients.close()
    slow = PerExampleGradients(net, 1, "vmap")  # as the message advises
    exact = brute_force(Outside(net[0]), x, y, 1, lambda net, x, y: row_losses(net, x, y) + 0 * net[0].bias.sum())
    slow.backward(lambda x, y: row_losses(slow.module, x, y), x, y)
    assert_exact([p.grad_sample for p in net.parameters()], exact)


def test_a_weight_that_the_loss_took_from_the_module_before_is_refused_by_the_vmap_engine():
    net, (x, y) = make("linear"), inputs(3)
    weight = net[1].weight
    engine = PerExampleGradients(net, 1, "vmap")
    with pytest.raises(UserError, match=r"'weight' of layer 1 \(Linear\)"):
        engine.backward(lambda x, y: row_losses(engine.module, x, y) + weight.square().sum(), x, y)


def test_another_network_in_the_loss_gets_no_gradient_and_is_no_reason_to_refuse():
    net, other, (x, y) = make("conv3"), nn.Linear(7, 7), inputs(3)
    for engine in ("auto", "vmap"):
        gradients = PerExampleGradients(net, 1, engine)
        exact = brute_force(net, x, y, 1, lambda net, x, y: row_losses(net, other(x), y))
        gradients.backward(lambda x, y, module=gradients.module: row_losses(module, other(x), y), x, y)
        assert_exact([p.grad_sample for p in net.parameters()], exact)
        assert all(p.grad is None for p in other.parameters())
        gradients.close()


def test_what_the_loss_differentiates_itself_is_no_examples_gradient():
    def losses(net, x, y):
        x = x.detach().requires_grad_(True)
        out = row_losses(net, x, y)
        (slope,) = torch.autograd.grad(out.sum(), x, retain_graph=True)
        return out * slope.flatten(1).norm(dim=1)

    net, (x, y) = make("two convs"), inputs(3)
    exact = brute_force(net, x, y, 1, losses)
    engine = PerExampleGradients(net)
    engine.backward(lambda x, y: losses(engine.module, x, y), x, y)
    assert_exact([p.grad_sample for p in net.parameters()], exact)


@pytest.mark.parametrize("name", ["two convs", "conv3", "linear", "group norm first"])
def test_a_double_backward_on_the_fast_path_is_refused(name):
    """Where the output's gradient is constant, torch's once_differentiable lets it pass, without the weights' part."""

    def losses(net, x, y):
        x = x.detach().requires_grad_(True)
        (slope,) = torch.autograd.grad(net(x, y).sum(), x, create_graph=True)
        return slope.flatten(1).norm(dim=1)

    net, (x, y) = make(name), inputs(3)
    engine = PerExampleGradients(net)
    with pytest.raises(UserError, match=r"twice through layer \d \(\w+\).*second_order=True"):
        engine.backward(lambda x, y: losses(engine.module, x, y), x, y)


def test_recomputed_activations():
    class Recomputed(Sequential):
        def forward(self, x, labels=None):
            return torch.utils.checkpoint.checkpoint(super().forward, x, use_reentrant=False)

    net, (x, y) = Recomputed(nn.Conv2d(2, 2, 3), nn.SiLU(), nn.Conv2d(2, 2, 3)), inputs(6)
    exact = brute_force(net, x, y, 2)
    engine = PerExampleGradients(net, 2)
    engine.backward(lambda *_: row_losses(net, x, y), x[:3], y[:3])
    assert_exact([p.grad_sample for p in net.parameters()], exact)


@pytest.mark.parametrize("engine", ["auto", "vmap"])
def test_trainable_parameters_that_change_after_the_beginning_are_refused(engine):
    net, (x, y) = make("frozen layer"), inputs(3)
    gradients = PerExampleGradients(net, 1, engine)
    net[0].requires_grad_(True)
    with pytest.raises(UserError, match="trainable parameters changed"):
        gradients.backward(lambda x, y: row_losses(gradients.module, x, y), x, y)


def test_a_module_without_trainable_parameters_is_refused():
    with pytest.raises(UserError, match="no trainable parameters"):
        PerExampleGradients(Sequential(nn.Linear(7, 7)).requires_grad_(False))


def test_a_loss_that_does_not_depend_on_the_module_is_refused():
    net, (x, y) = make("conv3"), inputs(3)
    engine = PerExampleGradients(net)
    with pytest.raises(UserError, match="does not depend"):
        engine.backward(lambda x, y: row_losses(engine.module, x, y).detach(), x, y)


def test_a_loss_that_reaches_no_layer_of_the_module_is_refused():
    net, other, (x, y) = make("conv3"), make("conv3"), inputs(3)
    engine = PerExampleGradients(net)

    def losses(x, y):
        net(x).sum()
        return row_losses(other, x, y)

    with pytest.raises(UserError, match=r"the module \(Sequential\).*zero"):
        engine.backward(losses, x, y)


def compiled_in_place():
    net = make("two convs")
    net[2].compile(backend="eager")
    return net


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: torch.compile(make("two convs"), backend="eager"), r"the module \(OptimizedModule\).*_orig_mod"),
        (compiled_in_place, r"layer 2 \(Conv2d\).*compile\(\)"),
    ],
)
def test_a_compiled_module_is_refused(build, message):
    with pytest.raises(UserError, match=message):
        PerExampleGradients(build())


@pytest.mark.parametrize("fullgraph", [False, True])
def test_a_function_compiled_within_the_module_is_refused(fullgraph):
    class Within(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(7, 7), nn.Linear(7, 7)
            self.block = torch.compile(lambda x: torch.tanh(self.a(x)), backend="eager", fullgraph=fullgraph)

        def forward(self, x, labels=None):
            return self.b(self.block(x))

    engine = PerExampleGradients(Within())
    with pytest.raises(UserError, match=r"layer a \(Linear\).*compiled"):
        engine.backward(lambda x, y: row_losses(engine.module, x, y), *inputs(3))


# --- what a backward pass leaves behind -----------------------------------------------------------------------


class Remembering(Sequential):
    """Keeps something of its input in a buffer."""

    def __init__(self, remember, *layers):
        super().__init__(*layers)
        self.register_buffer("memory", torch.zeros(()))
        self.remember = remember

    def forward(self, x, labels=None):
        self.remember(self, x)
        return super().forward(x)


def in_place(net, x):
    net.memory.add_(torch.ones(()))


def behind_the_back(net, x):
    net.memory.data.add_(1)


def reassigned(net, x):
    net.memory = net.memory + x.detach().mean()


def new(net, x):
    net.register_buffer("memory2", torch.ones(()))


@pytest.mark.parametrize("engine", ["auto", "vmap"])
@pytest.mark.parametrize("remember", [in_place, behind_the_back, reassigned, new])
def test_buffers_that_a_forward_pass_changes_are_refused_by_name_and_put_back(remember, engine):
    net, (x, y) = Remembering(remember, nn.Conv2d(2, 2, 3)), inputs(3)
    gradients = PerExampleGradients(net, 1, engine)
    for _ in range(2):
        with pytest.raises(UserError, match=r"buffer 'memory2?' of the module \(Remembering\)|the module.* in-place"):
            gradients.backward(lambda x, y: row_losses(gradients.module, x, y), x, y)
        assert dict(net.named_buffers()).keys() == {"memory"}
        assert torch.equal(net.memory, torch.zeros(()))


def test_a_buffer_that_is_reassigned_to_what_it_was_is_no_release():
    def remember(net, x):
        net.memory = net.memory.clone()

    net, (x, y) = Remembering(remember, nn.Conv2d(2, 2, 3)), inputs(3)
    gradients = PerExampleGradients(net)
    net.memory.fill_(float("nan"))  # not equal to itself
    gradients.backward(lambda x, y: row_losses(gradients.module, x, y), x, y)


@pytest.mark.parametrize("engine", ["auto", "vmap"])
def test_parameters_that_a_forward_pass_changes_are_refused(engine):
    """A running mean can hide in a frozen parameter."""

    def remember(net, x):
        with torch.no_grad():
            net[1].bias.add_(1)

    net, (x, y) = Remembering(remember, nn.Linear(7, 7), nn.Linear(7, 7).requires_grad_(False)), inputs(3)
    gradients = PerExampleGradients(net, 1, engine)
    with pytest.raises(UserError, match=r"parameter 'bias' of layer 1 \(Linear\)|the module.* in-place"):
        gradients.backward(lambda x, y: row_losses(gradients.module, x, y), x, y)


class Keeping(Remembering):
    """Holds tensors that are neither parameters nor buffers."""

    def __init__(self, remember, *layers):
        super().__init__(remember, *layers)
        self.steps, self.mean, self.table = 0, torch.zeros(()), {"a": torch.ones(2)}
        self.log, self.pair = [], (torch.zeros(1), 3)


def keep(name, value):
    def remember(net, x):
        setattr(net, name, value(net, x.detach()))

    return remember


KEEPS = {
    "new": ("last", keep("last", lambda net, x: x)),
    "new list": ("lasts", keep("lasts", lambda net, x: [x])),
    "rebound": ("mean", keep("mean", lambda net, x: 0.9 * net.mean + 0.1 * x.mean())),
    "in place": ("mean", lambda net, x: net.mean.add_(1)),
    "behind the back": ("mean", lambda net, x: net.mean.data.add_(1)),
    "appended": ("log", lambda net, x: net.log.append(x.detach())),
    "in a tuple": ("pair", keep("pair", lambda net, x: (x.mean(), 3))),
    "in a dict": ("table", lambda net, x: net.table.update(b=x.detach())),
    "in place in a dict": ("table", lambda net, x: net.table["a"].add_(1)),
    "parameter": ("extra", keep("extra", lambda net, x: nn.Parameter(x[0], requires_grad=False))),
    "layer": ("memory", lambda net, x: setattr(net, "part", Remembering(in_place))),
}


@pytest.mark.parametrize("case", KEEPS)
def test_tensors_that_a_forward_pass_keeps_in_attributes_are_refused_by_name_and_not_kept(case):
    key, remember = KEEPS[case]
    inner, (x, y) = Keeping(remember, nn.Conv2d(2, 2, 3)), inputs(3)
    net = Sequential(inner, nn.Conv2d(2, 2, 3))
    gradients = PerExampleGradients(net)
    for _ in range(1 if case in ("parameter", "layer") else 2):  # what a module registers stays there
        with pytest.raises(
            UserError, match=rf"(attribute|parameter|buffer) '{key}' of layer 0(\.part)? .*before training"
        ):
            gradients.backward(lambda x, y: row_losses(gradients.module, x, y), x, y)
        assert not hasattr(inner, "last")
        assert not hasattr(inner, "lasts")
        assert inner.log == []
        assert inner.table.keys() == {"a"}
        assert torch.equal(inner.table["a"], torch.ones(2))
        assert inner.mean == inner.pair[0] == 0
    assert all(p.grad_sample is None for p in gradients._parameters)


@pytest.mark.parametrize("case", ["in place", "behind the back", "appended", "in a dict", "in place in a dict"])
def test_the_vmap_engine_refuses_what_it_sees_in_attributes(case):
    key, remember = KEEPS[case]
    net, (x, y) = Keeping(remember, nn.Conv2d(2, 2, 3)), inputs(3)
    gradients = PerExampleGradients(net, 1, "vmap")
    with pytest.raises(UserError, match=f"attribute '{key}' of the module|the module.* in-place"):
        gradients.backward(lambda x, y: row_losses(gradients.module, x, y), x, y)
    assert net.log == []
    assert net.table.keys() == {"a"}


def test_attributes_that_hold_no_private_tensor_may_change():
    def remember(net, x):
        net.steps += 1
        net.mean = net.mean.clone()  # equal to what it was

    net, (x, y) = Keeping(remember, nn.Conv2d(2, 2, 3)), inputs(3)
    gradients = PerExampleGradients(net)
    gradients.backward(lambda x, y: row_losses(gradients.module, x, y), x, y)
    assert net.steps == 1


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_a_frozen_weight_norm_computes_its_attribute_anew():
    net, (x, y) = Sequential(nn.utils.weight_norm(nn.Linear(7, 7)).requires_grad_(False), nn.Linear(7, 7)), inputs(3)
    gradients = PerExampleGradients(net)
    assert gradients.is_fast
    gradients.backward(lambda x, y: row_losses(gradients.module, x, y), x, y)
    assert len(net[1].weight.grad_sample) == 3


@pytest.mark.parametrize("engine", ["auto", "vmap"])
def test_nothing_but_grad_sample_is_left(engine):
    class Keeping(Sequential):
        def forward(self, x, labels=None):
            if engine == "vmap":
                self.kept = self[0].weight * 2
            return super().forward(x)

    net, (x, y) = Keeping(nn.Conv2d(2, 2, 3, bias=False)), inputs(3)
    parameter, grad = net[0].weight, torch.ones_like(net[0].weight)
    parameter.grad = grad
    gradients = PerExampleGradients(net, 1, engine)
    gradients.backward(lambda x, y: row_losses(gradients.module, x, y), x, y)
    assert net[0].weight is parameter
    assert parameter.grad is grad
    assert torch.equal(grad, torch.ones_like(grad))
    assert not hasattr(net, "kept")  # what torch.func left there is of no use
    assert not net._forward_hooks
    gradients.close()
    assert not hasattr(parameter, "grad_sample")
    assert not net._forward_pre_hooks
    gradients.close()
    with pytest.raises(UserError, match="closed"):
        gradients.backward(lambda x, y: row_losses(net, x, y), x, y)


def test_between_private_steps_the_module_trains_as_any_other():
    net, (x, y) = make("two convs"), inputs(4)
    (expected, *_) = torch.autograd.grad(row_losses(net, x, y).sum(), list(net.parameters()))
    engine = PerExampleGradients(net, 2)
    engine.backward(lambda *_: row_losses(engine.module, x, y), x[:2], y[:2])
    net(x[:1], y[:1])  # of any number of rows
    row_losses(net, x, y).sum().backward()
    assert torch.equal(net[0].weight.grad, expected)


def test_a_layer_that_begins_to_mix_after_the_beginning_is_refused():
    net, (x, y) = Sequential(nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2, affine=False)).eval(), inputs(3)
    engine = PerExampleGradients(net)
    engine.backward(lambda x, y: row_losses(engine.module, x, y), x, y)
    net.train()
    with pytest.raises(UserError, match=r"layer 1 \(BatchNorm2d\).*statistics of the batch"):
        engine.backward(lambda x, y: row_losses(engine.module, x, y), x, y)
    assert net[0].weight.grad_sample is None or len(net[0].weight.grad_sample) == 3  # the last one's, or none


def test_an_extra_state_is_refused():
    class Stateful(Sequential):
        def get_extra_state(self):
            return {}

    with pytest.raises(UserError, match="extra state"):
        PerExampleGradients(Stateful(nn.Linear(7, 7)))


# --- errors of others -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["auto", "vmap"])
def test_what_a_layer_raises_names_the_layer(engine):
    net, (x, y) = Sequential(nn.Conv2d(2, 3, 3), nn.Sequential(nn.Conv2d(4, 3, 3))), inputs(3)
    gradients = PerExampleGradients(net, 1, engine)
    with pytest.raises(UserError, match=r"layer 1\.0 \(Conv2d\).*channels"):
        gradients.backward(lambda x, y: row_losses(gradients.module, x, y), x, y)


def test_what_the_loss_itself_raises_is_passed_on():
    def losses(x, y):
        engine.module(x, y)
        raise RuntimeError("from the loss")

    engine = PerExampleGradients(make("conv3"))
    with pytest.raises(RuntimeError, match="from the loss"):
        engine.backward(losses, *inputs(3))


@pytest.mark.parametrize("engine", ["auto", "vmap"])
def test_a_loss_that_is_no_tensor_is_refused(engine):
    gradients = PerExampleGradients(make("conv3"), 1, engine)
    with pytest.raises(UserError, match="got float"):
        gradients.backward(lambda x, y: 1.0, *inputs(3))


def test_inputs_by_name_are_counted():
    net, (x, y) = make("conv3"), inputs(4)
    engine = PerExampleGradients(net, 2)
    with pytest.raises(RuntimeError, match=r"forward passes over \[4, 4\] rows"):
        engine.backward(lambda *_: row_losses(net, net(labels=y, x=x).sum() * 0 + x, y), x[:2], y[:2])


@pytest.mark.parametrize("engine", ["auto", "vmap"])
def test_a_caller_without_gradients_changes_nothing(engine):
    net, (x, y) = make("conv3"), inputs(3)
    exact, weight = brute_force(net, x, y, 1), net[0].weight
    gradients = PerExampleGradients(net, 1, engine)
    with torch.no_grad():
        gradients.backward(lambda x, y: row_losses(gradients.module, x, y), x, y)
        with pytest.raises(UserError, match="outside its layer"):
            gradients.backward(lambda x, y: row_losses(gradients.module, x, y) + weight.sum(), x, y)
    gradients.backward(lambda x, y: row_losses(gradients.module, x, y), x, y)
    assert_exact([p.grad_sample for p in net.parameters()], exact)


def test_an_unknown_engine_is_refused():
    with pytest.raises(UserError, match="'hooks'"):
        PerExampleGradients(make("conv3"), 1, "hooks")


# --- the vmap engine ------------------------------------------------------------------------------------------


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

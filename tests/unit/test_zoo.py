"""The zoo: every layer of torch.nn that has parameters, with its options, on odd shapes.

Each is exact against plain torch, one backward pass per example, or refused in a sentence that names it.
"""

import copy
import inspect

import pytest
import torch
from test_per_example import assert_exact
from torch import nn

from dpdm.errors import UserError
from dpdm.privacy.per_example import PerExampleGradients
from dpdm.rng import Streams

# torch warns of slow paths under vmap, and of old layers, which the zoo holds as well.
pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("UserWarning", "FutureWarning")]

K = 3
VIEWS = {
    "image": lambda h: h,  # [N, 2, 5, 7]
    "sequence": lambda h: h[:, :, 1],  # [N, 2, 7]
    "volume": lambda h: torch.stack([h, h.sin()], 2),  # [N, 2, 2, 5, 7]
    "tokens": lambda h: h[:, 0],  # [N, 5, 7]
    "vector": lambda h: h[:, 0, 0],  # [N, 7]
    "indices": lambda h: (h[:, 0].detach().abs() * 2).long().clamp(max=4),  # [N, 5, 7], in 0 to 4
}


class Animal(nn.Module):
    """A layer between a convolution, to which the gradient of its input leads, and what follows it."""

    def __init__(self, layer, call=None, view="image", then=None):
        super().__init__()
        self.first = nn.Conv2d(2, 2, 1)
        self.layer = layer
        self.call = call or (lambda layer, h, y: layer(h))
        self.view, self.then = VIEWS[view], then or (lambda out, h: out)

    def forward(self, x, y):
        h = self.view(self.first(x))
        return self.then(self.call(self.layer, h, y), h)


def row_losses(net, x, y):
    """K rows per example, draw-major, all different; no norm makes it constant."""
    x, y = torch.cat([x * (1 + k / 2) for k in range(K)]), y.repeat(K)
    out = net(x, y)
    while isinstance(out, tuple):
        out = out[0]
    out = out.flatten(1)
    return ((out - torch.linspace(-1, 1, out.shape[1], dtype=out.dtype)) ** 2).mean(1)


def inputs(b, dtype=torch.float32):
    rng = Streams(3)
    x = torch.randn(b, 2, 5, 7, generator=rng.torch("x")).to(dtype)
    return x, torch.randint(0, 5, (b,), generator=rng.torch("y"))


def one_by_one(net, x, y, losses=row_losses):
    """The independent reference: plain torch, one backward pass per example."""
    parameters = [p for p in net.parameters() if p.requires_grad]
    stacks = []
    for i in range(len(x)):
        found = torch.autograd.grad(losses(net, x[i : i + 1], y[i : i + 1]).mean(), parameters, allow_unused=True)
        stacks.append([torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)])
    return [torch.stack(gradients) for gradients in zip(*stacks, strict=True)]


def check(build, fast, losses=row_losses, dtype=torch.float32, tolerance=1e-4):
    """Exact at B = 2 and B = 1, empty at B = 0, and nothing but `grad_sample` is left."""
    nets = []
    for _ in range(2):
        with Streams(0).torch_default("net"):
            nets.append(build().to(dtype))
    net, plain = nets
    engine = PerExampleGradients(net, K)
    assert engine.is_fast == fast
    trained = [p for p in net.parameters() if p.requires_grad]
    for b in (2, 1):
        x, y = inputs(b, dtype)
        engine.backward(lambda x, y: losses(engine.module, x, y), x, y)
        assert_exact([p.grad_sample.float() for p in trained], [e.float() for e in one_by_one(plain, x, y, losses)],
                     tolerance)  # fmt: skip
    engine.backward(None, *inputs(0))
    assert [p.grad_sample.shape for p in trained] == [(0, *p.shape) for p in trained]
    assert all(p.grad is None for p in net.parameters())
    engine.close()
    state = net.state_dict()
    assert all(torch.equal(state[name], value) for name, value in plain.state_dict().items())
    x, y = inputs(2, dtype)
    assert_exact(one_by_one(net, x, y, losses), one_by_one(plain, x, y, losses))  # plain again


# --- layers that are exact ------------------------------------------------------------------------------------

FAST: dict[str, tuple] = {}  # "Class: option" -> positional, keyword arguments and the rest of Animal's
SLOW: dict[str, tuple] = {}


def add(zoo, kind, option, *args, view=None, call=None, train=True, **kwargs):
    zoo[f"{kind}: {option}"] = (kind, args, kwargs, view, call, train)


def convolutions():
    for axes, view in ((1, "sequence"), (2, "image"), (3, "volume")):
        one, kind = (1,) * axes, f"Conv{axes}d"
        kernel = {1: (3,), 2: (3, 2), 3: (1, 3, 2)}[axes]
        pad = {1: (2,), 2: (1, 2), 3: (1, 1, 2)}[axes]
        for option, (out, size, kwargs) in {
            "plain": (3, kernel, {}),
            "no bias": (3, kernel, {"bias": False}),
            "stride": (3, kernel, {"stride": 2}),
            "groups": (4, kernel, {"groups": 2, "padding": pad}),
            "dilation": (3, kernel, {"dilation": 2, "padding": pad}),
            "pointwise": (3, one, {}),
            "pointwise, no bias": (3, one, {"bias": False}),
            "pointwise, padded": (3, one, {"padding": 1}),
            "valid": (3, kernel, {"padding": "valid"}),
            "same": (3, kernel, {"padding": "same", "dilation": 2}),
            "same, circular": (3, kernel, {"padding": "same", "padding_mode": "circular"}),
            "valid, reflect": (3, kernel, {"padding": "valid", "padding_mode": "reflect"}),
            "circular": (3, kernel, {"padding": pad, "padding_mode": "circular"}),
            "reflect": (3, kernel, {"padding": pad, "padding_mode": "reflect", "stride": 2}),
            "replicate": (4, kernel, {"padding": pad, "padding_mode": "replicate", "groups": 2, "bias": False}),
        }.items():
            add(FAST, kind, option, 2, out, size, view=view, **kwargs)
        kind = f"ConvTranspose{axes}d"
        for option, kwargs in {
            "plain": {},
            "no bias": {"bias": False},
            "stride, output padding": {"stride": 2, "output_padding": 1, "padding": one},
            "groups": {"groups": 2},
            "dilation": {"dilation": 3, "output_padding": 2},
        }.items():
            add(FAST, kind, option, 2, 4, kernel, view=view, **kwargs)
        add(FAST, kind, "pointwise", 2, 3, one, view=view)
        size = {1: (15,), 2: (12, 15), 3: (4, 12, 15)}[axes]
        add(FAST, kind, "output size", 2, 3, kernel, stride=2, view=view,
            call=lambda layer, h, y, size=size: layer(h, output_size=size))  # fmt: skip


convolutions()
for view in ("vector", "tokens", "image", "volume"):
    add(FAST, "Linear", view, 7, 3, view=view)
    add(FAST, "LayerNorm", view, 7, view=view)
add(FAST, "Linear", "no bias", 7, 3, bias=False)
add(FAST, "GroupNorm", "one group", 1, 2)
add(FAST, "GroupNorm", "no bias", 2, 2, bias=False)
add(FAST, "GroupNorm", "not affine", 2, 2, affine=False)
add(FAST, "GroupNorm", "sequence", 1, 2, view="sequence")
add(FAST, "GroupNorm", "vector", 1, 7, view="vector")
add(FAST, "LayerNorm", "two axes", (5, 7))
add(FAST, "LayerNorm", "all axes", (2, 5, 7), eps=0.1)
add(FAST, "LayerNorm", "no bias", 7, bias=False)
add(FAST, "LayerNorm", "not affine", 7, elementwise_affine=False)
for option, kwargs in {"plain": {}, "padding": {"padding_idx": 1}, "negative padding": {"padding_idx": -1}}.items():
    add(FAST, "Embedding", option, 5, 3, view="indices", **kwargs)
add(FAST, "Embedding", "labels", 5, 3, call=lambda layer, h, y: layer(y) * h[:, 0, 0, :3])

for option, kwargs in {"plain": {}, "no bias": {"bias": False}}.items():
    add(SLOW, "Bilinear", option, 7, 7, 3, call=lambda layer, h, y: layer(h, h.sin()), **kwargs)
for view in ("vector", "tokens", "image"):
    add(SLOW, "RMSNorm", view, 7, view=view)
add(SLOW, "RMSNorm", "two axes", (5, 7), eps=0.1)
add(SLOW, "PReLU", "one")
add(SLOW, "PReLU", "per channel", 2)
for axes, view in ((1, "sequence"), (2, "image"), (3, "volume")):
    add(SLOW, f"InstanceNorm{axes}d", "affine", 2, affine=True, view=view)
    add(SLOW, f"InstanceNorm{axes}d", "eval", 2, affine=True, track_running_stats=True, view=view, train=False)
    add(SLOW, f"BatchNorm{axes}d", "eval", 2, view=view, train=False)
    add(FAST, f"BatchNorm{axes}d", "eval, not affine", 2, affine=False, view=view, train=False)
add(SLOW, "SyncBatchNorm", "eval", 2, train=False)
for mode in ("sum", "mean", "max"):
    for option, kwargs in {"plain": {}, "padding": {"padding_idx": 1}}.items():
        add(SLOW, "EmbeddingBag", f"{mode}, {option}", 5, 3, mode=mode, view="indices",
            call=lambda layer, h, y: layer(h[:, 0]), **kwargs)  # fmt: skip
for option, kwargs in {
    "plain": {},
    "no bias": {"bias": False},
    "one head, bias of keys": {"num_heads": 1, "add_bias_kv": True, "add_zero_attn": True},
    "other widths": {"kdim": 7, "vdim": 7},
}.items():
    add(SLOW, "MultiheadAttention", option, 7, view="tokens", call=lambda layer, h, y: layer(h, h, h.sin()),
        **({"num_heads": 7, "batch_first": True} | kwargs))  # fmt: skip
for option, kwargs in {"plain": {}, "norm first, no bias": {"norm_first": True, "bias": False}}.items():
    small = {"d_model": 7, "nhead": 1, "dim_feedforward": 4, "dropout": 0.0, "batch_first": True}
    for train in (True, False):
        add(SLOW, "TransformerEncoderLayer", f"{option}, train={train}", view="tokens", train=train, **small, **kwargs)
    add(SLOW, "TransformerDecoderLayer", option, view="tokens", call=lambda layer, h, y: layer(h, h.sin()),
        **small, **kwargs)  # fmt: skip
add(SLOW, "Transformer", "plain", view="tokens", call=lambda layer, h, y: layer(h, h.sin()),
    num_encoder_layers=1, num_decoder_layers=1, **small)  # fmt: skip
add(SLOW, "TransformerEncoder", "plain", nn.TransformerEncoderLayer(**small), 2, view="tokens",
    enable_nested_tensor=False)  # fmt: skip
add(SLOW, "TransformerDecoder", "plain", nn.TransformerDecoderLayer(**small), 1, view="tokens",
    call=lambda layer, h, y: layer(h, h.sin()))  # fmt: skip
add(SLOW, "LSTM", "plain", 7, 3, batch_first=True, view="tokens")
add(SLOW, "ParameterList", "plain", [torch.randn(7)], call=lambda layer, h, y: h * layer[0])
add(SLOW, "ParameterDict", "plain", {"scale": torch.randn(7)}, call=lambda layer, h, y: h * layer["scale"])


def make(zoo, case):
    kind, args, kwargs, view, call, train = zoo[case]
    net = Animal(getattr(nn, kind)(*copy.deepcopy(args), **kwargs), call, view or "image").train(train)
    for p in net.layer.parameters():
        nn.init.normal_(p, std=0.5)  # norms begin as the identity, biases of attention as zero
    for name, buffer in net.layer.named_buffers():
        if name.startswith("running"):
            buffer.uniform_(0.5, 1.5)
    return net


@pytest.mark.parametrize("case", FAST)
def test_the_fast_functions_are_exact(case):
    check(lambda: make(FAST, case), fast=True)


@pytest.mark.parametrize("case", SLOW)
def test_the_fallback_is_exact(case):
    check(lambda: make(SLOW, case), fast=False)


@pytest.mark.parametrize("case", [name for name in FAST if name.endswith((": plain", ": image", "one group"))])
def test_bfloat16_parameters(case):
    check(lambda: make(FAST, case), fast=True, dtype=torch.bfloat16, tolerance=0.04)


@pytest.mark.parametrize("case", ["PReLU: one", "MultiheadAttention: plain"])
def test_bfloat16_parameters_of_the_fallback(case):
    check(lambda: make(SLOW, case), fast=False, dtype=torch.bfloat16, tolerance=0.04)


# --- layers in company ----------------------------------------------------------------------------------------


def block(layer, then, **kwargs):
    return lambda: Animal(layer(), then=then, **kwargs)


def frozen(net, *parts):
    for part in parts:
        net.get_submodule(part).requires_grad_(False)
    return net


def frozen_bias():
    net = Animal(nn.Conv2d(2, 2, 3))
    net.layer.bias.requires_grad_(False)
    return net


def shared_weight():
    pair = nn.ModuleList([nn.Linear(7, 7), nn.Linear(7, 7)])
    pair[1].weight = pair[0].weight
    return Animal(pair, lambda pair, h, y: pair[1](pair[0](h).tanh()))


def tied_outside():
    """A projection by the transpose of an embedding that a module holds as its own."""

    class Head(nn.Module):
        def __init__(self, table):
            super().__init__()
            self.weight = table.weight

        def forward(self, h):
            return h @ self.weight.T

    table = nn.Embedding(5, 7)
    return Animal(nn.ModuleList([table, Head(table)]), lambda pair, h, y: pair[1](h[:, 0] * pair[0](y)[:, None]))


INPLACE = {
    "relu": lambda out, h: nn.functional.relu(out, inplace=True),
    "silu": lambda out, h: nn.functional.silu(out, inplace=True),
    "residual": lambda out, h: out.add_(1.0).mul_(2.0),
}
COMPANY_FAST = {
    **{f"{case}, in-place {name}": (lambda case=case, name=name: with_then(make(FAST, case), INPLACE[name]))
       for case in ("Conv2d: plain", "Conv1d: pointwise", "ConvTranspose2d: plain", "Linear: image", "LayerNorm: image",
                    "GroupNorm: one group", "Embedding: plain") for name in INPLACE},
    "residual +=": block(lambda: nn.Conv2d(2, 2, 3, padding=1), lambda out, h: out.add_(h)),
    "used twice": lambda: Animal(nn.Linear(7, 7), lambda layer, h, y: layer(layer(h).tanh())),
    "convolution used twice": lambda: Animal(nn.Conv2d(2, 2, 3, padding="same"), lambda f, h, y: f(f(h).tanh())),
    "layer norm used twice": lambda: Animal(nn.LayerNorm(7), lambda layer, h, y: layer(layer(h).tanh())),
    "nested": lambda: Animal(nn.Sequential(nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(True)), nn.GroupNorm(1, 3))),
    "shared weight": shared_weight,
    "frozen first": lambda: frozen(Animal(nn.Conv2d(2, 2, 3)), "first"),
    "frozen after": lambda: frozen(Animal(nn.Conv2d(2, 2, 3)), "layer"),
    "frozen and foreign": lambda: frozen(Animal(nn.PReLU()), "layer"),
    "frozen bias": frozen_bias,
    "not contiguous": lambda: Animal(nn.Conv2d(2, 2, 3), lambda layer, h, y: layer(h.transpose(2, 3))),
    "channels last": lambda: Animal(nn.Conv2d(2, 2, 3, groups=2), lambda layer, h, y: layer(
        h.to(memory_format=torch.channels_last))),
    "unused layer": lambda: Animal(nn.Linear(3, 3), lambda layer, h, y: h),
    "input by name": lambda: Animal(nn.Linear(7, 3), lambda layer, h, y: layer(input=h)),
    "orthogonal": lambda: frozen(Animal(nn.utils.parametrizations.orthogonal(nn.Linear(7, 7))), "layer"),
}  # fmt: skip
COMPANY_SLOW = {
    "tied outside its layer": tied_outside,
    "in-place after attention": lambda: with_then(make(SLOW, "TransformerEncoderLayer: plain, train=True"),
                                                  INPLACE["relu"]),
    "in-place after PReLU": lambda: with_then(make(SLOW, "PReLU: one"), lambda out, h: out.add_(h).relu_()),
    "weight norm": lambda: Animal(nn.utils.weight_norm(nn.Conv2d(2, 3, 3))),
    "parametrised weight norm": lambda: Animal(nn.utils.parametrizations.weight_norm(nn.Linear(7, 3))),
    "orthogonal, trained": lambda: Animal(nn.utils.parametrizations.orthogonal(nn.Linear(7, 7))),
    "spectral norm, eval": lambda: Animal(nn.utils.spectral_norm(nn.Conv2d(2, 3, 3))).eval(),
    "parametrised spectral norm, eval": lambda: Animal(nn.utils.parametrizations.spectral_norm(nn.Linear(7, 3))).eval(),
    "subclass": lambda: Animal(type("Doubled", (nn.Linear,), {"forward": lambda self, x: 2 * nn.Linear.forward(
        self, x)})(7, 3)),
    "forward of the instance": lambda: Animal(doubled(nn.Linear(7, 3))),
    "frozen part of the slow": lambda: frozen(Animal(nn.Sequential(nn.PReLU(), nn.Linear(7, 3))), "layer.1"),
}  # fmt: skip


def doubled(layer):
    layer.forward = lambda x: 2 * type(layer).forward(layer, x)
    return layer


def with_then(net, then):
    net.then = then
    return net


@pytest.mark.parametrize("case", COMPANY_FAST)
def test_layers_in_company_on_the_fast_path(case):
    check(COMPANY_FAST[case], fast=True)


@pytest.mark.parametrize("case", COMPANY_SLOW)
def test_layers_in_company_on_the_fallback(case):
    check(COMPANY_SLOW[case], fast=False)


def test_a_penalty_on_weights_counts_in_the_fallback():
    def losses(net, x, y):
        return row_losses(net, x, y) + net.first.weight.square().sum() + sum(p.sum() for p in net.layer.parameters())

    check(lambda: make(SLOW, "PReLU: one"), fast=False, losses=losses)


# --- layers that are refused ----------------------------------------------------------------------------------


def lazy(kind):
    return Animal(getattr(nn, kind)(*([3] if "Norm" not in kind else []), *([3] if "Conv" in kind else [])))


def two_axes(layer):
    return Animal(layer, view="vector")


BATCH = "statistics of the batch"
REFUSED = {
    **{f"BatchNorm{axes}d: {name}": (lambda axes=axes, kwargs=kwargs: Animal(getattr(nn, f"BatchNorm{axes}d")(
        2, **kwargs)), BATCH) for axes in (1, 2, 3) for name, kwargs in {
            "train": {}, "not affine": {"affine": False}, "no running statistics": {"track_running_stats": False}}
        .items()},
    "BatchNorm2d: frozen": (lambda: frozen(Animal(nn.BatchNorm2d(2)), "layer"), BATCH),
    "BatchNorm2d: eval by the batch": (lambda: Animal(nn.BatchNorm2d(2, track_running_stats=False)).eval(), BATCH),
    "BatchNorm2d: subclass": (lambda: Animal(type("Mine", (nn.BatchNorm2d,), {})(2)), BATCH),
    "SyncBatchNorm: train": (lambda: Animal(nn.SyncBatchNorm(2)), BATCH),
    **{f"InstanceNorm{axes}d: running statistics": (lambda axes=axes: Animal(getattr(nn, f"InstanceNorm{axes}d")(
        2, track_running_stats=True)), "running statistics") for axes in (1, 2, 3)},
    **{f"{kind}: train": (lambda kind=kind: lazy(kind), "no shape yet") for kind in vars(nn) if kind[:4] == "Lazy"},
    **{f"{kind}: {option}": (lambda kind=kind, option=option: Animal(getattr(nn, kind)(5, 3, **{option: 1})), option)
       for kind in ("Embedding", "EmbeddingBag") for option in ("max_norm", "scale_grad_by_freq", "sparse")},
    "RNN: plain": (lambda: Animal(nn.RNN(7, 3, batch_first=True), view="tokens"), "shape"),
    "RNNBase: plain": (lambda: Animal(nn.RNNBase("GRU", 7, 3), view="tokens"), "forward"),
    "LinearCrossEntropyLoss: plain": (lambda: Animal(nn.LinearCrossEntropyLoss(7, 5, reduction="none"), lambda f, h, y:
                                      f(h, y)[:, None], "vector"), "weight.*outside its layer"),
    "GRU: plain": (lambda: Animal(nn.GRU(7, 3, batch_first=True), view="tokens"), "shape"),
    "LSTM: projection": (lambda: Animal(nn.LSTM(7, 3, batch_first=True, proj_size=2), view="tokens"), "shape"),
    "RNNCell: plain": (lambda: two_axes(nn.RNNCell(7, 3)), "shape"),
    "GRUCell: plain": (lambda: two_axes(nn.GRUCell(7, 3)), "shape"),
    "LSTMCell: plain": (lambda: two_axes(nn.LSTMCell(7, 3)), "shape"),
    "RNNCellBase: plain": (lambda: two_axes(nn.RNNCellBase(7, 3, True, 1)), "forward"),
    "AdaptiveLogSoftmaxWithLoss: plain": (lambda: Animal(nn.AdaptiveLogSoftmaxWithLoss(7, 5, [2]), lambda layer, h, y:
                                          layer(h, y).output[:, None], "vector"), "rows on its first axis"),
    "DataParallel: plain": (lambda: Animal(nn.DataParallel(nn.Linear(7, 3))), "parts the batch"),
    "Linear: spectral norm": (lambda: Animal(nn.utils.spectral_norm(nn.Linear(7, 3))), "spectral norm"),
    "Linear: parametrised spectral norm": (lambda: Animal(nn.utils.parametrizations.spectral_norm(nn.Linear(7, 3))),
                                           "spectral norm"),
    "Linear: complex": (lambda: Animal(nn.Linear(7, 3, dtype=torch.complex64)), "complex"),
    "Linear: TorchScript": (lambda: Animal(torch.jit.trace(nn.Linear(7, 3), torch.zeros(1, 7))), "TorchScript"),
    "Linear: wrong width": (lambda: Animal(nn.Linear(8, 3)), "shapes"),
    "Conv2d: without rows": (lambda: Animal(nn.Conv2d(2, 3, 3), lambda layer, h, y: layer(h[0])[None]),
                             "rows on its first axis"),
    "LayerNorm: over the rows": (lambda: Animal(nn.LayerNorm((6, 7)), view="vector"), "rows on its first axis"),
    "LazyInstanceNorm2d: buffers": (lambda: Animal(nn.LazyInstanceNorm2d(track_running_stats=True)), "no shape yet"),
    "Conv1d: images": (lambda: Animal(nn.Conv1d(2, 3, 3)), "1d|D"),
    "MultiheadAttention: mask of two axes": (lambda: Animal(nn.MultiheadAttention(7, 1, batch_first=True), lambda f, h,
                                             y: f(h, h, h, attn_mask=torch.zeros(3, 3)), "tokens"), "mask"),
    "PReLU: in-place on what it does not see": (lambda: Animal(nn.PReLU(), lambda f, h, y: torch.zeros(2, 5, 7).add_(
        f(h))), "shape"),
    "PReLU: control flow by data": (lambda: Animal(nn.PReLU(), lambda f, h, y: f(h) if h.sum() > 0 else h), "data-dep"),
}  # fmt: skip


def one_step(net):
    engine = PerExampleGradients(net, K)
    engine.backward(lambda x, y: row_losses(engine.module, x, y), *inputs(2))


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_sentence_that_names_the_layer(case):
    build, reason = REFUSED[case]
    net = build()
    with pytest.raises(UserError, match=reason) as caught:
        one_step(net)
    message = str(caught.value)
    assert "layer layer" in message or "Animal" in message
    assert "\n" not in message
    assert all(getattr(p, "grad_sample", None) is None for p in net.parameters())


# --- no class is forgotten ------------------------------------------------------------------------------------


def has_no_parameters(kind) -> bool:
    """Whether the class can be made, and has none then. What cannot be made must be in a list."""
    for args in ((), (2,), (2, 2), (2, (1, 2)), (2, 2, 2)):
        try:
            layer = kind(*args)
        except (TypeError, ValueError, AssertionError, RuntimeError, AttributeError):
            continue
        return not list(layer.parameters())
    return False


def test_every_class_of_torch_nn_with_parameters_is_in_the_zoo():
    shown = {case.split(":")[0] for case in (*FAST, *SLOW, *REFUSED)}
    classes = {name: kind for name, kind in vars(nn).items() if inspect.isclass(kind) and issubclass(kind, nn.Module)}
    assert len(classes) > 150
    missing = [name for name, kind in classes.items() if name not in shown and not has_no_parameters(kind)]
    assert not missing
    assert shown <= classes.keys()

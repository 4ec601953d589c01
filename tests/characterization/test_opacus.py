"""What we rely on, or guard against, in Opacus 1.6: each computable by hand. If one fails, read dpdm/privacy again."""

import pytest
import torch
from opacus import GradSampleModule
from opacus.accountants import PRVAccountant, RDPAccountant
from opacus.optimizers import DPOptimizer
from torch import nn


def line(weight: float = 1.0) -> nn.Linear:
    net = nn.Linear(1, 1, bias=False)
    nn.init.constant_(net.weight, weight)
    return net


def optimizer(net, **changes) -> DPOptimizer:
    arguments = {"noise_multiplier": 0.0, "max_grad_norm": 1.0, "expected_batch_size": 4, "loss_reduction": "sum"}
    return DPOptimizer(torch.optim.SGD(net.parameters(), lr=1.0), **(arguments | changes))


def test_the_optimizer_reads_grad_sample_whoever_filled_it():
    """Conclusion: our engine may fill it. Norms 3 and 0.5 are clipped to 1 and 0.5."""
    net = line()
    dp = optimizer(net)
    net.weight.grad_sample = torch.tensor([[[3.0]], [[0.5]]])
    dp.clip_and_accumulate()
    assert float(net.weight.summed_grad) == pytest.approx(1.5, abs=1e-5)


def test_clipping_accumulates_into_summed_grad_over_chunks():
    """Conclusion: physical chunks need no signal queue; and a zero summed_grad stands for an empty batch."""
    net = line()
    dp = optimizer(net)
    net.weight.summed_grad = torch.zeros_like(net.weight)
    for value in (0.25, 0.5):
        net.weight.grad_sample = torch.tensor([[[value]]])
        dp.clip_and_accumulate()
    dp.add_noise()
    assert float(net.weight.grad) == pytest.approx(0.75)


def test_noise_has_std_multiplier_times_clip_norm_and_uses_the_given_generator():
    net = nn.Linear(300, 300, bias=False)
    dp = optimizer(net, noise_multiplier=3.0, max_grad_norm=0.5)
    draws = []
    for _ in range(2):
        net.weight.summed_grad = torch.zeros_like(net.weight)
        dp.generator = torch.Generator().manual_seed(7)
        dp.add_noise()
        draws.append(net.weight.grad.clone())
    assert float(draws[0].std()) == pytest.approx(1.5, rel=0.02)
    assert torch.equal(*draws)


def test_loss_reduction_sum_does_not_divide():
    """Conclusion: dividing by the expected batch size is ours to do."""
    net = line()
    dp = optimizer(net)
    net.weight.summed_grad = torch.ones_like(net.weight)
    dp.add_noise()
    dp.scale_grad()
    assert float(net.weight.grad) == 1.0


def test_two_forward_passes_are_silently_merged_into_one_unit():
    """Conclusion: PerExampleGradients must count forward passes itself."""
    net = GradSampleModule(line(), batch_first=True, loss_reduction="sum")
    (net(torch.ones(2, 1)).sum() + net(torch.ones(2, 1)).sum()).backward()
    assert net._module.weight.grad_sample.flatten().tolist() == [2.0, 2.0]


def test_hooks_are_wrong_for_a_convolution_of_a_non_contiguous_input():
    """Conclusion: the reference path makes inputs contiguous first."""
    x = torch.arange(8.0).reshape(1, 2, 2, 2)

    def gradient(x):
        conv = nn.Conv2d(2, 1, 1, bias=False)
        net = GradSampleModule(conv, batch_first=True, loss_reduction="sum")
        net(x).sum().backward()
        return conv.weight.grad_sample.flatten().tolist()

    assert gradient(x) == [0 + 1 + 2 + 3, 4 + 5 + 6 + 7]
    channels_last = x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)  # the same values, other strides
    assert torch.equal(channels_last, x)
    assert gradient(channels_last) != gradient(x)


@pytest.mark.parametrize("accountant", [RDPAccountant, PRVAccountant])
def test_accountants_take_a_history_of_noise_rate_steps_and_compose_mixed_events(accountant):
    def spent(*history):
        one = accountant()
        one.history = list(history)
        return one.get_epsilon(1e-5)

    both = spent((1.0, 0.01, 100), (5.0, 1.0, 1))
    assert both > max(spent((1.0, 0.01, 100)), spent((5.0, 1.0, 1)))

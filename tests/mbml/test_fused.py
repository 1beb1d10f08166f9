"""Fused networks against the plain, layer-at-a-time form under autograd."""

import pytest
import torch

from mbml import products
from mbml.fused import perceptrons, shared_scalars, shared_squares, worth_it
from mbml.nets import StackedMLP, batched_perceptrons
from tests.mbml.toys import seeded


def network(stack, sizes, dtype=torch.float32):
    net = StackedMLP(stack, sizes, generator=seeded(), output_scale=0.1)
    scattered = seeded(1)
    with torch.no_grad():
        for bias in net.biases:
            bias.add_(0.1 * torch.randn(bias.shape, generator=scattered))
    return net.to(dtype)


def outcome(function, net, x, seed_of_gradient=2):
    """Output, and the gradients of parameters and input where there are any."""
    y = function(x, list(net.weights), list(net.biases))
    weight = torch.randn(y.shape, generator=seeded(seed_of_gradient)).to(y.dtype)
    inputs = [t for t in (*net.parameters(), x) if t.requires_grad]
    return [y.detach(), *torch.autograd.grad((y * weight).sum(), inputs)]


def plain(net, x):
    """The same in float64."""
    twin = network(net.stack, net.sizes, torch.float64)
    return outcome(batched_perceptrons, twin, x.detach().double().requires_grad_(x.requires_grad))


def assert_close(found, expected):
    assert len(found) == len(expected)
    for f, e in zip(found, expected, strict=True):
        torch.testing.assert_close(f.double(), e, rtol=1e-4, atol=1e-5)


# Layers on both sides of the size from which oneDNN multiplies, narrow ones, and rows that have to be padded.
@pytest.mark.parametrize(("rows", "sizes"), [(7, [5, 8, 6, 3]), (256, [23, 128, 192, 1]), (701, [11, 256, 192, 12])])
@pytest.mark.parametrize("stack", [1, 3])
@pytest.mark.parametrize("to_input", [False, True])
def test_a_pass_and_its_gradients_are_those_of_the_plain_form(rows, sizes, stack, to_input):
    net = network(stack, sizes)
    x = torch.randn(stack, rows, sizes[0], generator=seeded(3), requires_grad=to_input)
    assert_close(outcome(perceptrons, net, x), plain(net, x))


def test_an_input_of_one_is_shared_and_collects_every_gradient():
    net = network(3, [23, 128, 160, 4])
    x = torch.randn(1, 256, 23, generator=seeded(3), requires_grad=True)
    assert_close(outcome(perceptrons, net, x), plain(net, x))


@pytest.mark.parametrize("stack", [2, 4])
def test_inputs_of_another_stack_are_an_error(stack):
    net = network(3, [23, 128, 160, 4])
    with pytest.raises(RuntimeError, match=f"a stack of {stack} does not go into one of 3"):
        net(torch.randn(stack, 256, 23))


def test_strided_inputs():
    net = network(2, [23, 128, 160, 4])
    x = torch.randn(2, 256, 40, generator=seeded(3))[..., 5:28]
    assert_close(outcome(perceptrons, net, x), plain(net, x))


def test_the_plain_product_gives_the_same(monkeypatch):
    """Where torch comes without oneDNN."""
    net, x = network(2, [23, 512, 256, 4]), torch.randn(2, 256, 23, generator=seeded(3), requires_grad=True)
    monkeypatch.setattr(products, "_onednn", None)
    assert_close(outcome(perceptrons, net, x), plain(net, x))


def test_a_large_stack_takes_the_fused_path_with_frozen_parameters_and_the_first_members_only():
    net = network(4, [23, 128, 160, 1])
    x = torch.randn(2, 256, 23, generator=seeded(3), requires_grad=True)
    assert worth_it(x, list(net.weights))
    (found,) = torch.autograd.grad(net(x, frozen=True, first=2).sum(), x)
    weights, biases = ([p[:2] for p in group] for group in (net.weights, net.biases))
    (expected,) = torch.autograd.grad(batched_perceptrons(x, weights, biases).sum(), x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    net(x, frozen=True, first=2).sum().backward()
    assert all(p.grad is None for p in net.parameters())


def test_parameters_changed_before_the_backward_pass_are_an_error():
    net = network(1, [23, 128, 160, 1])
    y = net(torch.randn(1, 256, 23))
    with torch.no_grad():
        net.weights[1].add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize(("rows", "hidden"), [(5, 6), (128, 128)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_members_that_share_inputs(rows, hidden, dtype):
    members, net = 4, network(12, [35, hidden, 1], dtype)
    x = torch.randn(3, rows, 40, generator=seeded(3))[..., :35].to(dtype)
    weights, biases = list(net.weights), list(net.biases)
    y = plain(net, x.repeat_interleave(members, 0))[0]
    torch.testing.assert_close(shared_scalars(x, weights, biases).double(), y, rtol=1e-4, atol=1e-5)

    target = torch.randn(3, rows, 1, generator=seeded(4)).to(dtype)
    twin = network(12, net.sizes, torch.float64)
    wanted, repeated = (t.double().repeat_interleave(members, 0) for t in (target, x))
    expected = (twin(repeated) - wanted).square().mean((1, 2))
    found, gradients = shared_squares(x, target, weights, biases)
    assert_close(
        [found, *gradients], [expected.detach(), *torch.autograd.grad(expected.sum(), list(twin.parameters()))]
    )


def test_a_pass_is_the_same_bits_every_time():
    net, x = network(2, [12, 256, 256, 1]), torch.randn(2, 256, 12, generator=seeded(3))
    first, second = (outcome(perceptrons, net, x) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))

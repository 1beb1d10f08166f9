"""Passes with gradients written out against autograd in float64."""

import pytest
import torch

from mbml.fused import backward_trace, forward_trace, shared_scalars, shared_squares
from mbml.nets import StackedMLP
from tests.mbml.toys import seeded


def network(stack, sizes, dtype=torch.float32):
    net = StackedMLP(stack, sizes, generator=seeded(), output_scale=0.1)
    scattered = seeded(1)
    with torch.no_grad():
        for bias in net.biases:
            bias.add_(0.1 * torch.randn(bias.shape, generator=scattered))
    return net.to(dtype)


def assert_close(found, expected):
    assert len(found) == len(expected)
    for f, e in zip(found, expected, strict=True):
        torch.testing.assert_close(f.double(), e, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("rows", "sizes"), [(7, [5, 8, 6, 3]), (256, [23, 128, 192, 1]), (701, [11, 256, 192, 12])])
@pytest.mark.parametrize(("stack", "inputs"), [(1, 1), (3, 3), (4, 2), (3, 1)])
def test_outputs_and_all_gradients_are_those_of_autograd(rows, sizes, stack, inputs):
    net, twin = network(stack, sizes), network(stack, sizes, torch.float64)
    x = torch.randn(inputs, rows, 40, generator=seeded(3))[..., : sizes[0]]
    gradient = torch.randn(stack, rows, sizes[-1], generator=seeded(2))
    members = x.double().repeat(stack // inputs, 1, 1).requires_grad_()
    expected = twin(members)
    to_input, *to_parameters = torch.autograd.grad(expected, [members, *twin.parameters()], gradient.double())

    found, trace = forward_trace(x, *net.layers)
    places = [torch.empty_like(p) for p in net.parameters()]
    assert_close([found, backward_trace(trace, gradient, net.layers[0])], [expected.detach(), to_input])
    backward_trace(trace, gradient, net.layers[0], places)
    assert_close(places, to_parameters)


def test_the_trace_of_some_rows_gives_their_part_of_the_gradient():
    net, x = network(2, [5, 8, 6, 3]), torch.randn(2, 10, 5, generator=seeded(3))
    gradient = torch.randn(2, 10, 3, generator=seeded(2))
    _, trace = forward_trace(x, *net.layers)
    whole = backward_trace(trace, gradient, net.layers[0])
    part = backward_trace(trace.rows(slice(4)), gradient[:, :4], net.layers[0])
    torch.testing.assert_close(part, whole[:, :4])


@pytest.mark.parametrize(("rows", "hidden"), [(5, 6), (128, 128)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_members_that_share_inputs(rows, hidden, dtype):
    members, net = 4, network(12, [35, hidden, 1], dtype)
    x = torch.randn(3, rows, 40, generator=seeded(3))[..., :35].to(dtype)
    weights, biases = list(net.weights), list(net.biases)
    y = network(12, net.sizes, torch.float64)(x.double().repeat_interleave(members, 0)).detach()
    torch.testing.assert_close(shared_scalars(x, weights, biases).double(), y, rtol=1e-4, atol=1e-5)

    target = torch.randn(3, rows, 1, generator=seeded(4)).to(dtype)
    twin = network(12, net.sizes, torch.float64)
    wanted, repeated = (t.double().repeat_interleave(members, 0) for t in (target, x))
    expected = (twin(repeated) - wanted).square().mean((1, 2))
    found, gradients = shared_squares(x, target, weights, biases)
    assert_close(
        [found, *gradients], [expected.detach(), *torch.autograd.grad(expected.sum(), list(twin.parameters()))]
    )

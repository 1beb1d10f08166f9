"""Stacked networks against one perceptron at a time."""

import math

import pytest
import torch

from mbml.nets import StackedMLP, Standardiser, adam, join_stacks, select_stack, soft_update, step
from tests.mbml.toys import assert_same_bits, forward, layers_of, seeded, through_disk

SIZES = [5, 8, 6, 3]


def network(stack=3, seed=0, **options):
    # A large output layer, so that differences in the output show.
    return StackedMLP(stack, SIZES, generator=seeded(seed), **{"output_scale": 0.5, **options})


@pytest.mark.parametrize("stack", [1, 3])
def test_a_stack_is_its_members_one_at_a_time(stack):
    net, x = network(stack), torch.randn(stack, 7, 5, generator=seeded(1))
    y = net(x)
    assert y.shape == (stack, 7, 3)
    for member in range(stack):
        expected = forward(layers_of(net, member), x[member])
        torch.testing.assert_close(y[member].double(), expected, rtol=1e-5, atol=1e-6)


def test_an_input_of_one_is_shared_by_the_whole_stack():
    net, x = network(), torch.randn(1, 7, 5, generator=seeded(1))
    torch.testing.assert_close(net(x), net(x.repeat(3, 1, 1)))


@pytest.mark.parametrize("stack", [1, 3])
def test_frozen_lets_gradients_through_to_the_input_only(stack):
    net = network(stack)
    x = torch.randn(stack, 7, 5, generator=seeded(1), requires_grad=True)
    (expected,) = torch.autograd.grad(net(x).sum(), x)
    net(x, frozen=True).sum().backward()
    assert all(p.grad is None for p in net.parameters())
    torch.testing.assert_close(x.grad, expected)


def test_first_runs_the_first_members_only():
    net, x = network(), torch.randn(2, 7, 5, generator=seeded(1))
    y = net(x, first=2)
    assert y.shape == (2, 7, 3)
    torch.testing.assert_close(y, select_stack(net, [0, 1])(x))
    torch.testing.assert_close(net(x[:1], first=1), select_stack(net, [0])(x[:1]))


def test_gradients_of_members_do_not_mix():
    net, x = network(), torch.randn(3, 7, 5, generator=seeded(1))
    net(x)[1].sum().backward()
    for parameter in net.parameters():
        assert parameter.grad is not None
        assert parameter.grad[1].abs().sum() > 0
        assert parameter.grad[[0, 2]].abs().sum() == 0


def test_rlkit_initialisation_uses_the_fan_out():
    net = StackedMLP(4, [400, 100, 900, 50], generator=seeded(0))
    for weight, bias, fan_out in zip(list(net.weights)[:-1], list(net.biases)[:-1], (100, 900), strict=True):
        bound = 1 / math.sqrt(fan_out)
        assert 0.99 * bound < weight.abs().max() <= bound
        assert (bias == 0.1).all()
    for output in (net.weights[-1], net.biases[-1]):
        assert 0.0028 < output.abs().max() <= 0.003
        assert output.min() < -0.0028


def test_output_scale_is_what_was_asked_for():
    net = StackedMLP(4, [40, 100, 50], generator=seeded(0), output_scale=0.001)
    assert 0.00095 < net.weights[-1].abs().max() <= 0.001
    assert 0.0009 < net.biases[-1].abs().max() <= 0.001


def test_torch_initialisation_is_that_of_nn_linear():
    net = StackedMLP(2, [400, 100, 900], generator=seeded(0), initialisation="torch")
    linear = torch.nn.Linear(400, 100)
    for weight, bias, fan_in in zip(net.weights, net.biases, (400, 100), strict=True):
        bound = 1 / math.sqrt(fan_in)
        assert 0.99 * bound < weight.abs().max() <= bound
        assert 0.9 * bound < bias.abs().max() <= bound
    assert net.weights[0].std().item() == pytest.approx(linear.weight.std().item(), rel=0.02)


def test_members_differ_and_the_seed_decides():
    net = network(seed=3)
    assert not torch.equal(net.weights[0][0], net.weights[0][1])
    assert_same_bits(net.state_dict(), network(seed=3).state_dict())
    assert not torch.equal(net.weights[0], network(seed=4).weights[0])


def test_global_random_state_is_not_touched():
    before = torch.random.get_rng_state()
    net = network()
    StackedMLP.load(net.save())
    select_stack(net, [0])
    assert torch.equal(torch.random.get_rng_state(), before)


def test_select_and_join_keep_order_and_copy():
    net = network()
    swapped = join_stacks([select_stack(net, [2, 0]), select_stack(net, [1])])
    x = torch.randn(1, 7, 5, generator=seeded(1))
    torch.testing.assert_close(swapped(x), net(x)[[2, 0, 1]])
    before = swapped.weights[0].clone()
    with torch.no_grad():
        net.weights[0].add_(1.0)
    assert torch.equal(swapped.weights[0], before)


def test_save_and_load(tmp_path):
    net = network()
    loaded = StackedMLP.load(through_disk(tmp_path, net.save()))
    assert (loaded.stack, loaded.sizes) == (3, tuple(SIZES))
    assert_same_bits(net.state_dict(), loaded.state_dict())


def test_twin_critics_share_the_inputs_of_their_tasks():
    critics, x = network(stack=4), torch.randn(2, 7, 5, generator=seeded(1))
    values = critics(x).unflatten(0, (2, 2))
    for critic in range(2):
        for task in range(2):
            expected = forward(layers_of(critics, critic * 2 + task), x[task])
            torch.testing.assert_close(values[critic, task].double(), expected, rtol=1e-5, atol=1e-6)


def test_soft_update():
    target, online = network(seed=0), network(seed=1)
    expected = [0.995 * t.detach() + 0.005 * o.detach() for t, o in zip(target.parameters(), online.parameters())]  # noqa: B905
    soft_update(target, online, 0.005)
    for found, wanted in zip(target.parameters(), expected, strict=True):
        torch.testing.assert_close(found.detach(), wanted)


def test_adam_is_adam():
    net = network(stack=2)
    twins = [p.detach().double().requires_grad_() for p in net.parameters()]
    ours, plain = adam(net.parameters(), 3e-4), torch.optim.Adam(twins, lr=3e-4, fused=False, foreach=False)
    x = torch.randn(2, 7, 5, generator=seeded(1))
    for _ in range(3):
        loss = net(x).square().sum()
        step(ours, loss)
        for t, p in zip(twins, net.parameters(), strict=True):
            assert p.grad is not None
            t.grad = p.grad.double()
        plain.step()
    for t, p in zip(twins, net.parameters(), strict=True):
        torch.testing.assert_close(p.detach().double(), t.detach(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("sizes", [[5, 8, 6, 3], [23, 128, 160, 4], [5, 3]])
@pytest.mark.parametrize("members", [1, 2, 4])
def test_traced_gradients_are_those_of_autograd(sizes, members):
    """Small and large layers, inputs that go round, all columns of the inputs and some."""
    net = StackedMLP(4, sizes, generator=seeded(), output_scale=0.1)
    x = torch.randn(members, 300, sizes[0], generator=seeded(1), requires_grad=True)
    weight = torch.randn(4, 300, sizes[-1], generator=seeded(2))
    # An expanded copy for every member, so that autograd keeps their gradients apart.
    apart = x.detach().repeat(4 // members, 1, 1).requires_grad_()
    y = net(apart)
    wanted = torch.autograd.grad((y * weight).sum(), [apart, *net.parameters()])

    found, trace = net.trace(x)
    torch.testing.assert_close(found, y.detach())
    net.backward(trace, weight)
    for p, gradient in zip(net.parameters(), wanted[1:], strict=True):
        torch.testing.assert_close(p.grad, gradient, rtol=1e-4, atol=1e-4)
    for columns in (slice(None), slice(2, 4)):
        torch.testing.assert_close(
            net.input_gradient(trace, weight, columns), wanted[0][..., columns], rtol=1e-4, atol=1e-4
        )


def test_rows_without_a_gradient_have_none_in_the_inputs():
    """Which are skipped where every member runs alone; one member here has no other rows, one has some."""
    net = StackedMLP(3, [23, 128, 160, 1], generator=seeded(), output_scale=0.1)
    x = torch.randn(3, 300, 23, generator=seeded(1), requires_grad=True)
    weight = torch.randn(3, 300, 1, generator=seeded(2))
    weight[0], weight[1, ::3] = 0, 0
    (wanted,) = torch.autograd.grad((net(x) * weight).sum(), x)
    found = net.input_gradient(net.trace(x.detach())[1], weight)
    assert not found[0].any()
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_steps_on_written_gradients_are_those_of_autograd():
    net, other = (StackedMLP(2, [3, 8, 2], generator=seeded()) for _ in range(2))
    x, weight = torch.randn(2, 5, 3, generator=seeded(1)), torch.randn(2, 5, 2, generator=seeded(2))
    optimisers = [adam(net.parameters(), 0.1), adam(other.parameters(), 0.1)]
    for number in range(3):
        net.backward(net.trace(x)[1], weight)
        (other(x) * weight).sum().backward()
        for optimiser in optimisers:
            optimiser.step()
        other.zero_grad()
        if number == 1:  # whoever clears the gradients in between, as imitation does
            net.zero_grad()
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_a_standardiser_gives_mean_0_and_deviation_1_and_only_shifts_a_constant_column():
    values = torch.randn(500, 3, generator=seeded(1)) * torch.tensor([0.01, 5.0, 0.0]) + torch.tensor([2.0, -3.0, 7.0])
    standardiser = Standardiser(3, torch.device("cpu"))
    assert torch.equal(standardiser(values), values)
    standardiser.fit(values)
    found = standardiser(values)
    torch.testing.assert_close(found.mean(0), torch.zeros(3), rtol=0, atol=1e-4)
    torch.testing.assert_close(found.std(0), torch.tensor([1.0, 1.0, 0.0]), rtol=1e-4, atol=1e-4)

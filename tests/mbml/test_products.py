"""Products by oneDNN beside torch's own in double precision, on whatever processor this is."""

import pytest
import torch

from mbml import products
from mbml.nets import StackedMLP
from mbml.products import affine, matmul
from tests.mbml.toys import seeded

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="needs oneDNN")


@pytest.fixture(autouse=True)
def every_product(monkeypatch):
    """By oneDNN, whatever the processor and the size; returns the calls."""
    calls, own = [], products._product
    monkeypatch.setattr(products, "_FASTER", True)
    monkeypatch.setattr(products, "_LEAST", {2: (1, 0), 3: (1, 0)})
    monkeypatch.setattr(products, "_product", lambda *given: calls.append(given) or own(*given))
    return calls


def normal(*shape, seed):
    return torch.randn(*shape, generator=seeded(seed))


def assert_close(found, expected):
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stack", [(), (3,)])
@pytest.mark.parametrize(("rows", "inner", "columns"), [(5, 7, 3), (64, 1, 33), (130, 256, 17)])
def test_values_and_gradients_are_those_of_double_precision(stack, rows, inner, columns, every_product):
    x, weight = normal(*stack, rows, inner, seed=1), normal(*stack, inner, columns, seed=2)
    bias, gradient = normal(*stack, 1, columns, seed=3), normal(*stack, rows, columns, seed=4)
    given = [each.requires_grad_() for each in (x, weight, bias)]
    twins = [each.detach().double().requires_grad_() for each in given]
    expected = twins[0] @ twins[1] + twins[2]
    found = affine(*given)
    assert every_product
    assert_close(found, expected)
    wanted = torch.autograd.grad(expected, twins, gradient.double())
    for ours, theirs in zip(torch.autograd.grad(found, given, gradient), wanted, strict=True):
        assert_close(ours, theirs)


def test_a_sum_has_a_gradient_without_memory_of_its_own(every_product):
    x, weight = normal(6, 4, seed=1).requires_grad_(), normal(4, 5, seed=2)
    affine(x, weight, torch.zeros(1, 5)).sum().backward()
    assert x.grad is not None
    assert_close(x.grad, weight.double().sum(1).expand(6, 4))


def test_a_product_is_written_where_it_is_wanted(every_product):
    a, b, place = normal(2, 5, 4, seed=1), normal(2, 4, 3, seed=2), torch.empty(2, 5, 3)
    assert matmul(a, b, place) is place
    assert len(every_product) == 3  # the stack, and its members
    assert_close(place, a.double() @ b.double())


@pytest.mark.parametrize("stack", [1, 4])
def test_a_network_and_its_frozen_gradient(stack, every_product):
    net = StackedMLP(stack, [6, 32, 16, 2], generator=seeded(), output_scale=0.3)
    twin = StackedMLP.load(net.save()).double()
    x = normal(stack, 20, 6, seed=5).requires_grad_()
    y = x.detach().double().requires_grad_()
    for network, inputs in ((net, x), (twin, y)):
        network(inputs, frozen=True).square().sum().backward()
        assert all(p.grad is None for p in network.parameters())
    assert every_product
    assert x.grad is not None
    assert_close(x.grad, y.grad)


def test_other_precisions_single_columns_and_traced_tensors_are_left_to_torch(every_product):
    affine(normal(5, 4, seed=1).double(), normal(4, 3, seed=2).double(), torch.zeros(1, 3).double())
    affine(normal(5, 4, seed=1), normal(4, 1, seed=2), torch.zeros(1, 1))
    affine(torch.empty(5, 4, device="meta"), torch.empty(4, 3, device="meta"), torch.zeros(1, 3, device="meta"))
    torch.export.export(StackedMLP(1, [4, 8, 2], generator=seeded()), (normal(1, 5, 4, seed=1),))
    assert not every_product

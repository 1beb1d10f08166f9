"""Every way to a product against one that adds in float64, whatever its size and strides."""

import itertools

import pytest
import torch

from mbml import products
from mbml.products import affine, layer, matmul, matmul_into
from tests.mbml.toys import seeded

ROWS, INNER, COLUMNS = (3, 40, 300), (1, 5, 400), (1, 7, 16, 300)


def factors(rows, inner, columns, stack):
    generator = seeded(rows + inner + columns)
    shape = () if stack is None else (stack,)
    a = torch.randn(*shape, rows, inner + 2, generator=generator)[..., 1:-1]
    return a, torch.randn(*shape, inner, columns, generator=generator)


def assert_near(found, wanted):
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("rows", "inner", "columns"), itertools.product(ROWS, INNER, COLUMNS))
@pytest.mark.parametrize("stack", [None, 3])
def test_products_of_every_size(rows, inner, columns, stack):
    a, b = factors(rows, inner, columns, stack)
    bias = torch.randn(*b.shape[:-2], 1, columns, generator=seeded(1))
    wanted = a.double() @ b.double()
    assert_near(affine(a, b, bias), wanted + bias)
    assert_near(layer(a, b, bias, relu=False), wanted + bias)
    assert_near(layer(a, b, bias, relu=True), (wanted + bias).relu())
    assert_near(matmul(a, b), wanted)
    assert_near(matmul(a, b, varying=True), wanted)
    place = torch.empty(wanted.shape)
    matmul_into(place, a, b)
    assert_near(place, wanted)


@pytest.mark.parametrize("columns", [7, 300])
@pytest.mark.parametrize("stack", [None, 3])
def test_gradients_of_an_affine_map(columns, stack):
    a, b = (t.clone().requires_grad_() for t in factors(300, 5, columns, stack))
    bias = torch.randn(*b.shape[:-2], 1, columns, generator=seeded(1)).requires_grad_()
    y = affine(a, b, bias)
    weight = torch.randn(y.shape, generator=seeded(2))
    twins = [t.detach().double().requires_grad_() for t in (a, b, bias)]
    wanted = torch.autograd.grad(((twins[0] @ twins[1] + twins[2]) * weight).sum(), twins)
    for found, expected in zip(torch.autograd.grad((y * weight).sum(), [a, b, bias]), wanted, strict=True):
        assert_near(found, expected)


def test_sizes_take_different_ways(monkeypatch):
    """Those above reach all three of them."""
    asked = []
    for name in ("_is_narrow", "_is_large"):
        judge = getattr(products, name)
        monkeypatch.setattr(products, name, lambda a, b, judge=judge: asked.append(judge(a, b)) or asked[-1])
    ways = set()
    for sizes in itertools.product(ROWS, INNER, COLUMNS):
        asked.clear()
        matmul(*factors(*sizes, None))
        ways.add(tuple(asked))
    assert ways == {(True,), (False, True), (False, False)}

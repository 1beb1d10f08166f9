"""Product of Gaussians, divergence and encoder against plain loops in float64."""

import math

import pytest
import torch

from mbml.context import ContextEncoder, Factors, Gaussian, kl_divergence, kl_to_prior, posterior, set_posterior
from tests.mbml.toys import forward, layers_of, naive_kl, naive_posterior, seeded


def gaussian(*shape, seed=0):
    generator = seeded(seed)
    mean = torch.randn(*shape, generator=generator).double()
    return Gaussian(mean, torch.rand(*shape, generator=generator).double() * 3 + 0.05)


def encoder(context=9, size=4, seed=0):
    net = ContextEncoder(context, (8, 8), size, generator=seeded(seed))
    with torch.no_grad():
        net.body.weights[-1].mul_(300)  # an output layer as initialised would make all factors alike
    return net


@pytest.mark.parametrize("mask", [[1, 1, 1, 1, 1], [1, 0, 1, 0, 0], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0]])
def test_posterior_of_a_masked_set(mask):
    mean, variance = gaussian(5, 3)
    factors = Factors(1 / variance, mean / variance)
    q = set_posterior(factors, torch.tensor(mask, dtype=torch.bool))
    for d in range(3):
        precision = sum(w / variance[n, d].item() for n, w in enumerate(mask))
        precision = 1.0 if precision == 0 else precision
        weighted = sum(w * mean[n, d].item() / variance[n, d].item() for n, w in enumerate(mask))
        assert q.variance[d].item() == pytest.approx(1 / precision)
        assert q.mean[d].item() == pytest.approx(weighted / precision)


def test_an_empty_set_gives_the_prior():
    q = posterior(torch.zeros(4), torch.zeros(4))
    assert torch.equal(q.mean, torch.zeros(4))
    assert torch.equal(q.variance, torch.ones(4))


def test_the_prior_is_not_a_factor():
    mean, variance = gaussian(1, 3)
    q = set_posterior(Factors(1 / variance, mean / variance))
    torch.testing.assert_close(q.mean, mean[0])
    torch.testing.assert_close(q.variance, variance[0])


def test_every_set_of_a_batch_is_its_own():
    mean, variance = gaussian(2, 6, 5, 3)
    mask = torch.rand(2, 6, 5, generator=seeded(1)) < 0.5
    factors = Factors(1 / variance, mean / variance)
    q = set_posterior(factors, mask)
    for i in range(2):
        for j in range(6):
            kept = mask[i, j]
            alone = set_posterior(Factors(factors.precision[i, j][kept], factors.precision_mean[i, j][kept]))
            torch.testing.assert_close(q.mean[i, j], alone.mean)
            torch.testing.assert_close(q.variance[i, j], alone.variance)


def test_divergence_both_ways():
    a, b = gaussian(6, 4, seed=1), gaussian(6, 4, seed=2)
    for n in range(6):
        a_n, b_n = Gaussian(a.mean[n], a.variance[n]), Gaussian(b.mean[n], b.variance[n])
        assert kl_divergence(a, b)[n].item() == pytest.approx(naive_kl(a_n, b_n).item())
        assert kl_divergence(b, a)[n].item() == pytest.approx(naive_kl(b_n, a_n).item())
        prior = Gaussian(torch.zeros(4).double(), torch.ones(4).double())
        assert kl_to_prior(a)[n].item() == pytest.approx(naive_kl(a_n, prior).item())
    assert not torch.allclose(kl_divergence(a, b), kl_divergence(b, a))


def test_divergence_of_twenty_extreme_dimensions_is_finite():
    narrow = Gaussian(torch.zeros(20), torch.full((20,), 1e-7))
    wide = Gaussian(torch.zeros(20), torch.ones(20))
    assert kl_to_prior(narrow).item() == pytest.approx(20 * 0.5 * (1e-7 - math.log(1e-7) - 1), rel=1e-5)
    assert torch.isfinite(kl_divergence(wide, narrow))
    assert kl_divergence(narrow, wide).item() == pytest.approx(kl_to_prior(narrow).item(), rel=1e-5)


def test_a_sample_is_reparameterised():
    mean, variance = (p.float().requires_grad_() for p in gaussian(3, 4))
    z = Gaussian(mean, variance).sample(seeded(5))
    noise = torch.randn(3, 4, generator=seeded(5))
    torch.testing.assert_close(z, mean + variance.sqrt() * noise)
    z.sum().backward()
    torch.testing.assert_close(mean.grad, torch.ones(3, 4))
    torch.testing.assert_close(variance.grad, noise / (2 * variance.detach().sqrt()))


def test_encoder_makes_one_factor_per_transition():
    net = encoder()
    context = torch.randn(2, 5, 9, generator=seeded(1))
    factors = net(context)
    assert factors.precision.shape == factors.precision_mean.shape == (2, 5, 4)
    layers = layers_of(net.body)
    for i in range(2):
        for n in range(5):
            output = forward(layers, context[i, n])
            variance = torch.log1p(output[4:].exp()).clamp(min=1e-7)
            torch.testing.assert_close(factors.precision[i, n].double(), 1 / variance, rtol=1e-4, atol=1e-5)
            wanted = output[:4] / variance
            torch.testing.assert_close(factors.precision_mean[i, n].double(), wanted, rtol=1e-4, atol=1e-5)


def test_posterior_of_encoded_transitions():
    net = encoder()
    context = torch.randn(7, 9, generator=seeded(1))
    expected = naive_posterior(layers_of(net.body), list(context), 4)
    for order in (torch.arange(7), torch.randperm(7, generator=seeded(2))):
        q = set_posterior(net(context[order]))
        torch.testing.assert_close(q.mean.double(), expected.mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(q.variance.double(), expected.variance, rtol=1e-4, atol=1e-6)


def test_variance_has_a_floor():
    net = encoder()
    with torch.no_grad():
        net.body.biases[-1][..., 4:] = -1e4
    factors = net(torch.randn(1, 9, generator=seeded(1)))
    torch.testing.assert_close(factors.precision, torch.full((1, 4), 1e7))

"""What every encoder must do, and each one against plain loops in float64."""

import math
from typing import Any

import pytest
import torch

from mbml.encoders import ENCODERS, Belief, EncoderConfig, make_encoder
from mbml.registry import UnknownName
from tests.mbml.toys import LAYOUT, forward, layers_of, naive_kl, naive_posterior, seeded

CONTEXT, Z = LAYOUT.context_size, 4
every_encoder = pytest.mark.parametrize("kind", ENCODERS)


def encoder(kind, seed=0, **changes: Any) -> Any:
    net = make_encoder(LAYOUT, EncoderConfig(kind, (8, 8), Z, **changes), seeded(seed))
    with torch.no_grad():
        net.body.weights[-1].mul_(300)  # an output layer as initialised would make all transitions alike
    return net


def transitions(*shape, seed=1):
    return torch.randn(*shape, CONTEXT, generator=seeded(seed))


def gaussian(*shape, seed=0):
    generator = seeded(seed)
    mean = torch.randn(*shape, generator=generator).double()
    return Belief(mean, torch.rand(*shape, generator=generator).double() * 3 + 0.05)


def naive_mean(net, seen):
    """Mean of the bounded embeddings of transitions, one after the other."""
    total = torch.zeros(Z).double()
    for transition in seen:
        output = forward(layers_of(net.body), transition)
        spread = ((output - output.mean()).square().mean() + 1e-5).sqrt()
        total = total + torch.tanh((output - output.mean()) / spread)
    return Belief(total / max(len(seen), 1), torch.zeros(Z).double())


def naive_mixture(net, seen):
    """Log-probabilities of anchors added up over transitions, one after the other; nothing seen is the last one."""
    embeddings, evidence = net.embeddings.double(), torch.zeros(net.config.anchors).double()
    for transition in seen:
        logits = forward(layers_of(net.body), transition)
        evidence = evidence + logits - torch.logsumexp(logits, 0)
    weights = [math.exp(e) for e in ((evidence - evidence.max()) / net.config.temperature).tolist()]
    told = torch.tensor(weights).double() / sum(weights) @ embeddings[:-1]
    return Belief(told if len(seen) else embeddings[-1], torch.zeros(Z).double())


NAIVE = {
    "product": lambda net, seen: naive_posterior(layers_of(net.body), seen, Z),
    "mean": naive_mean,
    "mixture": naive_mixture,
}


@every_encoder
@pytest.mark.parametrize("count", [0, 1, 7])
def test_summed_statistics_are_the_belief_of_the_set(kind, count):
    net, seen = encoder(kind), transitions(count)
    expected = NAIVE[kind](net, list(seen))
    for found in (net.belief(net.statistics(seen).sum(0)), net.infer(seen)):
        torch.testing.assert_close(found.mean.double(), expected.mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.variance.double(), expected.variance, rtol=1e-4, atol=1e-6)


@every_encoder
def test_masked_statistics_are_those_of_the_smaller_set_and_every_set_of_a_batch_is_its_own(kind):
    net, seen = encoder(kind), transitions(2, 6, 5)
    mask = torch.rand(2, 6, 5, generator=seeded(2)) < 0.5
    mask[0, 0] = False
    statistics = net.statistics(seen)
    assert statistics.shape == (2, 6, 5, net.statistics(transitions(1)).shape[-1])
    found = net.belief((statistics * mask.unsqueeze(-1)).sum(-2))
    for i in range(2):
        for j in range(6):
            alone = net.infer(seen[i, j][mask[i, j]])
            torch.testing.assert_close(found.mean[i, j], alone.mean, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(found.variance[i, j], alone.variance, rtol=1e-4, atol=1e-6)


@every_encoder
def test_the_order_of_transitions_plays_no_role(kind):
    net, seen = encoder(kind), transitions(12)
    first, again = net.infer(seen), net.infer(seen[torch.randperm(12, generator=seeded(3))])
    for one, other in zip(first, again, strict=True):
        torch.testing.assert_close(one, other)
    assert not torch.allclose(first.mean, net.infer(transitions(12, seed=9)).mean)


@every_encoder
def test_divergence_and_regulariser_are_zero_where_they_should_be_and_carry_gradient(kind):
    net = encoder(kind)
    belief, other = net.infer(transitions(3, 5)), net.infer(transitions(3, 5, seed=2))
    assert net.divergence(belief, other).shape == net.regulariser(belief).shape == (3,)
    torch.testing.assert_close(net.divergence(belief, belief), torch.zeros(3), rtol=0, atol=1e-5)
    assert (net.divergence(belief, other) > 0).all()
    assert (net.regulariser(belief) >= 0).all()
    nothing = net.belief(torch.zeros_like(net.statistics(transitions(1))[0]))
    assert net.regulariser(nothing).item() == 0.0
    (net.divergence(belief, other) + net.regulariser(belief)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in net.parameters())


@every_encoder
def test_every_encoder_draws_the_same_random_numbers(kind):
    generator = seeded(5)
    encoder(kind).infer(transitions(3, 5)).sample(generator)
    expected = seeded(5)
    torch.randn(3, Z, generator=expected)
    assert torch.equal(generator.get_state(), expected.get_state())


def test_an_encoder_that_does_not_exist_is_refused_by_name():
    with pytest.raises(UnknownName, match="There is no encoder 'meen'; choose one of product, "):
        EncoderConfig(kind="meen")


def test_a_sample_is_reparameterised():
    mean, variance = (p.float().requires_grad_() for p in gaussian(3, 4))
    z = Belief(mean, variance).sample(seeded(5))
    noise = torch.randn(3, 4, generator=seeded(5))
    torch.testing.assert_close(z, mean + variance.sqrt() * noise)
    z.sum().backward()
    torch.testing.assert_close(mean.grad, torch.ones(3, 4))
    torch.testing.assert_close(variance.grad, noise / (2 * variance.detach().sqrt()))


def test_the_mean_is_certain_and_bounded():
    net = encoder("mean")
    belief = net.infer(transitions(6, 20))
    assert torch.equal(belief.sample(seeded()), belief.mean)
    assert belief.mean.abs().max() < 1
    a, b = gaussian(6, 4, seed=1), gaussian(6, 4, seed=2)
    for n, found in enumerate(net.divergence(a, b).tolist()):
        assert found == pytest.approx(sum((a.mean[n, d] - b.mean[n, d]).item() ** 2 for d in range(4)))


@every_encoder
def test_standardised_inputs_are_those_of_a_network_that_sees_them_so(kind):
    seen, plain = transitions(200), encoder(kind)
    seen[:, 2] = 7.0  # a constant column
    net = encoder(kind, standardised=True)
    before = net.read(seen)
    net.fit(seen)
    s, a, moved, r = seen.split([3, 2, 3, 1], -1)
    inputs = torch.cat([s, a, moved - s, r], -1)
    torch.testing.assert_close(before, plain.read(inputs))
    deviation = inputs.std(0)
    inputs = (inputs - inputs.mean(0)) / torch.where(deviation > 0, deviation, 1.0)
    torch.testing.assert_close(net.read(seen), plain.read(inputs), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(net.read(seen), before)


class TestMixture:
    def test_it_is_surer_with_evidence_and_less_so_with_temperature(self):
        net, warm = encoder("mixture"), encoder("mixture", temperature=50.0)
        for count in (1, 30):
            seen = net.statistics(transitions(count)).sum(0)
            assert net.weights(seen).max() > warm.weights(seen).max()
            torch.testing.assert_close(net.weights(seen).sum(), torch.tensor(1.0))
            assert net.weights(seen)[-1] == 0
        more = net.statistics(transitions(30)).sum(0)
        assert net.weights(more).max() > net.weights(net.statistics(transitions(1)).sum(0)).max()

    def test_nothing_seen_is_the_untold_embedding(self):
        net = encoder("mixture")
        nothing = net.belief(torch.zeros(2, net.config.anchors + 1))
        assert torch.equal(nothing.mean, net.embeddings[-1:].expand(2, -1))


class TestProductOfGaussians:
    def test_the_prior_is_the_belief_of_nothing_and_no_factor(self):
        net = encoder("product")
        nothing = net.belief(torch.zeros(2 * Z))
        assert torch.equal(nothing.mean, torch.zeros(Z))
        assert torch.equal(nothing.variance, torch.ones(Z))
        factor = torch.rand(2 * Z, generator=seeded(1)) + 0.1
        torch.testing.assert_close(net.belief(factor).variance, 1 / factor[:Z])

    def test_divergence_both_ways(self):
        net, a, b = encoder("product"), gaussian(6, 4, seed=1), gaussian(6, 4, seed=2)
        prior = Belief(torch.zeros(4).double(), torch.ones(4).double())
        for n in range(6):
            one, other = Belief(a.mean[n], a.variance[n]), Belief(b.mean[n], b.variance[n])
            assert net.divergence(a, b)[n].item() == pytest.approx(naive_kl(one, other).item())
            assert net.divergence(b, a)[n].item() == pytest.approx(naive_kl(other, one).item())
            assert net.regulariser(a)[n].item() == pytest.approx(naive_kl(one, prior).item())
        assert not torch.allclose(net.divergence(a, b), net.divergence(b, a))

    def test_divergence_of_twenty_extreme_dimensions_is_finite(self):
        net = encoder("product")
        narrow = Belief(torch.zeros(20), torch.full((20,), 1e-7))
        wide = Belief(torch.zeros(20), torch.ones(20))
        assert net.regulariser(narrow).item() == pytest.approx(20 * 0.5 * (1e-7 - math.log(1e-7) - 1), rel=1e-5)
        assert torch.isfinite(net.divergence(wide, narrow))
        assert net.divergence(narrow, wide).item() == pytest.approx(net.regulariser(narrow).item(), rel=1e-5)

    def test_variance_has_a_floor(self):
        net = encoder("product")
        with torch.no_grad():
            net.body.biases[-1][..., Z:] = -1e4
        torch.testing.assert_close(net.statistics(transitions(1))[:, :Z], torch.full((1, Z), 1e7))

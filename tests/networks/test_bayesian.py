import pytest
import torch
from torch import nn

from anp_vs.attacks import frozen
from anp_vs.attacks.losses import ce
from anp_vs.attacks.prediction import input_gradient
from anp_vs.errors import InputError
from anp_vs.networks import build
from anp_vs.networks.bayesian import Bayesian, bayesian_layers, is_random, make_bayesian, weights_kl
from anp_vs.pruning.compact import compact


def lenet(initial_rho: float = -3.0) -> nn.Module:
    return make_bayesian(build("lenet5-caffe"), 1.0, initial_rho)


@pytest.mark.parametrize(("name", "layers"), [("lenet5-caffe", 4), ("vgg16", 15)])
def test_every_convolution_and_dense_layer_is_converted_and_weights_double(name: str, layers: int) -> None:
    network = build(name)
    plain = {k: v.clone() for k, v in network.state_dict().items()}
    weights = sum(p.numel() for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear) for p in m.parameters())
    before = sum(p.numel() for p in network.parameters())
    make_bayesian(network, 1.0, -3.0)
    assert len(bayesian_layers(network)) == layers
    assert all(isinstance(m, Bayesian) for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    assert sum(p.numel() for p in network.parameters()) == before + weights
    state = network.state_dict()
    assert all(torch.equal(state[key], value) for key, value in plain.items())


def test_the_kl_is_that_of_two_gaussians_over_all_layers() -> None:
    network = make_bayesian(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Linear(4, 2)), 0.1, -5.0)
    normal = torch.distributions.Normal
    expected = torch.zeros(())
    for layer in bayesian_layers(network).values():
        layer.weight_rho.data.normal_(-3, 1)
        layer.bias_rho.data.normal_(-3, 1)
        for mu, rho in ((layer.weight, layer.weight_rho), (layer.bias, layer.bias_rho)):
            prior = normal(torch.zeros_like(mu), torch.full_like(mu, 0.1))
            expected = expected + torch.distributions.kl_divergence(normal(mu, rho.exp()), prior).sum()
    torch.testing.assert_close(weights_kl(network), expected)


def test_a_posterior_equal_to_the_prior_has_no_divergence() -> None:
    network = make_bayesian(nn.Sequential(nn.Linear(4, 2)), 0.5, torch.tensor(0.5).log().item())
    nn.init.zeros_(network[0].weight)
    nn.init.zeros_(network[0].bias)
    assert weights_kl(network).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_an_answer_has_the_mean_and_spread_of_the_posterior_in_training_and_evaluation(
    training: bool,
) -> None:
    """For y = w x + b: E[y] = mu_w x + mu_b and Var[y] = s_w^2 |x|^2 + s_b^2."""
    network = make_bayesian(nn.Sequential(nn.Linear(6, 3)), 1.0, -1.0).train(training)
    network[0].bias_rho.data.fill_(-2.0)
    x = torch.randn(1, 6)
    with torch.no_grad():
        answers = torch.cat([network(x) for _ in range(4000)])
        mean = x @ network[0].weight.T + network[0].bias
    variance = torch.tensor(-2.0).exp() * x.square().sum() + torch.tensor(-4.0).exp()
    torch.testing.assert_close(answers.mean(0), mean[0], atol=0.1, rtol=0)  # 5 standard errors
    torch.testing.assert_close(answers.var(0), variance.expand(3), rtol=0.12, atol=0)


def test_a_batch_meets_one_draw() -> None:
    network, image = lenet().eval(), torch.rand(1, 1, 28, 28)
    with torch.no_grad():
        same, other = network(image.repeat(3, 1, 1, 1)), network(image)
    torch.testing.assert_close(same[0], same[2])
    assert not torch.allclose(same[0], other[0])


def test_a_convolution_draws_as_a_dense_layer_of_the_same_weights() -> None:
    conv = make_bayesian(nn.Sequential(nn.Conv2d(3, 5, 4, stride=2, padding=1, dilation=2, groups=1)), 1.0, -1.0)[0]
    images = torch.rand(2, 3, 12, 12)
    torch.manual_seed(3)
    result = conv(images)
    torch.manual_seed(3)
    weight, bias = conv.draw()
    assert bias is not None
    unfolded = nn.functional.unfold(images, 4, dilation=2, padding=1, stride=2)
    expected = (weight.flatten(1) @ unfolded + bias[:, None]).view(result.shape)
    torch.testing.assert_close(result, expected)


def test_a_layer_without_a_bias_has_none() -> None:
    network = make_bayesian(nn.Sequential(nn.Linear(4, 2, bias=False)), 1.0, -3.0)
    assert set(network.state_dict()) == {"0.weight", "0.weight_rho"}
    assert network(torch.zeros(1, 4)).abs().max() == 0
    assert weights_kl(network) > 0


def test_it_is_saved_and_loaded_like_any_other() -> None:
    saved, loaded = lenet(), lenet(-1.0)
    saved.conv1.weight_rho.data.normal_()
    loaded.load_state_dict(saved.state_dict())
    images = torch.rand(2, 1, 28, 28)
    answers = []
    for network in (saved, loaded):
        torch.manual_seed(0)
        answers.append(network.eval()(images))
    assert torch.equal(*answers)


@pytest.mark.parametrize("name", ["lenet5-caffe", "vgg16"])
def test_one_seed_gives_one_network_also_as_a_copy_and_in_another_layout(name: str) -> None:
    network = make_bayesian(build(name), 0.1, -5.0).eval()
    images = torch.rand(1, *network.input_shape)
    answers = []
    for version in (network, compact(network), network.to(memory_format=torch.channels_last)):
        torch.manual_seed(0)
        with torch.no_grad():
            answers.append(version(images))
    torch.testing.assert_close(answers[1], answers[0])
    torch.testing.assert_close(answers[2], answers[0], rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        assert not torch.equal(network(images), answers[2])


def test_an_attack_sees_drawn_weights_and_several_draws_steady_its_gradient() -> None:
    network, images, labels = lenet(-2.5).eval(), torch.rand(4, 1, 28, 28), torch.tensor([0, 1, 2, 3])

    def agreement(draws: int) -> float:
        first, second = (input_gradient(network, images, labels, ce, draws).flatten(1) for _ in range(2))
        return nn.functional.cosine_similarity(first, second).mean().item()

    with frozen(network):
        one, many = agreement(1), agreement(25)
        assert not torch.equal(network(images), network(images))
    assert 0 < one < many - 0.1, (one, many)


def test_what_cannot_be_converted_is_refused() -> None:
    with pytest.raises(InputError, match="already"):
        make_bayesian(lenet(), 1.0, -3.0)
    for network in (nn.Sequential(nn.ReLU()), nn.Linear(3, 3)):
        with pytest.raises(InputError, match="Sequential"):
            make_bayesian(network, 1.0, -3.0)
    with pytest.raises(InputError, match="make_bayesian"):
        weights_kl(nn.Linear(3, 3))
    assert not is_random(build("lenet5-caffe"))
    assert is_random(lenet())


def test_layers_that_would_stay_plain_are_refused() -> None:
    for layer in (nn.Conv1d(3, 3, 1), nn.ConvTranspose2d(3, 3, 1), nn.MultiheadAttention(4, 2)):
        with pytest.raises(InputError, match=rf"1 \({type(layer).__name__}\) .* has no Bayesian form"):
            make_bayesian(nn.Sequential(nn.Linear(3, 3), layer), 1.0, -3.0)

"""Modes of training and evaluation come back module by module."""

from torch import nn

from anp_vs.modes import evaluating


def test_every_module_gets_its_own_mode_back() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Sequential(nn.ReLU(), nn.Dropout()))
    network[1].eval()
    network[2].eval()
    before = [module.training for module in network.modules()]
    with evaluating(network):
        assert not any(module.training for module in network.modules())
        network.train()
    assert [module.training for module in network.modules()] == before
    assert True in before
    assert False in before

"""The networks: shapes, modes, which part is called first, and MobileNetV2's names and weights."""

import pytest
import torch
from torch import nn

from experiments.networks.mobilenet import FILE, MobileNetV2
from experiments.networks.networks import EVALUATING, MOBILENET, NETWORKS, NOISED, make


def given(name, side, n=3):
    x = torch.rand(n, side * side, generator=torch.Generator().manual_seed(0))
    return (x, torch.linspace(0, 1, n)) if name in NOISED else (x,)


@pytest.mark.parametrize("name", NETWORKS)
def test_each_network_takes_rows_of_pixels_and_trains_all_of_its_weights(name):
    for side in (8, 28):
        torch.manual_seed(0)
        net = make(name, side)
        assert net.training is (name not in EVALUATING)
        out = net(*given(name, side))
        assert out.shape == (3, side * side if name == "denoiser" else 10)
        out.square().mean().backward()
        assert [n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


def called_first(name):
    called = []
    net = make(name, 8)
    for module_name, module in net.named_modules():
        if not list(module.children()) and list(module.parameters()):
            module.register_forward_pre_hook(lambda *_, who=module_name: called.append(who))
    net(*given(name, 8))
    return called[0]


def test_what_a_name_says_comes_first_is_called_first():
    assert called_first("position-first") == "position"
    assert called_first("noise-level-first") == "level.body.0"
    assert called_first("denoiser") == "level.body.0"
    assert called_first("vit-patch4") == "patches"


def test_patches_are_squares_of_the_pooled_image():
    net = make("vit-patch2", 8)
    seen = []
    net.patches.register_forward_hook(lambda module, args, out: seen.append((args[0], out)))
    x = torch.arange(64.0).view(1, 64)
    net(x)
    image, tokens = seen[0]
    assert image[0, 0, 0, 0] == x.view(8, 8)[:2, :2].mean()
    by_hand = (net.patches.weight[:, 0] * image[0, 0, 2:4, :2]).sum((1, 2)) + net.patches.bias
    torch.testing.assert_close(tokens[0, :, 1, 0], by_hand)


def test_depthwise_convolutions_have_a_filter_for_each_channel():
    convs = [m for m in make("convnet-separable", 8).modules() if isinstance(m, nn.Conv2d)]
    depthwise = [m for m in convs if m.groups > 1]
    assert [m.groups for m in depthwise] == [m.in_channels for m in depthwise] == [16, 32, 64]
    assert all(following.kernel_size == (1, 1) for following in convs[2::2])


def test_mobilenet_has_the_published_size_and_torchvisions_names():
    net = MobileNetV2()
    assert sum(p.numel() for p in net.parameters()) == 3_504_872  # as torchvision states for mobilenet_v2
    shapes = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    assert shapes["features.0.0.weight"] == (32, 3, 3, 3)
    assert shapes["features.1.conv.1.weight"] == (16, 32, 1, 1)  # not widened
    assert shapes["features.2.conv.1.0.weight"] == (96, 1, 3, 3)
    assert shapes["features.17.conv.3.running_var"] == (320,)
    assert shapes["features.18.1.running_mean"] == (1280,)
    assert shapes["classifier.1.bias"] == (1000,)


def test_mobilenet_begins_with_the_weights_of_the_folder_and_a_new_last_layer(tmp_path):
    torch.manual_seed(0)
    stored = MobileNetV2()
    torch.save(stored.state_dict(), tmp_path / FILE)
    net = make(MOBILENET, 8, tmp_path)
    torch.testing.assert_close(net.net.features.state_dict(), stored.features.state_dict(), rtol=0, atol=0)
    assert net(torch.rand(2, 64)).shape == (2, 10)
    assert all(p.requires_grad for p in net.parameters())


def test_missing_weights_and_unknown_networks_are_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=rf"weights to be a folder with {FILE}, got '{tmp_path}'.*download"):
        make(MOBILENET, 8, tmp_path)
    with pytest.raises(ValueError, match=r"weights to be a folder .* got None"):
        make(MOBILENET, 8)
    with pytest.raises(ValueError, match=r"network to be one of .*'mlp'.*, got 'perceptron'"):
        make("perceptron", 8)

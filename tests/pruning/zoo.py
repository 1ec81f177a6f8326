"""Small networks with every structure that pruning meets in the field; none of them says where gates go."""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional

from anp_vs.networks.preact import PreActResNet18, WideResNet
from anp_vs.networks.resnet import ResNet18
from anp_vs.pruning.insertion import insert_gates
from pruning.patterns import perturb


def conv_bn(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(outputs)]


class InvertedResidual(nn.Module):
    """MobileNetV2's block: 1x1 expansion, depthwise 3x3, 1x1 projection, addition where the shape allows it."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        expand = [*conv_bn(inputs, hidden, 1), nn.ReLU6()] if expansion > 1 else []
        depthwise = [*conv_bn(hidden, hidden, 3, stride, groups=hidden), nn.ReLU6()]
        self.conv = nn.Sequential(*expand, *depthwise, *conv_bn(hidden, outputs, 1))
        self.joined = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.conv(x) if self.joined else self.conv(x)
        return result


class MobileNetV2(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        w = width
        self.features = nn.Sequential(
            *conv_bn(3, w, 3), nn.ReLU6(), InvertedResidual(w, w, 1, 1), InvertedResidual(w, 2 * w, 2, 3),
            InvertedResidual(2 * w, 2 * w, 1, 3), InvertedResidual(2 * w, 3 * w, 2, 3), *conv_bn(3 * w, 6 * w, 1),
            nn.ReLU6(),
        )  # fmt: skip
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(6 * w, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = functional.adaptive_avg_pool2d(self.features(x), (1, 1))
        result: Tensor = self.classifier(torch.flatten(x, 1))
        return result


class DenseLayer(nn.Module):
    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, 2 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(2 * growth)
        self.conv2 = nn.Conv2d(2 * growth, growth, 3, padding=1, bias=False)

    def forward(self, features: list[Tensor]) -> Tensor:
        x = self.conv1(functional.relu(self.norm1(torch.cat(features, 1))))
        result: Tensor = self.conv2(functional.relu(self.norm2(x)))
        return result


class DenseNet(nn.Module):
    """Two dense blocks with a transition between: every layer reads all earlier ones side by side."""

    def __init__(self, growth: int = 4, layers: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 2 * growth, 3, padding=1, bias=False)
        width, blocks = 2 * growth, []
        for _ in range(2):
            blocks.append(nn.ModuleList([DenseLayer(width + i * growth, growth) for i in range(layers)]))
            width += layers * growth
            if len(blocks) == 1:
                self.transition = nn.Sequential(
                    nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width // 2, 1), nn.AvgPool2d(2)
                )
                width //= 2
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.BatchNorm2d(width)
        self.classifier = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for number, block in enumerate(self.blocks):
            assert isinstance(block, nn.ModuleList)
            features = [x]
            for layer in block:
                features.append(layer(features))
            x = torch.cat(features, dim=1)
            x = self.transition(x) if number == 0 else x
        result: Tensor = self.classifier(functional.relu(self.norm(x)).mean([2, 3]))
        return result


class ConvNeXtBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pwconv1 = nn.Linear(width, 4 * width)
        self.act = nn.GELU()
        self.pwconv2 = nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(torch.full((width,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        inner = self.gamma * self.pwconv2(self.act(self.pwconv1(inner)))
        result: Tensor = x + inner.permute(0, 3, 1, 2)
        return result


class LayerNorm2d(nn.LayerNorm):
    """Layer normalisation over the channels of N x C x H x W."""

    def forward(self, x: Tensor) -> Tensor:
        x = functional.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    """Patches, blocks with layer normalisation and layer scale, downsampling between them."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 2, 2), LayerNorm2d(width))
        self.stage1 = nn.Sequential(ConvNeXtBlock(width), ConvNeXtBlock(width))
        self.down = nn.Sequential(LayerNorm2d(width), nn.Conv2d(width, 2 * width, 2, 2))
        self.stage2 = ConvNeXtBlock(2 * width)
        self.norm = nn.LayerNorm(2 * width)
        self.head = nn.Linear(2 * width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage2(self.down(self.stage1(self.stem(x))))
        result: Tensor = self.head(self.norm(x.mean([-2, -1])))
        return result


class Fire(nn.Module):
    def __init__(self, inputs: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeeze, 1)
        self.act = nn.ReLU(inplace=True)
        self.expand1x1 = nn.Conv2d(squeeze, expand, 1)
        self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.squeeze(x))
        return torch.cat([self.act(self.expand1x1(x)), self.act(self.expand3x3(x))], 1)


class SqueezeNet(nn.Module):
    """Fire modules; the logits come from a convolution. One pooling and one activation module serve everywhere."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        w = width
        self.pool = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.stem = nn.Conv2d(3, 2 * w, 3, stride=1, padding=1)
        self.fires = nn.ModuleList([Fire(2 * w, w, 2 * w), Fire(4 * w, w, 2 * w), Fire(4 * w, 2 * w, 3 * w)])
        self.act = nn.ReLU()
        self.final = nn.Conv2d(6 * w, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.act(self.stem(x)))
        for fire in self.fires:
            x = fire(x)
        x = functional.adaptive_avg_pool2d(self.act(self.final(self.pool(x))), 1)
        return x.view(x.size(0), -1)


class SqueezeExcite(nn.Module):
    """In the way it is most often written: sizes taken apart, a view, expand_as."""

    def __init__(self, width: int, reduction: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(width, reduction), nn.ReLU(), nn.Linear(reduction, width), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        b, c, _, _ = x.size()
        scale = self.fc(functional.adaptive_avg_pool2d(x, 1).view(b, c)).view(b, c, 1, 1)
        return x * scale.expand_as(x)


class MobileNetV3Block(nn.Module):
    """Hard-swish, depthwise, squeeze-and-excitation by 1x1 convolutions with a hard sigmoid."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.expand = nn.Sequential(*conv_bn(width, hidden, 1), nn.Hardswish())
        self.depthwise = nn.Sequential(*conv_bn(hidden, hidden, 5, groups=hidden), nn.Hardswish())
        self.fc1, self.fc2 = nn.Conv2d(hidden, 4, 1), nn.Conv2d(4, hidden, 1)
        self.project = nn.Sequential(*conv_bn(hidden, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.depthwise(self.expand(x))
        scale = functional.relu(self.fc1(inner.mean((2, 3), keepdim=True)))
        result: Tensor = x + self.project(inner * functional.hardsigmoid(self.fc2(scale)))
        return result


class SENet(nn.Module):
    """Residual blocks with both kinds of squeeze-and-excitation."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        w = width
        self.stem = nn.Sequential(*conv_bn(3, w), nn.ReLU())
        self.conv1, self.conv2 = nn.Sequential(*conv_bn(w, w), nn.ReLU()), nn.Sequential(*conv_bn(w, w))
        self.excite = SqueezeExcite(w, 3)
        self.block = MobileNetV3Block(w, 2 * w)
        self.tail = nn.Sequential(*conv_bn(w, 2 * w, 1), nn.SiLU(), SqueezeExcite(2 * w, 4))
        self.head = nn.Linear(2 * w, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = functional.relu(x + self.excite(self.conv2(self.conv1(x))))
        result: Tensor = self.head(self.tail(self.block(x)).mean(3).mean(2))
        return result


class NormAct(nn.BatchNorm2d):
    """Normalisation and activation in one module, which calls the function with its own statistics."""

    def forward(self, x: Tensor) -> Tensor:
        x = functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training)
        return functional.silu(x)


class ResNeXt(nn.Module):
    """Bottlenecks with grouped convolutions, one of them with twice as many outputs as inputs."""

    def __init__(self, width: int = 8, groups: int = 4) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3), NormAct(width))
        self.inner = nn.Sequential(
            nn.Conv2d(width, 16, 1),
            NormAct(16),
            nn.Identity(),
            *conv_bn(16, 32, 3, groups=groups),
            nn.ReLU(),
            *conv_bn(32, width, 1),
        )
        multiplier = nn.Conv2d(width, 2 * width, 3, padding=1, groups=width)
        self.tail = nn.Sequential(
            nn.Conv2d(width, width, 1), multiplier, nn.PReLU(2 * width), nn.Conv2d(2 * width, 6, 1)
        )
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = functional.relu(x + self.inner(x))
        x = functional.max_pool2d(functional.leaky_relu(self.tail(x), 0.1), 2)
        result: Tensor = self.head(x.amax(dim=(2, 3)))
        return result


class GroupNormNet(nn.Module):
    """Residual, with group normalisation: channels can only leave in whole groups."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.GroupNorm(4, 12), nn.ELU())
        self.conv1, self.norm1 = nn.Conv2d(12, 16, 3, padding=1), nn.GroupNorm(8, 16)
        self.conv2, self.norm2 = nn.Conv2d(16, 12, 3, padding=1), nn.GroupNorm(1, 12)
        self.head = nn.Sequential(OrderedDict(pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), fc=nn.Linear(12, 5)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        inner = torch.sigmoid(self.norm1(self.conv1(x)))
        result: Tensor = self.head(torch.relu(x + self.norm2(self.conv2(inner))))
        return result


class Inception(nn.Module):
    """Branches beside each other, read by two layers; pixels flattened into a dense layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Dropout2d(0.1))
        self.left, self.right = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 6, 3, padding=1)
        self.one, self.two = nn.Conv2d(14, 6, 3), nn.Conv2d(14, 6, 3)
        self.fc1, self.fc2 = nn.Linear(12 * 9, 10), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        pooled = functional.pad(x, (0, 0, 0, 0))[:, :4]
        x = torch.cat([self.left(x), functional.gelu(self.right(x)), pooled], dim=1)
        x = torch.cat((functional.relu(self.one(x)), self.two(x)), 1)
        x = functional.adaptive_avg_pool2d(x, 3)
        x = x.reshape(x.shape[0], -1)
        result: Tensor = self.fc2(torch.tanh(self.fc1(x)))
        return result


class TokenMixer(nn.Module):
    """Patches as tokens, attention, and the two dense layers behind it."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 4, 4)
        self.place = nn.Parameter(torch.randn(1, 16, width) * 0.1)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2) + self.place
        q, k, v = self.qkv(self.norm1(x)).chunk(3, dim=-1)
        x = x + self.out(functional.scaled_dot_product_attention(q, k, v))
        x = x + self.fc2(functional.gelu(self.fc1(self.norm2(x))))
        result: Tensor = self.head(x.mean(1))
        return result


def small_wide_resnet() -> nn.Module:
    return WideResNet(5, depth=10, widening=1)


ZOO = {
    "resnet18": lambda: ResNet18(5, width=4),
    "preactresnet18": lambda: PreActResNet18(5, width=4),
    "wideresnet": small_wide_resnet,
    "mobilenetv2": MobileNetV2,
    "densenet": DenseNet,
    "convnext": ConvNeXt,
    "squeezenet": SqueezeNet,
    "senet": SENet,
    "resnext": ResNeXt,
    "groupnorm": GroupNormNet,
    "inception": Inception,
    "tokens": TokenMixer,
}


def build(name: str) -> nn.Module:
    """A network of the zoo, in double precision, for 3 x 16 x 16 images (three convolutional stages fit)."""
    torch.manual_seed(0)
    network = ZOO[name]()
    network.input_shape = (3, 16, 16)
    for slots in ("gate_sites", "latents"):  # as a network of a user's own, which says nothing
        if hasattr(network, slots):
            setattr(network, slots, {} if slots == "gate_sites" else ())
    return network.double()


NAMES = tuple(ZOO)


def gated(name: str, residual: str = "share") -> nn.Module:
    """A network of the zoo with weights and statistics of its own, and gates."""
    return insert_gates(perturb(build(name)), residual=residual)  # type: ignore[arg-type]

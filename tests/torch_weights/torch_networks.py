"""ResNet50 and MobileNetV2 with attention as PyTorch modules, with the names of na_keras/torch_weights/names.py.

Written from the papers' equations and PyTorch's geometry for the tests: the other side of load_torch_weights.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn


class NA(nn.Module):
    def __init__(self, channels, embedding=False):
        super().__init__()
        self.weight2, self.bias2 = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.ones(1))
        self.embedding = embedding
        if embedding:
            self.conv1, self.conv2 = (
                nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.ReLU(), nn.Conv2d(1, 1, 3, padding=1)) for _ in range(2)
            )

    def forward(self, x):
        m = x.mean(1, keepdim=True)
        key, query = (self.conv1(m), self.conv2(m)) if self.embedding else (m, m)
        scores = -(key - query.mean((2, 3), keepdim=True)).abs()
        weights = torch.softmax(scores.flatten(1), 1)
        g = torch.einsum("bn,bcn->bc", weights, x.flatten(2))
        g = (g - g.mean(1, keepdim=True)) / (g.std(1, keepdim=True) + 1e-5)
        return x * torch.sigmoid(g * self.weight2 + self.bias2)[:, :, None, None]


class SE(nn.Module):
    def __init__(self, channels, reduction=16):
        super().__init__()
        hidden = channels // reduction
        self.fc = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels), nn.Sigmoid())

    def forward(self, x):
        return x * self.fc(x.mean((2, 3)))[:, :, None, None]


class GE(nn.Module):
    """Over the whole map, or three depthwise convolutions with stride 2."""

    def __init__(self, channels, steps=0):
        super().__init__()
        if steps:
            self.gather = nn.Sequential()
            for _ in range(steps):
                self.gather.append(nn.Conv2d(channels, channels, 3, 2, 1, groups=channels, bias=False))
                self.gather.append(nn.BatchNorm2d(channels))
        self.steps = steps

    def forward(self, x):
        gathered = self.gather(x) if self.steps else x.mean((2, 3), keepdim=True)
        return x * torch.sigmoid(F.interpolate(gathered, size=x.shape[2:], mode="nearest"))


class ECA(nn.Module):
    def __init__(self, channels):
        super().__init__()
        size = int((math.log2(channels) + 1) / 2) | 1  # the odd number of the paper's equation 12
        self.conv = nn.Conv1d(1, 1, size, padding=size // 2, bias=False)

    def forward(self, x):
        return x * torch.sigmoid(self.conv(x.mean((2, 3))[:, None]))[:, 0, :, None, None]


class ChannelGate(nn.Module):
    def __init__(self, channels, reduction):
        super().__init__()
        hidden = channels // reduction
        self.mlp = nn.Sequential(nn.Flatten(), nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels))

    def forward(self, x):
        scores = self.mlp(F.adaptive_avg_pool2d(x, 1)) + self.mlp(F.adaptive_max_pool2d(x, 1))
        return x * torch.sigmoid(scores)[:, :, None, None]


class SpatialGate(nn.Module):
    def __init__(self):
        super().__init__()
        self.spatial = nn.Sequential()
        self.spatial.add_module("conv", nn.Conv2d(2, 1, 7, padding=3, bias=False))
        self.spatial.add_module("bn", nn.BatchNorm2d(1))

    def forward(self, x):
        maps = torch.stack([x.amax(1), x.mean(1)], 1)
        return x * torch.sigmoid(self.spatial(maps))


class CBAM(nn.Module):
    def __init__(self, channels, reduction=16):
        super().__init__()
        self.ChannelGate, self.SpatialGate = ChannelGate(channels, reduction), SpatialGate()

    def forward(self, x):
        return self.SpatialGate(self.ChannelGate(x))


class GC(nn.Module):
    def __init__(self, channels, reduction=16):
        super().__init__()
        hidden = channels // reduction
        self.conv_mask = nn.Conv2d(channels, 1, 1)
        self.channel_add_conv = nn.Sequential(
            nn.Conv2d(channels, hidden, 1), nn.LayerNorm([hidden, 1, 1]), nn.ReLU(), nn.Conv2d(hidden, channels, 1)
        )

    def forward(self, x):
        weights = torch.softmax(self.conv_mask(x).flatten(1), 1)
        context = torch.einsum("bn,bcn->bc", weights, x.flatten(2))
        return x + self.channel_add_conv(context[:, :, None, None])


class SGE(nn.Module):
    def __init__(self, channels, groups=64):
        super().__init__()
        self.groups = groups
        self.weight = nn.Parameter(torch.zeros(1, groups, 1, 1))
        self.bias = nn.Parameter(torch.ones(1, groups, 1, 1))

    def forward(self, x):
        grouped = x.unflatten(1, (self.groups, -1))
        scores = (grouped * grouped.mean((3, 4), keepdim=True)).sum(2)
        centred = scores - scores.mean((2, 3), keepdim=True)
        normalized = centred / (scores.std((2, 3), keepdim=True) + 1e-5)
        return (grouped * torch.sigmoid(normalized * self.weight + self.bias)[:, :, None]).flatten(1, 2)


# name in na_keras.ATTENTION -> (attribute of the block, module for so many channels)
RESNET_ATTENTION = {
    "na": ("na", NA),
    "na_embedding": ("na", lambda channels: NA(channels, embedding=True)),
    "se": ("se", SE),
    "eca": ("eca", ECA),
    "ge": ("ge", GE),
    "cbam": ("cbam", CBAM),
    "gc": ("gc", GC),
    "sge": ("sge", SGE),
}
MOBILENET_ATTENTION = {
    "na": ("na", NA),
    "se": ("se", lambda channels: SE(channels, 8)),
    "eca": ("eca", ECA),
    "ge": ("ge", lambda channels: GE(channels, 3)),
    "cbam": ("cbam", lambda channels: CBAM(channels, 8)),
}


def add_attention(block, table, attention, channels):
    """The attention module under its name, or None."""
    if attention not in table:
        return None
    name, make = table[attention]
    block.add_module(name, make(channels))
    return getattr(block, name)


class Bottleneck(nn.Module):
    def __init__(self, inputs, width, stride, attention):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.selective = attention == "sk"
        if self.selective:
            self.conv2g = nn.Conv2d(width, width, 3, stride, 1, groups=32, bias=False)
            self.bn2g = nn.BatchNorm2d(width)
            self.conv_fc1, self.bn_fc1 = nn.Conv2d(width, width // 16, 1, bias=False), nn.BatchNorm2d(width // 16)
            self.conv_fc2 = nn.Conv2d(width // 16, 2 * width, 1, bias=False)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        add_attention(self, RESNET_ATTENTION, attention, 4 * width)
        self.attention = RESNET_ATTENTION.get(attention, (None,))[0]
        if stride > 1 or inputs != 4 * width:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width)
            )

    def middle(self, x):
        first = F.relu(self.bn2(self.conv2(x)))
        if not self.selective:
            return first
        second = F.relu(self.bn2g(self.conv2g(x)))
        mean = first.mean((2, 3), keepdim=True) + second.mean((2, 3), keepdim=True)
        scores = self.conv_fc2(F.relu(self.bn_fc1(self.conv_fc1(mean))))
        weights = torch.softmax(scores.unflatten(1, (2, -1)), 1)
        return first * weights[:, 0] + second * weights[:, 1]

    def forward(self, x):
        y = self.bn3(self.conv3(self.middle(F.relu(self.bn1(self.conv1(x))))))
        y = getattr(self, self.attention)(y) if self.attention else y
        return F.relu(y + (self.downsample(x) if hasattr(self, "downsample") else x))


class ResNet50(nn.Module):
    def __init__(self, attention=None, classes=1000):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        inputs = 64
        for stage, (width, blocks) in enumerate(zip((64, 128, 256, 512), (3, 4, 6, 3), strict=True), start=1):
            layer = nn.Sequential()
            for index in range(blocks):
                layer.append(Bottleneck(inputs, width, 2 if stage > 1 and index == 0 else 1, attention))
                inputs = 4 * width
            self.add_module(f"layer{stage}", layer)
        self.fc = nn.Linear(2048, classes)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
        return self.fc(x.mean((2, 3)))


def convolution_norm(inputs, outputs, size=1, stride=1, groups=1):
    convolution = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU6())


class InvertedResidual(nn.Module):
    def __init__(self, inputs, outputs, stride, expansion, attention):
        super().__init__()
        hidden = inputs * expansion
        expand = [convolution_norm(inputs, hidden)] if expansion > 1 else []
        self.conv = nn.Sequential(
            *expand,
            convolution_norm(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        add_attention(self, MOBILENET_ATTENTION, attention, outputs)
        self.attention = MOBILENET_ATTENTION.get(attention, (None,))[0]
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x):
        y = self.conv(x)
        y = getattr(self, self.attention)(y) if self.attention else y
        return x + y if self.residual else y


class MobileNetV2(nn.Module):
    def __init__(self, attention=None, classes=1000):
        super().__init__()
        self.features = nn.Sequential(convolution_norm(3, 32, 3, 2))
        inputs, plan = 32, "1,16,1,1 6,24,2,2 6,32,3,2 6,64,4,2 6,96,3,1 6,160,3,2 6,320,1,1"
        for expansion, channels, count, stride in (map(int, row.split(",")) for row in plan.split()):
            for index in range(count):
                step = 1 if index else stride
                self.features.append(InvertedResidual(inputs, channels, step, expansion, attention))
                inputs = channels
        self.features.append(convolution_norm(320, 1280))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, classes))

    def forward(self, x):
        return self.classifier(self.features(x).mean((2, 3)))


def stand_in(network, seed=0):
    """Weights and running statistics that make every mistake visible; returns the network, for inference."""
    generator = torch.Generator().manual_seed(seed)
    normal = lambda tensor, scale: scale * torch.randn(tensor.shape, generator=generator)  # noqa: E731
    uniform = lambda tensor: 0.5 + torch.rand(tensor.shape, generator=generator)  # noqa: E731
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
            if isinstance(module, nn.BatchNorm2d):
                module.weight.copy_(uniform(module.weight))
                module.bias.copy_(normal(module.bias, 0.2))
                module.running_mean.copy_(normal(module.running_mean, 0.2))
                module.running_var.copy_(uniform(module.running_var))
            if isinstance(module, nn.LayerNorm | NA | SGE):
                for parameter in module.parameters(recurse=False):
                    parameter.copy_(normal(parameter, 1.0))
    return network.eval()

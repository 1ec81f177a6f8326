"""What PyTorch's operations do to channels: sets of those that treat every channel by itself."""

from __future__ import annotations

import operator

import torch
from torch import nn
from torch.nn import functional

from anp_vs.networks.layers import Dropout

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm
InstanceNorm = nn.InstanceNorm1d | nn.InstanceNorm2d | nn.InstanceNorm3d

# Over the axes behind the channels: right only where those are spatial, N x C x ...
SPATIAL = (
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.Upsample,
    nn.ZeroPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d,
)  # fmt: skip
SPATIAL_FUNCTIONS = {
    functional.max_pool2d, torch.max_pool2d, functional.avg_pool2d, functional.adaptive_avg_pool2d,
    functional.adaptive_max_pool2d, functional.interpolate,
}  # fmt: skip
# f(s x) = s f(x) for s > 0: a gate's E[pi] may pass to the next layer's weights.
HOMOGENEOUS = (
    *SPATIAL, nn.Identity, nn.ReLU, nn.LeakyReLU, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, Dropout,
)  # fmt: skip
REDUCTIONS = {"mean", torch.mean, "sum", torch.sum, "amax", torch.amax}
HOMOGENEOUS_FUNCTIONS = {
    *SPATIAL_FUNCTIONS, *REDUCTIONS, functional.relu, functional.relu_, torch.relu, torch.relu_, "relu", "relu_",
    functional.leaky_relu, functional.dropout, functional.dropout2d, "contiguous", "clone", "detach", "abs",
    torch.abs,
}  # fmt: skip
# f(0) = 0.
ZERO_AT_ZERO = (
    *HOMOGENEOUS, nn.PReLU, nn.GELU, nn.SiLU, nn.Hardswish, nn.ReLU6, nn.Tanh, nn.ELU, nn.CELU, nn.SELU, nn.Mish,
    nn.Softsign,
)  # fmt: skip
ZERO_AT_ZERO_FUNCTIONS = {
    *HOMOGENEOUS_FUNCTIONS, functional.gelu, functional.silu, functional.hardswish, functional.relu6,
    functional.elu, functional.celu, functional.selu, functional.mish, functional.tanh, torch.tanh, "tanh",
}  # fmt: skip
# Channel by channel, but not zero at zero.
CHANNELWISE = (
    *ZERO_AT_ZERO, nn.Sigmoid, nn.Hardsigmoid, nn.Softplus, nn.Hardtanh, nn.LogSigmoid, nn.Threshold,
)  # fmt: skip
CHANNELWISE_FUNCTIONS = {
    *ZERO_AT_ZERO_FUNCTIONS, functional.sigmoid, torch.sigmoid, "sigmoid", functional.hardsigmoid,
    functional.softplus, functional.hardtanh, torch.clamp, "clamp", torch.exp, "exp", operator.neg,
}  # fmt: skip
ADDITIONS = {operator.add, operator.iadd, torch.add, "add", "add_", operator.sub, torch.sub, "sub"}
PRODUCTS = {operator.mul, operator.imul, torch.mul, "mul", "mul_"}
QUOTIENTS = {operator.truediv, torch.div, "div"}
PERMUTATIONS = {
    "permute", "transpose", "swapaxes", "movedim", torch.permute, torch.transpose, torch.swapaxes, torch.movedim,
}  # fmt: skip
FLATTENINGS = {"flatten", torch.flatten}
RESHAPES = {"view", "reshape", torch.reshape, "expand"}
CONCATENATIONS = {torch.cat, torch.concat, torch.concatenate}

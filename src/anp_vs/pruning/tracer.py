"""Tracing of a forward pass that asks for shapes: loops over `x.shape`, branches on sizes, optional arguments."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from anp_vs.errors import InputError
from anp_vs.networks.layers import Dropout, Normalize
from anp_vs.pruning.gate import Gate
from anp_vs.pruning.reader import GateReader
from anp_vs.pruning.slicing import Select

_OPAQUE = (torch.jit.ScriptModule, nn.DataParallel, nn.parallel.DistributedDataParallel)


class LayerTracer(fx.Tracer):
    """Follows a forward pass into the user's modules, and leaves layers whole."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Our own layers are no less units than PyTorch's."""
        leaf = isinstance(m, Gate | GateReader | Select | Normalize | Dropout)
        return leaf or super().is_leaf_module(m, module_qualified_name)


class Tracer(LayerTracer):
    """Follows one forward pass in evaluation with the images as its only argument.

    `torch.fx` alone refuses to loop over a shape and to branch on one. Here what was traced so far is run on the
    example to find the answer. An answer that depends on a tensor's values is refused; one that depends on a number
    of channels leaves an assertion in the graph, so that these channels stay.

    Args:
        example: images the network accepts.
    """

    def __init__(self, example: Tensor) -> None:
        super().__init__()
        self._example = example
        self._values: fx.Interpreter | None = None
        self._running = False

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        """The graph of a module's forward pass.

        Raises:
            InputError: a part of it is compiled or wrapped, so that its inside cannot be seen.
        """
        for path, module in root.named_modules():
            compiled = isinstance(getattr(module, "_orig_mod", None), nn.Module)
            if compiled or isinstance(module, _OPAQUE):
                raise InputError(
                    f"{path or 'The network'} is a {type(module).__name__}, so its layers cannot be seen. Give the plain "
                    f"module that was compiled or wrapped, and compile or wrap the result."
                )
        return super().trace(root, concrete_args)

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        """Only the images are traced; further arguments of the forward pass keep their defaults."""
        return root_fn, [self.root, self.create_proxy("placeholder", "images", (), {})]

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Trace a call, unless values are being computed."""
        return forward(*args, **kwargs) if self._running else super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """A parameter as a node of the graph, unless values are being computed."""
        return attr_val if self._running else super().getattr(attr, attr_val, parameter_proxy_cache)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """A symbol that has a length where its value has."""
        return _Sized(node, self)

    def length(self, obj: fx.Proxy) -> int:
        """Of a shape or of a tuple."""
        value = self._value(obj.node)
        return len(value) if isinstance(value, tuple | list) else fx.Proxy.__len__(obj)

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """The entries of a shape or of a tuple."""
        value = self._value(obj.node)
        return (
            iter([operator.getitem(obj, place) for place in range(len(value))])
            if isinstance(value, tuple | list)
            else super().iter(obj)
        )

    def to_bool(self, obj: fx.Proxy) -> bool:
        """The truth of a comparison of sizes."""
        value = self._value(obj.node)
        if not isinstance(value, bool | int):
            return super().to_bool(obj)
        same = self.create_proxy("call_function", operator.eq, (obj, value), {})
        self.create_proxy("call_function", torch._assert, (same, "the branch that was traced"), {})
        return bool(value)

    def _value(self, node: fx.Node) -> Any:
        """What a node is for the example."""
        if self._values is None:
            self._values = fx.Interpreter(self.root, garbage_collect_values=False, graph=self.graph)
            self._values.args_iter = iter([self._example])
        self._running = True
        try:
            with torch.no_grad():
                for each in self.graph.nodes:
                    if each not in self._values.env:
                        self._values.env[each] = self._values.run_node(each)
        finally:
            self._running = False
        return self._values.env[node]


class _Sized(fx.Proxy):
    tracer: Tracer

    def __len__(self) -> int:
        return self.tracer.length(self)

    def __getattr__(self, k: str) -> _SizedAttribute:
        return _SizedAttribute(self, k)


class _SizedAttribute(fx.proxy.Attribute):
    tracer: Tracer

    def __len__(self) -> int:
        return self.tracer.length(self)


def layers_of(network: nn.Module) -> fx.GraphModule:
    """The graph of a network: into the user's modules, but the layers of PyTorch and of this package whole.

    Args:
        network: in evaluation mode; shared with the graph, not copied.

    Raises:
        InputError: its forward pass branches on values or does what cannot be traced.
    """
    try:
        return fx.GraphModule(network, LayerTracer().trace(network))
    except Exception as error:  # a forward pass may do anything when it is given symbols
        raise InputError(
            f"{type(network).__name__} cannot be traced: {error}. Its forward pass must not depend on the "
            f"values of tensors; move such a branch into a module of its own."
        ) from error

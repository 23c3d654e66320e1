# SPDX-License-Identifier: Apache-2.0
"""Networks as their shapes alone: built in no time and without memory, to see that their settings fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class _Undrawn(TorchFunctionMode):
    """Draws nothing: for a normal draw on tensors without memory PyTorch imports sympy, which takes a second."""

    def __torch_function__(self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is torch.Tensor.normal_ or getattr(function, "__module__", "") == torch.nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)


@contextmanager
def shapes_only() -> Iterator[None]:
    """Networks built inside have tensors of the ``meta`` device, and nothing is drawn for them."""
    with torch.device("meta"), _Undrawn():
        yield

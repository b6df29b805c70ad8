"""A GPU that is not there: tensors that say they are on it, compute on the CPU, and never mix.

Inside `pretended()` a tensor made with `device="cuda"` or moved there behaves as on a real GPU as
far as devices go. An operation on tensors of both devices raises, also where PyTorch would look the
other way (a mask on the CPU), and so does reading one as a numpy array. Values are real: what
depends on data runs as it is. (FakeTensorMode has no values, lets masks of the CPU pass, and in a
build of PyTorch without CUDA cannot index a tensor that says it is on it.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

CUDA = torch.device("cuda", 0)
CPU = torch.device("cpu")
FREE_BYTES = 2**36  # of the pretended GPU
_DEVICE_OF = Tensor.device.__get__
_IS_CUDA = Tensor.is_cuda.__get__  # type: ignore[attr-defined]
_TO_HOST = (Tensor.numpy, Tensor.__array__)
_MOVES = (Tensor.to, Tensor.cpu, Tensor.cuda)


class MixedDevices(AssertionError):
    """One operation was given tensors of the CPU and of the GPU."""


class There(Tensor):
    """A tensor on the GPU."""


class _Mode(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func == _DEVICE_OF:
            return CUDA if isinstance(args[0], There) else _run(func, args, kwargs)
        if func == _IS_CUDA:
            return isinstance(args[0], There)
        if func in _MOVES:
            return _moved(func, args, kwargs)
        tensors = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, Tensor)]
        there = any(isinstance(each, There) for each in tensors)
        if there and func in _TO_HOST:
            raise TypeError(f"{func.__name__} of a tensor on the GPU")
        here = [each for each in tensors if not isinstance(each, There) and each.dim()]
        if there and here and func is not Tensor.copy_:
            raise MixedDevices(f"{getattr(func, '__name__', func)} of tensors on both devices")
        device = kwargs.get("device")
        if device is not None and torch.device(device).type == "cuda":
            kwargs["device"] = CPU
            there = True
        elif device is not None:
            there = False
        return _placed(_run(func, args, kwargs), there=there)


def _run(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    with torch._C.DisableTorchFunctionSubclass():
        return func(*args, **kwargs)


def _moved(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A tensor on another device, another dtype, or both: a copy if the device changes."""
    tensor, *rest = args
    wanted = CUDA if isinstance(tensor, There) else CPU
    if func is Tensor.cpu:
        wanted = CPU
    elif func is Tensor.cuda:
        wanted, rest = CUDA, []
    for place, each in enumerate(rest):
        if isinstance(each, (str, torch.device)):
            wanted, rest[place] = torch.device(each), CPU
        elif isinstance(each, Tensor):
            wanted = CUDA if isinstance(each, There) else CPU
    if kwargs.get("device") is not None:
        wanted, kwargs["device"] = torch.device(kwargs["device"]), CPU
    if wanted.type not in ("cpu", "cuda"):
        raise NotImplementedError(f"a tensor moved to {wanted}")
    if (wanted.type == "cuda") == isinstance(tensor, There):
        return _placed(_run(func, (tensor, *rest), kwargs), there=isinstance(tensor, There))
    name = Tensor.to if rest or kwargs else Tensor.clone
    copied = _run(Tensor.clone, (_run(name, (tensor, *rest), kwargs),), {})
    return _placed(copied.as_subclass(Tensor), there=wanted.type == "cuda")


def _placed(result: Any, *, there: bool) -> Any:
    """Tensors that came out, marked as what they are; those that went in keep their identity."""
    if not there:
        return result
    return tree_map(lambda each: each.as_subclass(There) if type(each) is Tensor else each, result)


@contextmanager
def pretended() -> Iterator[torch.device]:
    """Pretend that there is a GPU with `FREE_BYTES` of free memory."""
    with _Mode(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "mem_get_info", lambda _: (FREE_BYTES, FREE_BYTES))
        yield CUDA

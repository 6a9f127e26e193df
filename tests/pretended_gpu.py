"""A GPU that is only pretended, to run on a CPU what would run on CUDA.

Tensors that are moved or made there stay in the computer's memory and are tagged by their storage. A mode for torch's
functions gives answers about the device and takes care of moves; a mode for its operators looks at every operator that
runs, those of backward passes too: tensors of both kinds in one are refused as CUDA refuses them. What CUDA permits but
waits for (a number that Python asks for, a copy, indices whose number only the device knows) is counted.

Numbers are those of the CPU. Memory is not limited, nothing is asynchronous, and what a backward pass makes from
nothing counts as made where its last operator ran.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._C import DisableTorchFunction
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

GPU = torch.device("cuda", 0)
CPU = torch.device("cpu")
PACKAGE = str(Path(__file__).parents[1] / "inril_ray")

COPIES = {"copy_", "_to_copy"}
"""Operators that take tensors of two devices."""
SAME_MEMORY = {"set_", "is_same_size", "resize_", "_has_same_storage_numel"}
WAITS = {
    "_local_scalar_dense": "number", "is_nonzero": "number", "equal": "number", "allclose": "number",
    "nonzero": "unknown length", "masked_select": "unknown length", "_unique2": "unknown length",
    "unique_dim": "unknown length", "bincount": "unknown length",
}  # fmt: skip
"""Operators whose result Python, or the size of whose result the host, has to know."""
RANDOM = {
    "normal_", "uniform_", "random_", "exponential_", "bernoulli_", "bernoulli", "multinomial", "normal", "randperm",
    "rand_like", "randn_like", "randint_like", "native_dropout", "rand", "randn", "randint",
}  # fmt: skip
"""Operators that draw."""


class Fault(Exception):
    """Something that CUDA would refuse, or that would make results depend on the device."""


class PretendedGpu:
    """Within a ``with`` block this computer seems to have a GPU.

    Attributes:
        waits: (kind, place in the package) to how often the host had to wait for the device. Kinds: ``number``,
            ``unknown length``, ``to host`` and ``to device``, the last two for copies.
        faults: sentences, also of faults that something has caught.
        held: address of a storage on the GPU to the storage, which is kept, so that no other gets its address.
    """

    def __init__(self) -> None:
        self.waits: Counter[tuple[str, str]] = Counter()
        self.faults: list[str] = []
        self.held: dict[int, Any] = {}
        self._patched: list[tuple[Any, str, Any]] = []

    def __enter__(self) -> PretendedGpu:
        replaced: dict[str, Callable[..., Any]] = {
            "is_available": lambda: True,
            "current_device": lambda: 0,
            "_lazy_init": lambda: None,
            "mem_get_info": lambda *_: (64 << 30, 80 << 30),
            "get_device_name": lambda *_: "pretended",
            "is_current_stream_capturing": lambda: False,
        }
        places = [(torch.cuda, name, value) for name, value in replaced.items()]
        # Optimisers ask whether a graph is being captured.
        places.append((torch.accelerator, "current_accelerator", lambda *_, **__: None))
        # They, and the clipping of gradients, sort tensors by device in C++.
        places.append((torch._C, "_group_tensors_by_device_and_dtype", self._grouped))
        self._group = torch._C._group_tensors_by_device_and_dtype
        for owner, name, value in places:
            self._patched.append((owner, name, getattr(owner, name)))
            setattr(owner, name, value)
        self._modes = _Operators(self), _Functions(self)
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)
        for owner, name, value in self._patched:
            setattr(owner, name, value)
        self._patched.clear()
        self.held.clear()

    def _grouped(self, lists: Any, with_indices: bool = False) -> dict[Any, Any]:
        found = self._group(lists, with_indices)
        first = {
            key: next(t for tensors in groups[0] for t in tensors if t is not None) for key, groups in found.items()
        }
        return {(GPU if self.holds(first[key]) else key[0], key[1]): groups for key, groups in found.items()}

    def kinds(self) -> Counter[str]:
        """Return how often the host has waited so far, by kind."""
        found: Counter[str] = Counter()
        for (kind, _), count in self.waits.items():
            found[kind] += count
        return found

    def holds(self, tensor: Tensor) -> bool:
        """Tell whether a tensor is on the GPU."""
        with DisableTorchFunction():
            return tensor.untyped_storage()._cdata in self.held

    def place(self, tree: Any) -> Any:
        """Put a tensor, or those of a list, on the GPU, where they are; return it."""
        with DisableTorchFunction():
            for tensor in _tensors((tree,)):
                storage = tensor.untyped_storage()
                self.held[storage._cdata] = storage
        return tree

    def wait(self, kind: str) -> None:
        """Count that the host waits."""
        self.waits[kind, _place()] += 1

    def fault(self, text: str) -> Fault:
        """Note a fault; return the exception to raise."""
        self.faults.append(f"{_place()}: {text}")
        return Fault(self.faults[-1])

    def upload(self, tensor: Tensor) -> Tensor:
        """Return a copy on the GPU; gradients flow through it."""
        self.wait("to device")
        with DisableTorchFunction():
            return self.place(tensor.clone() if tensor.requires_grad else tensor.detach().clone())

    def download(self, tensor: Tensor) -> Tensor:
        """Return a copy on the CPU, without gradient."""
        self.wait("to host")
        with DisableTorchFunction(), _disable_current_modes():
            return tensor.detach().clone()


def _place() -> str:
    """Return file and line of the package, innermost first."""
    frame: Any = sys._getframe(1)
    while frame is not None and not frame.f_code.co_filename.startswith(PACKAGE):
        frame = frame.f_back
    return "tests" if frame is None else f"{frame.f_code.co_filename[len(PACKAGE) + 1 :]}:{frame.f_lineno}"


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """Yield the tensors among the arguments of an operator, and in lists among them."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _is_gpu(device: Any) -> bool:
    return isinstance(device, int) or (device is not None and torch.device(device).type == "cuda")


class _Functions(TorchFunctionMode):
    """Answers what Python asks about devices, and moves tensors."""

    def __init__(self, gpu: PretendedGpu) -> None:
        self._gpu = gpu

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        gpu, kwargs = self._gpu, dict(kwargs or {})
        name = getattr(func, "__name__", "")
        subject = args[0] if args and isinstance(args[0], Tensor) else None
        if subject is not None:
            if name == "__get__" and func in _QUESTIONS:
                return _QUESTIONS[func](gpu.holds(subject))
            if name in ("to", "cpu", "cuda"):
                return self._moved(name, subject, list(args[1:]), kwargs)
            if gpu.holds(subject):
                if name in ("numpy", "__array__", "__dlpack__"):
                    raise gpu.fault(f"{name} of a tensor on the GPU")
                if name == "tolist":
                    return gpu.download(subject).tolist()
                if name == "__deepcopy__":
                    return gpu.place(func(*args, **kwargs))
        if _is_gpu(kwargs.get("device")):
            return self._made(func, name, args, kwargs)
        return func(*args, **kwargs)

    def _moved(self, name: str, tensor: Tensor, rest: list[Any], kwargs: dict[str, Any]) -> Tensor:
        """Do what ``to``, ``cpu`` and ``cuda`` do."""
        device = {"cpu": CPU, "cuda": GPU}.get(name, kwargs.get("device"))
        dtype = kwargs.get("dtype")
        for value in rest:
            if isinstance(value, Tensor):
                device, dtype = (GPU if self._gpu.holds(value) else CPU), value.dtype
            elif isinstance(value, torch.dtype):
                dtype = value
            elif isinstance(value, str | torch.device):
                device = value
        there = self._gpu.holds(tensor)
        result = tensor if dtype is None else torch.Tensor.type(tensor, dtype)
        if device is None or _is_gpu(device) == there:
            return result
        return self._gpu.download(result) if there else self._gpu.upload(result)

    def _made(self, func: Any, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Make a tensor on the GPU."""
        gpu, generator = self._gpu, kwargs.get("generator")
        if generator is not None and generator.device.type == "cpu":
            raise gpu.fault(f"{name} on the GPU with a generator of the CPU")
        if generator is None and name in RANDOM:
            raise gpu.fault(f"{name} draws from a stream of the GPU, which differs from the CPU's and is never saved")
        if name in ("tensor", "as_tensor", "asarray"):
            if not (args and isinstance(args[0], Tensor) and gpu.holds(args[0])):
                gpu.wait("to device")
            kwargs["device"] = "cpu"
            with DisableTorchFunction():
                return gpu.place(func(*args, **kwargs).clone())
        return gpu.place(func(*args, **{**kwargs, "device": "cpu"}))


_QUESTIONS: Mapping[Any, Callable[[bool], Any]] = {
    Tensor.device.__get__: lambda there: GPU if there else CPU,  # type: ignore[attr-defined]
    Tensor.is_cuda.__get__: lambda there: there,  # type: ignore[attr-defined]
    Tensor.is_cpu.__get__: lambda there: not there,  # type: ignore[attr-defined]
}


class _Operators(TorchDispatchMode):
    """Looks at every operator."""

    def __init__(self, gpu: PretendedGpu) -> None:
        super().__init__()
        self._gpu, self._last = gpu, False

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here; the wrapper that says so costs as much as an operator

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        gpu, kwargs = self._gpu, kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        with DisableTorchFunction():
            tensors = list(_tensors((*args, *kwargs.values())))
            there = [tensor.untyped_storage()._cdata in gpu.held for tensor in tensors]
            on = any(there)
            if on:
                self._look(name, args, kwargs, tensors, there)
            result = func(*args, **kwargs)
            if tensors:
                self._last = on
            elif self._last and torch._C._current_autograd_node() is not None:
                return gpu.place(result)  # by a backward pass, from nothing: on the device of its gradients
            if on and WAITS.get(name) != "number" and not (name in COPIES and not there[0]):
                gpu.place(result)
            return result

    def _look(
        self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], tensors: list[Tensor], there: list[bool]
    ) -> None:
        gpu = self._gpu
        if name in COPIES:
            if len(there) > 1 and there[0] != there[1]:
                gpu.wait("to device" if there[0] else "to host")
            return
        # Tensors without dimensions go along as numbers, unless a result is written to one.
        foreign = [tuple(t.shape) for t, on in zip(tensors, there, strict=True) if not on and t.dim()]
        if foreign and name not in SAME_MEMORY:
            raise gpu.fault(f"{name} of tensors on the GPU and of {foreign} on the CPU")
        if name in WAITS:
            gpu.wait(WAITS[name])
        if name in ("index", "index_put_", "_index_put_impl_", "index_put") and any(
            isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8) for i in args[1]
        ):
            gpu.wait("unknown length")
        if name == "repeat_interleave" and len(tensors) > 1:
            gpu.wait("unknown length")
        if name in RANDOM and kwargs.get("generator") is not None:
            raise gpu.fault(f"{name} on the GPU with a generator of the CPU")
        if name in RANDOM:
            raise gpu.fault(f"{name} draws from a stream of the GPU, which differs from the CPU's and is never saved")

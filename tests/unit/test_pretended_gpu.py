"""The pretended GPU finds what it is meant to find, and nothing else."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.pretended_gpu import Fault, PretendedGpu


def here() -> Tensor:
    return torch.arange(6.0).view(2, 3)


def there() -> Tensor:
    return here().to("cuda")


def with_gradient(x: Tensor) -> list[nn.Parameter]:
    parameter = nn.Parameter(x)
    parameter.grad = torch.ones_like(x)
    return [parameter]


def of_two_devices() -> list[nn.Parameter]:
    """Parameters on the GPU; one of their gradients is not."""
    parameters = [nn.Parameter(there()), nn.Parameter(there())]
    parameters[0].grad, parameters[1].grad = there(), here()
    return parameters


class MixedBackward(torch.autograd.Function):
    """Mixes devices only when gradients flow."""

    factor = torch.ones(2, 3)

    @staticmethod
    def forward(_context: Any, x: Tensor) -> Tensor:
        return x * 2.0

    @staticmethod
    def backward(_context: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient * MixedBackward.factor


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (lambda: there() + here(), "add of tensors on the GPU and of .*2, 3.* on the CPU"),
        (lambda: torch.cat([there(), here()]), "cat of tensors"),
        (lambda: nn.Linear(3, 1)(there()), "addmm"),
        (lambda: nn.Linear(3, 1).to("cuda")(here()), "addmm"),
        (lambda: here()[torch.tensor([0], device="cuda")], "index of tensors"),
        (lambda: there()[torch.tensor([0])], "index of tensors"),
        (lambda: there().index_put_((torch.tensor([0]),), there()[0]), "index_put_"),
        (lambda: nn.utils.clip_grad_norm_(of_two_devices(), 1.0), "of tensors on the GPU"),
        (lambda: MixedBackward.apply(there().requires_grad_()).sum().backward(), "mul of tensors"),
        (lambda: there().numpy(), "numpy of a tensor on the GPU"),
        (lambda: np.asarray(there()), "numpy|__array__"),
        (lambda: torch.randn(3, generator=torch.Generator(), device="cuda"), "with a generator of the CPU"),
        (lambda: there().normal_(generator=torch.Generator()), "with a generator of the CPU"),
        (lambda: torch.randn(3, device="cuda"), "draws from a stream of the GPU"),
        (lambda: torch.rand_like(there()), "draws from a stream of the GPU"),
        (lambda: nn.init.xavier_uniform_(there()), "draws from a stream of the GPU"),
        (lambda: nn.functional.dropout(there(), 0.5), "draws from a stream of the GPU"),
    ],
)
def test_what_cuda_refuses_or_does_otherwise_is_refused(fault: Callable[[], Any], says: str) -> None:
    with PretendedGpu() as gpu:
        with pytest.raises(Fault, match=says):
            fault()
        assert len(gpu.faults) == 1


@pytest.mark.parametrize(
    ("operation", "waits"),
    [
        (lambda x: float(x.sum()), {"number": 1}),
        (lambda x: bool((x > 0).any()), {"number": 1}),
        (lambda x: x[0, 0].item(), {"number": 1}),
        (lambda x: torch.equal(x, x.clone()), {"number": 1}),
        (lambda x: x.cpu(), {"to host": 1}),
        (lambda x: x.to("cpu"), {"to host": 1}),
        (lambda x: x.tolist(), {"to host": 1}),
        (lambda x: here().copy_(x), {"to host": 1}),
        (lambda x: x.copy_(here()), {"to device": 1}),
        (lambda x: x.__setitem__(0, torch.ones(3)), {"to device": 1}),
        (lambda _: here().to("cuda"), {"to device": 1}),
        (lambda x: here().to(x), {"to device": 1}),
        (lambda _: torch.tensor([1.0, 2.0], device="cuda"), {"to device": 1}),
        (lambda x: x[x > 2.0], {"unknown length": 1}),
        (lambda x: x.nonzero(), {"unknown length": 1}),
        (lambda x: torch.masked_select(x, x > 2.0), {"unknown length": 1}),
        (lambda x: x.to("cuda").to(torch.float64).cuda(), {}),
        (lambda x: nn.utils.clip_grads_with_norm_(with_gradient(x), 1.0, nn.utils.get_total_norm([x])), {}),
        (lambda x: x + torch.tensor(2.0) + 1.0, {}),
        (lambda x: torch.where(x > 0.0, x, 0.0).mean(dim=0) @ x.T, {}),
        (lambda _: torch.zeros(3, device="cuda") + torch.arange(3, device="cuda"), {}),
    ],
)
def test_what_waits_is_counted(operation: Callable[[Tensor], Any], waits: dict[str, int]) -> None:
    with PretendedGpu() as gpu:
        x = there()
        before = gpu.kinds()
        operation(x)
        assert gpu.kinds() - before == waits
        assert gpu.faults == []


def test_what_is_made_of_tensors_of_the_gpu_is_there_too() -> None:
    with PretendedGpu() as gpu:
        assert torch.cuda.is_available()
        x, module = there(), nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2)).to("cuda")
        (module(x) ** 2).mean().backward()
        optimizer = torch.optim.AdamW(module.parameters())
        optimizer.step()
        moments = [v for s in optimizer.state.values() for k, v in s.items() if k != "step"]
        made = [x.T, x[0], x.view(-1), x.new_zeros(2), torch.zeros_like(x), copy.deepcopy(x), x.detach(), *x.split(1)]
        made += [*module.state_dict().values(), *copy.deepcopy(module).parameters(), *moments]
        made += [p.grad for p in module.parameters()]
        made += [nn.utils.clip_grad_norm_(module.parameters(), 1.0)]
        assert all(tensor.device.type == "cuda" and tensor.is_cuda and not tensor.is_cpu for tensor in made)
        assert all(not tensor.is_cuda for tensor in (here(), x.cpu(), torch.zeros(2)))
        assert gpu.faults == []
    assert not x.is_cuda, "and outside of it everything is what it was"
    assert torch.cuda.is_available.__module__ == "torch.cuda"
    np.testing.assert_array_equal(x.numpy(), here().numpy())


def test_numbers_are_those_of_the_cpu() -> None:
    def train(device: str) -> list[float]:
        torch.manual_seed(0)
        module, x = nn.Linear(3, 1).to(device), here().to(device)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            module(x).square().mean().backward()
            optimizer.step()
        return [float(p.detach().sum()) for p in module.parameters()]

    with PretendedGpu():
        found = train("cuda")
    assert found == pytest.approx(train("cpu"), rel=1e-6)

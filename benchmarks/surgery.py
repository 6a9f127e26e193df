"""CPU time of a whole update step: one summed backward, two backwards with the closed form, TorchJD's backward.

A step is forward on a batch of demonstrations and on a larger one of the rollout through one network, gradients, and
AdamW. The ways take turns in every round; the ratio is the median over rounds of the ratio within a round, so that
other load on the machine, which passes slowly against a round, touches both sides alike.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torchjd.aggregation import UPGrad as TorchJDUPGrad
from torchjd.autojac import backward, jac_to_grad

from benchmarks.result import write
from inril_ray.gradient_separation.upgrad import UPGrad

IN, OUT, NUM_HIDDEN = 32, 8, 3
WIDTHS_ROUNDS = {512: 24, 1024: 12}
"""Width of the hidden layers, 0.55 and 2.15 million parameters, to the number of rounds."""
IL_BATCH, RL_BATCH = 256, 5000
SEED = 0
Way = Callable[[Tensor, Tensor, Sequence[nn.Parameter]], object]


def summed(rl_loss: Tensor, il_loss: Tensor, parameters: Sequence[nn.Parameter]) -> None:
    (rl_loss + il_loss).backward(inputs=list(parameters))


def torchjd(rl_loss: Tensor, il_loss: Tensor, parameters: Sequence[nn.Parameter]) -> None:
    backward([rl_loss, il_loss])
    jac_to_grad(parameters, TorchJDUPGrad())


WAYS: dict[str, Way] = {"summed": summed, "closed_form": UPGrad().backward, "torchjd": torchjd}


def network(width: int) -> nn.Sequential:
    """Return a network of ``NUM_HIDDEN`` hidden layers; of ReLU, whose backward PyTorch can batch as TorchJD asks."""
    layers: list[nn.Module] = [nn.Linear(IN, width), nn.ReLU()]
    for _ in range(NUM_HIDDEN - 1):
        layers += [nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, OUT))


def measure(width: int, num_rounds: int) -> tuple[int, dict[str, list[float]]]:
    """Return the number of parameters and the CPU seconds of a step by way, a value for each round."""
    torch.manual_seed(SEED)
    net = network(width)
    parameters = list(net.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-5)
    batches = [(torch.randn(n, IN), torch.randn(n, OUT)) for n in (RL_BATCH, IL_BATCH)]
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    for turn in range(num_rounds + 1):
        names = list(WAYS) if turn % 2 else list(reversed(WAYS))
        for name in names:
            start = time.process_time()
            optimizer.zero_grad(set_to_none=True)
            rl_loss, il_loss = ((net(x) - y).square().mean() for x, y in batches)
            WAYS[name](rl_loss, il_loss, parameters)
            optimizer.step()
            if turn:  # the first round warms up
                seconds[name].append(time.process_time() - start)
    return sum(p.numel() for p in parameters), seconds


def main() -> None:
    """Measure both networks with one thread."""
    torch.set_num_threads(1)
    figures: dict[str, float] = {"il_batch": IL_BATCH, "rl_batch": RL_BATCH}
    worst = 0.0
    for width, num_rounds in WIDTHS_ROUNDS.items():
        num_parameters, seconds = measure(width, num_rounds)
        tag = f"{num_parameters / 1e6:.2f}m"
        figures[f"rounds_{tag}"] = num_rounds
        for name, values in seconds.items():
            figures[f"step_cpu_ms_{name}_{tag}"] = round(1e3 * statistics.median(values), 1)
        for name in ("closed_form", "torchjd"):
            pairs = zip(seconds[name], seconds["summed"], strict=True)
            figures[f"ratio_{name}_{tag}"] = round(statistics.median(a / b for a, b in pairs), 4)
        worst = max(worst, figures[f"ratio_closed_form_{tag}"])
    write(
        "surgery",
        figures,
        reference="CPU time of a step with one backward of the summed losses, same run, one thread",
        ratio=worst,
        goal="at most 1.05",
    )


if __name__ == "__main__":
    main()

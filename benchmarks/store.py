"""Memory that a second consumer process of the demonstration store adds, as a share of the data."""

from __future__ import annotations

import dataclasses
import os

import numpy as np
import ray

from benchmarks.result import write
from inril_ray.demos.store import DemoArrays, DemoInfo, DemoStore
from inril_ray.distributed.demo_service import DemoService, fetch

STEPS, OBS, ACTIONS, LENGTH = 1_600_000, 59, 14, 400


def synthetic() -> DemoArrays:
    """Return demonstrations of Transport's shape, about 470 MB."""
    rng = np.random.default_rng(0)
    info = DemoInfo(
        source_file="synthetic",
        format="synthetic",
        env_name="synthetic",
        semantics="v15",
        source="unknown",
        obs_keys=(("obs", OBS),),
        content_hash="0",
        metadata={},
    )
    return DemoArrays(
        obs=rng.standard_normal((STEPS, OBS), dtype=np.float32),
        actions=rng.standard_normal((STEPS, ACTIONS), dtype=np.float32),
        rewards=np.zeros(STEPS, np.float32),
        episode_starts=np.arange(0, STEPS + 1, LENGTH),
        held_out=np.zeros(STEPS // LENGTH, bool),
        info=info,
    )


def private_bytes() -> int:
    """Return the memory of this process that no other shares."""
    with open("/proc/self/smaps_rollup") as file:
        lines = [line.split() for line in file if line.startswith("Private_")]
    return 1024 * sum(int(fields[1]) for fields in lines)


@ray.remote
class Consumer:
    """Samples from the store."""

    def measure(self, handle: list) -> dict[str, int]:
        """Return private memory before and after reading all of the data and sampling from it."""
        before = private_bytes()
        store = DemoStore(fetch(handle), 8)
        total = float(store.arrays.obs.sum())
        rng = np.random.default_rng(os.getpid())
        for _ in range(200):
            total += float(store.sample(rng, 256).actions.sum())
        return {"before": before, "after": private_bytes(), "checked": int(np.isfinite(total))}


def main() -> None:
    """Let two consumers read everything."""
    arrays = synthetic()
    size = arrays.size_bytes()
    ray.init(num_cpus=2, object_store_memory=int(1.5 * size), logging_level="warning")
    service = DemoService(arrays)
    arrays = dataclasses.replace(arrays, obs=arrays.obs[:1])
    consumers = [Consumer.remote(), Consumer.remote()]  # type: ignore[attr-defined]
    first, second = (ray.get(c.measure.remote(service.handle)) for c in consumers)
    extra = second["after"] - second["before"]
    write(
        "demo_store_memory",
        {
            "data_mb": round(size / 1e6, 1),
            "first_consumer_private_growth_mb": round((first["after"] - first["before"]) / 1e6, 1),
            "second_consumer_private_growth_mb": round(extra / 1e6, 1),
        },
        reference="size of the data in arrays; the consumer touched all of it",
        ratio=round(extra / size, 4),
        goal="at most 0.05",
    )
    ray.shutdown()


if __name__ == "__main__":
    main()

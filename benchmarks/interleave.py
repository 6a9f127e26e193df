"""Share of wall time that imitation takes at m = 10."""

from __future__ import annotations

from benchmarks.result import write
from inril_ray.experiment import load_config, load_demos, shipped_config
from inril_ray.run import LocalBackend

ITERATIONS = 10


def main() -> None:
    """Run ten iterations, the tenth with imitation, in the demo's setting and with the default matched size."""
    shares = {}
    for name, il_steps in (("demo_20_steps", 20), ("matched", "matched")):
        layers = [shipped_config("demo"), {"pretrain": {"num_epochs": 20}, "interleave": {"il_steps": il_steps}}]
        config = load_config(layers)
        backend = LocalBackend(config, load_demos(config))
        backend.pretrain()
        records = [backend.iterate() for _ in range(ITERATIONS)]
        il = sum(r["il_s"] for r in records)
        total = sum(r["il_s"] + r["rl_s"] + r["rollout_s"] + r["diagnostics_s"] for r in records)
        shares[f"il_share_{name}"] = round(il / total, 4)
        shares[f"diagnostics_share_{name}"] = round(sum(r["diagnostics_s"] for r in records) / total, 4)
        shares[f"il_updates_{name}"] = int(records[-1]["il_updates"])
    write(
        "interleave_share",
        shares,
        reference="wall time of ten iterations (rollout, RL, IL, diagnostics), --local",
        ratio=shares["il_share_demo_20_steps"],
        goal="at most 0.05",
    )


if __name__ == "__main__":
    main()

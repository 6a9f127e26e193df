"""A policy with what one should know before using it: weights, configuration, evaluation, origin, pictures."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from inril_ray import checkpoint
from inril_ray.experiment import ExperimentConfig, resolved, task_spec
from inril_ray.media import choose_episode, write_before_and_after
from inril_ray.run_dir import read_config, read_json, read_pretrained, write_json
from inril_ray.statistics import measure_of, score_text
from inril_ray.words import counted

README, WEIGHTS = "README.md", "policy.safetensors"


def write_card(folder: Path, run_dir: Path, *, evaluations: Mapping[str, str], film: bool = True) -> Path:
    """Write the folder of a finished run's policy, which appears under its name only when it is complete.

    ``policy.safetensors`` holds the weights by parameter name (normaliser included), ``config.json`` what builds the
    network, ``evaluation.json`` the outcome of every episode, ``README.md`` all that in words, ``media/`` one episode
    before and after fine-tuning, where pictures can be made.

    Args:
        folder: to write; replaced if it exists.
        run_dir: of the run.
        evaluations: further results, name to sentence.
        film: make the pictures.

    Raises:
        InrilError: the run is not finished, or its checkpoint is damaged.
    """
    config, summary = read_config(run_dir), read_json(run_dir / "summary.json")
    saved, _ = checkpoint.read_latest(run_dir / "checkpoints")
    learner = saved["backend"]["learner"]
    weights = learner["acting"] or learner["modules"]["policy"]
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file({name: np.ascontiguousarray(value) for name, value in weights.items()}, partial / WEIGHTS)
    shutil.copy(run_dir / "config.json", partial / "config.json")
    write_json(partial / "evaluation.json", {"base": summary["base"], "final": summary["final"]})
    note = "No pictures were asked for."
    if film:
        outcomes = summary["base"]["outcomes"], summary["final"]["outcomes"]
        episode = choose_episode(*outcomes, config.evaluation.num_envs)
        # A member of a population that took over another's checkpoint holds no copy of what all were cloned from.
        own = config.pretrained is None or (run_dir / "pretrained").is_dir()
        cloned = functools.partial(read_pretrained, run_dir if own else Path(str(config.pretrained)))
        note = write_before_and_after(partial, config, cloned, weights, episode)
    (partial / README).write_text(_words(config, summary, evaluations, note), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return folder


def _words(config: ExperimentConfig, summary: Mapping[str, Any], evaluations: Mapping[str, str], note: str) -> str:
    spec, plain, demos = task_spec(config), resolved(config), summary["demos"]
    base, final = summary["base"], summary["final"]
    rows = {
        "task": f"`{config.task}`: observations {spec.obs_dim}, actions {spec.action_dim}, {spec.control_hz:g} Hz",
        "algorithm": f"`{config.algorithm}`, policy `{config.policy}`, schedule `{config.schedule}`, separation "
        f"`{config.separation}`, m = {config.interleave.every}",
        "seed": str(config.seed),
        "trained for": f"{summary['env_steps']:,} control steps, {summary['counters']['rl_updates']:,} RL and "
        f"{summary['counters']['il_updates']:,} IL gradient steps",
        "demonstrations": f"{demos['source']}: {demos['file']}, SHA-256 `{demos['hash'][:12]}`",
        "configuration": f"`{summary['config_hash']}`, commit `{summary['commit']}`",
        "versions": ", ".join(f"{name} {version}" for name, version in summary["versions"].items()),
    }
    lines = [
        f"# {config.task}, {config.algorithm}",
        "",
        f"A policy that was cloned from demonstrations ({demos['source']}) and fine-tuned in simulation.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in rows.items()),
        "",
        f"## Evaluation ({measure_of(final).interval}; initial states are disjoint from those of training)",
        "",
        *([measure_of(final).definition, ""] if measure_of(final).rule else []),
        f"- Cloned: {score_text(base)}, {counted(base['eval_episodes'], 'episodes')}",
        *(
            [f"- Cloned, with critics choosing that have learned nothing yet: {score_text(summary['untrained'])}"]
            if summary.get("untrained")
            else []
        ),
        f"- Fine-tuned: {score_text(final)}, {counted(final['eval_episodes'], 'episodes')}",
        *(f"- {name}: {sentence}" for name, sentence in evaluations.items()),
        "",
        f"{note} Numbers are of this simulator; nothing was run on a robot.",
        "",
        "## Use",
        "",
        "```python",
        "import json",
        "",
        "from safetensors.numpy import load_file",
        "from inril_ray.experiment import build_acting, load_acting, load_config",
        "",
        'config = load_config([json.load(open("config.json"))["config"]])',
        "policy = build_acting(config).eval()",
        f'load_acting(policy, load_file("{WEIGHTS}"))',
        "```",
        "",
        f"Episodes last {plain['env']['max_episode_steps'] or spec.max_episode_steps} control steps.",
    ]
    return "\n".join(lines) + "\n"

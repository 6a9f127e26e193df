"""What a configuration may ask for: keys, paths, sizes, and a run to start from."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from inril_ray.config import build, flat, nested
from inril_ray.experiment import (
    apart_from_preset,
    build_learner,
    description,
    enough_memory,
    load_config,
    load_demos,
    resolved,
)
from inril_ray.presets import check_run, check_start, known_keys
from inril_ray.run_dir import check_pretrained, read_config, write_json
from inril_ray.sweep import SweepConfig, located
from inril_ray.types import InrilError
from tests.update_golden import all_keys


def test_the_list_of_keys_is_that_of_the_classes() -> None:
    """A new key is a decision: `make golden` adds it to the list that wrong keys are held against."""
    assert known_keys() == all_keys()


@pytest.mark.parametrize(
    ("key", "given", "kept"),
    [
        ("demos", "sets/lift.hdf5", "{here}/sets/lift.hdf5"),
        ("demos", "../here/lift.hdf5", "{here}/lift.hdf5"),
        ("demos", "/elsewhere/../lift.hdf5", "/elsewhere/../lift.hdf5"),
        ("pretrained", "runs/base", "{here}/runs/base"),
        ("tracking.mlflow_uri", "sqlite:///runs/mlflow.db", "sqlite:///{here}/runs/mlflow.db"),
        ("tracking.mlflow_uri", "sqlite:////data/mlflow.db?timeout=9", "sqlite:////data/mlflow.db?timeout=9"),
        ("tracking.mlflow_uri", "mlruns", "{here}/mlruns"),
        ("tracking.mlflow_uri", "http://server:5000", "http://server:5000"),
        ("tracking.mlflow_uri", "databricks", "databricks"),
    ],
)
def test_paths_are_absolute(key: str, given: str, kept: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is saved must not depend on where the command was typed, nor a trial on the directory that Tune gives it."""
    here = (tmp_path / "here").resolve()
    here.mkdir()
    monkeypatch.chdir(here)
    sweep = build(SweepConfig, {"name": "a", "base": {"task": "robomimic/lift", **nested({key: given})}})
    config, fixed = load_config([{"task": "robomimic/lift"}, nested({key: given})]), located(sweep)
    monkeypatch.chdir(tmp_path)
    expected = kept.format(here=here)
    assert flat(resolved(config))[key] == expected
    assert load_config([resolved(config)]) == config
    if key != "pretrained":
        assert flat(fixed.base)[key] == expected


def test_the_description_fits_a_terminal() -> None:
    assert description(load_config([{"task": "robomimic/lift"}])).endswith("seed 0: the preset")
    own = {"rl": {"actor_lr": 0.5}, "tracking": {"mlflow_experiment": "a few words " * 20}}
    text = description(load_config([{"task": "robomimic/lift", "num_iterations": 3, **own}]))
    what, *lines = text.split("\n")
    assert what.endswith("the preset, but for") and lines[:3] == ["num_iterations: 3", "rl:", "  actor_lr: 0.5"]
    assert max(map(len, lines)) <= 78 and not {"{", "}"} & set(text)


@pytest.mark.parametrize("kind", ["missing", "file", "empty"])
def test_what_is_no_run_is_said_alike(kind: str, tmp_path: Path) -> None:
    place = tmp_path / "zq"
    said = {"missing": "it is not there", "file": "it is a file", "empty": "there is no config.json in it"}[kind]
    {"missing": lambda: None, "file": place.touch, "empty": place.mkdir}[kind]()
    for check in (check_run, read_config):
        with pytest.raises(InrilError) as caught:
            check(place)
        assert str(caught.value) == f"{place} holds no readable run: {said}."
    with pytest.raises(InrilError) as caught:
        check_start(str(place))
    assert str(caught.value) == f"pretrained = {str(place)!r}: {place} holds no readable run: {said}."


def test_wrong_values_are_refused_before_anything_heavy_is_loaded(tmp_path: Path) -> None:
    sweeps = {"space": {"space": {"interleave.evry": [1]}}, "arms": {"arms": [{"rl.actor_lrr": 1}]}}
    for name, values in sweeps.items():
        (tmp_path / f"{name}.yaml").write_text(
            yaml.safe_dump({"name": "zq", "base": {"task": "robomimic/lift"}} | values)
        )
    commands = [
        ["verdict", "--config", "demo", "--seeds", "1", "2"],
        ["chaos", "--faults", "zz"],
        *(["sweep", str(tmp_path / f"{name}.yaml")] for name in sweeps),
    ]
    code = (
        f"import sys, inril_ray.cli as c; print([c.main(a) for a in {commands}]); "
        "print([m for m in ('ray', 'torch', 'mlflow', 'mujoco') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[1, 1, 1, 1]", "[]"]
    said = done.stderr.splitlines()
    assert "seeds = [1, 2]" in said[0] and "--faults 'zz': choose of 'worker'" in said[1]
    assert "space.yaml: Unknown configuration key 'interleave.evry'. Did you mean 'every'?" in said[2]
    assert "arms.yaml: Unknown configuration key 'rl.actor_lrr'. Did you mean 'actor_lr'?" in said[3]


def test_what_differs_from_the_preset_is_told() -> None:
    assert apart_from_preset(load_config([{"task": "robomimic/lift"}])) == {}
    own = {"rl": {"actor_lr": 0.5}, "num_iterations": 3, "actor": {"hidden_dim": 8}}
    assert apart_from_preset(load_config([{"task": "robomimic/lift"}, own])) == own
    assert apart_from_preset(load_config([{"task": "robomimic/lift", "policy": "diffusion_unet"}])) == {}


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"actor": {"num_hidden": 2}}, "actor.num_hidden = 2: a residual MLP has an odd number of hidden layers"),
        ({"rl": {"critic_num_hidden": 4}}, "rl.critic_num_hidden = 4: a residual MLP has an odd number"),
        ({"rl": {"critic_num_hidden": 4}, "algorithm": "idql"}, "rl.critic_num_hidden = 4: a residual MLP has an odd"),
        ({"rollout": {"num_envs": 2**70}}, "rollout.num_envs = 1180591620717411303424: numbers go up to 4294967296"),
        ({"rl": {"actor_lr": math.inf}}, "rl.actor_lr = inf: Input should be a finite number"),
        ({"tracking": {"trackers": "wandb"}}, "tracking.trackers = 'wandb': a list is needed, such as [wandb]."),
        ({"env": {"backend": "zq"}}, "env.backend = 'zq': robomimic/lift has fast, kernel, stock."),
        ({"demos": ""}, "demos = '': the path of a file or a directory is needed"),
    ],
)
def test_values_that_no_run_can_have_are_refused(own: dict[str, Any], said: str) -> None:
    with pytest.raises(InrilError) as caught:
        load_config([{"task": "robomimic/lift"}, own])
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_sizes_beyond_the_memory_are_a_sentence() -> None:
    huge = load_config([{"task": "robomimic/lift", "actor": {"hidden_dim": 2**31}, "compute": {"device": "cpu"}}])
    with pytest.raises(InrilError, match="There is no memory for the networks and the replay; make sizes in actor"):
        build_learner(huge, load_demos(huge))
    with pytest.raises(ValueError, match="odd"), enough_memory("anything"):  # what is no matter of memory
        raise ValueError("odd")


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"task": "robomimic/can"}, "the task of that run is robomimic/lift, that of this one robomimic/can."),
        ({"algorithm": "ppo"}, "the policy of that run is diffusion_mlp, that of this one gaussian_mlp."),
        ({"actor": {"hidden_dim": 8}}, "its networks are others (actor.hidden_dim = 512 there, 8 here)."),
        ({"actor": {"finetuned_steps": 5}}, None),
    ],
)
def test_a_run_of_something_else_is_no_start(own: dict[str, Any], said: str | None, tmp_path: Path) -> None:
    values = resolved(load_config([{"task": "robomimic/lift"}]))
    write_json(tmp_path / "config.json", {"config": values})
    config = load_config([{"task": "robomimic/lift", "pretrained": str(tmp_path), "demos": "a", **own}])
    if said is None:
        check_pretrained(config)
        return
    with pytest.raises(InrilError) as caught:
        check_pretrained(config)
    assert str(caught.value) == f"pretrained = {str(tmp_path)!r}: {said}"

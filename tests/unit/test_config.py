"""Configuration, overrides and names."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from inril_ray import envs
from inril_ray.algorithms import ALGORITHMS
from inril_ray.algorithms.dppo import DPPOConfig
from inril_ray.config import build, config, fingerprint, merge, parse_overrides, read_yaml, to_dict
from inril_ray.experiment import build_policy, load_config, resolved, task_spec
from inril_ray.learner import InterleaveConfig
from inril_ray.registry import resolve
from inril_ray.sweep import read_sweep
from inril_ray.types import InrilError

LIFT = {"task": "robomimic/lift"}


@config
class Inner:
    size: int = 1
    rate: float = 0.5


@config
class Outer:
    inner: Inner = Inner()
    name: str = "x"


# -- building ---------------------------------------------------------------------------------------------------------
def test_defaults_and_given_values():
    section = build(InterleaveConfig, {"every": 3}, "interleave")
    assert (section.every, section.il_steps, section.il_lr) == (3, "matched", 1e-4)
    assert build(InterleaveConfig, {"il_steps": 7}).il_steps == 7
    assert build(InterleaveConfig, {"il_steps": "epoch"}).il_steps == "epoch"


def test_sections_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        build(InterleaveConfig, {}).every = 5


def test_sections_nest_from_mappings_and_from_instances():
    assert build(Outer, {"inner": {"size": 4}}).inner == Inner(size=4)
    assert build(Outer, {"inner": Inner(size=5)}).inner.size == 5


def test_an_unknown_key_lists_the_choices_and_the_nearest():
    with pytest.raises(InrilError) as error:
        build(InterleaveConfig, {"evry": 3}, "interleave")
    text = str(error.value)
    assert "'interleave.evry'" in text
    assert "Did you mean 'every'?" in text
    for field in dataclasses.fields(InterleaveConfig):
        assert field.name in text


def test_an_unknown_key_of_a_nested_section_names_its_path():
    with pytest.raises(InrilError, match=r"'interleave\.evry'"):
        load_config([LIFT, {"interleave": {"evry": 3}}])


def test_an_unknown_key_of_a_nested_section_lists_that_section_s_choices():
    with pytest.raises(InrilError) as error:
        load_config([LIFT, {"interleave": {"evry": 3}}])
    assert "il_batch_size" in str(error.value)
    assert "Did you mean 'every'?" in str(error.value)


@pytest.mark.parametrize(
    ("cls", "values", "path", "field", "value"),
    [
        (InterleaveConfig, {"every": "ten"}, "interleave", "interleave.every", "'ten'"),
        (InterleaveConfig, {"every": 0}, "interleave", "interleave.every", "0"),
        (InterleaveConfig, {"every": 2.5}, "interleave", "interleave.every", "2.5"),
        (InterleaveConfig, {"relation_pairs": 1}, "interleave", "interleave.relation_pairs", "1"),
        (InterleaveConfig, {"il_timesteps": "some"}, "interleave", "interleave.il_timesteps", "'some'"),
        (InterleaveConfig, {"il_steps": "often"}, "interleave", "interleave.il_steps", "'often'"),
        (InterleaveConfig, {"il_steps": 0}, "interleave", "interleave.il_steps", "0"),
        (DPPOConfig, {"discount": 1.5}, "rl", "rl.discount", "1.5"),
        (DPPOConfig, {"actor_lr": -1e-4}, "rl", "rl.actor_lr", "-0.0001"),
        (DPPOConfig, {"actor_lr": float("nan")}, "rl", "rl.actor_lr", "nan"),
        (DPPOConfig, {"target_kl": [1]}, "rl", "rl.target_kl", "[1]"),
        (Outer, {"inner": {"rate": "fast"}}, "top", "top.inner.rate", "'fast'"),
        (Outer, {"inner": 3}, "", "inner", "3"),
    ],
)
def test_wrong_values_are_named_with_their_path(cls, values, path, field, value):
    with pytest.raises(InrilError) as error:
        build(cls, values, path)
    assert f"Configuration {field} = {value}: " in str(error.value)


def test_all_mistakes_are_reported_at_once():
    with pytest.raises(InrilError) as error:
        build(InterleaveConfig, {"every": 0, "il_lr": "x", "nope": 1}, "interleave")
    assert len(str(error.value).splitlines()) == 3


def test_the_path_of_a_union_has_no_inner_labels():
    with pytest.raises(InrilError) as error:
        build(InterleaveConfig, {"il_steps": 0}, "interleave")
    assert "constrained-int" not in str(error.value)


@pytest.mark.parametrize("values", [None, 3, [1], "every=3"])
def test_a_section_must_be_a_mapping(values):
    with pytest.raises(InrilError, match="section interleave must be a mapping"):
        build(InterleaveConfig, values, "interleave")


# -- overrides --------------------------------------------------------------------------------------------------------
def test_overrides_become_nested_yaml_values():
    items = ["a.b=1", "a.c=x", "d=[1, 2]", "e.f.g=null", "h=true", "i=a=b", "j="]
    assert parse_overrides(items) == {
        "a": {"b": 1, "c": "x"},
        "d": [1, 2],
        "e": {"f": {"g": None}},
        "h": True,
        "i": "a=b",
        "j": "",
    }
    assert parse_overrides(["a=1", "a=2"]) == {"a": 2}


@pytest.mark.parametrize("item", ["every", "=3", "a..b=3", "a b=3", "1a=3", "a.=2"])
def test_an_override_of_another_form_is_refused(item):
    with pytest.raises(InrilError, match="not of the form key=value"):
        parse_overrides([item])


def test_override_values_are_data():
    with pytest.raises(InrilError, match="not valid YAML"):
        parse_overrides(["a=!!python/object/apply:os.system ['true']"])
    with pytest.raises(InrilError, match="not valid YAML"):
        parse_overrides(["a=[1"])


def test_an_override_can_t_set_a_value_and_a_key_in_it():
    with pytest.raises(InrilError, match="already set to a value"):
        parse_overrides(["a=1", "a.b=2"])


def test_an_override_can_t_set_a_key_and_then_its_section():
    with pytest.raises(InrilError):
        parse_overrides(["a.b=2", "a=1"])


def test_scientific_notation_without_a_point_is_a_number():
    assert build(DPPOConfig, parse_overrides(["rl.actor_lr=1e-5"])["rl"], "rl").actor_lr == 1e-5


# -- layers -----------------------------------------------------------------------------------------------------------
def test_merge_lays_sections_over_each_other_and_changes_neither():
    base, top = {"a": {"b": 1, "c": 2}, "d": 3, "e": {"f": 1}}, {"a": {"c": 9}, "d": {"x": 1}, "e": 5}
    assert merge(base, top) == {"a": {"b": 1, "c": 9}, "d": {"x": 1}, "e": 5}
    assert base == {"a": {"b": 1, "c": 2}, "d": 3, "e": {"f": 1}}


def test_later_layers_win_over_the_preset():
    plain = load_config([LIFT])
    changed = load_config([LIFT, {"rl": {"num_epochs": 3}, "seed": 4}, {"rl": {"num_epochs": 2}}])
    assert (plain.algorithm, plain.policy, plain.schedule, plain.separation) == (
        "dppo",
        "diffusion_mlp",
        "fixed",
        "upgrad",
    )
    assert (changed.rl.num_epochs, changed.seed) == (2, 4)
    assert changed.rl.minibatch_size == plain.rl.minibatch_size


def test_the_resolved_configuration_builds_itself_again():
    first = load_config([LIFT, {"interleave": {"every": 3}}])
    second = load_config([resolved(first)])
    assert resolved(second) == resolved(first)
    assert fingerprint(resolved(second)) == fingerprint(resolved(first))
    assert fingerprint(resolved(first)) != fingerprint(resolved(load_config([LIFT])))


def test_the_fingerprint_does_not_depend_on_order():
    assert fingerprint({"a": 1, "b": {"c": 2, "d": 3}}) == fingerprint({"b": {"d": 3, "c": 2}, "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
    assert len(fingerprint({})) == 12


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "No task given"),
        ({"task": "robomimic/lif"}, r"Unknown task 'robomimic/lif'.*Did you mean 'robomimic/lift'"),
        ({**LIFT, "algorithm": "dpo"}, r"Unknown algorithm 'dpo'.*Choose one of: awr, cal_ql, .*, sac"),
        ({**LIFT, "schedule": "fixd"}, r"Unknown schedule 'fixd'.*fixed, il_only, rl_only"),
        ({**LIFT, "separation": "none"}, r"Unknown separation 'none'.*cagrad, .*, upgrad"),
        ({**LIFT, "policy": "mlp"}, r"Unknown policy 'mlp'.*diffusion_mlp, .*, tanh_gaussian"),
        ({**LIFT, "tracking": {"trackers": ["tensorbord"]}}, "Unknown tracker 'tensorbord'"),
        ({**LIFT, "rl": {"actor_lrr": 1}}, r"'rl\.actor_lrr'.*Did you mean 'actor_lr'"),
        ({**LIFT, "actor": {"hidden": 1}}, r"'actor\.hidden'.*hidden_dim"),
        ({**LIFT, "nope": 1}, "Unknown configuration key 'nope'"),
        ({**LIFT, "seed": -1}, "seed = -1"),
        ({**LIFT, "seed": 2**32}, "seed = 4294967296"),
    ],
)
def test_what_load_config_refuses(values, message):
    with pytest.raises(InrilError, match=message):
        load_config([values])


# -- files and names --------------------------------------------------------------------------------------------------
def test_a_password_stays_out_of_what_is_printed_and_saved():
    for secret in (
        "https://me:hunter2@tracking.example",
        "https://me:hun#hunter2@tracking.example",
        "https://me:[hunter2@tracking.example/x",
        "https://hunter2@tracking.example",
        "postgresql://db/x?user=me&password=hunter2",
        "mysql+pymysql://db/x?passphrase=hunter2",
        "http://tracking.example/?api_key=hunter2",
        "https://tracking.example/x?sig=hunter2",
        "HTTPS://tracking.example/x?anything=hunter2",
        "http:/me:hunter2@tracking.example",
    ):
        with pytest.raises(InrilError, match="MLFLOW_TRACKING_PASSWORD") as caught:
            load_config([{"task": "robomimic/lift", "tracking": {"mlflow_uri": secret}}])
        assert "hunter2" not in str(caught.value)
    for uri in ("https://tracking.example:5000/x", "sqlite:////tmp/a@b.db", "databricks", "file:///tmp/mlruns"):
        assert load_config([{"task": "robomimic/lift", "tracking": {"mlflow_uri": uri}}]).tracking.mlflow_uri == uri


ADDRESS = "http://me:hunter2@tracking.example"


@pytest.mark.parametrize(
    "values",
    [
        {"tracking": {"mlflow_uri": [ADDRESS]}},
        {"tracking": ADDRESS},
        {"tracking": {"mlflow_uri": {"x": [ADDRESS * 20]}}},
        {"tracking": {ADDRESS: 1}},
    ],
)
def test_nor_does_a_mistake_show_it(values: Any):
    with pytest.raises(InrilError) as caught:
        load_config([{"task": "robomimic/lift"}, values])
    assert "hunter2" not in str(caught.value)


def test_nor_does_a_mistake_around_it(tmp_path: Path):
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({"base": {"tracking": {"mlflow_uri": ADDRESS}}}))
    (tmp_path / "broken.yaml").write_text(f"mlflow_uri: {ADDRESS}: {{x")
    for failing in (
        lambda: read_sweep(tmp_path / "sweep.yaml"),
        lambda: read_yaml(tmp_path / "broken.yaml"),
        lambda: parse_overrides([f"tracking.mlflow_uri={ADDRESS}: {{x"]),
        lambda: parse_overrides([ADDRESS]),
    ):
        with pytest.raises(InrilError) as caught:
            failing()
        assert "hunter2" not in str(caught.value)


def test_a_small_file_of_aliases_makes_a_short_message(tmp_path: Path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    (tmp_path / "many.yaml").write_text("\n".join([*lines, "seed: *a11", "task: *a11"]))
    with pytest.raises(InrilError) as caught:
        load_config([read_yaml(tmp_path / "many.yaml")])
    assert len(str(caught.value)) < 20_000


@pytest.mark.parametrize(
    "text",
    ["2020-13-45", "!!int foo", "!!timestamp foo", "9" * 5000, "[" * 3000, "!!float x", "!!binary x", "!!bool x"],
)
def test_text_that_python_can_not_read_is_a_sentence(tmp_path: Path, text: str):
    """PyYAML hands over what Python says of it."""
    with pytest.raises(InrilError, match="not valid YAML"):
        parse_overrides([f"seed={text}"])
    (tmp_path / "bad.yaml").write_text(f"seed: {text}\n")
    with pytest.raises(InrilError, match="not valid YAML"):
        read_yaml(tmp_path / "bad.yaml")


def test_read_yaml(tmp_path: Path):
    good = tmp_path / "good.yaml"
    good.write_text("a: {b: 1}\n")
    assert read_yaml(good) == {"a": {"b": 1}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "Cannot read"),
        (b"a: [1", "not valid YAML"),
        (b"\xff\xfe\x00", "not valid YAML"),
        (b"- 1", "must hold a mapping, got list"),
    ],
)
def test_read_yaml_names_the_file_that_it_can_t_use(tmp_path: Path, content, message):
    path = tmp_path / "bad.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InrilError, match=message) as error:
        read_yaml(path)
    assert str(path) in str(error.value)


def test_names_are_resolved_lazily_and_unknown_ones_list_the_choices():
    table = {"join": "os.path:join", "broken": "no.such.module:x"}
    assert resolve(table, "join", "thing")("a", "b") == "a/b"
    with pytest.raises(InrilError, match=r"Unknown thing 'joan'. Did you mean 'join'\? Choose one of: broken, join"):
        resolve(table, "joan", "thing")


def test_to_dict_is_plain():
    assert to_dict(Outer()) == {"inner": {"size": 1, "rate": 0.5}, "name": "x"}


# -- presets of all algorithms ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("task", envs.TASKS)
def test_every_pair_has_a_preset(task: str, algorithm: str) -> None:
    config = load_config([{"task": task, "algorithm": algorithm}])
    cls = resolve(ALGORITHMS, algorithm, "algorithm")
    assert config.policy in cls.policies
    for policy in cls.policies:
        load_config([{"task": task, "algorithm": algorithm, "policy": policy}])


@pytest.mark.parametrize(
    ("task", "dppo", "idql"),
    [
        ("robomimic/transport", 10, 10), ("robomimic/can", 5, 10), ("robomimic/lift", 10, 7),
        ("robomimic/square", 30, 10), ("gym/walker2d", 30, 10), ("gym/hopper", 10, 10), ("gym/halfcheetah", 10, 10),
    ],
)  # fmt: skip
def test_m_is_that_of_table_5(task: str, dppo: int, idql: int) -> None:
    for algorithm, every in (("dppo", dppo), ("idql", idql)):
        assert load_config([{"task": task, "algorithm": algorithm}]).interleave.every == every


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policy": "gaussian_mlp"}, "policy = 'gaussian_mlp': dppo trains diffusion_mlp or diffusion_unet"),
        ({"separation": "network"}, "imitates and reinforces the same parameters"),
        ({"algorithm": "residual_ppo", "separation": "upgrad"}, "different parameters, so nothing can be combined"),
        ({"algorithm": "residual_ppo", "schedule": "bc_reg"}, "have no meaning for it"),
        ({"algorithm": "idql", "actor": {"finetuned_steps": 5}}, "idql: actor.finetuned_steps = 5: all 20 steps"),
        ({"interleave": {"phase": "merged"}, "rl": {"accumulate": 5}}, "rl.accumulate must be null"),
    ],
)
def test_combinations_without_meaning_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InrilError, match=message):
        load_config([{"task": "robomimic/lift", **changes}])


def test_a_preset_may_depend_on_the_policy():
    layer = {"task": "robomimic/square", "algorithm": "dppo"}
    assert load_config([{**layer, "policy": "diffusion_unet"}]).rl.actor_lr == 2e-5
    assert load_config([layer]).rl.actor_lr == 1e-4


@pytest.mark.parametrize("separation", ["upgrad", "project_il"])
def test_a_residual_policy_is_separated_by_network_or_not_at_all(separation: str) -> None:
    layer = {"task": "robomimic/lift", "algorithm": "residual_ppo"}
    load_config([{**layer, "separation": "naive"}])
    with pytest.raises(InrilError, match="use network or naive"):
        load_config([{**layer, "separation": separation}])


@pytest.mark.parametrize(
    ("task", "every", "decisions"),
    [
        ("one_leg_low", 5, 700), ("one_leg_med", 5, 700), ("lamp_low", 4, 1000), ("lamp_med", 10, 1000),
        ("round_table_low", 5, 1000), ("mug_rack", 5, 400), ("peg_in_hole", 5, 200),
    ],
)  # fmt: skip
def test_furniture_follows_resip_and_table_8(task: str, every: int, decisions: int) -> None:
    config = load_config([{"task": f"furniture/{task}", "algorithm": "residual_ppo"}])
    assert (config.interleave.every, config.rollout.num_decisions, config.rollout.num_envs) == (every, decisions, 1024)
    assert config.rollout.num_decisions == task_spec(config).max_episode_steps
    assert (config.policy, config.separation, config.env.terminate_on_success) == ("residual_unet", "network", True)


@pytest.mark.parametrize(
    ("task", "policy", "minibatch", "decisions"),
    [
        ("one_leg_low", "diffusion_unet", 30_000, 88), ("lamp_low", "diffusion_unet", 40_000, 125),
        ("one_leg_low", "diffusion_mlp", 17_600, 88), ("round_table_med", "diffusion_mlp", 8_800, 125),
    ],
)  # fmt: skip
def test_furniture_follows_dppo(task: str, policy: str, minibatch: int, decisions: int) -> None:
    config = load_config([{"task": f"furniture/{task}", "algorithm": "dppo", "policy": policy}])
    rl = config.rl
    assert (rl.minibatch_size, config.rollout.num_decisions, config.num_iterations) == (minibatch, decisions, 900)
    assert (rl.critic_hidden_dim, rl.critic_warmup_iterations, rl.discount, rl.num_epochs) == (512, 0, 0.999, 5)
    assert (config.actor.obs_limit, config.actor.min_sampling_std) == (5.0, 0.04)


def test_furniture_networks_have_the_published_sizes() -> None:
    sizes = {}
    for policy in ("diffusion_unet", "diffusion_mlp"):
        config = load_config([{"task": "furniture/one_leg_low", "algorithm": "dppo", "policy": policy}])
        actor = build_policy(config, task_spec(config)).actor
        sizes[policy] = sum(p.numel() for p in actor.parameters())
    assert sizes == {"diffusion_unet": 6_856_346, "diffusion_mlp": 6_640_368}


def test_a_backend_of_another_task_is_refused_at_once() -> None:
    with pytest.raises(InrilError, match="furniture/mug_rack has cpu, warp"):
        load_config([{"task": "furniture/mug_rack", "env": {"backend": "stock"}}])

"""Automatic values follow the machine, a resumed run keeps its batch, and what cannot change is refused."""

import dataclasses

import pytest

from common.config import AUTO, DEFAULTS, Config, ConfigError, flag
from common.resolution import AUTOMATIC, Machine, contradictions, edited, resolve, resolve_resumed

TWO_CORES = Machine(cores=2)
GPU_BOX = Machine(cores=8, has_gpu=True, precision_on={"cpu": "float32", "cuda": "bfloat16"}.__getitem__)
BATCH_SIZES = {"lab": 16_384, "easy": 16_384, "hard": 65_536}


@pytest.mark.parametrize("preset", BATCH_SIZES)
def test_number_of_cores_does_not_change_the_batch(preset):
    for cores in (1, 2, 3, 5, 6, 7, 12, 16, 100):
        config = resolve(preset, {}, Machine(cores=cores))
        assert config.batch_size == BATCH_SIZES[preset]
        assert 1 <= config.num_actors <= cores


@pytest.mark.parametrize("preset", BATCH_SIZES)
@pytest.mark.parametrize("num_actors", [1, 2, 4, 8, 16, 32, 64])
def test_number_of_actors_does_not_change_the_batch(preset, num_actors):
    config = resolve(preset, {"num_actors": num_actors})
    assert config.num_actors == num_actors
    assert config.batch_size == BATCH_SIZES[preset]


@pytest.mark.parametrize("envs_per_actor", [1, 4, 8, 32, 64])
def test_environments_per_actor_alone_do_not_change_the_batch(envs_per_actor):
    config = resolve("lab", {"envs_per_actor": envs_per_actor}, TWO_CORES)
    assert config.envs_per_actor == envs_per_actor
    assert config.batch_size == BATCH_SIZES["lab"]


@pytest.mark.parametrize("envs_per_actor", [10, 48, 100])
def test_environments_per_actor_that_do_not_divide_the_total_are_refused(envs_per_actor):
    with pytest.raises(ConfigError, match="--envs-per-actor"):
        resolve("lab", {"envs_per_actor": envs_per_actor}, TWO_CORES)


def test_actors_and_environments_named_together_are_used_unchanged():
    config = resolve("lab", {"num_actors": 3, "envs_per_actor": 5, "num_minibatches": 1})
    assert (config.num_envs, config.batch_size) == (15, 15 * 256)


def test_contradictions_list_both_values_of_each_setting():
    stored = resolve("lab", {"num_actors": 2})
    overrides = {"gamma": 0.9, "num_levels": 50, "seed": 0}
    requested = dataclasses.replace(stored, **overrides)
    assert contradictions(stored, requested, overrides) == [
        "--gamma (run has 0.999, asked for 0.9)",
        "--num-levels (run has 20, asked for 50)",
    ]


def test_number_of_environments_is_fixed_but_their_split_is_free():
    stored = resolve("lab", {"num_actors": 2})
    more = {"num_actors": 4, "min_actors": 4}
    (line,) = contradictions(stored, dataclasses.replace(stored, **more), more)
    assert "64 environments" in line and "128" in line and "--num-actors" in line
    split = {"num_actors": 4, "min_actors": 4, "envs_per_actor": 16}
    assert contradictions(stored, dataclasses.replace(stored, **split), split) == []


def test_settings_that_do_not_change_the_result_may_change_on_resume():
    stored = resolve("lab", {"num_actors": 2})
    overrides = {"total_frames": 99, "device": "cpu", "mode": "overlap", "evaluator": False, "micro_batch": 7}
    overrides |= {"max_policy_lag": 2, "objective": "decoupled", "repeatable": False}
    assert contradictions(stored, dataclasses.replace(stored, **overrides), overrides) == []
    back = resolve_resumed(resolve("lab", {"mode": "overlap", "num_actors": 2}), {}, {"mode": "sync"}, TWO_CORES)
    assert (back.max_policy_lag, back.objective) == (0, "standard")


@pytest.mark.parametrize(
    ("preset", "overrides", "actors", "envs"),
    [
        ("lab", {"min_actors": 1}, 16, 4),
        ("hard", {"min_actors": 1}, 64, 4),
        ("lab", {"min_actors": 1, "envs_per_actor": 32}, 2, 32),
        ("lab", {"min_actors": 4, "num_actors": 8}, 8, 8),
    ],
)
def test_elastic_fleet_shares_the_same_environments(preset, overrides, actors, envs):
    config = resolve(preset, overrides, TWO_CORES)
    assert (config.num_actors, config.envs_per_actor) == (actors, envs)
    assert config.batch_size == resolve(preset, {}, TWO_CORES).batch_size


@pytest.mark.parametrize(
    ("machine", "overrides", "expected"),
    [
        (TWO_CORES, {}, {"device": "cpu", "mode": "sync", "precision": "float32", "actor_precision": "float32"}),
        (TWO_CORES, {}, {"half_batches": False, "micro_batch": 128, "learner_threads": 2, "min_actors": 2}),
        (TWO_CORES, {"num_actors": 8, "min_actors": 3}, {"min_actors": 3}),
        (TWO_CORES, {"precision": "bfloat16"}, {"precision": "bfloat16", "actor_precision": "bfloat16"}),
        (TWO_CORES, {"mode": "overlap", "learner_threads": 1}, {"mode": "overlap", "learner_threads": 1}),
        (GPU_BOX, {}, {"device": "cuda", "mode": "overlap", "precision": "bfloat16", "actor_precision": "float32"}),
        (TWO_CORES, {}, {"max_policy_lag": 0, "objective": "standard", "repeatable": True}),
        (GPU_BOX, {}, {"max_policy_lag": 1, "objective": "decoupled", "repeatable": True}),
        (GPU_BOX, {"max_policy_lag": 3, "objective": "standard"}, {"max_policy_lag": 3, "objective": "standard"}),
        (GPU_BOX, {"num_actors": 8, "min_actors": 3}, {"repeatable": False}),
        (GPU_BOX, {}, {"half_batches": False, "micro_batch": 2048, "learner_threads": 8}),
        (GPU_BOX, {"actor_gpus": 0.1}, {"half_batches": True, "actor_precision": "bfloat16"}),
        (GPU_BOX, {"actor_gpus": 0.1, "half_batches": False}, {"half_batches": False}),
        (GPU_BOX, {"device": "cpu"}, {"mode": "sync", "precision": "float32", "micro_batch": 128}),
        (GPU_BOX, {"precision": "float32", "actor_gpus": 1.0}, {"precision": "float32", "actor_precision": "float32"}),
    ],
)
def test_automatic_values_follow_the_machine_unless_named(machine, overrides, expected):
    config = resolve("lab", overrides, machine)
    assert {name: getattr(config, name) for name in expected} == expected


def test_config_holds_resolved_values_only():
    values = dataclasses.asdict(resolve("lab", {}, TWO_CORES))
    assert AUTO not in values.values()
    assert all(values[name] != DEFAULTS[name] or values[name] is False for name in AUTOMATIC)
    with pytest.raises(ConfigError, match="--mode: unknown value 'auto'"):
        Config(**{**values, "mode": AUTO})


def test_cuda_without_a_gpu_is_refused_only_when_a_run_is_resolved():
    with pytest.raises(ConfigError, match=r"--device: cuda .*use cpu or auto"):
        resolve("lab", {"device": "cuda"}, TWO_CORES)
    stored = dataclasses.asdict(resolve("lab", {"device": "cuda"}, GPU_BOX))
    assert Config(**stored).device == "cuda"  # a checkpoint loads on any machine


@pytest.mark.parametrize("name", ["compile", "cuda_graphs"])
def test_what_only_a_gpu_can_do_is_refused_without_one(name):
    with pytest.raises(ConfigError, match=f"{flag(name)}: .*; use --no-{flag(name)[2:]}$"):
        resolve("lab", {name: True}, TWO_CORES)
    assert getattr(resolve("lab", {name: True}, GPU_BOX), name)


@pytest.mark.parametrize(
    ("machine", "requested", "overrides", "named", "remedy"),
    [
        (GPU_BOX, {"compile": True}, {}, "--no-compile", {"compile": False}),
        (GPU_BOX, {"cuda_graphs": True}, {}, "--no-cuda-graphs", {"cuda_graphs": False}),
        (GPU_BOX, {"max_policy_lag": 2}, {}, "--max-policy-lag 0", {"max_policy_lag": 0}),
        (GPU_BOX, {"max_policy_lag": 2}, {}, "--mode overlap", {"mode": "overlap"}),
        (
            TWO_CORES,
            {"mode": "overlap", "max_policy_lag": 2},
            {"mode": "sync"},
            "--max-policy-lag 0",
            {"max_policy_lag": 0},
        ),
        (TWO_CORES, {"max_policy_lag": 0}, {"mode": "overlap"}, "--max-policy-lag 1", {"max_policy_lag": 1}),
        (
            TWO_CORES,
            {"mode": "overlap", "repeatable": True},
            {"num_actors": 4, "min_actors": 2},
            "--repeatable no",
            {"repeatable": False},
        ),
        (
            TWO_CORES,
            {"num_actors": 4, "min_actors": 2},
            {"envs_per_actor": 64},
            "--envs-per-actor: 64 leaves 1 actor, fewer than the run's 2, the LOW .*; give --num-actors too",
            {"num_actors": 1, "min_actors": 0},
        ),
    ],
)
def test_refused_resume_names_a_flag_that_makes_it_possible(machine, requested, overrides, named, remedy):
    """Not one that the user did not give: what is in the way was asked for when the run was started."""
    stored = resolve("lab", requested, machine)
    with pytest.raises(ConfigError, match=named):
        resolve_resumed(stored, {**requested, **overrides}, overrides, TWO_CORES)
    overrides = {**overrides, **remedy}
    resolve_resumed(stored, {**requested, **overrides}, overrides, TWO_CORES)


def test_resumed_run_resolves_automatic_values_for_the_new_machine():
    requested = {"mode": "overlap", "num_actors": 2}
    stored = resolve("lab", requested, TWO_CORES)
    assert resolve_resumed(stored, requested, {}, TWO_CORES) == stored
    moved = resolve_resumed(stored, requested, {}, GPU_BOX)
    assert (moved.device, moved.precision, moved.micro_batch, moved.learner_threads) == ("cuda", "bfloat16", 2048, 8)
    assert (moved.mode, moved.num_actors, moved.envs_per_actor) == ("overlap", 2, 32)
    back = resolve_resumed(moved, {**requested, "device": "cpu"}, {"device": "cpu"}, GPU_BOX)
    assert (back.device, back.precision, back.micro_batch, back.mode) == ("cpu", "float32", 128, "overlap")


def test_resumed_run_keeps_its_default_split_on_a_machine_with_more_cores():
    stored = resolve("lab", {}, TWO_CORES)
    assert resolve_resumed(stored, {}, {}, Machine(cores=16)).num_actors == 2


@pytest.mark.parametrize(
    ("overrides", "actors", "envs", "fewest"),
    [
        ({}, 8, 8, 4),
        ({"num_actors": 4, "min_actors": 0}, 4, 16, 4),
        ({"num_actors": 16, "min_actors": 2}, 16, 4, 2),
        ({"min_actors": 1}, 16, 4, 1),
        ({"min_actors": 1, "envs_per_actor": 32}, 2, 32, 1),
        ({"num_actors": 4, "min_actors": 0, "envs_per_actor": 16}, 4, 16, 4),
    ],
)
def test_resumed_run_shares_the_same_environments(overrides, actors, envs, fewest):
    requested = {"num_actors": 8, "min_actors": 4}
    stored = resolve("lab", requested, TWO_CORES)
    config = resolve_resumed(stored, {**requested, **overrides}, overrides, TWO_CORES)
    assert (config.num_actors, config.envs_per_actor, config.min_actors) == (actors, envs, fewest)


def test_resumed_run_refuses_actors_that_do_not_divide_its_environments():
    stored = resolve("lab", {}, TWO_CORES)
    with pytest.raises(ConfigError, match="--num-actors: 7 does not divide the 64 environments of the run"):
        resolve_resumed(stored, {}, {"num_actors": 7}, TWO_CORES)


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("start_level", {"start_level": 5, "num_levels": 0, "held_out": "sample"}),
        ("keep_every", {"keep_every": 10}),
        ("backfill", {"backfill": True, "evaluator": False}),
        ("eval_timeout", {"eval_timeout": 5.0, "evaluator": False}),
        ("half_batches", {"half_batches": True, "num_actors": 64}),
        ("learner_threads", {"learner_threads": 4}),
        ("reward_norm_gamma", {"reward_norm_gamma": 0.9}),
    ],
)
def test_setting_without_effect_is_refused_where_the_user_named_it(name, overrides):
    machine = GPU_BOX if name == "learner_threads" else TWO_CORES
    with pytest.raises(ConfigError, match=f"^{flag(name)}: has no effect because .*; leave it out$"):
        resolve("lab", overrides, machine)
    others = {key: value for key, value in overrides.items() if key != name}
    stored = resolve("lab", others, machine)
    with pytest.raises(ConfigError, match=f"^{flag(name)}: "):
        resolve_resumed(stored, overrides, {**others, name: overrides[name]}, machine)


def test_value_of_the_preset_is_what_a_setting_without_effect_may_have():
    no_relu = {"encoder": "impoola", "relu_before_linear": False}
    resolve("lab", no_relu, TWO_CORES)
    with pytest.raises(ConfigError, match=r"^--relu-before-linear: has no effect because --encoder impoola always has"):
        resolve("easy", no_relu, TWO_CORES)
    resolve("easy", {**no_relu, "relu_before_linear": True}, TWO_CORES)
    with pytest.raises(ConfigError, match=r"^--relu-before-linear: has no effect"):
        resolve("lab", {**no_relu, "relu_before_linear": True}, TWO_CORES)


def test_setting_with_effect_is_accepted():
    resolve("lab", {"keep_every": 10, "keep_checkpoints": 2, "start_level": 5, "backfill": True}, TWO_CORES)
    resolve("lab", {"half_batches": False, "num_actors": 64, "evaluator": False, "keep_every": 0}, TWO_CORES)


def test_edited_settings_are_those_that_a_run_cannot_change():
    config = resolve("lab", {}, TWO_CORES)
    assert edited(config, config) == []
    assert edited(dataclasses.replace(config, learning_rate=0.05, gamma=0.9), config) == [
        "learning_rate is 0.05, the checkpoint has 0.0005",
        "gamma is 0.9, the checkpoint has 0.999",
    ]
    assert edited(dataclasses.replace(config, total_frames=1, actor_timeout=5.0), config) == []
    (line,) = edited(dataclasses.replace(config, num_actors=4, min_actors=4), config)
    assert line == "num_actors x envs_per_actor is 128, the checkpoint has 64"


def test_this_machine_has_the_cores_that_its_cpu_quota_allows(monkeypatch):
    monkeypatch.setattr("common.resolution.available_cores", lambda: 1)
    config = resolve("lab", {"device": "cpu"})
    assert (config.num_actors, config.learner_threads) == (1, 1)

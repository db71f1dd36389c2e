"""Presets match their published table, automatic values follow the machine, and wrong values are refused by name."""

import dataclasses

import pytest

from common.config import (
    AUTO,
    AUTOMATIC,
    DEFAULTS,
    PRESETS,
    SETTINGS,
    Config,
    ConfigError,
    Machine,
    choices_of,
    contradictions,
    describe_differences,
    differs_from_preset,
    edited,
    flag,
    resolve,
    resolve_resumed,
)

TWO_CORES = Machine(cores=2)
GPU_BOX = Machine(cores=8, has_gpu=True, precision_on={"cpu": "float32", "cuda": "bfloat16"}.__getitem__)

# lab, easy, hard; lab is the teaching notebook, easy and hard are docs/published.md.
PRESET_TABLE = {
    "env_name": ("coinrun", "coinrun", "coinrun"),
    "distribution_mode": ("easy", "easy", "hard"),
    "start_level": (0, 0, 0),
    "num_levels": (20, 200, 500),
    "held_out": ("next", "sample", "sample"),
    "total_frames": (10_000_000, 25_000_000, 200_000_000),
    "num_envs": (64, 64, 256),
    "unroll_length": (256, 256, 256),
    "num_minibatches": (8, 8, 8),
    "update_epochs": (3, 3, 3),
    "learning_rate": (5e-4, 5e-4, 5e-4),
    "learning_rate_schedule": ("constant", "constant", "constant"),
    "adam_eps": (1e-8, 1e-5, 1e-5),
    "gamma": (0.999, 0.999, 0.999),
    "gae_lambda": (0.95, 0.95, 0.95),
    "clip_coef": (0.2, 0.2, 0.2),
    "ent_coef": (0.01, 0.01, 0.01),
    "vf_coef": (1.0, 0.25, 0.25),
    "max_grad_norm": (40, 0.5, 0.5),
    "reward_transform": ("sign", "running_return", "running_return"),
    "reward_norm_gamma": (0.99, 0.99, 0.99),
    "advantage_normalization": ("batch", "minibatch", "minibatch"),
    "observation_scale": (256, 255, 255),
    "relu_before_linear": (False, True, True),
    "orthogonal_heads": (False, True, True),
    "initialization": ("torch", "glorot", "glorot"),
    "encoder": ("impala", "impala", "impala"),
    "width": (1, 1, 1),
}
BATCH_SIZES = {"lab": 16_384, "easy": 16_384, "hard": 65_536}


@pytest.mark.parametrize("column", range(3), ids=["lab", "easy", "hard"])
@pytest.mark.parametrize("name", PRESET_TABLE)
def test_preset_has_the_published_value(name, column):
    config = resolve(("lab", "easy", "hard")[column], {}, TWO_CORES)
    assert getattr(config, name) == PRESET_TABLE[name][column]


def test_run_with_the_values_of_an_older_preset_is_told_from_the_present_one():
    assert differs_from_preset(resolve("easy", {}, TWO_CORES), "easy") == {}
    # Game, length, seed and hardware do not make it another algorithm.
    same = {"env_name": "maze", "total_frames": 1, "seed": 3, "num_actors": 4}
    assert differs_from_preset(resolve("easy", same, GPU_BOX), "easy") == {}
    older = {"vf_coef": 0.5, "reward_norm_gamma": 0.999, "initialization": "torch"}
    differing = differs_from_preset(resolve("easy", {**older, "envs_per_actor": 1, "num_actors": 2}, TWO_CORES), "easy")
    assert differing == {
        "vf_coef": (0.5, 0.25),
        "reward_norm_gamma": (0.999, 0.99),
        "initialization": ("torch", "glorot"),
        "num_envs": (2, 64),
    }
    assert "vf_coef 0.5 instead of 0.25" in describe_differences(differing)


def test_lab_holds_out_the_next_twenty_levels_and_checkpoints_every_ten_updates():
    config = resolve("lab", {})
    assert (config.held_out, config.held_out_levels, config.checkpoint_interval) == ("next", 20, 10)


def test_derived_sizes_follow_from_the_settings():
    config = resolve("lab", {})
    assert (config.batch_size, config.minibatch_size) == (64 * 256, 2048)
    assert config.num_updates == 611  # 10,000,000 / 16,384 = 610.4, and the last update may pass the end
    assert resolve("lab", {"total_frames": 2 * 16_384}).num_updates == 2
    assert resolve("lab", {"total_frames": 2 * 16_384 + 1}).num_updates == 3
    assert resolve("easy", {}).network.observation_scale == 255


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


WRONG = [
    ("--preset", {}, "esay", "easy"),
    ("--env-name", {"env_name": "coinrum"}, "coinrum", "'coinrun'"),
    ("--env-name", {"env_name": "star-pilot"}, "star-pilot", "'starpilot'"),
    ("--env-name", {"env_name": ""}, "''", "coinrun"),
    ("--distribution-mode", {"distribution_mode": "hrad"}, "hrad", "'hard'"),
    ("--distribution-mode", {"distribution_mode": "extreme"}, "extreme", "easy, hard"),
    ("--mode", {"mode": "async"}, "async", "sync"),
    ("--device", {"device": "gpu"}, "gpu", "cpu"),
    ("--held-out", {"held_out": "samples"}, "samples", "sample"),
    ("--precision", {"precision": "float16"}, "float16", "float"),
    ("--reward-transform", {"reward_transform": "signs"}, "signs", "sign"),
    ("--advantage-normalization", {"advantage_normalization": "none"}, "none", "batch"),
    ("--learning-rate-schedule", {"learning_rate_schedule": "lin"}, "lin", "linear"),
    ("--num-actors", {"num_actors": 7}, "7", "64 environments"),
    ("--num-actors", {"num_actors": 0}, "0", "at least 1"),
    ("--num-actors", {"num_actors": -2}, "-2", "at least 1"),
    ("--num-actors", {"num_actors": -2, "envs_per_actor": 4}, "-2", "at least 1"),
    ("--num-minibatches", {"num_minibatches": 7}, "7", "16384"),
    ("--learning-rate", {"learning_rate": float("nan")}, "nan", "finite"),
    ("--learning-rate", {"learning_rate": float("inf")}, "inf", "finite"),
    ("--gamma", {"gamma": 1.01}, "1.01", "between 0 and 1"),
    ("--gamma", {"gamma": float("nan")}, "nan", "finite"),
    ("--gae-lambda", {"gae_lambda": -0.1}, "-0.1", "between 0 and 1"),
    ("--num-minibatches", {"num_minibatches": 16_384}, "16384", "at least 2 are needed to normalize advantages"),
    ("--gamma", {"gamma": "x"}, "'x'", "expected a number"),
    ("--seed", {"seed": 10**400}, "1000", "between 0 and 2147483646"),
    ("--env-name", {"env_name": 3}, "3", "one of bigfish"),
    ("--seed", {"seed": 0.5}, "0.5", "expected a whole number"),
    ("--backfill", {"backfill": "maybe"}, "'maybe'", "expected yes or no"),
    ("--half-batches", {"half_batches": "maybe"}, "'maybe'", "expected one of auto, yes, no"),
    ("--compression", {"compression": "lz4"}, "lz4", "none, remote, zstd"),
    ("--keep-every", {"keep_every": -1}, "-1", "at least 0"),
    ("--actor-gpus", {"actor_gpus": 2.0}, "2.0", "between 0 and 1"),
    ("--ent-coef", {"ent_coef": -0.01}, "-0.01", "at least 0"),
    ("--vf-coef", {"vf_coef": float("inf")}, "inf", "finite"),
    ("--seed", {"seed": -1}, "-1", "between 0 and 2147483646"),
    ("--seed", {"seed": 2**31 - 1}, "2147483647", "between 0 and 2147483646"),
    ("--start-level", {"start_level": -1}, "-1", "between 0 and"),
    ("--num-levels", {"num_levels": -1}, "-1", "between 0 and"),
    ("--num-levels", {"num_levels": 0}, "0", "--held-out sample"),
    ("--micro-batch", {"micro_batch": -1}, "-1", "between 1 and"),
    ("--learner-threads", {"learner_threads": -1}, "-1", "at least 1"),
    ("--num-levels", {"start_level": 2**31 - 10, "num_levels": 20}, "2147483638", "2147483646"),
    ("--num-levels", {"start_level": 5, "num_levels": 2**31 - 2, "held_out_levels": 1}, "2147483646", "last level"),
]
COUNTS = (
    *("total_frames", "checkpoint_interval", "held_out_levels", "envs_per_actor", "unroll_length"),
    *("num_minibatches", "update_epochs", "observation_scale", "eval_episodes_per_level"),
)
WRONG += [(flag(name), {name: value}, str(value), "at least 1") for name in COUNTS for value in (0, -3)]
POSITIVE = (
    "learning_rate",
    "adam_eps",
    "clip_coef",
    "max_grad_norm",
    "actor_timeout",
    "cluster_timeout",
    "eval_timeout",
)
WRONG += [(flag(name), {name: value}, str(value), "greater than 0") for name in POSITIVE for value in (0.0, -1.0)]


@pytest.mark.parametrize(("flag_name", "overrides", "value", "remedy"), WRONG)
def test_wrong_value_is_refused_in_one_line_with_flag_value_and_remedy(flag_name, overrides, value, remedy):
    with pytest.raises(ConfigError) as error:
        resolve("lab" if overrides else "esay", overrides)
    message = str(error.value)
    assert message.startswith(f"{flag_name}: ")
    assert value in message and remedy in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("overrides", "nearest"),
    [("coinrum", "coinrun"), ("CoinRun", "coinrun"), ("bigfsh", "bigfish"), ("leeper", "leaper"), ("minor", "miner")],
)
def test_unknown_game_suggests_the_closest_name(overrides, nearest):
    with pytest.raises(ConfigError, match=f"did you mean '{nearest}'"):
        resolve("lab", {"env_name": overrides})


def test_name_unlike_any_game_lists_all_games():
    with pytest.raises(ConfigError, match=r"choose from bigfish, bossfight, .*, starpilot"):
        resolve("lab", {"env_name": "qqqq"})


def test_last_level_can_be_trained_on():
    last = 2**31 - 2
    config = resolve("lab", {"start_level": last, "num_levels": 1, "held_out": "sample"})
    assert config.start_level + config.num_levels - 1 == last


def test_next_held_out_levels_beyond_the_last_level_are_refused():
    with pytest.raises(ConfigError, match="--held-out"):
        resolve("lab", {"start_level": 2**31 - 1 - 20, "num_levels": 20, "held_out": "next", "held_out_levels": 20})


def test_every_level_can_be_trained_on_if_held_out_levels_are_sampled():
    config = resolve("easy", {"num_levels": 0})
    assert (config.num_levels, config.held_out, config.held_out_levels) == (0, "sample", 200)


def test_config_is_immutable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        resolve("lab", {}).seed = 1


def test_unknown_setting_is_refused():
    with pytest.raises(TypeError, match="gama"):
        resolve("lab", {"gama": 0.9})


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


def test_settings_of_the_algorithm_may_not_change_on_resume():
    algorithm = set(PRESET_TABLE) - {"total_frames", "num_envs"} | {"seed", "preset", "checkpoint_interval"}
    assert not any(SETTINGS[name].metadata["free"] for name in algorithm)


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


def test_more_initial_actors_than_actors_are_refused():
    with pytest.raises(ConfigError, match=r"--num-actors: must be LOW:HIGH .*, got 3:2"):
        resolve("lab", {"num_actors": 2, "min_actors": 3})


def test_each_preset_overrides_known_settings_only():
    assert tuple(PRESETS) == choices_of(SETTINGS["preset"])
    assert all(overrides.keys() <= SETTINGS.keys() for overrides in PRESETS.values())


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
    with pytest.raises(ConfigError, match=f"{flag(name)}: .*leave it out"):
        resolve("lab", {name: True}, TWO_CORES)
    assert getattr(resolve("lab", {name: True}, GPU_BOX), name)


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
    with pytest.raises(ConfigError, match=f"^{flag(name)}: has no effect, .*; leave it out$"):
        resolve("lab", overrides, machine)
    others = {key: value for key, value in overrides.items() if key != name}
    stored = resolve("lab", others, machine)
    with pytest.raises(ConfigError, match=f"^{flag(name)}: "):
        resolve_resumed(stored, overrides, {**others, name: overrides[name]}, machine)


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
    monkeypatch.setattr("common.config.available_cores", lambda: 1)
    config = resolve("lab", {"device": "cpu"})
    assert (config.num_actors, config.learner_threads) == (1, 1)

"""Presets match their published table, and wrong values are refused by name."""

import dataclasses

import pytest

from common.config import PRESETS, SETTINGS, ConfigError, choices_of, describe_differences, differs_from_preset, flag
from common.resolution import Machine, resolve

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
    *(
        ("--held-out-levels", {"held_out": "sample", "held_out_levels": count}, str(count), "between 1 and 1000000")
        for count in (0, -3, 1_000_001)
    ),
    ("--num-levels", {"start_level": 5, "num_levels": 2**31 - 2, "held_out_levels": 1}, "2147483646", "last level"),
]
COUNTS = (
    *("total_frames", "checkpoint_interval", "envs_per_actor", "unroll_length"),
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


def test_more_initial_actors_than_actors_are_refused():
    with pytest.raises(ConfigError, match=r"--num-actors: must be LOW:HIGH .*, got 3:2"):
        resolve("lab", {"num_actors": 2, "min_actors": 3})


def test_each_preset_overrides_known_settings_only():
    assert tuple(PRESETS) == choices_of(SETTINGS["preset"])
    assert all(overrides.keys() <= SETTINGS.keys() for overrides in PRESETS.values())


def test_settings_of_the_algorithm_may_not_change_on_resume():
    algorithm = set(PRESET_TABLE) - {"total_frames", "num_envs"} | {"seed", "preset", "checkpoint_interval"}
    assert not any(SETTINGS[name].metadata["free"] for name in algorithm)

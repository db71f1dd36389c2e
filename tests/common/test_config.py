"""Presets are the table of DESIGN.md section 6, and every wrong value is refused by name."""

import dataclasses

import pytest

from common.config import FREE_ON_RESUME, Config, ConfigError, contradictions, flag, resolve

# DESIGN.md, section 6: lab, easy, hard.
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
    "vf_coef": (1.0, 0.5, 0.5),
    "max_grad_norm": (40, 0.5, 0.5),
    "reward_transform": ("sign", "running_return", "running_return"),
    "advantage_normalization": ("batch", "minibatch", "minibatch"),
    "observation_scale": (256, 255, 255),
    "relu_before_linear": (False, True, True),
    "orthogonal_heads": (False, True, True),
}
BATCH_SIZES = {"lab": 16_384, "easy": 16_384, "hard": 65_536}


@pytest.mark.parametrize("column", range(3), ids=["lab", "easy", "hard"])
@pytest.mark.parametrize("name", PRESET_TABLE)
def test_a_preset_has_the_value_of_the_design(name, column):
    config = resolve(("lab", "easy", "hard")[column], {}, available_cores=2)
    assert getattr(config, name) == PRESET_TABLE[name][column]


def test_labs_held_out_levels_are_the_twenty_after_the_training_levels_and_it_is_scored_every_ten_updates():
    config = resolve("lab", {})
    assert (config.held_out, config.held_out_levels, config.checkpoint_interval) == ("next", 20, 10)


def test_the_sizes_that_follow_are_those_of_the_algorithm():
    config = resolve("lab", {})
    assert (config.batch_size, config.minibatch_size) == (64 * 256, 2048)
    assert config.num_updates == 611  # 10,000,000 / 16,384 = 610.4, and the last update may pass the end
    assert resolve("lab", {"total_frames": 2 * 16_384}).num_updates == 2
    assert resolve("lab", {"total_frames": 2 * 16_384 + 1}).num_updates == 3
    assert resolve("easy", {}).network.observation_scale == 255


@pytest.mark.parametrize("preset", BATCH_SIZES)
def test_the_number_of_cores_never_changes_the_batch(preset):
    for cores in (1, 2, 3, 5, 6, 7, 12, 16, 100):
        config = resolve(preset, {}, available_cores=cores)
        assert config.batch_size == BATCH_SIZES[preset]
        assert 1 <= config.num_actors <= cores


@pytest.mark.parametrize("preset", BATCH_SIZES)
@pytest.mark.parametrize("num_actors", [1, 2, 4, 8, 16, 32, 64])
def test_the_number_of_actors_never_changes_the_batch(preset, num_actors):
    config = resolve(preset, {"num_actors": num_actors})
    assert config.num_actors == num_actors
    assert config.batch_size == BATCH_SIZES[preset]


@pytest.mark.parametrize("envs_per_actor", [1, 4, 8, 32, 64])
def test_environments_per_actor_alone_never_change_the_batch(envs_per_actor):
    config = resolve("lab", {"envs_per_actor": envs_per_actor}, available_cores=2)
    assert config.envs_per_actor == envs_per_actor
    assert config.batch_size == BATCH_SIZES["lab"]


@pytest.mark.parametrize("envs_per_actor", [10, 48, 100])
def test_environments_per_actor_that_do_not_divide_the_presets_are_refused_like_actors_that_do_not(envs_per_actor):
    with pytest.raises(ConfigError, match="--envs-per-actor"):
        resolve("lab", {"envs_per_actor": envs_per_actor}, available_cores=2)


def test_actors_and_environments_given_together_are_taken_as_given():
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
    ("--learning-rate", {"learning_rate": float("nan")}, "nan", "more than 0"),
    ("--learning-rate", {"learning_rate": float("inf")}, "inf", "more than 0"),
    ("--gamma", {"gamma": 1.01}, "1.01", "between 0 and 1"),
    ("--gamma", {"gamma": float("nan")}, "nan", "between 0 and 1"),
    ("--gae-lambda", {"gae_lambda": -0.1}, "-0.1", "between 0 and 1"),
    ("--ent-coef", {"ent_coef": -0.01}, "-0.01", "0 or more"),
    ("--vf-coef", {"vf_coef": float("inf")}, "inf", "0 or more"),
    ("--seed", {"seed": -1}, "-1", "0 or more"),
    ("--seed", {"seed": 2**31 - 1}, "2147483647", "less than 2147483647"),
    ("--start-level", {"start_level": -1}, "-1", "0 or more"),
    ("--num-levels", {"num_levels": -1}, "-1", "0 or more"),
    ("--num-levels", {"num_levels": 0}, "0", "--held-out sample"),
    ("--micro-batch", {"micro_batch": -1}, "-1", "0 or more"),
    ("--learner-threads", {"learner_threads": -1}, "-1", "0 or more"),
    ("--start-level", {"start_level": 2**31 - 10, "num_levels": 20}, "2147483638", "2147483646"),
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
WRONG += [(flag(name), {name: value}, str(value), "more than 0") for name in POSITIVE for value in (0.0, -1.0)]


@pytest.mark.parametrize(("flag_name", "given", "value", "what_would_do"), WRONG)
def test_a_wrong_value_is_refused_in_one_line_with_flag_value_and_what_would_do(flag_name, given, value, what_would_do):
    with pytest.raises(ConfigError) as error:
        resolve("lab" if given else "esay", given)
    message = str(error.value)
    assert flag_name in message.split()
    assert value in message and what_would_do in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("given", "nearest"),
    [("coinrum", "coinrun"), ("CoinRun", "coinrun"), ("bigfsh", "bigfish"), ("leeper", "leaper"), ("minor", "miner")],
)
def test_an_unknown_game_is_answered_with_the_nearest_one(given, nearest):
    with pytest.raises(ConfigError, match=f"did you mean '{nearest}'"):
        resolve("lab", {"env_name": given})


def test_a_name_like_no_game_is_answered_with_all_of_them():
    with pytest.raises(ConfigError, match=r"choose from bigfish, bossfight, .*, starpilot"):
        resolve("lab", {"env_name": "qqqq"})


def test_the_last_level_there_is_can_be_trained_on():
    last = 2**31 - 2
    config = resolve("lab", {"start_level": last, "num_levels": 1, "held_out": "sample"})
    assert config.start_level + config.num_levels - 1 == last


def test_held_out_levels_that_come_next_and_pass_the_last_level_are_refused():
    with pytest.raises(ConfigError, match="--held-out"):
        resolve("lab", {"start_level": 2**31 - 1 - 20, "num_levels": 20, "held_out": "next", "held_out_levels": 20})


def test_every_level_can_be_trained_on_when_held_out_levels_are_sampled():
    config = resolve("easy", {"num_levels": 0})
    assert (config.num_levels, config.held_out, config.held_out_levels) == (0, "sample", 200)


def test_a_config_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        resolve("lab", {}).seed = 1


def test_an_unknown_setting_is_no_setting():
    with pytest.raises(TypeError, match="gama"):
        resolve("lab", {"gama": 0.9})


def test_contradictions_are_listed_each_with_both_values():
    stored = resolve("lab", {"num_actors": 2})
    given = {"gamma": 0.9, "num_levels": 50, "seed": 0}
    requested = dataclasses.replace(stored, **given)
    assert contradictions(stored, requested, given) == [
        "--gamma (run has 0.999, asked for 0.9)",
        "--num-levels (run has 20, asked for 50)",
    ]


def test_another_number_of_environments_contradicts_and_another_split_does_not():
    stored = resolve("lab", {"num_actors": 2})
    more = {"num_actors": 4}
    (line,) = contradictions(stored, dataclasses.replace(stored, **more), more)
    assert "64 environments" in line and "128" in line and "--num-actors" in line
    split = {"num_actors": 4, "envs_per_actor": 16}
    assert contradictions(stored, dataclasses.replace(stored, **split), split) == []


def test_how_a_run_is_carried_out_may_change_on_resume():
    stored = resolve("lab", {"num_actors": 2})
    given = {"total_frames": 99, "device": "cpu", "mode": "sync", "evaluator": False, "micro_batch": 7}
    assert contradictions(stored, dataclasses.replace(stored, **given), given) == []


def test_what_a_run_computes_may_not_change_on_resume():
    algorithm = set(PRESET_TABLE) - {"total_frames", "num_envs"} | {"seed", "preset", "checkpoint_interval"}
    assert not algorithm & FREE_ON_RESUME
    assert {field.name for field in dataclasses.fields(Config)} >= FREE_ON_RESUME


@pytest.mark.parametrize(
    ("preset", "given", "actors", "envs"),
    [
        ("lab", {"min_actors": 1}, 16, 4),
        ("hard", {"min_actors": 1}, 64, 4),
        ("lab", {"min_actors": 1, "envs_per_actor": 32}, 2, 32),
        ("lab", {"min_actors": 4, "num_actors": 8}, 8, 8),
    ],
)
def test_an_elastic_fleet_shares_the_same_environments(preset, given, actors, envs):
    config = resolve(preset, given, available_cores=2)
    assert (config.num_actors, config.envs_per_actor) == (actors, envs)
    assert config.batch_size == resolve(preset, {}, available_cores=2).batch_size


def test_more_actors_to_start_with_than_there_may_be_are_refused():
    with pytest.raises(ConfigError, match="--num-actors 3:2 must be LOW:HIGH"):
        resolve("lab", {"num_actors": 2, "min_actors": 3})

"""Each bottleneck is recognized in a constructed case and named with the change that helps."""

from common.resolution import resolve
from learner.reporting.bottleneck import RAW_FRAME_BYTES, Bottleneck


def row(waiting, training, collecting, transfer, bytes_per_frame=RAW_FRAME_BYTES, saving=0.0):
    return {
        "seconds_waiting": waiting, "seconds_training": training - 0.5, "seconds_publishing": 0.5,
        "seconds_collecting": collecting, "seconds_transfer": transfer, "bytes_per_frame": bytes_per_frame,
        "seconds_saving": saving,
    }  # fmt: skip


START = row(100, 1, 90, 10)


def described(*times, overlap=True, rows=3, **settings):
    mode = "overlap" if overlap else "sync"
    config = resolve("lab", {"num_actors": 2, "envs_per_actor": 64, "mode": mode, **settings})
    bottleneck = Bottleneck(config, overlap)
    for entry in [START, *[row(*times)] * rows]:
        bottleneck.add(entry)
    return bottleneck.describe()


def test_learner_that_hardly_waits_is_the_bottleneck():
    assert described(0.5, 9.5, 9, 0.1) == "bound by the learner: it trained 95% of the time and waited 5%"


def test_waiting_for_less_than_half_of_the_time_is_normal_in_sync_mode():
    expected = "bound by the learner: it trained 70% of the time and waited 30%"
    assert described(3, 7, 2.9, 0.1, overlap=False) == expected


def test_number_of_missing_actors_is_estimated():
    # A batch takes 10 s of 2 actors; the learner trains 3.8 s: 5.26 actors would reduce collecting to that.
    expected = "bound by actors: learner idle 62%; about 4 more actors of 64 envs would remove the wait"
    assert described(6.2, 3.8, 9.9, 0.1) == expected


def test_one_missing_actor_is_singular():
    assert described(2.0, 8.0, 9, 0.1).endswith("about 1 more actor of 64 envs would remove the wait")


def test_newest_weights_are_recommended_only_where_repeatable_runs_can_cost_speed():
    advice = "--repeatable no lets fast ones do more"
    assert advice in described(6.2, 3.8, 9.9, 0.1, max_policy_lag=2)
    assert advice not in described(6.2, 3.8, 9.9, 0.1, max_policy_lag=1)
    assert advice not in described(6.2, 3.8, 9.9, 0.1, max_policy_lag=2, repeatable=False)


def test_overlap_mode_is_recommended_in_sync_mode():
    assert "--mode overlap" in described(6, 4, 5.9, 0.1, overlap=False)


def test_slow_arrival_is_transfer_not_actors():
    expected = "bound by transfer: learner idle 60%; a rollout took 1.00 s to collect and 5.00 s"
    assert described(6, 4, 1, 5).startswith(expected)


def test_compression_is_recommended_for_raw_frames_only():
    assert "12,288 bytes per frame; send less with --compression zstd, or move" in described(6, 4, 1, 5)
    compressed = described(6, 4, 1, 5, 1000.4)
    assert compressed.endswith("1,000 bytes per frame; move actors closer to the learner or use a faster link")


def test_first_update_alone_says_nothing():
    assert described(1, 1, 1, 1, rows=0) is None
    assert Bottleneck(resolve("lab", {"num_actors": 2}), overlap=True).describe() is None


def test_time_between_updates_is_named_if_it_is_more_than_the_wait():
    said = described(1.0, 6.0, 1, 0.1, RAW_FRAME_BYTES, 3.0)
    assert said.startswith("bound by the disk: the learner spent 30% of the time between updates")
    assert "larger --checkpoint-interval" in said
    assert described(0.2, 9.0, 9, 0.1, RAW_FRAME_BYTES, 0.8).startswith("bound by the learner: it trained 90% of")
    assert described(6.0, 2.0, 9, 0.1, RAW_FRAME_BYTES, 2.0).startswith("bound by actors: learner idle 60%")

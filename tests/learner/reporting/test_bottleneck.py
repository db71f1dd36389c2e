"""Forced cases: each bound is named, with the change that helps."""

import pytest

from learner.reporting.bottleneck import UpdateTimes, advice

START_UP = UpdateTimes(waiting=100, training=1, collecting=90, transfer=10)


def told(waiting, training, collecting, transfer, overlap=True, num_actors=2):
    times = [START_UP, *[UpdateTimes(waiting, training, collecting, transfer)] * 3]
    return advice(times, num_actors, 64, overlap)


def test_a_learner_that_hardly_waits_is_the_bound():
    assert told(0.5, 9.5, 9, 0.1) == "bound by the learner: it trained 95% of the time and waited 5%"


def test_in_sync_mode_waiting_while_actors_collect_is_no_fault_unless_it_is_the_longer_part():
    assert told(3, 7, 2.9, 0.1, overlap=False) == "bound by the learner: it trained 70% of the time and waited 30%"


def test_a_starved_learner_asks_for_as_many_actors_as_would_fill_it():
    # A batch takes 10 s of 2 actors; the learner trains 3.8 s: 5.26 actors would bring collecting down to that.
    assert told(6.2, 3.8, 9.9, 0.1) == "bound by actors: learner idle 62%; about 4 more actors of 64 envs would fill it"


def test_one_missing_actor_is_one():
    assert told(2.0, 8.0, 9, 0.1).endswith("about 1 more actor of 64 envs would fill it")


def test_sync_mode_is_told_of_overlap():
    assert "--mode overlap" in told(6, 4, 5.9, 0.1, overlap=False)


def test_slow_arrival_is_transfer_not_actors():
    assert told(6, 4, 1, 5).startswith(
        "bound by transfer: learner idle 60%; a rollout took 1.00 s to collect and 5.00 s"
    )


def test_raw_frames_on_a_slow_way_are_to_be_compressed_and_compressed_ones_are_not():
    assert "12,288 bytes a frame; --compression zstd sends less, or put" in told(6, 4, 1, 5)
    small = advice([START_UP, UpdateTimes(6, 4, 1, 5, bytes_per_frame=1000.4)], 2, 64, overlap=True)
    assert small.endswith("1,000 bytes a frame; put actors nearer to the learner or on a faster link")


@pytest.mark.parametrize("times", [[], [START_UP]])
def test_start_up_alone_gives_no_advice(times):
    assert advice(times, 2, 64, overlap=True) is None

"""When an actor counts as hung, from given durations."""

from learner.rollouts.deadlines import RECENT_ROLLOUTS, HungDeadline


def limit_after(*durations):
    deadline = HungDeadline(actor_timeout=600.0)
    for seconds in durations:
        deadline.record(seconds)
    return deadline.seconds()


def test_actor_timeout_is_the_limit_before_the_first_rollout_and_always():
    assert limit_after() == 600
    assert limit_after(100.0) == 600


def test_limit_is_ten_times_the_slowest_rollout_and_at_least_a_minute():
    assert limit_after(0.5, 2.0, 1.0) == 60
    assert limit_after(0.5, 9.0, 1.0) == 90


def test_slow_rollouts_are_forgotten():
    assert limit_after(9.0, *[1.0] * (RECENT_ROLLOUTS - 1)) == 90
    assert limit_after(9.0, *[1.0] * RECENT_ROLLOUTS) == 60

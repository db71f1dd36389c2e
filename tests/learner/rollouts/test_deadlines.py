"""When an actor counts as hung, from given durations and times."""

from learner.rollouts.deadlines import RECENT_ROLLOUTS, AwakeClock, HungDeadline


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


def awake_times(*readings):
    times = iter((100.0, *readings))
    clock = AwakeClock(longest_step=1.0, clock=lambda: next(times))
    return [clock.now() for _ in readings]


def test_awake_clock_follows_short_steps():
    assert awake_times(100.0, 100.5, 101.5) == [0.0, 0.5, 1.5]


def test_sleep_counts_as_one_step():
    assert awake_times(100.5, 200.5, 201.0) == [0.5, 1.5, 2.0]


def test_awake_clock_advances_even_if_it_is_read_rarely():
    assert awake_times(110.0, 120.0, 130.0) == [1.0, 2.0, 3.0]

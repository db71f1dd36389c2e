"""Resume points after every update where they are cheap, and never for more than 1 % of the time."""

import pytest

from learner.reporting.resume_schedule import ResumeSchedule


def points(update_seconds, cost, updates):
    """After which updates a point is written."""
    schedule, written = ResumeSchedule(0.0), []
    for update in range(1, updates + 1):
        if schedule.is_due(update * update_seconds):
            schedule.record(cost / 4, cost * 3 / 4)
            written.append(update)
    return written


def test_first_point_is_written_after_the_first_update_whatever_it_costs():
    assert points(0.001, cost=60.0, updates=50) == [1]


def test_cheap_points_are_written_after_every_update():
    assert points(10.0, cost=0.09, updates=30) == list(range(1, 31))


@pytest.mark.parametrize("cost", [0.02, 0.2, 2.0])
def test_expensive_points_cost_no_more_than_one_percent_but_use_it(cost):
    written = points(1.0, cost, updates=10_000)
    assert 0.9 * 100 <= len(written) * cost <= 100 + cost


def test_one_slow_write_is_paid_from_what_cheap_ones_left_over():
    schedule = ResumeSchedule(0.0)
    for update in range(1, 101):
        assert schedule.is_due(update * 10.0)
        schedule.record(0.01, 0.01)
    schedule.record(0.01, 3.0)
    assert schedule.is_due(1010.0)

"""Slots, policy lag and buffers by hand: no Ray, no threads. `Buffer` stands in for a staging buffer."""

import random

import pytest

from learner.rollouts.batch_assembly import BatchAssembly


class Buffer(str):
    """Compares like a string, and counts how often it was cleared."""

    times_cleared = 0

    def clear(self):
        self.times_cleared += 1


def assembly(max_policy_lag, num_slots=2, first_batch=0, num_batches=100, num_buffers=None, repeatable=False):
    buffers = [Buffer(f"buffer {i}") for i in range(num_buffers or max_policy_lag + 1)]
    return BatchAssembly(buffers, num_slots, max_policy_lag, first_batch, num_batches, repeatable)


def fill_batch(batches, actors=(0, 1)):
    for slot in [batches.assign(actor_id) for actor_id in actors]:
        batches.fill(slot)


@pytest.mark.parametrize("max_policy_lag", [0, 1])
def test_nothing_is_assigned_before_the_first_publish(max_policy_lag):
    batches = assembly(max_policy_lag)
    assert batches.assign(0) is None
    batches.publish(0)
    assert batches.assign(0) is not None


def test_actor_gets_the_slot_with_its_own_number_if_free():
    batches = assembly(0, num_slots=3)
    batches.publish(0)
    # Actor 2 is first and third: its own slot, then the lowest free one; actor 1 still gets its own.
    assert [batches.assign(actor_id).index for actor_id in (2, 1, 2)] == [2, 1, 0]
    assert batches.assign(0) is None


def test_sync_mode_begins_a_batch_only_with_its_own_version():
    batches = assembly(max_policy_lag=0)
    batches.publish(0)
    fill_batch(batches)
    assert batches.assign(0) is None
    assert batches.next_full() == "buffer 0"
    assert batches.assign(0) is None  # the learner trains on the only buffer
    batches.publish(1)
    assert batches.assign(0).batch.number == 1


def test_overlap_mode_runs_one_batch_ahead_of_the_published_version():
    batches = assembly(max_policy_lag=1)
    batches.publish(0)
    fill_batch(batches)
    fill_batch(batches)
    assert batches.assign(0) is None  # batch 2 needs version 1
    assert batches.next_full() == "buffer 0"
    batches.publish(1)
    slot = batches.assign(0)
    assert (slot.batch.number, slot.batch.buffer) == (2, "buffer 0")


def test_batch_waits_for_a_free_buffer():
    batches = assembly(max_policy_lag=1)
    batches.publish(0)
    fill_batch(batches)
    fill_batch(batches)
    batches.publish(1)  # the learner has taken neither batch
    assert batches.assign(0) is None
    batches.next_full()
    assert batches.assign(0) is None  # the learner trains on it
    batches.publish(1)
    assert batches.assign(0) is not None


@pytest.mark.parametrize("max_policy_lag", [0, 1, 2])
def test_free_buffers_do_not_let_a_batch_begin_before_its_version(max_policy_lag):
    batches = assembly(max_policy_lag, num_buffers=10)
    batches.publish(0)
    for _ in range(max_policy_lag + 1):
        fill_batch(batches)
    assert batches.assign(0) is None
    batches.publish(1)
    assert batches.assign(0).batch.number == max_policy_lag + 1


def test_full_batches_come_in_order_even_if_a_later_one_is_full_first():
    batches = assembly(max_policy_lag=1)
    batches.publish(0)
    first = [batches.assign(0), batches.assign(1)]
    assert not batches.fill(first[0])
    fill_batch(batches)  # batch 1
    assert batches.next_full() is None
    assert batches.fill(first[1])
    assert [batches.next_full(), batches.next_full(), batches.next_full()] == ["buffer 0", "buffer 1", None]


def test_slot_of_a_lost_rollout_is_assigned_again_before_a_new_batch():
    batches = assembly(max_policy_lag=1)
    batches.publish(0)
    lost, other = batches.assign(0), batches.assign(1)
    assert batches.assign(0).batch.number == 1
    assert not batches.fill(other)
    batches.give_up(lost)
    assert batches.has_unassigned()
    again = batches.assign(1)
    assert (again.index, again.batch.number) == (0, 0)
    assert batches.fill(again)


def test_slot_is_filled_once():
    batches = assembly(max_policy_lag=0)
    batches.publish(0)
    slot = batches.assign(0)
    batches.fill(slot)
    with pytest.raises(KeyError):
        batches.fill(slot)
    with pytest.raises(AssertionError):
        batches.give_up(slot)


def test_rollout_is_too_old_beyond_the_largest_lag():
    batches = assembly(max_policy_lag=1, first_batch=5)
    batches.publish(5)
    slot = batches.assign(0)
    assert [batches.is_too_old(slot, version) for version in (3, 4, 5)] == [True, False, False]


def test_no_batch_is_begun_after_the_last_one():
    batches = assembly(max_policy_lag=1, first_batch=7, num_batches=9)
    batches.publish(7)
    fill_batch(batches)
    fill_batch(batches)
    batches.next_full()
    batches.publish(8)
    assert batches.assign(0) is None and not batches.has_unassigned()


def collected(max_policy_lag, speeds, seed, first_batch=0, num_batches=40):
    """What each actor of a repeatable run collects, in order, as (batch, slot, version), if actor i delivers its
    rollout with probability `speeds[i]` whenever it is looked at.
    """
    rng = random.Random(seed)
    actors = range(len(speeds))
    batches = assembly(max_policy_lag, len(speeds), first_batch, num_batches, repeatable=True)
    version = max(0, first_batch - max_policy_lag)
    while version <= first_batch:  # a resumed run has the older weights too
        batches.publish(version)
        version += 1
    version -= 1
    in_flight, done = {}, {actor: [] for actor in actors}
    while version < num_batches:
        for actor in actors:
            if actor not in in_flight and (slot := batches.assign(actor, actors)) is not None:
                in_flight[actor] = slot
                done[actor].append((slot.batch.number, slot.index, batches.version_for(slot)))
                assert batches.version_for(slot) <= version
        for actor in list(in_flight):
            if rng.random() < speeds[actor]:
                batches.fill(in_flight.pop(actor))
        if rng.random() < 0.5 and batches.next_full() is not None:
            version += 1
            batches.publish(version)
    return done


@pytest.mark.parametrize("max_policy_lag", [0, 1, 3])
def test_repeatable_batches_do_not_depend_on_how_fast_actors_are(max_policy_lag):
    equal = collected(max_policy_lag, [0.5, 0.5, 0.5], seed=1)
    assert equal == collected(max_policy_lag, [0.05, 0.9, 0.3], seed=2)
    assert equal == {
        actor: [(number, actor, max(0, number - max_policy_lag)) for number in range(40)] for actor in range(3)
    }


@pytest.mark.parametrize("max_policy_lag", [1, 3])
def test_resumed_batches_are_collected_with_the_versions_of_the_uninterrupted_run(max_policy_lag):
    whole = collected(max_policy_lag, [0.5, 0.5], seed=1)
    for first_batch in (1, 2, 17):
        resumed = collected(max_policy_lag, [0.1, 0.9], seed=2, first_batch=first_batch)
        assert resumed == {actor: done[first_batch:] for actor, done in whole.items()}


def test_oldest_published_version_replaces_those_that_a_resumed_run_lacks():
    batches = assembly(max_policy_lag=2, first_batch=7, repeatable=True)
    batches.publish(7)
    assert [batches.version_for(batches.assign(0, (0, 1))) for _ in range(3)] == [7, 7, 7]


def test_slots_of_a_missing_actor_are_collected_by_the_others():
    batches = assembly(max_policy_lag=1, num_slots=3, repeatable=True)
    batches.publish(0)
    first = batches.assign(0, (0, 1))
    assert first.index == 0
    assert batches.assign(0, (0, 1)).index == 2  # actor 2 is missing, actor 1 takes its own
    assert batches.assign(1, (0, 1)).index == 1
    assert batches.assign(0, (0, 1, 2)).batch.number == 1
    assert batches.assign(0, (0, 1, 2)) is None  # the rest of batch 1 belongs to the others
    batches.give_up(first)
    assert batches.assign(1, (0, 1, 2)).batch.number == 1  # actor 0 is ready and takes slot 0 again itself
    again = batches.assign(0, (0, 1, 2))
    assert (again.index, again.batch.number) == (0, 0)


def test_newest_weights_are_used_unless_the_run_is_repeatable():
    newest, repeatable = (assembly(1, num_slots=1, repeatable=flag) for flag in (False, True))
    for batches in (newest, repeatable):
        batches.publish(0)
        batches.fill(batches.assign(0, (0,)))
        batches.next_full()
        batches.publish(1)
    assert [batches.version_for(batches.assign(0, (0,))) for batches in (newest, repeatable)] == [1, 0]


@pytest.mark.parametrize("max_policy_lag", [0, 1, 3])
def test_lag_is_bounded_and_every_slot_filled_once_in_random_order(max_policy_lag):
    rng = random.Random(max_policy_lag)
    batches = assembly(max_policy_lag, num_slots=4, num_batches=200)
    batches.publish(0)
    version, in_flight, filled, largest_lag = 0, [], {}, 0
    while version < 200:
        event = rng.random()
        if event < 0.4:
            if (slot := batches.assign(rng.randrange(4))) is not None:
                in_flight.append((slot, version))
        elif event < 0.8 and in_flight:
            slot, slot_version = in_flight.pop(rng.randrange(len(in_flight)))
            if rng.random() < 0.2:
                batches.give_up(slot)
                continue
            assert not batches.is_too_old(slot, slot_version)
            largest_lag = max(largest_lag, slot.batch.number - slot_version)
            filled.setdefault(slot.batch.number, []).append(slot.index)
            batches.fill(slot)
        elif batches.next_full() is not None:
            assert sorted(filled[version]) == [0, 1, 2, 3]  # whole when the learner gets it
            version += 1
            batches.publish(version)
    assert largest_lag == max_policy_lag
    assert all(sorted(slots) == [0, 1, 2, 3] for slots in filled.values()) and len(filled) == 200


def test_buffer_is_cleared_before_each_batch_that_uses_it():
    batches = assembly(max_policy_lag=0, num_slots=1)
    for version in range(3):
        batches.publish(version)
        batches.fill(batches.assign(0))
        assert batches.next_full().times_cleared == version + 1

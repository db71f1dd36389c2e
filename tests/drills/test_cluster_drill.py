"""The drill's faults that need a cluster: lost, new and drained nodes and a lost head."""

from drills.drill import on_cluster


def test_lost_new_and_drained_nodes_and_a_lost_head_are_survived(tmp_path):
    outcomes = []
    on_cluster(tmp_path, outcomes)
    assert [outcome.fault.split(" (")[0] for outcome in outcomes] == [
        "node lost",
        "node joined",
        "node drained",
        "head lost",
    ]
    assert [outcome.adds_up for outcome in outcomes] == ["yes"] * 4
    assert outcomes[2].frames_lost == 0  # a drained node's actor finishes its rollout
    assert [outcome.survived for outcome in outcomes] == ["n.a."] * 3 + ["yes"]

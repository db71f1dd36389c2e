"""Error texts as Ray really writes them."""

from common.errors import cause_in_one_line

REMOTE_TRACEBACK = """ray::RemoteRolloutActor.collect() (pid=12, ip=10.0.0.2)
  File "/app/actors/remote.py", line 29, in collect
    return self.actor.collect(weights, policy_version)
OSError: libGL.so.1: cannot open shared object file
"""
KILLED_FOR_MEMORY = """Task was killed due to the node running low on memory.
Memory on the node (IP: 10.0.0.2) was 22.5GB / 23.5GB (0.95), which exceeds the threshold of 0.95.
Refer to the documentation on how to address the out of memory issue: set the environment variable ...
"""


def test_a_remote_traceback_ends_with_its_cause():
    assert cause_in_one_line(RuntimeError(REMOTE_TRACEBACK)) == "OSError: libGL.so.1: cannot open shared object file"


def test_a_page_of_advice_is_its_first_sentence():
    assert (
        cause_in_one_line(RuntimeError(KILLED_FOR_MEMORY)) == "Task was killed due to the node running low on memory."
    )


def test_an_error_without_words_is_its_name_and_a_long_one_is_cut():
    assert cause_in_one_line(TimeoutError()) == "TimeoutError"
    assert len(cause_in_one_line(ValueError("x" * 1000))) == 300

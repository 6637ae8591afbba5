"""The short version; `python -m tests.faults.teacher_kills` kills twenty times."""

from tests.faults.teacher_kills import kill_and_go_on


def test_a_process_that_asks_is_killed_and_two_go_on(tmp_path):
    counts = kill_and_go_on(tmp_path, num_kills=1, number=30, samples=3, seed=1)
    assert counts["requests"] > counts["wanted"]  # the server did misbehave

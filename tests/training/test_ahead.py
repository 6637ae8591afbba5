"""Work ahead: the same results, one step and no more, errors come out, the end is quick."""

import threading
import time

import pytest

from l2s_jax.training.ahead import Abandoned, Ahead


def test_begun_or_not_the_result_is_the_same():
    names = []

    def make(step):
        names.append(threading.current_thread() is threading.main_thread())
        return step * step

    with Ahead(make) as ahead:
        ahead.begin(3)
        assert ahead.take(3) == 9
        assert ahead.take(4) == 16
        ahead.begin(5)
        assert ahead.take(5) == 25
    assert names == [False, True, False]


def test_it_is_made_while_the_caller_works():
    begun, worked = threading.Event(), threading.Event()

    def make(step):
        begun.set()
        assert worked.wait(30)
        return step

    with Ahead(make) as ahead:
        ahead.begin(1)
        assert begun.wait(30)  # it is at work, and the caller is here
        worked.set()
        assert ahead.take(1) == 1


def test_one_step_ahead_and_no_more():
    with Ahead(lambda step: step) as ahead:
        ahead.begin(1)
        with pytest.raises(AssertionError, match="not taken yet"):
            ahead.begin(2)
        with pytest.raises(AssertionError, match="step 1 was begun, step 2 is asked for"):
            ahead.take(2)


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(143)])
def test_errors_come_out_where_the_result_is_taken(error):
    def make(step):
        raise error

    with Ahead(make) as ahead:
        ahead.begin(1)
        with pytest.raises(type(error)):
            ahead.take(1)


def test_who_leaves_ends_what_is_being_made():
    ended = []

    def make(step):
        try:
            for _ in range(3000):
                ahead.check()
                time.sleep(0.01)
        except Abandoned:
            ended.append(step)
            raise

    ahead = Ahead(make)
    with pytest.raises(KeyError), ahead:
        ahead.begin(1)
        raise KeyError
    assert ended == [1]

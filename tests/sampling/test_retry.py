"""Waits between requests, and the crew that sends them."""

import email.utils
import threading
import time

import pytest

from l2s_jax.sampling.retry import LONGEST_BACKOFF, Gate, answered, backoff, retry_after


@pytest.mark.parametrize(
    "headers, want",
    [
        ({}, None),
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": "0.25"}, 0.25),
        ({"retry-after": "-5"}, 0.0),
        ({"retry-after-ms": "1500", "retry-after": "2"}, 1.5),
        ({"retry-after-ms": "soon", "retry-after": "2"}, 2.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
    ],
)
def test_retry_after(headers, want):
    assert retry_after(headers) == want


@pytest.mark.parametrize("zone", ["GMT", "-0000"])
def test_retry_after_as_a_date(zone):
    date = email.utils.formatdate(time.time() + 100, usegmt=True).replace("GMT", zone)
    assert 95 < retry_after({"retry-after": date}) <= 100


def test_backoff_doubles_up_to_a_bound():
    for num_tries, longest in [(1, 0.5), (2, 1.0), (4, 4.0), (7, 32.0), (9, LONGEST_BACKOFF)]:
        waits = [backoff(num_tries, 0.5) for _ in range(200)]
        assert longest / 2 <= min(waits) < max(waits) <= longest
    assert backoff(5, 0.0) == 0.0


def test_a_gate_opens_with_time_or_with_the_halt():
    gate, halt = Gate(), threading.Event()
    gate.wait(halt)  # open
    gate.close_for(0.2)
    gate.close_for(0.1)  # the longer wait stands
    start = time.monotonic()
    gate.wait(halt)
    assert time.monotonic() - start >= 0.19
    gate.close_for(1000.0)
    halt.set()
    gate.wait(halt)


def nothing():
    """Answers here return by themselves."""


@pytest.mark.parametrize("num_threads", [1, 3, 50])
def test_everything_is_answered_once(num_threads):
    found = list(answered(range(20), lambda n: n * n, num_threads, threading.Event(), nothing))
    assert sorted(found) == [n * n for n in range(20)]
    assert list(answered([], lambda n: n, num_threads, threading.Event(), nothing)) == []


def test_answers_that_nobody_takes_hold_up_new_ones():
    begun: list[int] = []

    def answer(n):
        begun.append(n)
        return n

    coming = answered(range(100), answer, 2, threading.Event(), nothing)
    next(coming)
    coming.close()  # waits for what is at work
    assert len(begun) <= 4


def test_what_hangs_is_hung_up_where_one_gives_up():
    over, ended = threading.Event(), []

    def answer(n):
        if n > 0:
            assert over.wait(timeout=60)
            ended.append(n)
        return n

    coming = answered(range(100), answer, 3, threading.Event(), over.set)
    assert next(coming) == 0
    coming.close()
    assert set(ended) <= {1, 2, 3, 4, 5} and len(ended) == len(set(ended))
    assert not [t for t in threading.enumerate() if t.name.startswith("l2s-ask")]


def test_after_the_halt_nothing_new_is_begun():
    halt, begun = threading.Event(), []

    def answer(n):
        begun.append(n)
        halt.set()
        return n

    assert list(answered(range(100), answer, 1, halt, nothing)) == begun
    assert len(begun) <= 2


def test_a_bug_in_an_answer_is_raised_and_hangs_nobody():
    with pytest.raises(ZeroDivisionError):
        list(answered([1, 0, 1], lambda n: 1 / n, 2, threading.Event(), nothing))

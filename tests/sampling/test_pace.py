import random

import pytest

from l2s_jax.sampling.pace import CHARACTERS_PER_TOKEN, Pace


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def sent_at(pace, clock, questions, answer_tokens, rng):
    """(time, tokens really used) of one impatient caller's requests; time passes by jumps."""
    sent = []
    for question in questions:
        clock.now += rng.choice([0.0, 0.0, 0.01, 3.0])
        wait, charged = pace.book(question)
        clock.now += wait
        used = rng.randrange(1, answer_tokens)
        sent.append((clock.now, len(question) / CHARACTERS_PER_TOKEN + used))
        pace.settle(charged, round(len(question) / CHARACTERS_PER_TOKEN), used)
    return sent


def busiest(sent, weigh, seconds=60.0):
    """The most that any window held, by trying those that begin with a request."""
    return max(
        sum(weigh(tokens) for at, tokens in sent if start <= at < start + seconds - 1e-6)
        for start, _ in sent
    )


@pytest.mark.parametrize("seed", range(4))
def test_no_minute_holds_more_requests_than_allowed(seed):
    rng, clock = random.Random(seed), Clock()
    pace = Pace(30.0, None, 100, clock)
    sent = sent_at(pace, clock, ["q" * 30] * 200, 100, rng)
    assert busiest(sent, lambda _: 1) <= 30
    assert sent[-1][0] - sent[0][0] <= 200 * 3.1  # and it does not dawdle


@pytest.mark.parametrize("seed", range(4))
def test_no_minute_holds_more_tokens_than_allowed_but_for_one_answer(seed):
    """What an answer has beyond the mean is known after it: one may go over, never two."""
    rng, clock = random.Random(seed), Clock()
    pace = Pace(None, 6000.0, 1000, clock)
    sent = sent_at(pace, clock, ["q" * 300] * 300, 1000, rng)
    assert busiest(sent, lambda tokens: tokens) <= 6000 + 1100
    total = sum(tokens for _, tokens in sent)
    minutes = (sent[-1][0] - sent[0][0]) / 60
    assert total / minutes >= 0.85 * 6000


def test_both_limits_hold_together():
    rng, clock = random.Random(0), Clock()
    pace = Pace(100.0, 3000.0, 50, clock)
    sent = sent_at(pace, clock, ["q" * 3] * 500, 100, rng)
    assert busiest(sent, lambda _: 1) <= 100
    assert busiest(sent, lambda tokens: tokens) <= 3000 + 101


def test_without_limits_nobody_waits():
    pace = Pace(None, None, 4096, Clock())
    assert [pace.book("q" * 10_000)[0] for _ in range(50)] == [0.0] * 50


def test_callers_that_come_together_are_spread():
    clock = Clock()
    pace = Pace(60.0, None, 10, clock)
    assert [round(pace.book("q")[0], 6) for _ in range(4)] == [0.0, 1.0, 2.0, 3.0]


def test_a_refused_request_gives_its_tokens_back():
    waits = []
    for answered in (True, False):
        pace = Pace(None, 600.0, 100, Clock())
        _, charged = pace.book("")
        if not answered:
            pace.refund(charged)
        waits.append(pace.book("")[0])
    assert waits == [pytest.approx(10.0), 0.0]


def test_charges_follow_the_mean_of_the_answers():
    pace = Pace(None, 600.0, 1000, Clock())
    charges = []
    for tokens in (10, 20, 30):
        _, charged = pace.book("")
        charges.append(charged)
        pace.settle(charged, 0, tokens)
    assert charges == [1000, 10, 15]

"""Failed requests against a real server on loopback: what is asked again, paid, kept and told."""

import asyncio
import collections
import dataclasses
import email.utils
import logging
import pickle
import threading
import time
import traceback

import jax
import numpy as np
import pytest

from l2s_jax.config import from_json, to_json
from l2s_jax.sampling.controllers.routing import RoutingConfig
from l2s_jax.sampling.endpoint import RemoteConfig
from l2s_jax.sampling.remote import RemoteError, RemoteSampler
from l2s_jax.sampling.reply import Unreadable, Unusable, read_reply
from l2s_jax.types import Problem
from tests.sampling.teacher_server import MODEL, Reply, completion, echo, failed, serving

CANARY = "sk-canary-0123456789abcdef"


def problems(number):
    return [Problem(id=f"p{n}", question=f"q{n}", answer="0") for n in range(number)]


def config(server, **changes):
    quick = {"api_key_env": None, "backoff_seconds": 0.002, "max_retries": 3, "concurrency": 4}
    return RemoteConfig(base_url=server.url, model=MODEL, **(quick | changes))


def sampler(server, **changes):
    return RemoteSampler(config(server, **changes))


def key(seed=0):
    return jax.random.key(seed)


def failing(asked, server, number=1):
    with pytest.raises(RemoteError) as caught:
        asked.sample(problems(number), key())
    return caught.value


# ---- what is sent, and what is read ----


def test_a_request_says_what_the_config_says():
    with serving(echo) as server:
        asked = sampler(
            server,
            temperature=0.6,
            top_p=0.95,
            max_new_tokens=77,
            length_field="max_completion_tokens",
            logprobs=True,
            extra={"top_k": 20},
        )
        [rollout] = asked.sample(problems(1), key())
        [body] = server.bodies
    assert body == {
        "model": MODEL,
        "messages": [{"role": "user", "content": "q0"}],
        "temperature": 0.6,
        "top_p": 0.95,
        "max_completion_tokens": 77,
        "seed": rollout.seed,
        "logprobs": True,
        "top_k": 20,
    }
    assert 0 <= rollout.seed < 2**31


def test_a_rollout_holds_the_servers_words_and_counts():
    with serving(echo) as server:
        [rollout] = sampler(server).sample(problems(1), key())
    assert rollout.text == f"q0 s{rollout.seed}"
    assert (rollout.finish_reason, rollout.route, rollout.p_easy) == ("stop", "none", None)
    assert (rollout.prompt_tokens, rollout.completion_tokens, rollout.num_tokens) == (3, 2, 2)
    assert (rollout.model, rollout.fingerprint, rollout.num_tries) == (MODEL, "fp_7", 1)
    assert rollout.thought is None and rollout.pieces == ()
    for array in (rollout.prompt_ids, rollout.token_ids, rollout.logp, rollout.free):
        assert array.shape == (0,)


def test_without_seeds_none_is_sent():
    with serving(echo) as server:
        [rollout] = sampler(server, seeded=False).sample(problems(1), key())
        assert "seed" not in server.bodies[0]
    assert rollout.seed is None


def test_seeds_are_named_by_key_id_and_sample():
    def seeds(server, number, seed=0, **changes):
        found = sampler(server, num_samples=2, **changes).sample(problems(number), key(seed))
        return {(r.id, r.sample): r.seed for r in found}

    with serving(echo) as server:
        whole = seeds(server, 4)
        assert seeds(server, 2) == {place: whole[place] for place in list(whole)[:4]}
        assert seeds(server, 4, concurrency=1) == whole
        other = seeds(server, 4, seed=1)
    assert len(set(whole.values()) | set(other.values())) == 16


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_a_thought_that_the_server_parts_from_the_answer_is_kept(field):
    def thinks(body, before):
        return Reply(body=completion("4", **{field: "two and two"}))

    with serving(thinks) as server:
        [rollout] = sampler(server).sample(problems(1), key())
    assert (rollout.thought, rollout.text) == ("two and two", "4")


def test_log_probs_of_the_server():
    reply = completion("a b")
    rows = [{"token": "a", "logprob": -0.5}, {"token": " b", "logprob": None}]
    reply["choices"][0]["logprobs"] = {"content": rows}
    with serving(lambda *_: Reply(body=reply)) as server:
        [rollout] = sampler(server, logprobs=True).sample(problems(1), key())
    assert rollout.pieces == ("a", " b")
    np.testing.assert_array_equal(rollout.pieces_logp, np.float32([-0.5, np.nan]))
    assert len(rollout.logp) == len(rollout.token_ids) == 0


@pytest.mark.parametrize("text", ["", None, "cut of"])
def test_length_and_emptiness_are_data(text):
    with serving(lambda *_: Reply(body=completion(text, "length"))) as server:
        [rollout] = sampler(server).sample(problems(1), key())
        assert len(server.bodies) == 1
    assert (rollout.text, rollout.finish_reason) == (text or "", "length")


def test_a_missing_token_count_is_not_guessed():
    reply = completion("a b")
    del reply["usage"]
    rollout = read_reply(reply, id="p0", sample=0, seed=1, num_tries=1)
    assert rollout.completion_tokens is None
    with pytest.raises(ValueError, match="'p0': the server gave no token count"):
        _ = rollout.num_tokens


NO_COMPLETION = [
    [],
    None,
    {},
    {"choices": []},
    {"choices": [None]},
    {"choices": [{}, {}]},
    {"choices": [{"finish_reason": "stop"}]},
    {"choices": [{"message": {"content": ["a"]}, "finish_reason": "stop"}]},
]


@pytest.mark.parametrize("reply", NO_COMPLETION, ids=str)
def test_other_shapes_are_unreadable(reply):
    with pytest.raises(Unreadable):
        read_reply(reply, id="p0", sample=0, seed=None, num_tries=1)


@pytest.mark.parametrize("finish", ["content_filter", "tool_calls", None])
def test_other_endings_are_unusable(finish):
    with pytest.raises(Unusable, match="finish_reason"):
        read_reply(completion("a", finish), id="p0", sample=0, seed=None, num_tries=1)


# ---- order, concurrency, callers ----


def test_stream_hands_out_what_finishes_and_sample_puts_it_in_order():
    others = threading.Semaphore(0)

    def slow_first(body, before):
        if body["messages"][0]["content"] != "q0":
            others.release()
            return echo(body, before)
        assert all(others.acquire(timeout=20) for _ in range(5))  # the others go first
        return dataclasses.replace(echo(body, before), delay=0.2)

    with serving(slow_first) as server:
        asked = sampler(server)
        streamed = [r.id for r in asked.stream(problems(6), key())]
        sampled = [r.id for r in asked.sample(problems(6), key())]
    assert streamed[-1] == "p0" and sorted(streamed) == sampled
    assert sampled == [f"p{n}" for n in range(6)]


@pytest.mark.parametrize("concurrency", [1, 3])
def test_no_more_at_a_time_than_asked_for(concurrency):
    together = threading.Barrier(concurrency)

    def slow(body, before):
        together.wait(timeout=20)  # no fewer
        return dataclasses.replace(echo(body, before), delay=0.05)

    with serving(slow) as server:
        found = sampler(server, concurrency=concurrency).sample(problems(9), key())
        assert server.most_active == concurrency
    assert len(found) == 9


def asking():
    return [t for t in threading.enumerate() if t.name.startswith("l2s-ask")]


def test_one_who_gives_up_has_not_paid_for_everything():
    with serving(echo) as server:
        coming = sampler(server, concurrency=2).stream(problems(50), key())
        next(coming)
        coming.close()
        assert not asking()  # so that nothing more can be sent
    assert len(server.bodies) <= 6  # one taken, and twice the two that may be at work


def test_one_who_gives_up_does_not_wait_for_the_server():
    asked, over = threading.Barrier(3), threading.Event()

    def first_only(body, before):
        if body["messages"][0]["content"] != "q0":
            asked.wait(timeout=20)
            over.wait(timeout=60)
        return echo(body, before)

    with serving(first_only) as server:
        coming = sampler(server, concurrency=2).stream(problems(50), key())
        assert next(coming).id == "p0"
        asked.wait(timeout=20)  # two are being answered, and will be for long
        coming.close()
        assert not asking() and not over.is_set()
        over.set()
    assert len(server.bodies) == 3


def test_what_is_there_already_is_not_asked_again():
    with serving(echo) as server:
        asked = sampler(server, num_samples=2)
        whole = {(r.id, r.sample): r.text for r in asked.sample(problems(3), key())}
        server.bodies.clear()
        have = [("p0", 0), ("p2", 0), ("p2", 1)]
        rest = {(r.id, r.sample): r.text for r in asked.stream(problems(3), key(), have=have)}
        assert len(server.bodies) == 3
    assert rest == {place: whole[place] for place in whole if place not in have}


def test_under_an_event_loop_and_from_threads():
    with serving(echo) as server:
        asked = sampler(server)
        want = [r.text for r in asked.sample(problems(4), key())]

        async def from_asyncio():
            inside = asked.sample(problems(4), key())  # as in a notebook's cell
            beside = [asyncio.to_thread(asked.sample, problems(4), key()) for _ in range(2)]
            return [inside, *await asyncio.gather(*beside)]

        for found in asyncio.run(from_asyncio()):
            assert [r.text for r in found] == want
        found = []
        threads = [
            threading.Thread(target=lambda: found.append(asked.sample(problems(4), key())))
            for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [[r.text for r in one] for one in found] == [want] * 3


# ---- failures that pass ----


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
def test_a_storm_passes_and_nothing_is_paid_twice(status):
    def storm(body, before):
        return failed(status) if before < 2 else echo(body, before)

    with serving(storm) as server:
        found = sampler(server).sample(problems(8), key())
        counts = collections.Counter(server.answered)
        assert counts == {f"q{n}": 1 for n in range(8)}
        assert len(server.bodies) == 24
    assert [r.id for r in found] == [f"p{n}" for n in range(8)]
    assert {r.num_tries for r in found} == {3}
    seeds = collections.defaultdict(set)
    for body in server.bodies:
        seeds[body["messages"][0]["content"]].add(body["seed"])
    assert {len(of) for of in seeds.values()} == {1}  # the same request, seed included


HEADERS = {
    "seconds": (1.0, lambda: {"Retry-After": "1"}),
    "milliseconds": (0.3, lambda: {"retry-after-ms": "300"}),
    "date": (1.0, lambda: {"Retry-After": email.utils.formatdate(time.time() + 2, usegmt=True)}),
}


def limits_once(header, delay=0.0):
    """The rule of a server that turns away its first request, with that header."""
    turned_away = threading.Event()

    def rule(body, before):
        if turned_away.is_set():
            return dataclasses.replace(echo(body, before), delay=delay)
        turned_away.set()
        return dataclasses.replace(failed(429, headers=header()), delay=delay)

    return rule


@pytest.mark.parametrize("kind", HEADERS)
def test_retry_after_is_waited_for(kind):
    least, header = HEADERS[kind]
    with serving(limits_once(header)) as server:
        found = sampler(server, concurrency=1).sample(problems(3), key())
        waited = server.times[1] - server.times[0]
    assert len(found) == 3 and 0.9 * least <= waited < 10


def test_retry_after_holds_everybody_back():
    """The second thread is at work while the first is told to wait, and must wait then, too."""
    least, header = HEADERS["milliseconds"]
    with serving(limits_once(header, delay=0.05)) as server:
        sampler(server, concurrency=2).sample(problems(20), key())
        early = [t for t in server.times if t < server.times[0] + 0.9 * least]
    assert len(early) <= 3  # two at once, and one begun before the word was out


def test_a_wait_beyond_the_limit_is_a_failure():
    with serving(lambda *_: failed(429, "come tomorrow", {"Retry-After": "86400"})) as server:
        error = failing(sampler(server), server)
        assert len(server.bodies) == 1
    assert error.failures[0].cause == "exhausted"
    assert "come tomorrow" in str(error) and "86400" in str(error)


def test_a_slow_answer_is_asked_for_again():
    def slow_once(body, before):
        return dataclasses.replace(echo(body, before), delay=3.0 if before == 0 else 0.0)

    with serving(slow_once) as server:
        [rollout] = sampler(server, timeout_seconds=1.0).sample(problems(1), key())
        assert rollout.num_tries == 2 and len(server.bodies) == 2


def test_an_answer_that_trickles_is_bounded_and_asked_for_again():
    """Every byte comes in time, the last one never would."""

    def trickles_once(body, before):
        return dataclasses.replace(echo(body, before), drip=0.05 if before == 0 else 0.0)

    with serving(trickles_once) as server:
        asked = sampler(server, timeout_seconds=60.0, answer_seconds=0.1)
        [rollout] = asked.sample(problems(1), key())
    assert rollout.num_tries == 2


def unreadable_once(bad):
    return lambda body, before: bad if before == 0 else echo(body, before)


@pytest.mark.parametrize(
    "bad",
    [
        Reply(body='{"choices": [{"mess'),
        Reply(body=""),
        Reply(body="<html>busy</html>", headers={"Content-Type": "text/html"}),
        Reply(body={"choices": []}),
        dataclasses.replace(echo({"messages": [{"content": "q"}]}, 0), cut=0.0),
        dataclasses.replace(echo({"messages": [{"content": "q"}]}, 0), cut=0.5),
    ],
    ids=["cut", "empty", "html", "no choice", "reset", "reset in the middle"],
)
def test_an_unreadable_answer_is_asked_for_again(bad):
    with serving(unreadable_once(bad)) as server:
        [rollout] = sampler(server).sample(problems(1), key())
    assert rollout.num_tries == 2


# ---- failures that stay ----


def test_a_problem_that_fails_is_told_at_the_end_and_costs_no_other():
    def one_fails(body, before):
        if body["messages"][0]["content"] == "q2":
            return failed(500, "shard lost")
        return echo(body, before)

    with serving(one_fails) as server:
        error = failing(sampler(server), server, 6)
        assert server.count("q2") == 4  # max_retries=3
        assert collections.Counter(server.answered) == {f"q{n}": 1 for n in (0, 1, 3, 4, 5)}
    assert [r.id for r in error.rollouts] == ["p0", "p1", "p3", "p4", "p5"]
    [failure] = error.failures
    assert (failure.id, failure.cause, failure.num_tries) == ("p2", "exhausted", 4)
    assert "p2" in str(error) and "HTTP 500: shard lost" in str(error) and not error.unasked


@pytest.mark.parametrize(
    "status, body",
    [
        (404, {"error": {"message": f"The model `{MODEL}` does not exist"}}),
        (400, {"object": "error", "message": f"no {MODEL}: does not exist"}),
        (422, {"detail": f"{MODEL} does not exist"}),
        (401, "does not exist, in plain text"),
        (429, {"error": {"message": "does not exist: credit", "code": "insufficient_quota"}}),
    ],
)
def test_a_refusal_stops_all_with_the_servers_words(status, body):
    with serving(lambda *_: Reply(status=status, body=body)) as server:
        error = failing(sampler(server, concurrency=1), server, 30)
        assert len(server.bodies) == 1
    assert error.failures[0].cause == "rejected" and f"HTTP {status}" in str(error)
    assert "does not exist" in str(error)
    assert len(error.unasked) == 29 and "29 were not asked" in str(error)


def test_what_is_at_work_when_all_stops_is_kept():
    """One is refused while three slow ones are being answered: those have been paid for."""
    all_in = threading.Barrier(4)

    def refuses_one(body, before):
        all_in.wait(timeout=20)
        if body["messages"][0]["content"] == "q0":
            return failed(403)
        return dataclasses.replace(echo(body, before), delay=1.0)

    with serving(refuses_one) as server:
        error = failing(sampler(server), server, 20)
        assert len(server.bodies) == 4
    assert [r.id for r in error.rollouts] == ["p1", "p2", "p3"]
    assert len(error.unasked) == 16


def test_a_filtered_answer_is_not_paid_twice():
    def filters_one(body, before):
        if body["messages"][0]["content"] == "q1":
            return Reply(body=completion("half a", "content_filter"))
        return echo(body, before)

    with serving(filters_one) as server:
        error = failing(sampler(server), server, 3)
        assert server.count("q1") == 1
    [failure] = error.failures
    assert (failure.cause, failure.text) == ("unusable", "half a")
    assert [r.id for r in error.rollouts] == ["p0", "p2"]


def test_a_server_that_is_down_is_not_asked_everything():
    with serving(lambda *_: failed(500)) as server:
        error = failing(sampler(server, concurrency=2, max_retries=0), server, 200)
        assert 8 <= len(server.bodies) <= 12
    assert len(error.failures) == len(server.bodies)
    assert len(error.failures) + len(error.unasked) == 200


def test_requests_per_minute_are_kept_to():
    """Also by the tries that a failure costs."""

    def fails_once(body, before):
        return failed(500) if before == 0 else echo(body, before)

    with serving(fails_once) as server:
        asked, start = sampler(server, requests_per_minute=600.0), time.monotonic()
        assert len(asked.sample(problems(4), key())) == 4
        times = server.times
    assert len(times) == 8 and times[-1] - start >= 0.7  # 7 gaps of 0.1 s


def test_what_goes_through_is_kept_before_it_is_handed_out():
    kept, left = [], ("p1", 0)

    def through(id, sample, go):
        if (id, sample) == left:
            return None  # another's
        outcome = go()
        kept.append((id, sample))
        return outcome

    with serving(echo) as server:
        for rollout in sampler(server).stream(problems(6), key(), through=through):
            assert (rollout.id, rollout.sample) in kept
        assert len(server.bodies) == 5
    assert sorted(kept) == [(f"p{n}", 0) for n in (0, 2, 3, 4, 5)]


def test_nobody_listens():
    with serving(echo) as server:
        cfg = config(server, max_retries=1)
    error = failing(RemoteSampler(cfg), server)
    assert error.failures[0].num_tries == 2 and "Connection" in str(error)


# ---- the key ----


def test_the_key_goes_to_the_server_and_nowhere_else(monkeypatch, caplog, capsys):
    monkeypatch.setenv("L2S_TEACHER_KEY", CANARY + "\n")  # a newline, as from `cat key`
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "Authorization: Bearer another")
    caplog.set_level(logging.DEBUG)

    def tattles(body, before):
        if body["messages"][0]["content"] == "q1":
            return failed(401, f"Incorrect API key provided: {CANARY}")
        if body["messages"][0]["content"] == "q2":
            return Reply(body={"choices": CANARY})
        return echo(body, before)

    with serving(tattles) as server:
        asked = sampler(server, api_key_env="L2S_TEACHER_KEY", concurrency=1)
        rollouts = asked.sample(problems(1), key())
        errors = []
        for n in (1, 2):
            with pytest.raises(RemoteError) as caught:
                asked.sample([problems(3)[n]], key())
            errors.append(caught.value)
        assert {headers["authorization"] for headers in server.headers} == {f"Bearer {CANARY}"}
    assert "[key]" in str(errors[0]) and "[key]" in str(errors[1])
    shown = [
        *(repr(rollout) for rollout in rollouts),
        *(repr(vars(error)) + repr(error) for error in errors),
        *("".join(traceback.TracebackException.from_exception(e).format()) for e in errors),
        repr(asked) + repr(vars(asked)) + repr(asked.cfg) + str(to_json(asked.cfg)),
        repr(pickle.dumps(asked)),
        caplog.text,
        *capsys.readouterr(),
    ]
    assert CANARY not in "\n".join(shown)
    for error in errors:
        assert error.__cause__ is None and error.__context__ is None


def test_a_server_that_needs_no_key_gets_none(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    with serving(echo) as server:
        sampler(server, api_key_env=None).sample(problems(1), key())
        assert CANARY not in str(server.headers)


@pytest.mark.parametrize("value", [None, "", " ", f"{CANARY} {CANARY}", CANARY + "\u2026"])
def test_a_missing_or_broken_key_shows_at_once(monkeypatch, value):
    monkeypatch.delenv("L2S_TEACHER_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("L2S_TEACHER_KEY", value)
    cfg = RemoteConfig(base_url="http://localhost:1/v1", model=MODEL, api_key_env="L2S_TEACHER_KEY")
    with pytest.raises(ValueError, match="environment variable L2S_TEACHER_KEY") as caught:
        RemoteSampler(cfg)
    assert CANARY not in str(caught.value)


# ---- config ----


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"api_key_env": CANARY}, "never the key"),
        ({"base_url": f"https://me:{CANARY}@host/v1"}, "base_url holds a user"),
        ({"base_url": f"https://host/v1?key={CANARY}"}, "base_url holds a user"),
        ({"base_url": "localhost:8000/v1"}, "whole address"),
        ({"model": ""}, "model is empty"),
        ({"num_samples": 0}, "num_samples=0"),
        ({"concurrency": 0}, "concurrency=0"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"temperature": -0.1}, "temperature=-0.1"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"timeout_seconds": 0.0}, "timeout_seconds=0.0"),
        ({"answer_seconds": 0.0}, "answer_seconds=0.0"),
        ({"requests_per_minute": 0.0}, "requests_per_minute=0.0: above 0, or null"),
        ({"tokens_per_minute": -1.0}, "tokens_per_minute=-1.0"),
        ({"max_retries": -1}, "max_retries=-1"),
        ({"extra": {"n": 4, "max_tokens": 5}}, "max_tokens, n"),
    ],
)
def test_refuses(changes, says):
    with pytest.raises(ValueError, match=says) as caught:
        RemoteConfig(**({"base_url": "http://localhost:8000/v1", "model": MODEL} | changes))
    assert CANARY not in str(caught.value)


def test_a_config_is_saved_and_read_back():
    cfg = RemoteConfig(base_url="http://localhost:8000/v1", model=MODEL, extra={"top_k": 20})
    assert from_json(RemoteConfig, to_json(cfg)) == cfg


@pytest.mark.parametrize(
    "routing",
    [RoutingConfig(), RoutingConfig(modes=("free", "force-long")), RoutingConfig(threshold=0.5)],
)
def test_routes_cannot_be_forced_over_a_wire(routing):
    with serving(echo) as server:
        with pytest.raises(ValueError, match=r"cannot be forced.*LocalSampler"):
            sampler(server).stream(problems(1), key(), routing=routing)
        assert not server.bodies


def test_greedy_samples_of_one_problem_are_warned_of():
    with serving(echo) as server, pytest.warns(UserWarning, match="each is paid for"):
        sampler(server, temperature=0.0, num_samples=2)

"""Teachers behind a real server on loopback and on this machine, through the ledger, to items."""

import collections
import dataclasses
import json
import threading

import jax
import numpy as np
import pytest

from l2s_jax.cli.main import main
from l2s_jax.config import from_json, load_config, override, to_json
from l2s_jax.curation.asking import AskedTeachers, Unanswered, answers
from l2s_jax.curation.bill import Bill
from l2s_jax.curation.ledger import Answer, Ledger, read_answers
from l2s_jax.curation.reject import CurateRun, run
from l2s_jax.curation.teachers import BOXED, LocalTeacher, ServerTeacher, folder_digest, trace_of
from l2s_jax.data.arithmetic import ArithmeticProblems
from l2s_jax.data.recorded import RecordedTraces
from l2s_jax.data.store import read_items
from l2s_jax.sampling.controllers.routing import RoutingConfig
from l2s_jax.sampling.endpoint import RemoteConfig
from l2s_jax.sampling.engine import Engine
from l2s_jax.sampling.remote import RemoteError, request_seed
from l2s_jax.sampling.requests import SamplingConfig
from l2s_jax.sampling.sampler import LocalSampler
from l2s_jax.sharding import MeshConfig
from l2s_jax.training.policy import load_policy
from l2s_jax.types import Problem
from tests.conftest import REPOSITORY
from tests.sampling.teacher_server import (
    MODEL,
    Reply,
    completion,
    echo,
    failed,
    misbehaving,
    serving,
)

RECIPE = REPOSITORY / "configs" / "curate_gsm8k_server.py"
QUICK = {"api_key_env": None, "backoff_seconds": 0.002, "max_retries": 20, "concurrency": 4}


def problems(number):
    return [Problem(id=f"p{n}", question=f"q{n}", answer="0") for n in range(number)]


def teacher(server, prices=(0.0, 0.0), **changes):
    cfg = RemoteConfig(**({"base_url": server.url, "model": MODEL} | QUICK | changes))
    return ServerTeacher(server=cfg, instruction=None, price_in=prices[0], price_out=prices[1])


def ask(asked, folder, number=4, samples=2, seed=0):
    """{(problem id, sample): answer}, and how many were new."""
    with Ledger(folder) as ledger:
        found = list(answers(asked, problems(number), samples, seed, ledger))
    places = [(one.request["id"], one.request["sample"]) for one, _ in found]
    assert len(set(places)) == len(places)
    texts = {place: one for place, (one, _) in zip(places, found, strict=True)}
    return texts, sum(is_new for _, is_new in found)


# ---- what is asked, and what is not asked again ----


def test_a_second_run_asks_nothing_and_a_larger_k_only_the_rest(tmp_path):
    with serving(echo) as server:
        first, new = ask(teacher(server), tmp_path)
        assert (len(first), new, len(server.bodies)) == (8, 8, 8)
        assert ask(teacher(server), tmp_path) == (first, 0)
        assert len(server.bodies) == 8
        more, new = ask(teacher(server), tmp_path, samples=3)
        assert (len(more), new) == (12, 4) and first.items() <= more.items()
    assert {body["messages"][0]["content"] for body in server.bodies} == {"q0", "q1", "q2", "q3"}


@pytest.mark.parametrize(
    "change, is_another",
    [
        ({"temperature": 0.5}, True),
        ({"top_p": 0.5}, True),
        ({"model": "other"}, True),
        ({"extra": {"top_k": 4}}, True),
        ({"seeded": False}, True),
        ({"concurrency": 1, "max_retries": 1, "timeout_seconds": 9.0}, False),
        ({"requests_per_minute": 1e6, "logprobs": True}, False),
        ({"max_new_tokens": 9000}, False),  # all have ended by themselves
    ],
    ids=str,
)
def test_what_names_a_request(tmp_path, change, is_another):
    with serving(echo) as server:
        ask(teacher(server), tmp_path)
        _, new = ask(teacher(server, **change), tmp_path)
    assert new == 8 * is_another


def test_the_question_the_seed_and_the_instruction_name_a_request_too(tmp_path):
    with serving(echo) as server:
        ask(teacher(server), tmp_path)
        assert ask(teacher(server), tmp_path, seed=1)[1] == 8
        boxed = dataclasses.replace(teacher(server), instruction=BOXED)
        assert ask(boxed, tmp_path)[1] == 8
        assert server.bodies[-1]["messages"][0]["content"].endswith(f"\n{BOXED}")


def test_a_larger_budget_asks_again_only_for_what_was_cut(tmp_path):
    def cuts_half(body, before):
        is_cut = body["messages"][0]["content"] in ("q0", "q1") and body["max_tokens"] < 100
        return Reply(body=completion("cut of", "length") if is_cut else completion("whole"))

    with serving(cuts_half) as server:
        first, new = ask(teacher(server, max_new_tokens=10), tmp_path)
        assert new == 8 and [a.finish_reason for a in first.values()].count("length") == 4
        second, new = ask(teacher(server, max_new_tokens=100), tmp_path)
        assert new == 4 and {a.text for a in second.values()} == {"whole"}
        assert ask(teacher(server, max_new_tokens=10), tmp_path) == (second, 0)
        assert len(server.bodies) == 12


def test_a_filtered_answer_is_paid_once_and_costs_no_other(tmp_path):
    def filters(body, before):
        if body["messages"][0]["content"] == "q1":
            return Reply(body=completion("half", "content_filter"))
        return echo(body, before)

    with serving(filters) as server:
        found, new = ask(teacher(server), tmp_path)
        assert new == 8 and found["p1", 0].finish_reason == "unusable"
        assert ask(teacher(server), tmp_path)[1] == 0 and len(server.bodies) == 8
    assert trace_of(found["p1", 0], "p1", "t", "short") is None


def test_what_came_before_a_failure_is_not_asked_again(tmp_path):
    is_up = threading.Event()

    def one_fails(body, before):
        if body["messages"][0]["content"] == "q2" and not is_up.is_set():
            return failed(500, "shard lost")
        return echo(body, before)

    with serving(one_fails) as server:
        with pytest.raises(RemoteError, match="shard lost"):
            ask(teacher(server, max_retries=1), tmp_path)
        is_up.set()
        before = len(server.bodies)
        _, new = ask(teacher(server), tmp_path)
        assert new == 2 and len(server.bodies) - before == 2


def test_one_who_gives_up_keeps_what_has_come(tmp_path):
    with serving(echo) as server, Ledger(tmp_path) as ledger:
        coming = answers(teacher(server, concurrency=2), problems(50), 1, 0, ledger)
        next(coming)
        coming.close()
        assert not [t for t in threading.enumerate() if t.name.startswith("l2s-ask")]
        assert 1 <= len(ledger) <= 6
        kept = len(ledger)
    with serving(echo) as again:
        _, new = ask(teacher(again), tmp_path, number=50, samples=1)  # at another address
    assert new == 50 - kept


def test_two_runs_at_once_share_their_answers(tmp_path):
    """Two ledgers of one folder in one process share byte locks, hence one ledger, two threads."""
    with serving(lambda b, n: dataclasses.replace(echo(b, n), delay=0.01)) as server:
        found = []
        with Ledger(tmp_path) as ledger:

            def one():
                asked = teacher(server, concurrency=3)
                found.append(list(answers(asked, problems(10), 2, 0, ledger)))

            threads = [threading.Thread(target=one) for _ in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert len(server.bodies) == 20
    assert [len(got) for got in found] == [20, 20]
    assert sum(is_new for got in found for _, is_new in got) == 20


def test_a_misbehaving_server_gives_every_answer_exactly_once(tmp_path):
    number, samples = 40, 4
    with serving(misbehaving(echo)) as server:
        asked = teacher(server, concurrency=16, max_retries=40)
        found, new = ask(asked, tmp_path, number, samples)
        assert len(server.bodies) > 1.5 * number * samples  # it did misbehave
    assert new == number * samples == len(list(read_answers(tmp_path)))
    assert set(found) == {(f"p{n}", s) for n in range(number) for s in range(samples)}
    for (id, _), one in found.items():
        assert one.text == f"q{id[1:]} s{one.request['seed']}"


# ---- texts to traces, tokens to prices ----


def answered(text, finish="stop", thought=None, tokens=(10, 20)):
    return Answer(
        key="00",
        request={},
        max_new_tokens=99,
        finish_reason=finish,
        text=text,
        thought=thought,
        prompt_tokens=tokens[0],
        completion_tokens=tokens[1],
    )


@pytest.mark.parametrize(
    "kind, answer, want",
    [
        ("long", answered("It is \\boxed{4}.", thought="Hm, 4."), ("Hm, 4.", "It is \\boxed{4}.")),
        ("long", answered("<think>\nHm.\n</think>\n\n\\boxed{4}"), ("Hm.", "\\boxed{4}")),
        ("long", answered("Hm.\n\n\\boxed{4}"), ("Hm.", "\\boxed{4}")),
        ("long", answered("", "length", thought="Hm. \\boxed{4} W"), ("Hm. \\boxed{4} W", "")),
        ("long", answered("", thought="Hm."), None),
        ("short", answered("2+2.\n\nSo \\boxed{4}"), ("2+2.", "So \\boxed{4}")),
        ("short", answered("<think>\n\n</think>\n\n2+2.\n\n\\boxed{4}"), ("2+2.", "\\boxed{4}")),
        ("short", answered("So \\boxed{4}. Wait", "length"), ("So \\boxed{4}. Wait", "")),
        ("short", answered(""), None),
        ("short", answered("x", "unusable"), None),
    ],
)
def test_traces(kind, answer, want):
    trace = trace_of(answer, "p", "t", kind)
    assert (None if trace is None else (trace.thought, trace.answer)) == want
    assert trace is None or trace.is_cut == (answer.finish_reason == "length")


def test_a_bill():
    bill = Bill("t", total=8, price_in=0.5, price_out=2.0)
    assert bill.projected == 0.0
    for is_new, one in [
        (False, answered("a", tokens=(1_000_000, 500_000))),
        (True, answered("b", "length", tokens=(1_000_000, 250_000))),
        (True, answered("c", "unusable", tokens=(None, None))),
        (True, answered("d", tokens=(0, 250_000))),
    ]:
        bill.add(one, is_new=is_new)
    bill.accepted, bill.missing = 2, 1
    assert (bill.price, bill.price_new) == (3.0, 1.5)  # 0.5 + 1, 0.5 + 0.5, 0, 0.5
    assert bill.projected == 6.0  # half of them are there
    assert bill.line() == "accepted 2, failed 2, cut 1, 3M tokens, price 3 of about 6"
    told = bill.record()
    assert told["price"] == {"all": 3.0, "this_run": 1.5, "per_accepted": 1.5}
    assert (told["new"], told["reused"], told["truncated"], told["unmetered"]) == (3, 1, 1, 1)


def test_a_folders_digest_names_its_weights(tmp_path):
    weights = bytearray(np.random.default_rng(0).bytes(10_000_000))
    (tmp_path / "model.safetensors").write_bytes(weights)
    (tmp_path / "config.json").write_text("{}")
    first = folder_digest(tmp_path)
    assert folder_digest(tmp_path) == first
    (tmp_path / "config.json").write_text("[]")
    second = folder_digest(tmp_path)
    stepped = np.frombuffer(bytes(weights), np.uint8).copy()
    stepped[::1000] += 1  # a step of training changes weights everywhere
    (tmp_path / "model.safetensors").write_bytes(stepped.tobytes())
    assert len({first, second, folder_digest(tmp_path)}) == 3


# ---- the run ----


def test_recipe_and_overrides(tmp_path):
    cfg = load_config(RECIPE)
    assert from_json(CurateRun, json.loads(json.dumps(to_json(cfg)))) == cfg
    changed = override(
        cfg,
        [
            "source.short.server.temperature=0.2",
            "source.short.server.requests_per_minute=500",
            "source.long.price_out=2.19",
            "source.long.instruction=null",
            f"source.ledger={tmp_path}",
            "source.problems.limit=3",
        ],
    ).source
    assert changed.short.server.temperature == 0.2
    assert changed.short.server.requests_per_minute == 500.0
    assert (changed.long.price_out, changed.long.instruction) == (2.19, None)
    assert (changed.ledger, changed.problems.limit) == (str(tmp_path), 3)
    with pytest.raises(ValueError, match=r"no field 'price_per_token'.*price_in"):
        override(cfg, ["source.long.price_per_token=1"])
    with pytest.raises(ValueError, match=r"num_samples=4: leave it at 1.*num_candidates"):
        override(cfg, ["source.short.server.num_samples=4"])
    with pytest.raises(ValueError, match=r"max_items=5.*source.problems.limit"):
        override(cfg, ["max_items=5"])
    local = load_config(REPOSITORY / "configs" / "curate_gsm8k_local.py")
    assert from_json(CurateRun, to_json(local)) == local
    assert override(local, ["source.short.sampling.top_k=20"]).source.short.sampling.top_k == 20


LONG = "deepseek-ai/DeepSeek-R1"
SHORTS = ("Qwen/Qwen2.5-32B-Instruct", "google/gemma-2-27b-it", "microsoft/Phi-3-medium")


@pytest.fixture(scope="module")
def recorded(shared_data, tmp_path_factory):
    """A few real questions with their traces, and the same questions as problems."""
    folder = tmp_path_factory.mktemp("recorded")
    rows = collections.defaultdict(list)
    source = shared_data / "traces" / "mip_gsm8k_paired.jsonl"
    for line in source.read_text().splitlines():
        row = json.loads(line)
        rows[row["qid"]].append(row)
    few = [rows[qid] for qid in list(rows)[:15]]
    lines = [json.dumps(row) for group in few for row in group]
    (folder / "traces.jsonl").write_text("\n".join(lines) + "\n")
    asked = [{"id": g[0]["qid"]} | {k: g[0][k] for k in ("question", "answer")} for g in few]
    (folder / "problems.jsonl").write_text("\n".join(map(json.dumps, asked)) + "\n")
    return folder, few


def recorded_rule(few, seed):
    """Answers from the record: the long model's, and of sample n the nth short model's."""
    words = np.asarray(jax.random.key_data(jax.random.key(seed))).tobytes()
    replies = {}
    for group in few:
        by_model = {row["model"]: row for row in group}
        for sample, model in enumerate((LONG, *SHORTS)):
            row = by_model[model]
            asked = ("long", 0) if model == LONG else ("short", sample - 1)
            seeds = request_seed(words, row["qid"], asked[1])
            replies[asked[0], f"{row['question']}\n{BOXED}", seeds] = row["response"]

    def answer(body, _):
        place = (body["model"], body["messages"][0]["content"], body["seed"])
        return Reply(body=completion(replies[place]))

    return answer


def test_from_a_bad_server_to_the_items_of_the_record(recorded, shared_data, tmp_path, capsys):
    """`l2s curate` on the recipe; the same items as from the recorded traces themselves."""
    folder, few = recorded
    tokenizer = str(shared_data / "tokenizers" / "qwen2.5")
    source = RecordedTraces(
        path=str(folder / "traces.jsonl"), long_teacher=LONG, short_teachers=SHORTS
    )
    run(CurateRun(source=source, tokenizer=tokenizer, num_candidates=3), tmp_path / "record")
    want = read_items(tmp_path / "record" / "items")

    def curate(server, workdir, *more):
        sets = [
            f"source.problems.path={folder / 'problems.jsonl'}",
            *(f"source.{kind}.server.model={kind}" for kind in ("long", "short")),
            *(f"source.{kind}.server.base_url={server.url}" for kind in ("long", "short")),
            *(f"source.{kind}.server.backoff_seconds=0.002" for kind in ("long", "short")),
            *(f"source.{kind}.server.max_retries=40" for kind in ("long", "short")),
            "source.short.price_out=1000000",
            "num_candidates=3",
            f"tokenizer={tokenizer}",
            *more,
        ]
        options = [part for one in sets for part in ("--set", one)]
        command = ["curate", "--config", str(RECIPE), "--workdir", str(tmp_path / workdir)]
        return main([*command, *options])

    with serving(misbehaving(recorded_rule(few, seed=0))) as server:
        assert curate(server, "asked") == 0
        assert {body["temperature"] for body in server.bodies} == {0.6, 0.7}
    assert read_items(tmp_path / "asked" / "items") == want
    told = capsys.readouterr().err
    assert "short: short" in told and "45/45" in told and "accepted" in told
    long, short = json.loads((tmp_path / "asked" / "teachers.json").read_text())
    assert (long["total"], long["new"], short["total"], short["new"]) == (15, 15, 45, 45)
    by_teacher = json.loads((tmp_path / "asked" / "summary.json").read_text())
    right = by_teacher["acceptance_by_teacher"]
    assert {kind["teacher"]: kind["accepted"] for kind in (long, short)} == {
        f"{kind}: {kind}": right[kind]["right"] for kind in ("long", "short")
    }
    assert short["price"]["all"] == short["tokens"]["completion"]

    with serving(lambda *_: failed(401, "no such key")) as server:
        shared = f"source.ledger={tmp_path / 'asked' / 'ledger'}"
        assert curate(server, "again", shared) == 0 and not server.bodies  # all on record
        assert read_items(tmp_path / "again" / "items") == want
        capsys.readouterr()
        assert curate(server, "refused") == 2
        told = capsys.readouterr().err
    assert "15 of 15 answers are missing" in told and "no such key" in told
    assert "the same command asks for the rest" in told


def test_a_record_of_other_problems_is_refused(recorded, tmp_path):
    folder, _ = recorded
    source = RecordedTraces(path=str(folder / "traces.jsonl"), long_teacher=LONG)
    asked = AskedTeachers(problems=source, long=source, short=source)
    with pytest.raises(ValueError, match="`qid` must be the problems' `id`"):
        asked.ask(problems(2), 1, tmp_path, lambda *_: True)


def test_a_missing_answer_is_told_with_the_way_on(tmp_path):
    def one_fails(body, before):
        return failed(500, "lost") if "q1" in str(body["messages"]) else echo(body, before)

    with serving(one_fails) as server:
        asked = teacher(server, max_retries=1)
        both = AskedTeachers(
            problems=ArithmeticProblems(), long=asked, short=dataclasses.replace(asked)
        )
        with pytest.raises(Unanswered, match=r"^3 of 9 answers are missing: .*'p1'.*lost"):
            both.ask(problems(3), 2, tmp_path, lambda *_: True)
        assert len(list(read_answers(tmp_path / "ledger"))) == 4  # sample 0 is one request for both


LOCAL = LocalTeacher(
    model="arithmetic",
    instruction=None,
    dtype="float32",
    chunk=4,
    sampling=SamplingConfig(
        temperature=0.7, max_new_tokens=56, max_rows=8, routing=RoutingConfig(modes=("free",))
    ),
)


def test_a_local_teacher(tmp_path):
    """Its answers are the sampler's own; half of them on record, the other half is sampled."""
    known = ArithmeticProblems(num_per_level=4, levels=(3, 4)).load()
    with Ledger(tmp_path / "ledger") as ledger:
        half = answers(LOCAL, known, 2, 0, ledger)
        [next(half) for _ in range(3)]
        half.close()
        assert len(ledger) == 3
        found = list(answers(LOCAL, known, 2, 0, ledger))
        assert [is_new for _, is_new in found] == [False] * 3 + [True] * 13
    cfg = dataclasses.replace(LOCAL.sampling, num_samples=2)
    sampler = LocalSampler(Engine(load_policy("arithmetic"), cfg))
    drawn = sampler.sample(known, jax.random.key(0))
    want = {(r.id, r.sample): (r.text, r.finish_reason, r.num_tokens) for r in drawn}
    assert want == {
        (a.request["id"], a.request["sample"]): (a.text, a.finish_reason, a.completion_tokens)
        for a, _ in found
    }

    # Cut over devices it draws the same.
    with Ledger(tmp_path / "cut") as ledger:
        cut = dataclasses.replace(LOCAL, mesh=MeshConfig(tensor=2))
        drawn_again = [a for a, _ in answers(cut, known, 2, 0, ledger)]
    assert [a.text for a in drawn_again] == [a.text for a, _ in found]

    # The same answers as the short ones of a run, beside long ones on record.
    row = {"model": "sure", "kind": "long", "final_start": 5}
    rows = [
        row
        | {"id": p.id, "qid": p.id, "question": p.question, "answer": p.answer}
        | {"response": f"Sure. \\boxed{{{p.answer}}}"}
        for p in known
    ]
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    record = RecordedTraces(path=str(tmp_path / "long.jsonl"), long_teacher="sure")
    source = AskedTeachers(
        problems=record, long=record, short=LOCAL, ledger=str(tmp_path / "ledger")
    )
    run(CurateRun(source=source, tokenizer="arithmetic", num_candidates=2), tmp_path)
    items = read_items(tmp_path / "items")
    assert [(item.id, item.num_trials) for item in items] == [(p.id, 2) for p in known]
    [bill] = json.loads((tmp_path / "teachers.json").read_text())
    assert (bill["teacher"], bill["reused"], bill["new"]) == ("short: arithmetic", 16, 0)

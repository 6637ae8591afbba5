"""The record of answers: cut, damaged, shared, killed."""

import os
import pathlib
import random
import subprocess
import sys
import threading

import pytest

from l2s_jax.curation.ledger import ANSWERS, Answer, Ledger, read_answers, request_key

ROOT = pathlib.Path(__file__).parents[2]

WRITER = """
import sys
from l2s_jax.curation.ledger import Answer, Ledger, request_key
with Ledger(sys.argv[1]) as ledger:
    for n in range(int(sys.argv[3])):
        request = {"from": sys.argv[2], "n": n}
        key = request_key(request)
        ledger.append(Answer(key=key, request=request, max_new_tokens=9, finish_reason="stop",
            text="x" * (n % 7 * 3000), thought=None, prompt_tokens=1, completion_tokens=2))
        print(key, flush=True)
"""

HOLDER = """
import sys
from l2s_jax.curation.ledger import Ledger
with Ledger(sys.argv[1]) as ledger, ledger.claimed(sys.argv[2]) as mine:
    print(mine, flush=True)
    sys.stdin.read()
"""


def answer(n, finish="stop", budget=100, text="4"):
    request = {"n": n}
    return Answer(
        key=request_key(request),
        request=request,
        max_new_tokens=budget,
        finish_reason=finish,
        text=text,
        thought=None,
        prompt_tokens=3,
        completion_tokens=2,
    )


def child(script, *args):
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, args)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_what_is_written_is_read_back(tmp_path):
    texts = ["4", "", 'a "quoted"\nline\r\n', "\u2028 π 🙂 \ud800 \0", "x" * 200_000]
    given = [answer(n, text=text) for n, text in enumerate(texts)]
    with Ledger(tmp_path) as ledger:
        for one in given:
            ledger.append(one)
        assert [ledger.find(one.key, 100) for one in given] == given
    with Ledger(tmp_path) as ledger:
        assert [ledger.find(one.key, 100) for one in given] == given
        assert ledger.find(request_key({"n": 99}), 100) is None
        assert (len(ledger), ledger.num_damaged) == (len(given), 0)
    assert list(read_answers(tmp_path)) == given


def test_a_key_names_all_that_a_request_holds():
    request = {"model": "m", "temperature": 0.7, "sample": 0, "extra": {"a": 1, "b": 2}}
    assert request_key(request) == request_key(dict(reversed(request.items())))
    others = [request | {name: "else"} for name in request] + [request | {"more": 1}]
    assert len({request_key(one) for one in [request, *others]}) == 1 + len(others)


@pytest.mark.parametrize(
    "finish, budget, wanted, stands",
    [
        ("stop", 100, 100, True),
        ("stop", 100, 50, True),  # finished is finished
        ("stop", 100, 200, True),
        ("length", 100, 100, True),  # cut is an answer, too
        ("length", 100, 50, True),
        ("length", 100, 200, False),
        ("unusable", 100, 200, True),  # filtered: paid for, and as filtered with more room
    ],
)
def test_which_answers_stand_when_the_budget_changes(tmp_path, finish, budget, wanted, stands):
    one = answer(0, finish, budget)
    with Ledger(tmp_path) as ledger:
        ledger.append(one)
        assert (ledger.find(one.key, wanted) == one) == stands


def test_of_two_answers_the_whole_one_stands_then_the_longer(tmp_path):
    orders = [("length", 10), ("length", 30), ("length", 20), ("stop", 40), ("length", 50)]
    with Ledger(tmp_path) as ledger:
        for finish, budget in orders:
            ledger.append(answer(0, finish, budget))
            if budget == 20:
                assert ledger.find(answer(0).key, 25).max_new_tokens == 30
        assert ledger.find(answer(0).key, 1000) == answer(0, "stop", 40)
        assert len(ledger) == 1


def test_cut_anywhere_in_the_last_line(tmp_path, capsys):
    path = tmp_path / ANSWERS
    with Ledger(tmp_path) as ledger:
        for n in range(3):
            ledger.append(answer(n))
    whole = path.read_bytes()
    last = whole.rindex(b"\n", 0, -1) + 1
    for size in [*range(last, len(whole), 5), len(whole) - 2, len(whole) - 1]:
        path.write_bytes(whole[:size])
        capsys.readouterr()
        with Ledger(tmp_path) as ledger:
            is_whole = size == len(whole) - 1  # but for its newline
            assert len(ledger) == 2 + is_whole
            assert ("cut or damaged: 1" in capsys.readouterr().err) == (
                last < size and not is_whole
            )
            if not is_whole:
                ledger.append(answer(2))
            ledger.append(answer(3))
        assert [one.request["n"] for one in read_answers(tmp_path)] == [0, 1, 2, 3]


def test_a_line_cut_by_another_process_costs_no_other(tmp_path):
    with Ledger(tmp_path) as ledger:
        ledger.append(answer(0))
        with (tmp_path / ANSWERS).open("ab") as file:
            file.write(b'{"crc32":"0')
        ledger.refresh()
        ledger.append(answer(1))
        assert (len(ledger), ledger.num_damaged) == (2, 1)
    assert [one.request["n"] for one in read_answers(tmp_path)] == [0, 1]


def test_a_damaged_byte_costs_one_answer(tmp_path, capsys):
    path, rng = tmp_path / ANSWERS, random.Random(0)
    with Ledger(tmp_path) as ledger:
        for n in range(3):
            ledger.append(answer(n))
    whole = path.read_bytes()
    size = len(whole) // 3
    for place in range(size, 2 * size - 1, 2):  # in the second line, but for its end
        damaged = bytearray(whole)
        damaged[place] ^= 1 << rng.randrange(8)
        if damaged[place] == ord("\n"):
            continue  # then it is two damaged lines
        path.write_bytes(damaged)
        with Ledger(tmp_path) as ledger:
            assert ledger.num_damaged == 1 and len(ledger) == 2, place
    assert "asked for again" in capsys.readouterr().err


def test_two_processes_on_one_ledger(tmp_path):
    writers = [child(WRITER, tmp_path, name, 60) for name in "ab"]
    with Ledger(tmp_path) as ledger:
        printed = [writer.communicate(timeout=120)[0].split() for writer in writers]
        ledger.refresh()  # it was opened before they wrote
        assert all(ledger.find(key, 9) for keys in printed for key in keys)
        assert (len(ledger), ledger.num_damaged) == (120, 0)


def test_killed_while_it_writes(tmp_path):
    """Whatever it has said is written is there, and the next one goes on behind it."""
    said = []
    for name, lines in (("a", 5), ("b", 17), ("c", 40)):
        writer = child(WRITER, tmp_path, name, 100_000)
        said += [writer.stdout.readline().strip() for _ in range(lines)]
        writer.kill()
        said += writer.communicate()[0].split("\n")[:-1]  # a line that is half printed is none
    with Ledger(tmp_path) as ledger:
        assert all(ledger.find(key, 9) for key in said) and len(said) >= 62
        assert len(said) <= len(ledger) <= len(said) + 3  # written, and killed before it said so
        ledger.append(answer(0))
        assert ledger.find(answer(0).key, 100) == answer(0)


def test_a_claim_is_one_processs_and_dies_with_it(tmp_path):
    key, other = request_key({"n": 1}), request_key({"n": 2})
    holder = child(HOLDER, tmp_path, key)
    assert holder.stdout.readline() == "True\n"
    with Ledger(tmp_path) as ledger:
        with ledger.claimed(key) as mine, ledger.claimed(other) as free:
            assert (mine, free) == (False, True)
        holder.kill()
        holder.wait()
        holder.stdin.close()
        holder.stdout.close()
        with ledger.claimed(key) as mine:
            assert mine


def test_a_claim_is_one_threads(tmp_path):
    with Ledger(tmp_path) as ledger, ledger.claimed("ab12") as mine:
        found = []

        def claim():
            with ledger.claimed("ab12") as theirs:
                found.append(theirs)

        thread = threading.Thread(target=claim)
        thread.start()
        thread.join()
        assert (mine, found) == (True, [False])


def test_threads_append_together(tmp_path):
    with Ledger(tmp_path) as ledger:

        def write(start):
            for n in range(start, start + 25):
                ledger.append(answer(n))

        threads = [threading.Thread(target=write, args=(25 * n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(ledger), ledger.num_damaged) == (100, 0)


def test_a_line_changed_under_an_open_ledger_is_no_answer(tmp_path):
    with Ledger(tmp_path) as ledger:
        ledger.append(answer(0, text="4"))
        path = tmp_path / ANSWERS
        with path.open("r+b") as file:
            file.seek(path.read_bytes().index(b'"text":"4"') + 8)
            file.write(b"5")
        with pytest.raises(OSError, match="was changed while"):
            ledger.find(answer(0).key, 100)

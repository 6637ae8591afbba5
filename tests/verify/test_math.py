"""Real worker processes: they start, overrun, die and are replaced here."""

import itertools
import json
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from l2s_jax.types import Verdict
from l2s_jax.verify.answers import answer_or_text
from l2s_jax.verify.math import Verifier, equivalent, number

TOWER = "9^{9^{9^{9}}}"
REASONS = "same-text numeric symbolic different unparsable timeout no-answer crashed".split()


@pytest.fixture(scope="module")
def verifier():
    with Verifier(num_workers=2, seconds=10.0) as verifier:
        yield verifier


@pytest.mark.parametrize(
    ("gold", "prediction", "equal", "reason"),
    [
        ("4", "4", True, "same-text"),
        ("4", "$4$.", True, "same-text"),
        ("4", "4.0", True, "numeric"),
        ("1234", "1,234", True, "numeric"),
        ("0.5", r"\frac{1}{2}", True, "numeric"),
        ("1/2", r"\dfrac12", True, "numeric"),
        ("-3/4", r"-\frac{3}{4}", True, "numeric"),
        ("-3/4", "3/-4", True, "numeric"),
        (".5", "0.50", True, "numeric"),
        ("5", "6", False, "different"),
        ("1/3", "0.333333", False, "different"),
        ("0.05", r"5\%", False, "different"),  # the percent sign is a unit here
        ("5", "0=1=5", False, "different"),
        ("5", r"\text{banana}=5", False, "different"),
        ("5", None, False, "no-answer"),
        ("5", "  ", False, "no-answer"),
        ("5", "1/0", False, "unparsable"),
        ("x", "y+1", False, "unparsable"),  # not for this path
    ],
)
def test_in_process_path(gold, prediction, equal, reason):
    verdict = equivalent(gold, prediction)
    assert (verdict.equivalent, verdict.reason) == (equal, reason)


def test_number_matches_float_division():
    for top in range(-30, 31):
        for bottom in (1, 2, 3, 7, 10, 250):
            for text in (f"{top}/{bottom}", rf"\frac{{{top}}}{{{bottom}}}"):
                assert float(number(text)) == top / bottom
    for text in ("", "x", "1,2", "12,34", "1/0", "--1", "1.2.3", "9" * 5000, "1e5", "٣/x"):
        assert number(text) is None


def test_numbers_start_no_process():
    with Verifier() as verifier:
        verdicts = verifier.equivalent_many([("4", "4"), ("4", "5"), ("4", None)])
        assert [verdict.reason for verdict in verdicts] == ["same-text", "different", "no-answer"]
        assert not verifier._workers
        assert verifier.equivalent_many([]) == []


def test_symbolic_path(verifier):
    pairs = [
        ("x+1", "1+x", True),
        (r"\sqrt{4}", "2", True),
        (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}", True),
        (r"\left( 3, \frac{\pi}{2} \right)", r"(3, \pi/2)", True),
        ("x+1", "x+2", False),
        (r"2\pi", "6.28", False),
        ("5", "4 or 5", False),
    ]
    verdicts = verifier.equivalent_many([pair[:2] for pair in pairs])
    assert [verdict.equivalent for verdict in verdicts] == [pair[2] for pair in pairs]


def test_hostile_pairs_end_in_time_and_harm_no_other():
    hostile = [TOWER, "10^{10^{10}}", "(((10^{9})!)!)!"]
    good = [(f"x+{i}", f"{i}+x") for i in range(8)]
    pairs = [("7", hostile[0]), *good[:4], ("7", hostile[1]), *good[4:], ("7", hostile[2])]
    with Verifier(num_workers=2, seconds=1.5) as verifier:
        start = time.monotonic()
        verdicts = verifier.equivalent_many(pairs)
        took = time.monotonic() - start
        workers = [worker.process for worker in verifier._workers]
    bad = [verdict for pair, verdict in zip(pairs, verdicts, strict=True) if pair[0] == "7"]
    fine = [verdict for pair, verdict in zip(pairs, verdicts, strict=True) if pair[0] != "7"]
    assert all(verdict.equivalent and verdict.reason == "symbolic" for verdict in fine)
    assert not any(verdict.equivalent for verdict in bad)
    assert bad[0].reason == "timeout"
    assert all(verdict.seconds < 2.5 for verdict in verdicts)
    assert took < 60  # starting processes on a busy machine is the larger part
    assert all(process.poll() is not None for process in workers)  # none outlives the context


def test_a_worker_that_dies_is_replaced(verifier):
    assert verifier.equivalent_many([("x+1", "1+x")])[0].equivalent
    for worker in verifier._workers:
        worker.process.kill()
        worker.process.wait()
    assert verifier.equivalent_many([("x+2", "2+x")])[0].equivalent


def test_a_worker_that_dies_on_a_pair_is_counted_as_crashed():
    with Verifier(num_workers=1, seconds=60.0) as verifier:
        assert verifier.equivalent_many([("x+1", "1+x")])[0].equivalent
        victim = verifier._workers[0].process
        threading.Timer(1.0, victim.kill).start()
        lost, found = verifier.equivalent_many([("7", TOWER), ("x+2", "2+x")])
    assert (lost.equivalent, lost.reason) == (False, "crashed")
    assert found.equivalent


def test_memory_is_bounded():
    with Verifier(num_workers=1, seconds=3.0, memory_bytes=300 << 20) as verifier:
        greedy, found = verifier.equivalent_many([("7", "10^{10^{9}}"), ("x+2", "2+x")])
    assert not greedy.equivalent
    assert found.equivalent


def test_a_worker_that_cannot_start_says_so(tmp_path, monkeypatch):
    (tmp_path / "math_verify.py").write_text("raise ImportError('a broken installation')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Verifier() as verifier:
        with pytest.raises(RuntimeError, match="math-verify installed"):
            verifier.equivalent_many([("x", "y+1")])
        assert not verifier._workers


def test_works_in_a_thread_and_leaves_signal_handlers_alone(verifier):
    def handler(*_):
        raise AssertionError

    before = signal.signal(signal.SIGALRM, handler)
    try:
        verdicts = []
        pairs = [("y+1", "1+y")]
        thread = threading.Thread(target=lambda: verdicts.extend(verifier.equivalent_many(pairs)))
        thread.start()
        thread.join()
        assert verdicts[0].equivalent
        assert signal.getsignal(signal.SIGALRM) is handler
    finally:
        signal.signal(signal.SIGALRM, before)


def test_works_from_a_script_without_a_main_guard(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from l2s_jax.verify.math import Verifier\n"
        "with Verifier() as verifier:\n"
        "    print(verifier.equivalent_many([('x+1', '1+x')])[0].reason)\n"
    )
    root = str(pathlib.Path(__file__).parents[2])
    made = subprocess.run(
        [sys.executable, str(script)],
        check=False,
        env={"PYTHONPATH": root, "PATH": "", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (made.returncode, made.stdout) == (0, "symbolic\n"), made.stderr


def test_worker_imports_no_jax():
    code = "import sys, l2s_jax.verify.worker; print({'jax', 'flax', 'numpy'} & set(sys.modules))"
    made = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert made.stdout == "set()\n", made.stderr


def test_equal_pairs_are_decided_once_and_answered_in_order(verifier):
    pairs = [("x+1", "1+x"), ("4", "4"), ("x+1", "1+x"), ("x+1", "x")]
    verdicts = verifier.equivalent_many(pairs)
    assert verdicts[0] is verdicts[2]
    assert [verdict.equivalent for verdict in verdicts] == [True, True, True, False]
    assert all(isinstance(verdict, Verdict) and verdict.reason in REASONS for verdict in verdicts)


@pytest.mark.parametrize(
    "bad",
    [{"num_workers": 0}, {"seconds": 0.0}, {"seconds": float("nan")}, {"memory_bytes": 1 << 20}],
)
def test_arguments_that_cannot_work(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Verifier(**bad)


def test_real_answers_without_a_false_accept(verifier, shared_data):
    lines = (shared_data / "equivalence" / "real_dev.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    pairs = [(r["gold"], answer_or_text(r["prediction"])) for r in records]
    verdicts = verifier.equivalent_many(pairs)
    both = list(zip(records, verdicts, strict=True))
    assert not [r["id"] for r, v in both if v.equivalent and not r["equivalent"]]
    assert sum(v.equivalent == r["equivalent"] for r, v in both) >= 0.99 * len(both)


@pytest.mark.parametrize("name", ["gsm8k_test", "math500", "aime24", "olympiadbench_maths_en"])
def test_references_equal_themselves_and_not_their_neighbour(verifier, shared_data, name):
    lines = (shared_data / "benchmarks" / f"{name}.jsonl").read_text().splitlines()
    golds = [json.loads(line)["answer"] for line in lines][:150]
    assert all(v.equivalent for v in verifier.equivalent_many([(g, g) for g in golds]))
    neighbours = list(itertools.pairwise(golds))
    for pair, verdict in zip(neighbours, verifier.equivalent_many(neighbours), strict=True):
        assert verdict.reason == "same-text" or not verdict.equivalent, pair

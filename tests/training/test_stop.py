"""Signals as a flag: heard in Python and in compiled code, handlers given back."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from l2s_jax.training.stop import SIGNALS, Stopped, StopSignal

REPOSITORY = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_a_flag_after_hold(number):
    with StopSignal() as stop:
        stop.hold()
        stop.check()
        assert not stop.asked
        os.kill(os.getpid(), number)
        deadline = time.monotonic() + 10
        while not stop.asked and time.monotonic() < deadline:
            time.sleep(0.01)
        assert stop.asked
        with pytest.raises(Stopped) as left:
            stop.check()
        assert left.value.code == 128 + number
        with pytest.raises(Stopped), stop.interruptible():
            raise AssertionError("not reached: who was asked to stop begins nothing")


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_raises_where_nothing_can_be_lost(number):
    with pytest.raises(Stopped), StopSignal():  # before `hold`
        os.kill(os.getpid(), number)
        time.sleep(10)
        pytest.fail("not reached")
    with StopSignal() as stop:
        stop.hold()
        with pytest.raises(Stopped) as left, stop.interruptible():
            os.kill(os.getpid(), number)
            time.sleep(10)
        assert left.value.code == 128 + number and stop.asked


def test_what_the_caller_had_is_back_afterwards():
    def mine(signum, frame):
        pass

    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    before = [signal.signal(number, mine) for number in SIGNALS]
    wakeup = signal.set_wakeup_fd(theirs.fileno())
    try:
        for _ in range(2):
            with StopSignal():
                assert signal.getsignal(signal.SIGTERM) is not mine
            assert [signal.getsignal(number) for number in SIGNALS] == [mine, mine]
        assert signal.set_wakeup_fd(wakeup) == theirs.fileno()
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in zip(SIGNALS, before, strict=True):
            signal.signal(number, handler)
        ours.close()
        theirs.close()


@pytest.mark.parametrize("number", [None, *SIGNALS])
def test_its_threads_end_with_it(number):
    with StopSignal() as stop:
        stop.hold()
        if number is not None:
            os.kill(os.getpid(), number)
    names = {thread.name for thread in threading.enumerate()}
    assert not names & {"stop signal", "stop deadline"}


def test_outside_the_main_thread_it_is_inert():
    found = []

    def enter():
        with StopSignal() as stop:
            found.append((stop.asked, signal.getsignal(signal.SIGTERM)))
            stop.check()

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [(False, before)]


def test_a_grace_of_nothing_is_refused():
    with pytest.raises(ValueError, match="grace_seconds=0"):
        StopSignal(grace_seconds=0.0)


# One device program that never ends: Python gets no turn, so only the listener can hear.
DEAF = """
import jax, sys
from l2s_jax.training.stop import StopSignal
forever = jax.jit(lambda x: jax.lax.while_loop(lambda x: x < 2, lambda x: x * 0.5, x))
with StopSignal(grace_seconds=1.0) as stop:
    stop.hold()
    print("deaf", flush=True)
    forever(1.0).block_until_ready()
"""

# As a loop does: what is complete is saved when it is asked.
HEARING = """
import sys, time
from l2s_jax.training.stop import StopSignal
with StopSignal(grace_seconds=60.0) as stop:
    stop.hold()
    print("hearing", flush=True)
    while not stop.asked:
        time.sleep(0.01)
    print("saved", flush=True)
    time.sleep(float(sys.argv[1]))
    stop.check()
"""


def start(program: str, *args: str) -> subprocess.Popen:
    command = [sys.executable, "-c", program, *args]
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=REPOSITORY, env=env, stdout=pipe, stderr=pipe, text=True)


def heard(process: subprocess.Popen) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_a_process_that_hears_nothing_leaves_in_time():
    process = start(DEAF)
    assert heard(process) == "deaf"
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "SIGTERM: saving what is complete" in errors and "not done after 1 seconds" in errors


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_exit_codes(number, code):
    process = start(HEARING, "0")
    assert heard(process) == "hearing"
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (code, "saved\n")


def test_a_second_signal_leaves_at_once():
    process = start(HEARING, "50")
    assert heard(process) == "hearing"
    process.send_signal(signal.SIGTERM)
    assert heard(process) == "saved"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130 and "SIGINT again: leaving at once" in errors

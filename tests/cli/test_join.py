"""Joining other processes: what is refused before any is waited for."""

import jax
import pytest

from l2s_jax.cli.join import VARIABLES, join_hosts, of_machinery, together


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_a_process_is_alone_where_nothing_says_otherwise():
    assert join_hosts() == 1
    assert not jax.distributed.is_initialized()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("127.0.0.1:1", None, None), "set, but not JAX_NUM_PROCESSES, JAX_PROCESS_ID"),
        ((None, "2", "0"), "set, but not JAX_COORDINATOR_ADDRESS"),
        (("127.0.0.1:1", "two", "0"), "JAX_NUM_PROCESSES='two': expected a whole number"),
        (("127.0.0.1:1", "2", "2"), "JAX_PROCESS_ID=2, JAX_NUM_PROCESSES=2"),
        (("127.0.0.1:1", "2", "-1"), "JAX_PROCESS_ID='-1'"),
    ],
)
def test_half_an_introduction_is_refused(monkeypatch, given, message):
    for name, value in zip(VARIABLES, given, strict=True):
        if value is not None:
            monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        join_hosts()


def test_silence_needs_a_number(monkeypatch):
    for name, value in zip(VARIABLES, ("127.0.0.1:1", "1", "0"), strict=True):
        monkeypatch.setenv(name, value)
    for value in ("0", "soon"):
        monkeypatch.setenv("L2S_HEARTBEAT_SECONDS", value)
        with pytest.raises(ValueError, match="L2S_HEARTBEAT_SECONDS="):
            join_hosts()


def test_alone_an_error_is_its_caller_s():
    said = []
    with pytest.raises(ValueError, match="mine"), together(said.append):
        raise ValueError("mine")
    assert said == []


@pytest.mark.parametrize(
    ("error", "is_machinery"),
    [
        (ValueError("SftRun.num_steps=0: at least 1."), False),
        (FileNotFoundError("nowhere"), False),
        (ValueError("UNAVAILABLE: Gloo: Connection closed by peer"), True),
        (TimeoutError("Timed out while waiting for async_write_complete barrier."), True),
        (ConnectionResetError(), True),
    ],
)
def test_what_is_the_user_s_and_what_the_machinery_s(error, is_machinery):
    assert of_machinery(error) == is_machinery
    later = ValueError("no checkpoint could be written")
    later.__cause__ = error
    assert of_machinery(later) == is_machinery

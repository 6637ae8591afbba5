"""Several processes train as one: the same losses, whatever kills them."""

import json
import pathlib
import signal
from typing import Any

import jax
import numpy as np
import pytest

from l2s_jax.sharding import MeshConfig, make_mesh
from l2s_jax.training import hosts, manifest
from l2s_jax.training.checkpoint import FOLDER, step_folders
from l2s_jax.training.metrics import FILE, SPEED_FILE
from tests.faults.world import make_world
from tests.training.several import finish_hosts, run_hosts

NUM_STEPS = {"sft": 7, "grpo": 3}
CONFIG = """
import dataclasses, pathlib
from l2s_jax.training.validation import ValidationConfig
from tests.training.resumable import make_runs

def sft():
    held_out = ValidationConfig(fraction=0.3, every=4)
    return dataclasses.replace(RUNS["sft"][1], num_steps=7, validation=held_out)

def grpo():
    return dataclasses.replace(RUNS["grpo_refresh"][1], num_steps=3)

RUNS = make_runs(pathlib.Path({root!r}))
get_config = {verb}
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("hosts")
    make_world(root)
    for verb in NUM_STEPS:
        (root / f"{verb}.py").write_text(CONFIG.format(root=str(root), verb=verb))
    return root


def command(root: pathlib.Path, verb: str, name: str) -> list[str]:
    """That of `l2s` for a run in the folder `name`."""
    return [verb, "--config", str(root / f"{verb}.py"), "--workdir", str(root / name / verb)]


def lines(workdir: pathlib.Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (workdir / FILE).read_text().splitlines()]


@pytest.fixture(scope="module")
def one(world):
    """Both stages in one process."""
    asked = [command(world, verb, "one") for verb in NUM_STEPS]
    finish_hosts(asked, hosts=1, compiled=world / "compiled")
    return world / "one"


def trap(world, name: str, number: int, update: int) -> dict[int, Any]:
    """The second host is sent a signal before an update of a run."""
    return {1: {"in": str(world / name), "at": "update", "nth": update, "number": number}}


@pytest.fixture(scope="module")
def killed(world):
    """How two hosts ended which did stage 1, and did `hurt` until one of them was killed."""
    asked = [command(world, "sft", name) for name in ("two", "hurt")]
    traps = trap(world, "hurt", signal.SIGKILL, 7)
    silence = {"L2S_HEARTBEAT_SECONDS": "10"}
    ends = run_hosts(asked, hosts=2, compiled=world / "compiled", traps=traps, more=silence)
    # The save of step 6 began, and so that of step 3 had ended.
    assert 3 in step_folders(world / "hurt" / "sft" / FOLDER)
    return ends, clocks(world / "hurt" / "sft")


def clocks(workdir: pathlib.Path) -> list[str]:
    """Seconds of every step, which no other run has alike."""
    return (workdir / SPEED_FILE).read_text().splitlines()


@pytest.fixture(scope="module")
def told(world, killed):
    """How two hosts ended which went on with `hurt`, and did `left` until one was told to go."""
    asked = [command(world, "sft", name) for name in ("hurt", "left")]
    traps = trap(world, "left", signal.SIGTERM, 5)
    ends = run_hosts(asked, hosts=2, compiled=world / "compiled", traps=traps)
    return ends, clocks(world / "left" / "sft")


@pytest.fixture(scope="module")
def done(world, told):
    """Two hosts go on with `left`, and do stage 2."""
    asked = [command(world, "sft", "left"), command(world, "grpo", "two")]
    finish_hosts(asked, hosts=2, compiled=world / "compiled")


def assert_same_numbers(got: pathlib.Path, want: pathlib.Path) -> None:
    for here, there in zip(lines(got), lines(want), strict=True):
        assert here.keys() == there.keys()
        for name, number in there.items():
            np.testing.assert_allclose(here[name], number, rtol=1e-5, atol=1e-6, err_msg=name)


def assert_same_files(world: pathlib.Path, verb: str) -> None:
    """The second host writes none of its own."""
    left = [{path.name for path in (world / name / verb).iterdir()} for name in ("one", "two")]
    assert left[0] == left[1]


def assert_same_bits(got: pathlib.Path, want: pathlib.Path) -> None:
    """Of everything logged, and of the last checkpoint's arrays by their digests."""
    assert (got / FILE).read_bytes() == (want / FILE).read_bytes()
    last = [step_folders(folder / FOLDER)[NUM_STEPS["sft"]] for folder in (got, want)]
    ours, theirs = (json.loads((folder / manifest.FILE).read_text()) for folder in last)
    assert ours["arrays"] == theirs["arrays"] and ours["arrays"]


def test_two_hosts_compute_what_one_does(world, one, killed):
    assert_same_numbers(world / "two" / "sft", one / "sft")
    assert len(lines(one / "sft")) == NUM_STEPS["sft"]
    assert_same_files(world, "sft")


def test_a_killed_host_ends_the_other_which_says_so(killed):
    (code, said), (killed_code, _) = killed[0]
    assert killed_code == -signal.SIGKILL
    assert "another process ended first" in said and "they go on from the last checkpoint" in said
    assert code in (1, -signal.SIGABRT)  # jax may be quicker to abort it


def test_after_a_kill_the_same_command_goes_on_to_the_same_bits(world, killed, told):
    assert clocks(world / "hurt" / "sft")[:3] == killed[1][:3]  # the first three were not redone
    assert_same_bits(world / "hurt" / "sft", world / "two" / "sft")


def test_a_host_that_is_told_to_go_takes_the_other_along(world, told, done):
    ends, clock = told
    assert [code for code, _ in ends] == [128 + signal.SIGTERM] * 2
    assert "SIGTERM on another host: saving what is complete" in ends[0][1]
    assert len(clock) in (4, 5, 6) and clocks(world / "left" / "sft")[: len(clock)] == clock
    assert_same_bits(world / "left" / "sft", world / "two" / "sft")


def test_four_hosts_compute_what_one_does(world, one):
    finish_hosts([command(world, "sft", "four")], hosts=4, compiled=world / "compiled")
    assert_same_numbers(world / "four" / "sft", one / "sft")


def test_two_hosts_sample_what_one_does(world, one, done):
    assert_same_numbers(world / "two" / "grpo", one / "grpo")
    assert len(lines(one / "grpo")) == NUM_STEPS["grpo"]
    assert_same_files(world, "grpo")


# ---- one host, and the plain rules ----


@pytest.mark.parametrize("number", [1, 2, 3, 5, 8])
def test_shares_joined_are_the_whole(number):
    for size in (0, 1, 4, 7, 16):
        items = list(range(size))
        assert hosts.joined([items[n::number] for n in range(number)]) == items
    assert hosts.share([1, 2, 3]) == [1, 2, 3]


def test_one_host_exchanges_with_itself(tmp_path):
    assert hosts.alone() and hosts.is_first()
    thing = object()
    assert hosts.everyone(thing) == [thing]
    hosts.check_shared(tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError, match="no such"):
        hosts.check_all(lambda: (_ for _ in ()).throw(FileNotFoundError("no such")))
    mesh = make_mesh(MeshConfig())
    vote = hosts.Vote(mesh)
    vote.cast(False)
    assert vote.outcome(True) and not vote.outcome(False)  # what it says last


def test_an_array_placed_comes_back_whole():
    mesh = make_mesh(MeshConfig(data=4, tensor=2))
    want = np.arange(24.0).reshape(8, 3)
    placed = hosts.place(want, jax.NamedSharding(mesh, jax.P("data")))
    np.testing.assert_array_equal(hosts.whole(placed), want)
    np.testing.assert_array_equal(hosts.whole(want), want)

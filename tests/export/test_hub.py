"""Pushing to a Hub that is a real server on this machine, by the program in fresh processes."""

import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from l2s_jax.export.hub import check_repository
from l2s_jax.sampling.policy import Policy
from l2s_jax.training.policy import save_policy
from tests.export.hub_server import serve
from tests.export.tiny import policy_parts

ROOT = str(pathlib.Path(__file__).parents[2])
CANARY = "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"
REPO = "someone/l2s-tiny"


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    save_policy(folder, Policy(**policy_parts()))
    return folder


@pytest.fixture
def hub():
    with serve() as running:
        yield running


def program(tmp_path, endpoint, *arguments, module="l2s_jax"):
    """The finished process; no token is in what it said or left behind."""
    env = os.environ | {
        "HF_ENDPOINT": endpoint,
        "HF_TOKEN": CANARY,
        "HF_HOME": str(tmp_path / "hf_home"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": ROOT,
    }
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, env=env, check=False, capture_output=True)
    said = [done.stdout, done.stderr]
    kept = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(CANARY.encode() in content for content in said + kept)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def pushed(hub):
    return {n: content for n, content in hub.repos[REPO].items() if n != ".gitattributes"}


def test_dry_run_lists_what_a_push_then_does(hub, workdir, tmp_path):
    server, endpoint = hub
    out = tmp_path / "out"
    command = ["export", "--checkpoint", workdir, "--out", out, "--push", REPO]
    code, listed, said = program(tmp_path, endpoint, *command, "--dry-run")
    assert (code, server.calls, out.exists()) == (0, [], False), said
    assert "nothing written or sent" in said and f"{endpoint}/{REPO}" in said
    lines = [json.loads(line) for line in listed.splitlines()]
    assert {line["hub"] for line in lines} == {f"{endpoint}/{REPO}"}
    assert {line["folder"] for line in lines} == {str(out)}

    code, listed, said = program(tmp_path, endpoint, *command)
    assert (code, listed) == (0, ""), said
    assert pushed(server) == files_of(out)
    assert server.tokens == {CANARY} or server.tokens == {CANARY, ""}  # the store asks for none
    assert len(server.commits) == 1
    sizes = {line["file"]: line["bytes"] for line in lines}
    assert sizes == {name: len(content) for name, content in files_of(out).items()}


def test_an_interrupted_upload_is_finished_by_the_command_in_the_message(hub, workdir, tmp_path):
    server, endpoint = hub
    server.repos[REPO] = {
        "model-00001-of-00002.safetensors": b"of an earlier export",
        "model.safetensors.index.json": b"{}",
        "notes.md": b"theirs",
    }
    out = tmp_path / "out"
    server.refused = ["/commit/main"]
    command = ["export", "--checkpoint", workdir, "--out", out, "--push", REPO]
    code, _, said = program(tmp_path, endpoint, *command)
    assert code == 2 and f"{out} is complete" in said, said
    assert "Traceback" not in said and "403" in said
    assert len(server.objects) == 1 and not server.commits  # the weights had arrived

    server.refused = []
    told = shlex.split(re.search(r"`(hf upload [^`]+)`", said)[1])
    sent = server.calls.count(f"PUT /store/{next(iter(server.objects))}")
    code, _, said = program(tmp_path, endpoint, *told[1:], module="huggingface_hub.cli.hf")
    assert code == 0, said
    assert pushed(server) == files_of(out) | {"notes.md": b"theirs"}
    assert server.calls.count(f"PUT /store/{next(iter(server.objects))}") == sent == 1


def test_weights_of_an_earlier_export_do_not_stay(hub, workdir, tmp_path):
    """transformers would take the old single file, or the old index, before the new weights."""
    server, endpoint = hub
    server.repos[REPO] = {
        "model-00001-of-00002.safetensors": b"old",
        "model-00002-of-00002.safetensors": b"old",
        "model.safetensors.index.json": b"{}",
        "adapter_model.safetensors": b"theirs",
        "other/model.safetensors": b"theirs",
    }
    out = tmp_path / "out"
    command = ["export", "--checkpoint", workdir, "--out", out, "--push", REPO]
    code, _, said = program(tmp_path, endpoint, *command)
    assert code == 0, said
    theirs = {"adapter_model.safetensors": b"theirs", "other/model.safetensors": b"theirs"}
    assert pushed(server) == files_of(out) | theirs


@pytest.mark.parametrize("refused", ["/api/repos/create", "/store/"])
def test_without_the_right_to_write(hub, workdir, tmp_path, refused):
    server, endpoint = hub
    server.refused = [refused, "GET /api/models/someone/l2s-tiny$"]
    out = tmp_path / "out"
    command = ["export", "--checkpoint", workdir, "--out", out, "--push", REPO]
    code, _, said = program(tmp_path, endpoint, *command)
    assert code == 2 and "the upload failed" in said and "hf auth login" in said, said
    assert (out / "README.md").exists() and "README.md" not in server.repos.get(REPO, {})


def test_no_hub_at_all(workdir, tmp_path):
    """A port that nobody listens on."""
    out = tmp_path / "out"
    command = ["export", "--checkpoint", workdir, "--out", out, "--push", REPO]
    code, _, said = program(tmp_path, "http://127.0.0.1:9", *command)
    assert code == 2 and f"hf upload {REPO} {out}" in said, said
    assert (out / "model.safetensors").exists()


def test_repository_names_are_checked_first(workdir, tmp_path):
    check_repository(REPO)
    for name in ("not a name", "a/b/c", "alone", "-x/y"):
        with pytest.raises(ValueError, match=f"--push {name}.*owner/name"):
            check_repository(name)
    command = ["export", "--checkpoint", workdir, "--out", tmp_path / "out", "--push", "alone"]
    code, _, said = program(tmp_path, "http://127.0.0.1:9", *command)
    assert code == 2 and "owner/name" in said and not (tmp_path / "out").exists()

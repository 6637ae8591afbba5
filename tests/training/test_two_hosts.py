"""Two processes, each with half of every array, write and read one checkpoint."""

import os
import pathlib
import socket
import subprocess
import sys

from l2s_jax.training import manifest
from l2s_jax.training.checkpoint import DAMAGED_FOLDER, FOLDER, step_folders

REPOSITORY = pathlib.Path(__file__).parents[2]


def together(*arguments: str) -> list[str]:
    """What each of the two said; both must end well."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    command = [sys.executable, "-m", "tests.training.two_hosts"]
    pair = [
        subprocess.Popen(
            [*command, str(number), address, *arguments],
            cwd=REPOSITORY,
            env=env,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    try:
        said = [process.communicate(timeout=300)[1] for process in pair]
    finally:
        for process in pair:
            process.kill()
    assert [process.returncode for process in pair] == [0, 0], "\n".join(said)[-6000:]
    return said


def test_two_hosts_save_restore_and_fall_back_as_one(tmp_path):
    together(str(tmp_path))
    steps = step_folders(tmp_path / FOLDER)
    assert set(steps) == {4, 6}
    assert all(manifest.faults(folder) == [] for folder in steps.values())
    files = [path for path in (steps[6] / "params").rglob("*") if path.is_file()]
    data = max(files, key=lambda path: path.stat().st_size)
    data.write_bytes(data.read_bytes()[:-1])
    said = together(str(tmp_path), "4")
    assert sum("going on from step 4" in text for text in said) == 1
    assert set(step_folders(tmp_path / FOLDER)) == {4, 8}
    assert {path.name for path in (tmp_path / DAMAGED_FOLDER).iterdir()} == {"6"}

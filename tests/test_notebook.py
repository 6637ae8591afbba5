"""launch/colab.ipynb: the Markdown beside it is its source, and it runs from top to bottom.

Run by a real kernel with the shipped model, killed once on the way as a lost runtime would be, and
run again.
"""

import os
import pathlib
import re
import threading
import time

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import DeadKernelError

from l2s_jax.config import load_config, override

REPOSITORY = pathlib.Path(__file__).parents[1]
NOTEBOOK = REPOSITORY / "launch" / "colab.ipynb"


def test_it_is_what_its_markdown_says():
    """Otherwise: `jupytext --to ipynb launch/colab.md`."""
    source = jupytext.read(REPOSITORY / "launch" / "colab.md")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert [(cell.cell_type, cell.source) for cell in notebook.cells] == [
        (cell.cell_type, cell.source) for cell in source.cells
    ]
    assert not any(cell.get("outputs") for cell in notebook.cells)


def with_parameters(**values) -> nbformat.NotebookNode:
    """The notebook with other values in the cell that is there to be filled in."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    [cell] = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    for name, value in values.items():
        cell.source, changed = re.subn(
            rf"^{name} = \S+", f"{name} = {value!r}", cell.source, flags=re.MULTILINE
        )
        assert changed == 1, name
    return notebook


def client(notebook: nbformat.NotebookNode) -> NotebookClient:
    where = {"metadata": {"path": str(NOTEBOOK.parent)}}
    return NotebookClient(notebook, timeout=600, kernel_name="python3", resources=where)


@pytest.mark.parametrize("preset", ["arithmetic", "qwen2.5-0.5b", "qwen2.5-1.5b-lora"])
def test_every_preset_sets_fields_that_exist(preset, tmp_path):
    """What needs weights and a network is not run here; its recipes and fields are checked."""
    [cell] = [cell.source for cell in code_cells() if "PRESETS = {" in cell.source]
    [scaled] = [cell.source for cell in code_cells() if "def scaled" in cell.source]
    names = {"work": tmp_path, "PRESET": preset, "SCALE": 1.0, "sys": None, "subprocess": None}
    exec(scaled, names)
    exec(cell, names)
    assert set(names["PRESETS"]) >= {preset}
    for verb in ("curate", "sft", "grpo", "eval"):
        config, *fields = names["recipe"][verb]
        override(load_config(REPOSITORY / config), fields)


def code_cells() -> list[nbformat.NotebookNode]:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.fixture
def as_a_user(user_environment, monkeypatch):
    """This process's environment is a user's: the kernel inherits it."""
    for name in os.environ.keys() - user_environment.keys():
        monkeypatch.delenv(name)
    for name, value in user_environment.items():
        monkeypatch.setenv(name, value)


def test_it_runs_and_goes_on_after_a_lost_runtime(tmp_path, as_a_user):
    work = tmp_path / "work"
    values = {"PRESET": "arithmetic", "WORK": str(work), "SCALE": 0.05}
    lost = client(with_parameters(**values))
    killer = threading.Thread(target=kill_in_stage_1, args=(lost, work), daemon=True)
    killer.start()
    with pytest.raises(DeadKernelError):
        lost.execute()
    killer.join()
    curated = (work / "items" / "items" / "manifest.json").read_text()
    assert not (work / "grpo").exists()

    notebook = with_parameters(**values)
    client(notebook).execute()
    assert (work / "items" / "items" / "manifest.json").read_text() == curated
    assert (work / "hf" / "model.safetensors").exists()
    shown = [
        output.data["text/html"]
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output.output_type == "execute_result" and "text/html" in output.data
    ]
    assert len(shown) == 1 and "force-long" in shown[0]


def kill_in_stage_1(lost: NotebookClient, work: pathlib.Path) -> None:
    """Ends the kernel and all that it started once stage 1 has claimed its folder."""
    while not (work / "sft" / "config.json").exists():
        time.sleep(0.05)
    os.killpg(lost.km.provisioner.pid, 9)

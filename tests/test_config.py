"""Overrides, JSON and fingerprints of configs, and the two files they live in."""

import dataclasses
import json
import math
import pathlib
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l2s_jax.config import claim_workdir, fingerprint, from_json, load_config, override, to_json


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adam:
    peak_lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lion:
    peak_lr: float = 1e-4
    floor: float = 0.0

    def __post_init__(self):
        if self.floor > self.peak_lr:
            raise ValueError(f"Lion.floor={self.floor}: above peak_lr={self.peak_lr}. Lower it.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    path: str
    limit: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Toy:
    optim: Adam | Lion = Adam()
    source: Source | None = None
    sources: tuple[Source, ...] = ()
    mode: Literal["auto", "free"] = "auto"
    seeds: tuple[int, ...] = (0,)
    weights: dict[str, float] = dataclasses.field(default_factory=dict)
    name: str = "toy"
    note: str | None = None
    num_steps: int = 10
    packed: bool = False
    extra: Any = None


@pytest.mark.parametrize(
    ("assignment", "field", "value"),
    [
        ("num_steps=25", "num_steps", 25),
        ("num_steps = 25", "num_steps", 25),
        ("packed=true", "packed", True),
        ("packed=False", "packed", False),
        ("seeds=[1, 2]", "seeds", (1, 2)),
        ("seeds=[]", "seeds", ()),
        ("mode=free", "mode", "free"),
        ("name=7", "name", "7"),
        ("name=null", "name", "null"),
        ('name="a b"', "name", "a b"),
        ("name=a=b", "name", "a=b"),
        ("note=none", "note", None),
        ('note="none"', "note", "none"),
        ("note=null", "note", None),
        ("weights={'a': 1}".replace("'", '"'), "weights", {"a": 1.0}),
        ("extra=[1,null]", "extra", [1, None]),
        ('source={"path": "x"}', "source", Source(path="x")),
        ('sources=[{"path": "x"}]', "sources", (Source(path="x"),)),
        ('optim={"type": "Lion", "floor": 0}', "optim", Lion(floor=0.0)),
    ],
)
def test_override_reads_by_annotation(assignment, field, value):
    changed = getattr(override(Toy(), [assignment]), field)
    assert changed == value
    assert type(changed) is type(value)


@pytest.mark.parametrize(
    ("text", "value"), [("1", 1.0), (".5", 0.5), ("1e-4", 1e-4), ("inf", math.inf)]
)
def test_override_reads_floats(text, value):
    peak_lr = override(Toy(), [f"optim.peak_lr={text}"]).optim.peak_lr
    assert peak_lr == value
    assert type(peak_lr) is float


def test_override_goes_inside_the_member_of_a_union_that_is_there():
    cfg = override(Toy(optim=Lion()), ["optim.floor=1e-5", "optim.peak_lr=1"])
    assert cfg.optim == Lion(floor=1e-5, peak_lr=1.0)


def test_fields_that_must_change_together_can():
    """Applied one after the other, the first assignment alone would be refused."""
    cfg = override(Toy(optim=Lion()), ["optim.floor=1", "optim.peak_lr=2"])
    assert cfg.optim == Lion(floor=1.0, peak_lr=2.0)


def test_override_leaves_the_original_alone():
    cfg = Toy()
    assert override(cfg, ["num_steps=3"]) != cfg == Toy()


@pytest.mark.parametrize(
    ("assignment", "parts"),
    [
        ("optim.peak_lr=abc", ["optim.peak_lr", '"abc"', "float", "1e-4"]),
        ("optim.peak_lr=true", ["optim.peak_lr", "true", "float"]),
        ("optim.peak_lr=", ["optim.peak_lr", '""', "float"]),
        ("optim.peek_lr=1", ["optim.peek_lr", "Did you mean peak_lr?", "betas"]),
        ("optim.floor=1", ["optim.floor", "Adam has no field", "peak_lr"]),
        ("optm.peak_lr=1", ["optm", "Did you mean optim?", "num_steps"]),
        ("optim=1", ["optim=1", "Adam or Lion", "optim.<field>="]),
        ("optim.betas=[1]", ["optim.betas", "[1]", "[float, float]"]),
        ("seeds=[1,x]", ["seeds", "[1,x]", "[int, ...]", "[8, 8]"]),
        ('seeds=[1,"x"]', ["seeds.1", '"x"', "int"]),
        ("mode=fast", ["mode", '"fast"', '"auto", "free"']),
        ("num_steps=1.5", ["num_steps", "1.5", "int"]),
        ("num_steps=true", ["num_steps", "true", "int"]),
        ("num_steps=none", ["num_steps", "null", "int"]),
        ("packed=1", ["packed", "1", "bool", "true"]),
        ("num_steps.x=1", ["num_steps.x", "num_steps=10", "Set num_steps itself"]),
        ("source.path=x", ["source", "null", "config file"]),
        ('source={"limit": 1}', ["source", "Source needs path"]),
        ('source={"path": "x", "limt": 1}', ["source.limt", "limit"]),
        ('optim={"type": "Adan"}', ["optim", "Adan", "Adam or Lion"]),
        ("num_steps", ["num_steps", "field=value"]),
        ("=3", ["=3", "field=value"]),
        ("optim..x=3", ["optim..x", "field=value"]),
    ],
)
def test_wrong_assignments_name_field_value_and_fix(assignment, parts):
    with pytest.raises(ValueError) as caught:
        override(Toy(), [assignment])
    message = str(caught.value)
    where = assignment.partition("=")[0]
    assert "\n" not in message
    for part in parts:
        assert part in message, (where, message)


@pytest.mark.parametrize("pair", [["seeds=[1]", "seeds=[2]"], ["optim=1", "optim.peak_lr=1"]])
def test_a_field_set_twice_is_an_error(pair):
    for order in (pair, pair[::-1]):
        with pytest.raises(ValueError, match="set twice"):
            override(Toy(), order)


def test_the_component_has_the_last_word():
    with pytest.raises(ValueError, match=r"Lion\.floor=5.*Lower it"):
        override(Toy(optim=Lion()), ["optim.floor=5"])


texts = st.text(max_size=8)
numbers = st.floats(allow_nan=False)
optims = st.builds(Adam, peak_lr=numbers, betas=st.tuples(numbers, numbers)) | st.just(Lion())
sources = st.builds(Source, path=texts, limit=st.none() | st.integers())
toys = st.builds(
    Toy,
    optim=optims,
    source=st.none() | sources,
    sources=st.lists(sources, max_size=2).map(tuple),
    mode=st.sampled_from(["auto", "free"]),
    seeds=st.lists(st.integers(), max_size=3).map(tuple),
    weights=st.dictionaries(texts, numbers, max_size=2),
    note=st.none() | texts,
    packed=st.booleans(),
)


@given(toys)
def test_json_round_trip(cfg):
    text = json.dumps(to_json(cfg), allow_nan=False)
    back = from_json(Toy, json.loads(text))
    assert back == cfg
    assert fingerprint(back) == fingerprint(cfg)


def test_json_is_tagged_and_readable():
    assert to_json(Toy(optim=Lion(floor=-math.inf)))["optim"] == {
        "type": "Lion",
        "peak_lr": 1e-4,
        "floor": "-inf",
    }


def test_what_cannot_be_saved_is_named():
    with pytest.raises(ValueError, match=r"extra\.0=.*Path"):
        to_json(Toy(extra=(pathlib.Path("x"),)))


def test_fingerprint_depends_on_values_and_classes_alone():
    assert fingerprint(Toy(optim=Adam(peak_lr=1))) == fingerprint(Toy(optim=Adam(peak_lr=1.0)))
    assert fingerprint(Toy(weights={"a": 1, "b": 2})) == fingerprint(Toy(weights={"b": 2, "a": 1}))
    others = [Toy(), Toy(num_steps=11), Toy(packed=True), Toy(optim=Lion()), Toy(note="none")]
    assert len({fingerprint(cfg) for cfg in others}) == len(others)
    assert fingerprint(Toy()) == "78ff1239da91"  # the same on every machine and version


BASE = """
import dataclasses
@dataclasses.dataclass(frozen=True, kw_only=True)
class Small:
    size: int = 1
    def __post_init__(self):
        if self.size < 0:
            raise ValueError(f"Small.size={self.size}: negative. Raise it.")
def get_config():
    return Small()
"""


def write(folder: pathlib.Path, name: str, text: str) -> pathlib.Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    return folder / name


def test_load_config_runs_the_file(tmp_path):
    assert load_config(str(write(tmp_path, "base.py", BASE))).size == 1


def test_a_config_imports_its_own_neighbour(tmp_path):
    """Two folders hold a base.py; each variant must get the one beside it."""
    variant = "import base\ndef get_config():\n    return base.get_config()\n"
    for name, size in (("a", 1), ("b", 2)):
        write(tmp_path / name, "base.py", BASE.replace("size: int = 1", f"size: int = {size}"))
        assert load_config(write(tmp_path / name, "variant.py", variant)).size == size


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("x = 1\n", ["no function get_config()"]),
        ("def get_config(:\n", [":1:", "invalid syntax"]),
        ("import no_such_thing\n", [":1:", "ModuleNotFoundError", "no_such_thing"]),
        ("def get_config():\n    return 3\n", ["get_config() returned 3", "SftRun"]),
        (BASE.replace("Small()", "Small(sise=3)"), [":10: TypeError", "sise"]),
        (BASE.replace("Small()", "Small(size=-3)"), [":8: Small.size=-3: negative"]),
        (BASE.replace("Small()", "Small(size=3.5)"), ["size=3.5", "expected int"]),
    ],
)
def test_faulty_config_files_are_named_with_their_line(tmp_path, text, parts):
    path = write(tmp_path, "faulty.py", text)
    with pytest.raises(ValueError) as caught:
        load_config(path)
    for part in [str(path), *parts]:
        assert part in str(caught.value)


def test_missing_config_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no\.py not found"):
        load_config(tmp_path / "no.py")


def test_a_workdir_is_claimed_once_and_again_by_the_same_config(tmp_path):
    workdir = tmp_path / "deep" / "run"
    claim_workdir(Toy(), workdir)
    before = (workdir / "config.json").read_text()
    claim_workdir(Toy(), workdir)
    assert [path.name for path in workdir.iterdir()] == ["config.json"]
    assert (workdir / "config.json").read_text() == before
    assert from_json(Toy, json.loads(before)) == Toy()


def test_another_config_is_told_what_differs(tmp_path):
    claim_workdir(Toy(), tmp_path)
    with pytest.raises(ValueError) as caught:
        claim_workdir(Toy(num_steps=11, optim=Lion(peak_lr=1e-3)), tmp_path)
    message = str(caught.value)
    for part in (
        str(tmp_path),
        "num_steps: 10 → 11",
        'optim.type: "Adam" → "Lion"',
        "optim.betas: [0.9, 0.95] → absent",
        "optim.floor: absent → 0.0",
        "another --workdir",
    ):
        assert part in message
    assert "peak_lr" not in message
    assert from_json(Toy, json.loads((tmp_path / "config.json").read_text())) == Toy()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loose:
    lr: float = 0.5
    num_workers: int = 2
    source: Source | None = None
    MAY_CHANGE: ClassVar = ("num_workers", "source")


def test_what_a_config_declares_free_may_change_between_two_starts(tmp_path, capsys):
    claim_workdir(Loose(), tmp_path)
    claim_workdir(Loose(num_workers=3, source=Source(path="x")), tmp_path)
    said = capsys.readouterr().err
    assert "goes on with" in said and "num_workers: 2 → 3" in said and 'path: absent → "x"' in said
    saved = json.loads((tmp_path / "config.json").read_text())
    assert from_json(Loose, saved) == Loose(num_workers=3, source=Source(path="x"))
    with pytest.raises(ValueError, match=r"another config \(lr: 0.5 → 0.25\)"):
        claim_workdir(Loose(lr=0.25, num_workers=4, source=Source(path="x")), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == saved
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_a_bucket_is_no_workdir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="mount the bucket"):
        claim_workdir(Toy(), pathlib.Path("gs://bucket/run"))
    assert not list(tmp_path.iterdir())


def test_an_unreadable_claim_and_a_file_for_a_workdir(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not a saved config"):
        claim_workdir(Toy(), tmp_path)
    with pytest.raises(NotADirectoryError, match="is a file"):
        claim_workdir(Toy(), tmp_path / "config.json")

"""Configs as data: typed dotted overrides, JSON and back, fingerprint, claim on a workdir.

Lives here: everything that treats a run's config as one nested value. Not here: any config (each
sits beside its component and validates itself) and the command line (`cli`). This file knows no
component; it reads the annotations of whatever frozen dataclass it is given.

A field may be annotated with str, int, float, bool, None, Literal, tuple, dict[str, ...], Any,
another config, or a union of these. In JSON a config is an object with its class name under
"type", so that a union of configs reads back as the one that was written.
"""

import dataclasses
import difflib
import hashlib
import importlib.util
import json
import math
import os
import pathlib
import re
import sys
import traceback
import types
import typing
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

T = TypeVar("T")

TAG = "type"  # the JSON key that holds a config's class name
CONFIG_FILE = "config.json"


# ---- overrides ----


def override(cfg: T, assignments: Sequence[str]) -> T:
    """A copy of `cfg` with `a.b=value` assignments applied, each read by its field's annotation.

    All of them are applied before any config validates itself, so that two fields which must
    change together can.
    """
    tree: dict[str, Any] = {}
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals or not all(part.strip() for part in path.split(".")):
            raise ValueError(f"--set {assignment!r}: expected field=value, for example seed=1.")
        _plant(tree, [part.strip() for part in path.split(".")], text.strip(), path.strip())
    return _rebuild(cfg, tree, prefix="")


def _plant(tree: dict[str, Any], parts: list[str], text: str, path: str) -> None:
    *parents, last = parts
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if isinstance(tree, str):
            break
    if isinstance(tree, str) or last in tree:
        raise ValueError(f"--set {path}={text}: the field or a part of it is set twice. Keep one.")
    tree[last] = text


def _rebuild(cfg: Any, tree: dict[str, Any], prefix: str) -> Any:
    hints, changes = _hints(type(cfg)), {}
    for name, node in tree.items():
        where = prefix + name
        if name not in hints:
            raise ValueError(_unknown(name, type(cfg), where))
        if isinstance(node, str):
            changes[name] = _from_text(node, hints[name], where)
        else:
            inside = _config_at(where, getattr(cfg, name), next(iter(node)))
            changes[name] = _rebuild(inside, node, where + ".")
    return dataclasses.replace(cfg, **changes)


def _config_at(where: str, value: Any, field: str) -> Any:
    if not dataclasses.is_dataclass(value):
        raise ValueError(
            f"{where}.{field}: {where}={_show(value)} holds no config, so it has no such field."
            f" Set {where} itself, or give it a config in the config file."
        )
    return value


def _from_text(text: str, hint: Any, where: str) -> Any:
    failures = []
    for reading in _readings(text):
        try:
            return _decode(reading, hint, where)
        except ValueError as error:
            failures.append(error)
    raise failures[0]


def _readings(text: str) -> list[Any]:
    """What a text after `=` may mean, best reading first; the bare text is always the last."""
    words = {"none": None, "true": True, "false": False}
    readings: list[Any] = [words[text.lower()]] if text.lower() in words else []
    for read in (json.loads, float):
        try:
            readings.append(read(text))
        except ValueError:
            continue
    return [*readings, text]


# ---- JSON ----


def to_json(cfg: Any) -> dict[str, Any]:
    """The config as JSON values: objects tagged with their class, lists for tuples."""
    return _encode(cfg, where="")


def from_json(cls: type[T], obj: Mapping[str, Any]) -> T:
    """The config of class `cls` that `to_json` would write as `obj`."""
    return _decode(dict(obj), cls, where="")


def _encode(value: Any, where: str) -> Any:
    if type(value) is float and not math.isfinite(value):
        return repr(value)  # JSON has no number for it
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, dict):
        return {str(k): _encode(v, f"{where}.{k}".lstrip(".")) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [_encode(v, f"{where}.{i}") for i, v in enumerate(value)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        assert not hasattr(value, TAG), f"{type(value).__name__}.{TAG} is taken by the JSON tag"
        pairs = {name: getattr(value, name) for name in _hints(type(value))}
        return {TAG: type(value).__name__} | _encode(pairs, where)
    raise ValueError(
        f"{where}={value!r}: a {type(value).__name__} cannot be saved with the run."
        " Use text, numbers, true/false, null, tuples or nested configs."
    )


def _decode(value: Any, hint: Any, where: str) -> Any:
    """The value that `hint` allows for a JSON value; ValueError where it allows none."""
    if hint is Any:
        return value
    fitting = [option for option in _options(hint) if _fits(value, option)]
    if not fitting:
        raise ValueError(
            f"{where or 'config'}={_show(value)}: expected {_describe(hint)}."
            f" Write {where + '=' if where else ''}{_example(hint, where)}."
        )
    option = fitting[0]
    if dataclasses.is_dataclass(option):
        return _decode_config(value, option, where)
    origin, args = typing.get_origin(option), typing.get_args(option)
    if origin is tuple:
        inner = args[:1] * len(value) if args[1:] == (...,) else args
        return tuple(
            _decode(v, h, f"{where}.{i}") for i, (v, h) in enumerate(zip(value, inner, strict=True))
        )
    if origin is dict:
        return {k: _decode(v, args[1], f"{where}.{k}") for k, v in value.items()}
    return float(value) if option is float else value


def _fits(value: Any, option: Any) -> bool:
    """True where a JSON value has the outer form of `option`; its parts are not looked at."""
    origin, args = typing.get_origin(option), typing.get_args(option)
    if dataclasses.is_dataclass(option):
        name = option.__name__ if isinstance(option, type) else type(option).__name__
        return isinstance(value, dict) and value.get(TAG, name) == name
    if origin is typing.Literal:
        return any(type(value) is type(choice) and value == choice for choice in args)
    if origin is tuple:
        sized = args[1:] == (...,) or (isinstance(value, list | tuple) and len(value) == len(args))
        return isinstance(value, list | tuple) and sized
    if origin is dict:
        return isinstance(value, dict)
    if option is float:
        return type(value) in (int, float) or value in ("inf", "-inf", "nan")
    return type(value) is option  # exact: True is no int


def _decode_config(obj: dict[str, Any], cls: Any, where: str) -> Any:
    hints, prefix = _hints(cls), f"{where}." if where else ""
    given = {name: value for name, value in obj.items() if name != TAG}
    for name in given:
        if name not in hints:
            raise ValueError(_unknown(name, cls, prefix + name))
    missing = [field.name for field in _fields(cls) if _required(field) and field.name not in given]
    if missing:
        raise ValueError(f"{where or 'config'}: {cls.__name__} needs {', '.join(missing)} as well.")
    return cls(
        **{name: _decode(value, hints[name], prefix + name) for name, value in given.items()}
    )


def _fields(cls: Any) -> list[dataclasses.Field]:
    return [field for field in dataclasses.fields(cls) if field.init]


def _required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _hints(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in _fields(cls)}


def _options(hint: Any) -> list[Any]:
    """The members of a union, exact ones before float, which also takes an int."""
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return sorted(typing.get_args(hint) if is_union else (hint,), key=lambda o: o is float)


# ---- words for messages ----


def _describe(hint: Any) -> str:
    return " or ".join(_describe_one(option) for option in _options(hint))


def _describe_one(option: Any) -> str:
    origin, args = typing.get_origin(option), typing.get_args(option)
    if option is type(None):
        return "null"
    if origin is typing.Literal:
        return "one of " + ", ".join(map(_show, args))
    if origin is tuple:
        return f"[{', '.join('...' if arg is ... else _describe(arg) for arg in args)}]"
    if origin is dict:
        return f"an object of {_describe(args[1])}"
    return option.__name__


def _example(hint: Any, where: str) -> str:
    option = _options(hint)[0]
    origin, args = typing.get_origin(option), typing.get_args(option)
    if dataclasses.is_dataclass(option):
        return f'{{"{TAG}": "{_describe_one(option)}", ...}}, or set its fields as {where}.<field>='
    if origin is typing.Literal:
        return str(args[0])
    if origin is tuple:
        inner = args[:1] * 2 if args[1:] == (...,) else args
        return f"[{', '.join(_example(arg, where) for arg in inner)}]"
    if origin is dict:
        return f'{{"name": {_example(args[1], where)}}}'
    return {int: "8", float: "1e-4", bool: "true", str: '"text"'}.get(option, "null")


def _show(value: Any) -> str:
    return json.dumps(value, default=repr, ensure_ascii=False)


def _unknown(name: str, cls: type, where: str) -> str:
    names = list(_hints(cls))
    near = difflib.get_close_matches(name, names, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    return f"{where}: {cls.__name__} has no field {name!r}.{hint} Its fields: {', '.join(names)}."


# ---- a run's config: from its file, in its workdir ----


def fingerprint(cfg: Any) -> str:
    """12 hex digits that name the config: equal configs have equal ones, on any machine."""
    canonical = json.dumps(_whole(to_json(cfg)), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def _whole(value: Any) -> Any:
    """The JSON value with whole floats as ints: a float field may have been given as 1 or 1.0."""
    if isinstance(value, dict):
        return {k: _whole(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_whole(v) for v in value]
    return int(value) if type(value) is float and value.is_integer() else value


def load_config(path: str | pathlib.Path) -> Any:
    """What `get_config()` of a Python config file returns, checked against its annotations.

    While the file runs, its own folder can be imported from: a variant may import its base.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"config file {path} not found. Give a Python file with get_config()."
        )
    get_config = _in_user_code(path, lambda: _execute(path))
    if not callable(get_config):
        raise ValueError(
            f"{path}: no function get_config(). Define one that returns the run's config."
        )
    cfg = _in_user_code(path, get_config)
    if not dataclasses.is_dataclass(cfg) or isinstance(cfg, type):
        raise ValueError(
            f"{path}: get_config() returned {_show(cfg)}. Return one config, such as SftRun(...)."
        )
    _in_user_code(path, lambda: from_json(type(cfg), to_json(cfg)))
    return cfg


def _execute(path: pathlib.Path) -> Any:
    """`get_config` of the executed file; None where it defines none."""
    spec = importlib.util.spec_from_file_location(f"l2s_config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError("not a Python file. Its name must end in .py")
    folder, before = path.resolve().parent, set(sys.modules)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # annotations are resolved through the defining module
    sys.path.insert(0, str(folder))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(folder))
        for name in set(sys.modules) - before - {spec.name}:
            # Another folder's file of the same name must not be answered with this one.
            if pathlib.Path(getattr(sys.modules[name], "__file__", None) or ".").parent == folder:
                del sys.modules[name]
    return getattr(module, "get_config", None)


def _in_user_code(path: pathlib.Path, call: Callable[[], Any]) -> Any:
    """`call()`; whatever it raises is the config file's mistake and is told with file and line."""
    try:
        return call()
    except SyntaxError as error:
        raise ValueError(f"{error.filename}:{error.lineno}: {error.msg}") from error
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [f":{frame.lineno}" for frame in frames if frame.filename == str(path)]
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise ValueError(f"{path}{lines[-1] if lines else ''}: {kind}{error}") from error


def claim_workdir(cfg: Any, workdir: pathlib.Path) -> None:
    """Makes `workdir` this config's own: saves config.json there, or finds the same one saved.

    The same config may claim again (that is a resumed run), also with other values of what it
    declares free to change; another one may not.
    """
    if re.match(r"[a-z0-9]{2,}:", str(workdir)):  # a folder of that name would be made here
        raise ValueError(
            f"workdir {workdir} is an address. A run writes to a disk: mount the bucket, with Cloud"
            " Storage FUSE for instance, and give the folder where it is."
        )
    if workdir.exists() and not workdir.is_dir():
        raise NotADirectoryError(f"workdir {workdir} is a file. Give a folder, new or of this run.")
    workdir.mkdir(parents=True, exist_ok=True)
    saved = workdir / CONFIG_FILE
    if not saved.exists():
        _write_config(cfg, workdir)
        return
    try:
        old = json.loads(saved.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{saved}: not a saved config ({error}). Use another workdir.") from error
    if refuse_changes(old, cfg, f"workdir {workdir}"):
        _write_config(cfg, workdir)


def _write_config(cfg: Any, workdir: pathlib.Path) -> None:
    beside = workdir / f".{CONFIG_FILE}.{uuid.uuid4().hex}"
    beside.write_text(json.dumps(to_json(cfg), indent=2) + "\n", encoding="utf-8")
    os.replace(beside, workdir / CONFIG_FILE)


def refuse_changes(old: Any, cfg: Any, where: str) -> list[str]:
    """What differs from a saved config in JSON, all of it harmless; ValueError if not all is.

    Harmless are the fields that a config's class names in `MAY_CHANGE`: how fast the run goes and
    what it writes, but not what it computes. They are told on stderr.

    Args:
      where: what the saved config belongs to, for the message.
    """
    before, after = _leaves(old), _leaves(to_json(cfg))
    fields = [n for n in {**before, **after} if before.get(n, ...) != after.get(n, ...)]
    changes = {n: f"{n}: {_state(before, n)} → {_state(after, n)}" for n in fields}
    free = getattr(type(cfg), "MAY_CHANGE", ())
    wrong = [change for n, change in changes.items() if n.split(".")[0] not in free]
    if wrong:
        raise ValueError(
            f"{where} belongs to another config ({', '.join(wrong)})."
            " Use another --workdir, or undo the change to go on with that run."
        )
    if changes:
        print(f"{where} goes on with {', '.join(changes.values())}", file=sys.stderr)
    return list(changes.values())


def _leaves(value: Any, where: str = "") -> dict[str, Any]:
    """Dotted name → value, for every value of a JSON tree that is no object or list of objects."""
    if isinstance(value, dict):
        pairs = list(value.items())
    elif isinstance(value, list) and any(isinstance(part, dict) for part in value):
        pairs = list(enumerate(value))
    else:
        return {where: value}
    return {
        n: v for key, part in pairs for n, v in _leaves(part, f"{where}.{key}".lstrip(".")).items()
    }


def _state(leaves: dict[str, Any], name: str) -> str:
    return _show(leaves[name]) if name in leaves else "absent"

"""Single values out of a `config.json`, with what is wrong with them.

Lives here: `integer`, `positive`, `flag`. Not here: what the values mean (`model/hf/config.py`).
"""

import sys
from collections.abc import Mapping
from typing import Any

LARGEST = sys.float_info.max  # a longer whole number would be no float


def _value(hf: Mapping[str, Any], name: str, default: Any) -> Any:
    """The field's value; null and absent are the default, and an error where there is none."""
    value = default if hf.get(name) is None else hf[name]
    if value is None:
        raise ValueError(f"config.json lacks the field {name!r}; is it a whole one?")
    return value


def integer(hf: Mapping[str, Any], name: str, default: int | None = None) -> int:
    """A whole number of at least 1."""
    value = _value(hf, name, default)
    if type(value) is not int or value < 1:
        raise ValueError(f"config.json: {name}={value!r} must be a whole number, at least 1.")
    return value


def positive(hf: Mapping[str, Any], name: str, default: float | None = None) -> float:
    """A finite number above zero."""
    value = _value(hf, name, default)
    if type(value) not in (int, float) or not 0 < value <= LARGEST:
        raise ValueError(f"config.json: {name}={value!r} must be a number above 0.")
    return float(value)


def flag(hf: Mapping[str, Any], name: str) -> bool:
    """True or false; false where the field is absent."""
    value = _value(hf, name, False)
    if type(value) is not bool:
        raise ValueError(f"config.json: {name}={value!r} must be true or false.")
    return value

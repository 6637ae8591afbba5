"""The files of a tokenizer: as they came, with new tokens, or of one made here.

Lives here: which files a tokenizer's folder has, and what they must say so that every reader gives
the same ids. Not here: `Tokenizer` itself (`tokens/tokenizer.py`).

transformers 5 saves a tokenizer in words that transformers 4, and engines built on it, do not know:
the class TokenizersBackend, a list of extra_special_tokens. A folder that we were given is
therefore kept as it is, and new tokens are written into its own files.
"""

import json
import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any

TOKENIZER, CONFIG, TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
ADDED = "added_tokens.json"
NAMES = (
    TOKENIZER,
    CONFIG,
    TEMPLATE,
    ADDED,
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
)
_OF_VERSION_5 = ("backend", "is_local", "local_files_only")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def read_files(folder: pathlib.Path) -> dict[str, bytes]:
    """Name → content of the tokenizer's files in a folder."""
    return {name: (folder / name).read_bytes() for name in NAMES if (folder / name).is_file()}


def files_to_save(hf: Any, came: Mapping[str, bytes]) -> dict[str, bytes]:
    """Name → content of the files that say what the tokenizer `hf` is.

    Args:
      came: the files that it was read from; empty where it was made here.
    """
    files = dict(came) or _made_here(hf)
    if TOKENIZER not in files:  # from vocab.json and merges.txt: PreTrainedTokenizerFast needs it
        whole = json.loads(hf.backend_tokenizer.to_str())
        files[TOKENIZER] = _dump(whole | {"truncation": None, "padding": None})
    tokens = {i: _fields(token) for i, token in sorted(hf.added_tokens_decoder.items())}
    known = _declared(came) if came else set(tokens)
    if new := {i: token for i, token in tokens.items() if i not in known}:
        files |= _with_tokens(files, new)
    if came and isinstance(hf.chat_template, str) and hf.chat_template != _template(files):
        files |= _with_template(files, hf.chat_template)
    return files


def _made_here(hf: Any) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        hf.save_pretrained(folder)
        files = read_files(pathlib.Path(folder))
    return files | {CONFIG: _dump(_for_every_version(json.loads(files[CONFIG])))}


def _for_every_version(config: dict[str, Any]) -> dict[str, Any]:
    """tokenizer_config.json in words that transformers 4 and 5 both know."""
    config = {name: value for name, value in config.items() if name not in _OF_VERSION_5}
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(config.get("extra_special_tokens"), list):
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    return config


def _declared(files: Mapping[str, bytes]) -> set[int]:
    """The added tokens' ids, whichever of the files names them."""
    whole, config, more = (
        json.loads(files.get(name, b"{}")) for name in (TOKENIZER, CONFIG, ADDED)
    )
    decoder = config.get("added_tokens_decoder", {})
    return {token["id"] for token in whole.get("added_tokens", [])} | {
        *map(int, decoder),
        *more.values(),
    }


def _with_tokens(files: Mapping[str, bytes], new: dict[int, dict[str, Any]]) -> dict[str, bytes]:
    """The files that list added tokens, with `new` (id → fields); nothing else in them changes."""
    whole, config = json.loads(files[TOKENIZER]), json.loads(files.get(CONFIG, b"{}"))
    there = {token["id"] for token in whole["added_tokens"]}
    whole["added_tokens"] += [{"id": i, **token} for i, token in new.items() if i not in there]
    if "added_tokens_decoder" in config:
        config["added_tokens_decoder"] |= {str(i): token for i, token in new.items()}
    changed = {TOKENIZER: _dump(whole), CONFIG: _dump(_for_every_version(config))}
    if ADDED in files:
        ids = {token["content"]: i for i, token in new.items()}
        changed[ADDED] = _dump(json.loads(files[ADDED]) | ids)
    return changed


def _template(files: Mapping[str, bytes]) -> Any:
    if TEMPLATE in files:
        return files[TEMPLATE].decode()
    return json.loads(files.get(CONFIG, b"{}")).get("chat_template")


def _with_template(files: Mapping[str, bytes], template: str) -> dict[str, bytes]:
    config = json.loads(files.get(CONFIG, b"{}"))
    config.pop("chat_template", None)
    return {CONFIG: _dump(config), TEMPLATE: template.encode()}


def _fields(token: Any) -> dict[str, Any]:
    return {"content": token.content} | {flag: getattr(token, flag) for flag in _FLAGS}


def _dump(obj: Any) -> bytes:
    return (json.dumps(obj, indent=2, ensure_ascii=False) + "\n").encode()

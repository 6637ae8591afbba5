"""Text to ids and back, with the ids that matter as explicit fields.

Lives here: `Tokenizer`, a thin record around a Hugging Face tokenizer. Not here: its files
(`tokens/files.py`), the triggers (`tokens/triggers.py`), training sequences (`tokens/layouts.py`).
"""

import copy
import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import l2s_jax
from l2s_jax.model.hf.origin import stop_ids_of
from l2s_jax.tokens.files import files_to_save, read_files

SHIPPED = {"arithmetic": pathlib.Path(l2s_jax.__file__).parent / "data" / "arithmetic_base"}
"""Folders inside the package that a config may name instead of a path."""


def model_folder(name: str | pathlib.Path) -> pathlib.Path:
    """The folder behind a path or a shipped name ("arithmetic")."""
    folder = SHIPPED.get(str(name), pathlib.Path(name))
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no folder {folder}: give a Hugging Face model folder, a run's workdir, or one of the"
            f" shipped names {sorted(SHIPPED)}."
        )
    return folder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """A Hugging Face tokenizer, the ids that end a completion, and the one that fills rows.

    `pad_id` may equal a stop id: nothing here or above reads a mask off token values.
    """

    hf: Any  # transformers.PreTrainedTokenizerFast
    stop_ids: tuple[int, ...]
    pad_id: int
    files: Mapping[str, bytes] = dataclasses.field(default_factory=dict, repr=False)
    """What it was read from, to be given back as it came; empty for one made here."""

    def encode(self, text: str) -> list[int]:
        """Ids of `text` alone: no opening or closing specials."""
        return self.hf.encode(text, add_special_tokens=False)

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """What `encode` gives for each text; many at once are faster."""
        # Straight from the tokenizer's own threads, on all cores; each is 1.7 times as fast.
        found = self.hf.backend_tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in found]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, triggers and specials included."""
        return self.hf.decode([int(i) for i in ids], skip_special_tokens=False)

    def prompt(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Ids of a conversation up to where the assistant begins."""
        if not self.hf.chat_template:
            raise ValueError(
                "the tokenizer has no chat template, so a question cannot be asked."
                " Add one to its folder (chat_template.jinja), or give `prompt` or `token_ids`."
            )
        text = self.hf.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=True
        )
        return self.encode(text)

    def ask(self, question: str) -> list[int]:
        """Ids of the prompt that asks one question."""
        return self.prompt([{"role": "user", "content": question}])

    def save(self, folder: str | pathlib.Path) -> None:
        """Writes a folder that `load_tokenizer` reads back, stop ids included."""
        folder = pathlib.Path(folder)
        for name, content in files_to_save(self.hf, self.files).items():
            (folder / name).write_bytes(content)
        stops = {"eos_token_id": list(self.stop_ids)}
        (folder / "generation_config.json").write_text(json.dumps(stops))

    def copy(self) -> "Tokenizer":
        return dataclasses.replace(self, hf=copy.deepcopy(self.hf))


def load_tokenizer(path: str | pathlib.Path) -> Tokenizer:
    """The tokenizer of a model folder; its stop ids come from the folder's configs."""
    # Slow to import, AutoTokenizer most of all (it wakes torch, where that is installed): each is
    # paid for by those who need it.
    from transformers import PreTrainedTokenizerFast

    folder = model_folder(path)
    if not (folder / "tokenizer.json").exists() and not (folder / "vocab.json").exists():
        raise FileNotFoundError(
            f"{folder} holds no tokenizer (tokenizer.json). Copy the model's tokenizer files there."
        )
    if (folder / "tokenizer.json").exists():
        # Exactly what the file says. AutoTokenizer would look at config.json, and for a qwen2 model
        # replace the file's rules by Qwen2's own: another tokenizer loses words without a sound.
        hf = PreTrainedTokenizerFast.from_pretrained(str(folder))
    else:
        from transformers import AutoTokenizer

        hf = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    found = from_hf(hf, _stop_ids(folder, hf))
    return dataclasses.replace(found, files=read_files(folder))


def from_hf(hf: Any, stop_ids: Sequence[int]) -> Tokenizer:
    """`Tokenizer` around a loaded one; pads with its pad id, else with the first stop id."""
    if not stop_ids:
        raise ValueError(
            "the tokenizer names no stop token: set eos_token in tokenizer_config.json, or"
            " eos_token_id in generation_config.json."
        )
    pad_id = hf.pad_token_id if hf.pad_token_id is not None else stop_ids[0]
    return Tokenizer(hf=hf, stop_ids=tuple(stop_ids), pad_id=pad_id)


def _stop_ids(folder: pathlib.Path, hf: Any) -> tuple[int, ...]:
    # The tokenizer's own eos ends a turn (what a chat model emits); the model's configs may add
    # others, such as Qwen2.5's <|endoftext|>.
    own = () if hf.eos_token_id is None else (int(hf.eos_token_id),)
    return tuple(dict.fromkeys(own + stop_ids_of(folder)))

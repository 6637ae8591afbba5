"""What a Hugging Face folder said about its model beyond the decoder's shape.

Lives here: `Origin`, kept with a policy from import to export, so that a model goes back as it
came. Not here: the tokenizer's files (`tokens/tokenizer.py`).
"""

import dataclasses
import json
import pathlib
from typing import Any

from l2s_jax.model.hf.files import DiskDTypeName, read_json

FILE = "origin.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Origin:
    """The two configs of a model's folder, as they were."""

    config: dict[str, Any]  # config.json
    generation: dict[str, Any]  # generation_config.json; empty where there is none

    @property
    def dtype(self) -> DiskDTypeName:
        """The type that the model's makers keep its weights in."""
        named = self.config.get("dtype", self.config.get("torch_dtype"))
        return named if named in ("bfloat16", "float16") else "float32"

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end a completion: generation_config.json's, or config.json's without one."""
        named = (self.generation or self.config).get("eos_token_id")
        return tuple(
            int(i) for i in (named if isinstance(named, list) else [named]) if i is not None
        )

    def save(self, folder: pathlib.Path) -> None:
        (folder / FILE).write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n")


def read_origin(folder: pathlib.Path) -> Origin | None:
    """The origin of a Hugging Face folder, or the one that a workdir keeps; None where neither."""
    if (folder / FILE).is_file():
        kept = read_json(folder / FILE)
        return Origin(config=kept["config"], generation=kept["generation"])
    if not (folder / "config.json").is_file():
        return None
    generation = folder / "generation_config.json"
    return Origin(
        config=read_json(folder / "config.json"),
        generation=read_json(generation) if generation.is_file() else {},
    )


def stop_ids_of(folder: pathlib.Path) -> tuple[int, ...]:
    """The stop ids that a folder's configs name, whichever of the two are there."""
    paths = (folder / "config.json", folder / "generation_config.json")
    config, generation = (read_json(path) if path.is_file() else {} for path in paths)
    return Origin(config=config, generation=generation).stop_ids

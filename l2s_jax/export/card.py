"""The model card: what the model is and what was measured.

Lives here: the text, as a function of facts. Not here: the facts' origin (`export/hf.py` passes
them), the numbers' computation (`evaluation/stats.py`), what each engine does with routing
(`export/engines.py`).
"""

import dataclasses
import importlib.metadata
import pathlib
import platform
import re
from collections.abc import Mapping
from typing import Any

import l2s_jax
from l2s_jax.export.engines import routing_section
from l2s_jax.export.folder import Parts
from l2s_jax.model.hf.origin import Origin

TAGS = ("autol2s", "l2s_jax")
SAMPLING = ("do_sample", "temperature", "top_p", "top_k", "min_p", "repetition_penalty")
PROVENANCE = ("seeds", "date", "commit")  # fields of a summary that say how it came about
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

USE = """## Use

```python
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

tokenizer = PreTrainedTokenizerFast.from_pretrained("{name}")
model = AutoModelForCausalLM.from_pretrained("{name}")
messages = [{{"role": "user", "content": "What is 12 + 7?"}}]
ids = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
)
answer = model.generate(**ids, max_new_tokens=1024)
print(tokenizer.decode(answer[0]))
```

`PreTrainedTokenizerFast` reads `tokenizer.json` as it is. `AutoTokenizer` (transformers 5) puts
Qwen2's own rules in the place of the file's for every qwen2 model: harmless where the tokenizer is
Qwen2's, wrong ids without a warning where it is another.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """An evaluation, and which file it is copied from."""

    summary: Mapping[str, Any]  # in the shape of `evaluation/summary.py`; quoted, never computed
    file: str
    sha256: str
    is_of_this: bool = False  # this model was asked; else all stages of the run that made it


def model_card(
    *, name: str, parts: Parts, weights_dtype: str | None, measured: Measured | None
) -> str:
    """The README.md of an exported folder.

    Args:
      weights_dtype: of the checkpoint, if the export's may be another.
      measured: None where nothing was.
    """
    sections = [_front_matter(parts), f"# {name}\n", _shape(parts)]
    if parts.tokenizer is not None:
        sections.append(USE.format(name=name))
    sections.append(_sampling(parts))
    if parts.triggers is not None:
        summary = None if measured is None else measured.summary
        sections.append(routing_section(parts.triggers, summary))
    else:
        sections.append("It has no trigger vocabulary: it answers as its base model does.\n")
    sections += [_results(measured, parts.dtype, weights_dtype), _versions()]
    return "\n".join(section for section in sections if section)


def _front_matter(parts: Parts) -> str:
    """YAML that the Hub reads. No model-index: it wants a registered dataset, and we have none."""
    lines = ["library_name: transformers", "pipeline_tag: text-generation"]
    base = base_model(parts.origin)
    lines += [f"base_model: {base}"] if base else []
    lines += ["tags:", *(f"- {tag}" for tag in TAGS)]
    return "\n".join(["---", *lines, "---", ""])


def base_model(origin: Origin | None) -> str | None:
    """The model that this one came from, where its config names one of the Hub ("owner/name").

    What looks like it and is a folder here was a path, and says nothing to others.
    """
    named = None if origin is None else origin.config.get("_name_or_path")
    if not isinstance(named, str) or not HUB_NAME.fullmatch(named) or pathlib.Path(named).exists():
        return None
    return named


def _shape(parts: Parts) -> str:
    model, config = parts.model, parts.config()
    kind = (config.get("architectures") or [config["model_type"]])[0]
    head = "tied" if model.tied else "untied"
    return (
        f"{kind}, exported by l2s_jax (AutoL2S, arXiv 2505.22662): {model.num_layers} layers,"
        f" width {model.width}, {model.num_heads} query and {model.num_kv_heads} key-value heads of"
        f" {model.head_dim}, vocabulary {model.vocab_size}, {head} head, weights in {parts.dtype}."
        " Its licence is that of the base model and of the data it was trained on.\n"
    )


def _sampling(parts: Parts) -> str:
    """Whose the sampling defaults in generation_config.json are."""
    came = {} if parts.origin is None else parts.origin.generation
    kept = [f"{name} {came[name]}" for name in SAMPLING if came.get(name) is not None]
    if not kept:
        return ""
    return (
        f"The sampling defaults in `generation_config.json` ({', '.join(kept)}) are those that the"
        " model came with. They were not chosen for this one.\n"
    )


def _results(measured: Measured | None, dtype: str, weights_dtype: str | None) -> str:
    if measured is None:
        return "## Results\n\nNothing was measured on this export.\n"
    summary = measured.summary
    rows = [
        _row(stage, mode, entry)
        for stage, modes in summary["stages"].items()
        for mode, entry in modes.items()
    ]
    more = [f"{name} {summary[name]}" for name in PROVENANCE if summary.get(name)]
    when = f" ({', '.join(more)})" if more else ""
    whose = (
        "The rows are of this model."
        if measured.is_of_this
        else "The rows are of the run's stages; this export is one checkpoint of it."
    )
    return "\n".join(
        [
            "## Results",
            "",
            "| stage | mode | accuracy | 95 % interval | mean tokens | EASY share |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
            f"Measured by `l2s eval`{when} and copied from `{measured.file}` of the run (SHA-256"
            f" `{measured.sha256}`), rounded; a truncated answer counts as wrong. {whose}"
            + _rounding(dtype, weights_dtype),
            "",
        ]
    )


def _rounding(dtype: str, weights_dtype: str | None) -> str:
    """What lies between the weights that were measured and these."""
    if weights_dtype is None:
        return ""
    if dtype == weights_dtype:
        return f" The checkpoint's weights were {dtype} and are here as they were."
    return (
        f" The checkpoint's weights were {weights_dtype}: what was measured was measured before"
        f" they were rounded to {dtype}."
    )


def _row(stage: str, mode: str, entry: Mapping[str, Any]) -> str:
    low, high = entry.get("accuracy_ci") or (None, None)
    interval = "" if low is None else f"{low:.3f} to {high:.3f}"
    share = entry.get("easy_share")
    cells = (stage, mode, f"{entry['accuracy']:.3f}", interval, f"{entry['tokens']:.1f}")
    return f"| {' | '.join(cells)} | {'' if share is None else f'{share:.3f}'} |"


def _versions() -> str:
    packages = ("jax", "flax", "transformers", "safetensors")
    found = [f"{package} {importlib.metadata.version(package)}" for package in packages]
    return (
        "## Made with\n\n"
        f"l2s_jax {l2s_jax.__version__}, {', '.join(found)}, Python {platform.python_version()}.\n"
    )

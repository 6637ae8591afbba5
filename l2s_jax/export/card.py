"""The model card: what the model is, what was measured, and what each engine does with routing.

Lives here: the text, as a function of facts. Not here: the facts' origin (`export/hf.py` passes
them), the numbers' computation (`evaluation/stats.py`).
"""

import importlib.metadata
import platform
from collections.abc import Mapping
from typing import Any

import l2s_jax
from l2s_jax.model.config import ModelConfig
from l2s_jax.tokens.triggers import Triggers

HEADER = """---
library_name: transformers
pipeline_tag: text-generation
tags:
- autol2s
- l2s_jax
---
"""

USE = """## Use

```python
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

tokenizer = PreTrainedTokenizerFast.from_pretrained("{name}")
model = AutoModelForCausalLM.from_pretrained("{name}")
messages = [{{"role": "user", "content": "What is 12 + 7?"}}]
ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
answer = model.generate(**ids, max_new_tokens=1024)
print(tokenizer.decode(answer[0]))
```

`PreTrainedTokenizerFast` reads `tokenizer.json` as it is. `AutoTokenizer` (transformers 5) puts
Qwen2's own rules in the place of the file's for every qwen2 model: harmless where the tokenizer is
Qwen2's, wrong ids without a warning where it is another.
"""

ROUTING = """## Routing

The model opens its answer with a trigger. After `<LONG>` it reasons at length; after `<EASY>` the
sampler has to append the short trigger{ids}, and the model answers tersely. To choose the path
yourself, put the trigger behind the prompt: {long} for the long one, {easy} and then {short} for
the short one.

What each engine does with `<EASY>`:

- transformers, `model.generate`: `generation_config.json` carries `sequence_bias`, which forces the
  short trigger after `<EASY>`. No code of ours, no trust flag. It acts wherever the model writes
  `<EASY>`, not at the start of the answer alone.
- transformers, continuous batching (`generate_batch`): **`sequence_bias` fails there** and requests
  come back empty. Take it off (`model.generation_config.sequence_bias = None`) and use the
  two-call recipe.
- vLLM, SGLang, llama.cpp: they do not read `sequence_bias`. What follows `<EASY>` is what the model
  has learned, and nothing is forced. Use the two-call recipe where the short path must be certain.

Two-call recipe, for any engine: generate with `<EASY>` as a stop string that is kept in the output
(vLLM: `stop=["<EASY>"], include_stop_str_in_output=True, skip_special_tokens=False`); if the text
ends with it, send prompt + `<EASY>` + short trigger again and let it run to its end. The prefix
cache makes the second call cheap.
"""

PLAIN = """
The triggers are ordinary text here, several tokens each. A model may close `<EASY>` with a piece
that also holds the character after it; `sequence_bias` then does not see it, and the two-call
recipe, which looks at text, does.
"""


def model_card(
    *,
    name: str,
    model: ModelConfig,
    triggers: Triggers | None,
    dtype: str,
    has_tokenizer: bool = True,
    summary: Mapping[str, Any] | None = None,
    source: str | None = None,
) -> str:
    """The README.md of an exported folder.

    Args:
      summary: evaluations in the shape of `summary.json`; its numbers are quoted, never computed.
      source: where the summary comes from, quoted beside the numbers.
    """
    parts = [HEADER, f"# {name}\n", _shape(model, dtype)]
    if has_tokenizer:
        parts.append(USE.format(name=name))
    if triggers is not None:
        parts.append(_routing(triggers))
    else:
        parts.append("It has no trigger vocabulary: it answers as its base model does.\n")
    parts.append(_results(summary, source))
    parts.append(_versions())
    return "\n".join(parts)


def _shape(model: ModelConfig, dtype: str) -> str:
    head = "tied" if model.tied else "untied"
    return (
        "A Qwen2 decoder exported by l2s_jax (AutoL2S, arXiv 2505.22662): "
        f"{model.num_layers} layers, width {model.width}, {model.num_heads} query and"
        f" {model.num_kv_heads} key-value heads of {model.head_dim}, vocabulary"
        f" {model.vocab_size}, {head} head, weights in {dtype}. Its licence is that of the base"
        " model and of the data it was trained on.\n"
    )


def _routing(triggers: Triggers) -> str:
    ids = f" (ids {list(triggers.short)} after {list(triggers.easy)})"
    newline = "" if triggers.spelling == "added" else "\\n"
    words = {word: f"`<{word.upper()}>{newline}`" for word in ("easy", "long", "short")}
    return ROUTING.format(ids=ids, **words) + (PLAIN if triggers.spelling == "plain" else "")


def _results(summary: Mapping[str, Any] | None, source: str | None) -> str:
    if summary is None:
        return "## Results\n\nNothing was measured on this export.\n"
    rows = [
        _row(stage, mode, entry)
        for stage, modes in summary["stages"].items()
        for mode, entry in modes.items()
    ]
    seeds = summary.get("seeds")
    return "\n".join(
        [
            "## Results",
            "",
            "| stage | mode | accuracy | 95 % interval | mean tokens | EASY share |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
            f"Measured by `l2s eval` (seeds {seeds}) and copied from {source or 'summary.json'};"
            " a truncated answer counts as wrong. The rows are of the run's stages; this export is"
            " one checkpoint of it.",
            "",
        ]
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

"""What each engine does with an exported folder's routing: the card's section, by facts.

Lives here: short text for the card. Not here: the rest of the card (`export/card.py`), the long
form with the recipes' code (`docs/serving.md`), the measurement (`evaluation/forced.py`).

Nothing here is promised from reading where a run would have shown it: each line says which it was.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from l2s_jax.tokens.triggers import Triggers

TRIED_WITH = "5.23.0"  # transformers; not whatever is installed where the card is written

ROUTING = """## Routing

The model opens its answer with a trigger. After `<LONG>` it reasons at length; after `<EASY>` the
sampler has to append the short trigger{ids}, and the model answers tersely. To choose the path
yourself, put the trigger behind the prompt: {long} for the long one, {easy} and then {short} for
the short one. The triggers are no special tokens: `skip_special_tokens=True` keeps them.

What follows `<EASY>`, tried with transformers {version} where it says "run"; "read" is from an
engine's documentation, and was not run:

- transformers, `model.generate` (run): the short trigger, forced by `sequence_bias` in
  `generation_config.json`; greedy, sampled, beams and assisted. No code of ours, no trust flag.
- the same with `trust_remote_code=True` (run): the same; this folder holds no code.
- transformers, continuous batching, `generate_batch` (run): **`sequence_bias` fails there** and
  requests come back empty. Set `model.generation_config.sequence_bias = None`, use two calls.
- vLLM, SGLang (read): what the model has learned. They take sampling defaults and stop ids from
  `generation_config.json`, and not `sequence_bias`.
- llama.cpp and other GGUF programs (read): what the model has learned. Converters have lost the
  text of added tokens; look at what the triggers decode to.

`sequence_bias` acts wherever the model writes `<EASY>`, not at the start of the answer alone.

{learned}

Two-call recipe, for any engine that serves completions: ask for the opening alone ({opening}); if
it begins with `<EASY>`, send prompt + {easy} + {short} and let it run to its end, else ask for the
whole answer. The prefix cache makes the second call cheap. The code is in `docs/serving.md` of
l2s_jax.
"""

PLAIN = """
The triggers are ordinary text here, several tokens each. A model may close `<EASY>` with a piece
that also holds the character after it; `sequence_bias` then does not see it, and the two-call
recipe, which looks at text, does.
"""

UNMEASURED = (
    "How surely this model writes the short trigger by itself was not measured: `l2s eval --set"
    " model=THIS_FOLDER` says so."
)


def routing_section(triggers: Triggers, summary: Mapping[str, Any] | None) -> str:
    """The card's section on routing.

    Args:
      summary: in the shape of `summary.json`; its numbers are quoted, never computed.
    """
    ids = f" (ids {list(triggers.short)} after {list(triggers.easy)})"
    newline = "" if triggers.spelling == "added" else "\\n"
    words = {word: f"`<{word.upper()}>{newline}`" for word in ("easy", "long", "short")}
    learned = list(learned_lines(summary)) if summary is not None else []
    opening = "one token" if triggers.spelling == "added" else "eight tokens are enough"
    text = ROUTING.format(
        opening=opening,
        ids=ids,
        version=TRIED_WITH,
        learned="\n".join(learned) or UNMEASURED,
        **words,
    )
    return text + (PLAIN if triggers.spelling == "plain" else "")


def learned_lines(summary: Mapping[str, Any]) -> Iterator[str]:
    """A line for each stage: how surely it opens the short path where nothing forces it."""
    for stage, modes in summary["stages"].items():
        p = modes.get("auto", {}).get("p_short_after_easy")
        wrote = modes.get("free", {}).get("wrote_short_after_easy")
        said = []
        if p is not None:
            said.append(
                f"P(short trigger | its own `<EASY>`) mean {p['mean']:.4f}, 5th percentile"
                f" {p['percentile_5']:.4f}, lowest {p['lowest']:.4f} of {p['num_answers']} answers"
            )
        if wrote is not None:
            said.append(
                f"unforced it wrote the short trigger in {100 * wrote['share']:.1f} % of"
                f" {wrote['num_answers']}"
            )
        if said:
            yield f"- {stage}, left to itself: {'; '.join(said)} (source: Results, below)."

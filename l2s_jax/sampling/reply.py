"""A server's answer as a rollout.

Lives here: `RemoteRollout`, and reading one from the JSON of /v1/chat/completions, which is
believed in nothing. Not here: asking (`sampling/remote.py`).

Source: the OpenAI chat completions reference; `reasoning_content` and `reasoning` are what vLLM,
SGLang, DeepSeek and OpenRouter add to a message for the thought of a reasoning model.
"""

import dataclasses
from typing import Any

import numpy as np

from l2s_jax.types import FinishReason, Rollout

FINISH: dict[str, FinishReason] = {"stop": "stop", "length": "length"}


class Unreadable(ValueError):
    """The answer is not what the protocol says; asking again may help."""


class Unusable(ValueError):
    """The answer is no completion: it was filtered, or calls a tool."""

    def __init__(self, message: str, text: str | None):
        super().__init__(message)
        self.text = text  # what there was


@dataclasses.dataclass(frozen=True, kw_only=True)
class RemoteRollout(Rollout):
    """A completion from a server, which tells text and no ids.

    `prompt_ids`, `token_ids`, `logp` and `free` are therefore empty: it can be read and verified,
    and encoded by the student's tokenizer, but no loss can take its log-probs.
    """

    model: str  # as the server names it
    seed: int | None  # that was sent; None where none was
    num_tries: int  # requests that it took, failed ones included
    thought: str | None  # what a reasoning model wrote before `text`, where the server parts them
    prompt_tokens: int | None  # by the server's count; None where it gives none
    completion_tokens: int | None  # so too; the thought is counted
    pieces: tuple[str, ...]  # the tokens of `text` as texts; empty where the server gives none
    pieces_logp: np.ndarray  # [len(pieces)] float32, nats, as the server means them; nan: not given
    fingerprint: str | None  # of the server's setup: draws may change where this does

    @property
    def num_tokens(self) -> int:
        """By the server's count, of its own tokenizer."""
        if self.completion_tokens is None:
            raise ValueError(
                f"{self.id!r}: the server gave no token count (usage.completion_tokens). Count the"
                " text with a tokenizer of yours."
            )
        return self.completion_tokens


def read_reply(
    reply: Any, *, id: str, sample: int, seed: int | None, num_tries: int
) -> RemoteRollout:
    """The one completion of a parsed reply; `Unreadable` or `Unusable` where it has none."""
    choice = _only_choice(reply)
    message = _object(choice, "message", "choices[0]")
    text, thought = _text(message, "content"), _thought(message)
    reason = choice.get("finish_reason")
    if reason not in FINISH:
        raise Unusable(f"finish_reason={reason!r}, neither stop nor length", text)
    usage = reply.get("usage")
    pieces, pieces_logp = _pieces(choice.get("logprobs"))
    nothing = np.zeros(0, np.int32)
    return RemoteRollout(
        id=id,
        sample=sample,
        prompt_ids=nothing,
        token_ids=nothing,
        logp=np.zeros(0, np.float32),
        free=np.zeros(0, bool),
        text=text or "",  # a model may stop at once, or spend its whole budget on a thought
        route="none",
        p_easy=None,
        finish_reason=FINISH[reason],
        model=_text(reply, "model") or "",
        seed=seed,
        num_tries=num_tries,
        thought=thought,
        prompt_tokens=_count(usage, "prompt_tokens"),
        completion_tokens=_count(usage, "completion_tokens"),
        pieces=pieces,
        pieces_logp=pieces_logp,
        fingerprint=_text(reply, "system_fingerprint"),
    )


def _only_choice(reply: Any) -> dict[str, Any]:
    choices = reply.get("choices") if isinstance(reply, dict) else None
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise Unreadable(f"the reply has no one entry in `choices`: {_brief(reply)}")
    return choices[0]


def _object(record: dict[str, Any], field: str, where: str) -> dict[str, Any]:
    if not isinstance(record.get(field), dict):
        raise Unreadable(f"{where}.{field} is no object: {_brief(record)}")
    return record[field]


def _text(record: dict[str, Any], field: str) -> str | None:
    value = record.get(field)
    if value is not None and not isinstance(value, str):
        raise Unreadable(f"{field} is no text: {_brief(value)}")
    return value


def _thought(message: dict[str, Any]) -> str | None:
    return _text(message, "reasoning_content") or _text(message, "reasoning")


def _count(usage: Any, field: str) -> int | None:
    value = usage.get(field) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _pieces(logprobs: Any) -> tuple[tuple[str, ...], np.ndarray]:
    """Token texts and log-probs. An odd shape here costs these, not the text that was paid for."""
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    rows = content if isinstance(content, list) else []
    if not all(isinstance(row, dict) and isinstance(row.get("token"), str) for row in rows):
        rows = []
    logps = [row.get("logprob") for row in rows]
    known = [logp if isinstance(logp, int | float) else float("nan") for logp in logps]
    return tuple(row["token"] for row in rows), np.asarray(known, np.float32)


def _brief(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 200 else text[:200] + " ..."

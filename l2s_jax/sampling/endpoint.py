"""A model behind an OpenAI-compatible server, asked once.

Lives here: `RemoteConfig`, and `Endpoint`, which sends one request and says what went wrong in
words that are safe to show. Nothing else touches the openai package or the key. Not here: who is
asked what and how often (`sampling/remote.py`), what an answer means (`sampling/reply.py`).

The key is read from the environment for each call and never kept, saved, logged or shown: errors of
the openai package hold the request with its headers, so none of them leaves from here.
"""

import dataclasses
import json
import os
import re
import time
import urllib.parse
from typing import Any, Literal

from l2s_jax.sampling.connections import Connections
from l2s_jax.sampling.retry import retry_after

CONNECT_SECONDS = 30.0  # at most, before a try counts as failed: who is there answers sooner
MAX_REPLY_BYTES = 64 << 20  # read into memory at most
OWN_FIELDS = ("model", "messages", "temperature", "top_p", "seed", "logprobs", "n", "stream")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RemoteConfig:
    """A model behind a server, and how it is asked."""

    base_url: str  # with the version: http://localhost:8000/v1
    model: str
    api_key_env: str | None = "OPENAI_API_KEY"  # the variable's name; None: the server needs none
    num_samples: int = 1  # of each problem
    temperature: float = 1.0  # 0 is greedy
    top_p: float = 1.0
    max_new_tokens: int = 4096  # the thought of a reasoning model included
    length_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    seeded: bool = True  # False for servers that refuse the field `seed`
    logprobs: bool = False  # ask for the tokens' log-probs; some servers refuse
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)  # more fields of the request
    concurrency: int = 16  # requests at a time
    requests_per_minute: float | None = None  # None: as many as the server takes
    tokens_per_minute: float | None = None  # prompt and completion together
    timeout_seconds: float = 600.0  # without a byte from the server
    answer_seconds: float = 3600.0  # for one answer, however it trickles in
    max_retries: int = 6  # of one request
    backoff_seconds: float = 1.0  # before the first retry; then doubled, up to a minute
    max_wait_seconds: float = 300.0  # a Retry-After beyond this counts as a failure

    def __post_init__(self):
        _check_url(self.base_url)
        # Neither message shows its value: what stands there by mistake may be a key.
        if self.api_key_env is not None and not re.fullmatch(r"[A-Za-z_]\w*", self.api_key_env):
            raise ValueError(
                "RemoteConfig.api_key_env is not the name of an environment variable. Give the"
                ' name, such as "OPENAI_API_KEY", never the key itself; null for no key.'
            )
        for name in ("num_samples", "max_new_tokens", "concurrency"):
            if getattr(self, name) < 1:
                raise ValueError(f"RemoteConfig.{name}={getattr(self, name)}: at least 1.")
        if not self.model:
            raise ValueError("RemoteConfig.model is empty: give a name that GET /models lists.")
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ValueError(
                f"RemoteConfig.temperature={self.temperature}, top_p={self.top_p}: a temperature"
                " is 0 (greedy) or above, top_p above 0 and at most 1."
            )
        for name in ("timeout_seconds", "answer_seconds"):
            if not getattr(self, name) > 0:
                raise ValueError(f"RemoteConfig.{name}={getattr(self, name)}: above 0.")
        for name in ("requests_per_minute", "tokens_per_minute"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(
                    f"RemoteConfig.{name}={getattr(self, name)}: above 0, or null for no limit."
                )
        for name in ("max_retries", "backoff_seconds", "max_wait_seconds"):
            if getattr(self, name) < 0:
                raise ValueError(f"RemoteConfig.{name}={getattr(self, name)}: at least 0.")
        taken = sorted(set(self.extra) & {*OWN_FIELDS, self.length_field})
        if taken:
            raise ValueError(
                f"RemoteConfig.extra holds {', '.join(taken)}, which RemoteConfig sets or does"
                " not support. Use its own fields, and leave these out."
            )


def _check_url(url: str) -> None:
    parts = urllib.parse.urlsplit(url)
    if parts.username or parts.password or parts.query:
        raise ValueError(
            "RemoteConfig.base_url holds a user, a password or a query, which would be saved with"
            " the run. Leave them out and name the key's variable in api_key_env."
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(
            f"RemoteConfig.base_url={url!r}: give a whole address such as http://localhost:8000/v1."
        )


class Trouble(Exception):
    """A request that gave nothing to read."""

    def __init__(self, message: str, *, again: bool, after: float | None = None):
        super().__init__(message)
        self.again = again  # True: the same request may well succeed later
        self.after = after  # seconds, as the server says


class Endpoint:
    """Connections to one server; to be used in a `with`. Safe from several threads."""

    def __init__(self, cfg: RemoteConfig):
        self._cfg, self._key, self._openai = cfg, read_key(cfg), import_openai()
        self._connections = Connections()
        connect = min(CONNECT_SECONDS, cfg.timeout_seconds)
        self._client = self._openai.OpenAI(
            base_url=cfg.base_url,
            api_key=self._key,
            # Said outright, since OPENAI_CUSTOM_HEADERS may hold another server's.
            default_headers={"Authorization": f"Bearer {self._key}"},
            timeout=self._openai.Timeout(cfg.timeout_seconds, connect=connect),
            max_retries=0,  # its own retries tell nobody how many there were
            http_client=self._openai.DefaultHttpxClient(
                event_hooks={"request": [self._connections.watch]}
            ),
        )

    def __enter__(self) -> "Endpoint":
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def hang_up(self) -> None:
        """Ends all requests that are at work; their threads get a `Trouble` at once."""
        self._connections.end()

    def ask(self, question: str, seed: int | None) -> Any:
        """The parsed JSON of a chat completion; raises `Trouble` alone."""
        openai = self._openai
        try:
            with self._client.chat.completions.with_streaming_response.create(
                model=self._cfg.model,
                messages=[{"role": "user", "content": question}],
                extra_body=_body(self._cfg, seed),
            ) as response:
                return _parse(self._read(response.http_response))
        except Trouble as error:
            trouble = error
        except openai.APIStatusError as error:
            trouble = _of_status(error)
        except openai.APIConnectionError as error:  # timeouts are of this kind
            trouble = Trouble(str(error), again=True)
        except Exception as error:  # a bug, here or there: all stops, and the caller reads why
            trouble = Trouble(f"{type(error).__name__}: {error}", again=False)
        # Out here, so that no context is attached.
        raise Trouble(self.safe(str(trouble)), again=trouble.again, after=trouble.after)

    def _read(self, response: Any) -> bytes:
        """The whole body, unless the connection breaks, it takes too long, or has no end."""
        deadline, parts, size = time.monotonic() + self._cfg.answer_seconds, [], 0
        chunks = response.iter_bytes()
        while True:
            try:
                part = next(chunks, None)
            except Exception as error:  # of the transport, which the openai package lets through
                told = f"the answer broke off after {size} bytes: {type(error).__name__}: {error}"
                raise Trouble(told, again=True) from None
            if part is None:
                return b"".join(parts)
            parts.append(part)
            size += len(part)
            if time.monotonic() > deadline:
                told = f"only {size} bytes in answer_seconds={self._cfg.answer_seconds:g}"
                raise Trouble(told, again=True)
            if size > MAX_REPLY_BYTES:
                told = f"the answer has more than {MAX_REPLY_BYTES >> 20} MiB: no completion has"
                raise Trouble(told, again=True)

    def safe(self, message: str) -> str:
        """The message without the key, should the server repeat it, and of a bounded length."""
        shown = message.replace(self._key, "[key]") if self._cfg.api_key_env else message
        return shown if len(shown) <= 1000 else shown[:1000] + " ..."


def _of_status(error: Any) -> Trouble:
    status, body = error.status_code, error.body
    said = body.get("message") or body.get("detail") if isinstance(body, dict) else None
    broke = error.code == "insufficient_quota"  # a 429 that no waiting mends
    return Trouble(
        f"HTTP {status}: {said or error.response.text or error.message}",
        again=not broke and (status >= 500 or status in (408, 429)),
        after=retry_after(error.response.headers),
    )


def _body(cfg: RemoteConfig, seed: int | None) -> dict[str, Any]:
    body = {
        "temperature": cfg.temperature,
        "top_p": cfg.top_p,
        cfg.length_field: cfg.max_new_tokens,
    }
    body |= {} if seed is None else {"seed": seed}
    return body | ({"logprobs": True} if cfg.logprobs else {}) | cfg.extra


def _parse(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError as error:
        told = f"the answer is no JSON ({error}); it begins {content[:200]!r}"
    raise Trouble(told, again=True)


def import_openai() -> Any:
    """The openai package, which is in an extra: only who asks a server needs it."""
    try:
        import openai
    except ModuleNotFoundError:
        raise ValueError(
            "RemoteSampler needs the openai package: in this checkout pip install -e '.[teachers]'."
        ) from None
    return openai


def read_key(cfg: RemoteConfig) -> str:
    """The key from the environment."""
    if cfg.api_key_env is None:
        return "none"  # never empty: the client would send OPENAI_API_KEY to whatever server it is
    key = os.environ.get(cfg.api_key_env, "").strip()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        state = "is not set" if not key else "holds characters that no key has"
        raise ValueError(
            f"RemoteConfig.api_key_env: the environment variable {cfg.api_key_env} {state}. Export"
            " the key there; api_key_env=null for a server that needs none."
        )
    return key

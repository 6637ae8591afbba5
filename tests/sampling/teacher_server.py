"""A real HTTP server on loopback that answers /v1/chat/completions by a rule."""

import contextlib
import dataclasses
import http.server
import json
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

from l2s_jax.sampling.engine import Engine
from l2s_jax.sampling.policy import Policy
from l2s_jax.sampling.requests import Knobs, Request, SamplingConfig
from l2s_jax.sharding import MeshConfig, make_mesh

MODEL = "tiny-teacher"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reply:
    """What goes over the wire."""

    body: Any  # text as it is; all else as JSON
    status: int = 200
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    delay: float = 0.0  # seconds before it
    drip: float = 0.0  # seconds between its pieces
    cut: float = 1.0  # share of the body that is sent before the connection is reset


def completion(text: Any, finish: str | None = "stop", **message: Any) -> dict[str, Any]:
    """A reply in the words of the protocol."""
    tokens = len(text.split()) if isinstance(text, str) else 0
    message = {"role": "assistant", "content": text} | message
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": MODEL,
        "system_fingerprint": "fp_7",
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        "usage": {"prompt_tokens": 3, "completion_tokens": tokens, "total_tokens": 3 + tokens},
    }


def echo(body: dict[str, Any], _: int) -> Reply:
    """Repeats the question; the sampler's own words tell which answer is whose."""
    return Reply(body=completion(f"{body['messages'][0]['content']} s{body.get('seed')}"))


def failed(status: int, message: str = "no", headers: Any = None, **error: Any) -> Reply:
    return Reply(status=status, body={"error": {"message": message} | error}, headers=headers or {})


def misbehaving(rule: "Rule", share: float = 0.5) -> "Rule":
    """The rule behind a bad server: so many of the requests meet a fault, each kind as often."""

    def answer(body: dict[str, Any], before: int) -> Reply:
        chance = random.Random(f"{body['messages']} {body.get('seed')} {before}")
        good = rule(body, before)
        faults = [
            failed(429, headers={"retry-after-ms": "5"}),
            failed(429),
            failed(500),
            failed(503, headers={"Retry-After": "0.01"}),
            dataclasses.replace(good, cut=0.0),  # a reset before the first byte
            dataclasses.replace(good, cut=0.6),  # and in the middle
            dataclasses.replace(good, drip=0.002),  # slow, but whole
            Reply(body=""),
            Reply(body="<html>busy</html>"),
            Reply(body=json.dumps(good.body)[:-9]),
            Reply(body={"choices": []}),
            Reply(body={"choices": [{"message": {"content": 7}, "finish_reason": "stop"}]}),
        ]
        return chance.choice(faults) if chance.random() < share else good

    return answer


Rule = Callable[[dict[str, Any], int], Reply]  # body, how often this question came before → reply


class Server:
    """What was asked, and how many asked at once."""

    def __init__(self, rule: Rule):
        self.rule, self.lock = rule, threading.Lock()
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.answered: list[str] = []  # questions that got a 200
        self.active = self.most_active = 0
        self.url = ""
        self.closing = threading.Event()

    def count(self, question: str) -> int:
        return sum(body["messages"][0]["content"] == question for body in self.bodies)

    def reply(self, path: str, headers: dict[str, str], body: dict[str, Any]) -> Reply:
        if path != "/v1/chat/completions":
            return failed(404, f"no route {path}")
        question = body["messages"][0]["content"]
        with self.lock:
            before = self.count(question)
            self.bodies.append(body)
            self.headers.append(headers)
            self.times.append(time.monotonic())
            self.active += 1
            self.most_active = max(self.most_active, self.active)
        try:
            reply = self.rule(body, before)
            self.closing.wait(reply.delay)
        finally:
            with self.lock:
                self.active -= 1
        if reply.status == 200:
            self.answered.append(question)
        return reply


@contextlib.contextmanager
def serving(rule: Rule) -> Iterator[Server]:
    server = Server(rule)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle(self):
            with contextlib.suppress(ConnectionError):  # of a client that has gone
                super().handle()

        def do_POST(self):
            size = int(self.headers["Content-Length"])
            if len(data := self.rfile.read(size)) < size:
                self.close_connection = True  # who asked has gone
                return
            self.answer(json.loads(data))

        def answer(self, body):
            headers = {name.lower(): value for name, value in self.headers.items()}
            reply = server.reply(self.path, headers, body)
            data = reply.body if isinstance(reply.body, str) else json.dumps(reply.body)
            self.send_response(reply.status)
            for name, value in {"Content-Type": "application/json", **reply.headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data.encode())))
            self.end_headers()
            self.send(data.encode(), reply)

        def send(self, data, reply):
            sent = data[: int(len(data) * reply.cut)]
            pieces = (
                [sent] if not reply.drip else [sent[n : n + 64] for n in range(0, len(sent), 64)]
            )
            for piece in pieces:
                self.wfile.write(piece)
                server.closing.wait(reply.drip)
            if reply.cut < 1:
                now = struct.pack("ii", 1, 0)  # reset, not closed in good order
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, now)
                self.connection.close()
                self.close_connection = True

        def log_message(self, format, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listener:
        # All that was asked is in `bodies` at the end: clients that close their sockets end these.
        listener.daemon_threads = False
        server.url = f"http://127.0.0.1:{listener.server_address[1]}/v1"
        thread = threading.Thread(target=listener.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server
        finally:
            server.closing.set()
            listener.shutdown()
            thread.join()


def policy_rule(policy: Policy, max_new_tokens: int) -> Rule:
    """Samples from a policy; the request's seed is the key, so that a seed fixes the draws."""
    cfg = SamplingConfig(max_rows=1, max_new_tokens=max_new_tokens)
    engine = Engine(policy, cfg, make_mesh(MeshConfig(), jax.devices()[:1]))
    tokenizer, lock = policy.tokenizer, threading.Lock()
    assert tokenizer is not None

    def answer(body: dict[str, Any], _: int) -> Reply:
        knobs = Knobs(
            temperature=body["temperature"],
            top_p=body["top_p"],
            max_new_tokens=body["max_tokens"],
            mode="free",
        )
        ids = tuple(tokenizer.prompt(body["messages"]))
        with lock:
            [rollout] = engine.sample(
                [Request(id="asked", prompt_ids=ids, knobs=(knobs,))], jax.random.key(body["seed"])
            )
        reply = completion(rollout.text, rollout.finish_reason)
        reply["usage"] = {"prompt_tokens": len(ids), "completion_tokens": rollout.num_tokens}
        return Reply(body=reply)

    return answer

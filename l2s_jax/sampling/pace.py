"""Requests and tokens per minute, kept to by spacing requests evenly.

Lives here: `Pace`, which says when the next request may go. Not here: how long a server asks to
wait once it has had enough (`sampling/retry.py`).

Evenly spaced and without bursts, so that no window of a minute, however a server lays it, holds
more requests than allowed. Tokens of an answer are known only afterwards: a request is charged with
what answers had on average so far (the whole budget before the first one), and the difference is
made up for when the answer is there.
"""

import threading
import time
from collections.abc import Callable

CHARACTERS_PER_TOKEN = 3  # of a question; on the safe side for English and LaTeX


class Pace:
    """When requests may go. Safe from several threads.

    Args:
      clock: seconds; a test's own.
    """

    def __init__(
        self,
        requests_per_minute: float | None,
        tokens_per_minute: float | None,
        max_new_tokens: int,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._per_request = 60 / requests_per_minute if requests_per_minute else 0.0
        self._per_token = 60 / tokens_per_minute if tokens_per_minute else 0.0
        self._budget, self._clock, self._lock = max_new_tokens, clock, threading.Lock()
        self._request_free = self._tokens_free = clock()  # when the next one may go
        self._num_answers = self._sum_tokens = 0

    def book(self, question: str) -> tuple[float, float]:
        """(seconds to wait before sending, tokens that were charged)."""
        with self._lock:
            mean = self._sum_tokens / self._num_answers if self._num_answers else self._budget
            tokens = len(question) / CHARACTERS_PER_TOKEN + mean
            now = self._clock()
            start = max(now, self._request_free, self._tokens_free)
            self._request_free = start + self._per_request
            self._tokens_free = max(start, self._tokens_free) + tokens * self._per_token
            return start - now, tokens

    def settle(self, charged: float, prompt_tokens: int, completion_tokens: int) -> None:
        """Corrects what was charged, once it is known."""
        with self._lock:
            self._num_answers += 1
            self._sum_tokens += completion_tokens
            spent = prompt_tokens + completion_tokens
            self._tokens_free += (spent - charged) * self._per_token

    def refund(self, charged: float) -> None:
        """Takes the tokens of a request back that the server did not answer."""
        with self._lock:
            self._tokens_free -= charged * self._per_token

"""What asking a teacher has cost so far, and the line that shows it.

Lives here: counts, prices, the projection, and the live line. Not here: asking
(`curation/asking.py`).

Prices are per million tokens, in whatever currency the caller thinks in. An answer counts as
accepted when the verifier finds it right; that lags a little behind, since it is decided beside.
"""

import sys
from collections.abc import Iterator
from typing import Any

from tqdm import tqdm

from l2s_jax.curation.ledger import Answer

MILLION = 1_000_000


class Bill:
    """Counts of one teacher's answers. Written by one thread."""

    def __init__(self, teacher: str, total: int, price_in: float, price_out: float):
        self.teacher, self.total = teacher, total
        self._price_in, self._price_out = price_in, price_out
        self.reused = self.new = 0  # from the ledger, and asked for in this run
        self.truncated = self.unusable = self.missing = 0
        self.accepted = 0  # verified right
        self.unmetered = 0  # answers whose tokens the server did not tell
        self.prompt_tokens = self.completion_tokens = 0  # of all
        self.price = self.price_new = 0.0  # of all, and of what this run asked

    @property
    def done(self) -> int:
        return self.reused + self.new

    @property
    def failed(self) -> int:
        """Without a completion: filtered and the like, or given up."""
        return self.unusable + self.missing

    def add(self, answer: Answer, *, is_new: bool) -> None:
        price = self._price(answer)
        self.new += is_new
        self.reused += not is_new
        self.price += price
        self.price_new += price if is_new else 0.0
        self.truncated += answer.finish_reason == "length"
        self.unusable += answer.finish_reason not in ("stop", "length")
        self.unmetered += answer.completion_tokens is None
        self.prompt_tokens += answer.prompt_tokens or 0
        self.completion_tokens += answer.completion_tokens or 0

    def _price(self, answer: Answer) -> float:
        into = (answer.prompt_tokens or 0) * self._price_in
        return (into + (answer.completion_tokens or 0) * self._price_out) / MILLION

    @property
    def projected(self) -> float:
        """The price of all that is wanted, if the rest costs what the answers so far did."""
        return self.price * self.total / self.done if self.done else 0.0

    def line(self) -> str:
        """For people, behind the bar with done, total, rate and time left."""
        parts = [f"accepted {self.accepted}", f"failed {self.failed}", f"cut {self.truncated}"]
        parts += [f"{_short(self.prompt_tokens + self.completion_tokens)} tokens"]
        if self._price_in or self._price_out:
            parts += [f"price {self.price:.4g} of about {self.projected:.4g}"]
        return ", ".join(parts)

    def record(self) -> dict[str, Any]:
        """As JSON."""
        names = "total new reused truncated unusable missing accepted unmetered".split()
        tokens = {"prompt": self.prompt_tokens, "completion": self.completion_tokens}
        per_accepted = self.price / self.accepted if self.accepted else None
        price = {"all": self.price, "this_run": self.price_new, "per_accepted": per_accepted}
        counts = {name: getattr(self, name) for name in names}
        return {"teacher": self.teacher} | counts | {"tokens": tokens, "price": price}


class LiveLine:
    """A bar on stderr with the bill behind it."""

    def __init__(self, bill: Bill):
        self._bill = bill
        self._bar = tqdm(total=bill.total, desc=bill.teacher, unit="answer", file=sys.stderr)

    def __enter__(self) -> "LiveLine":
        return self

    def __exit__(self, *_: object) -> None:
        self.show()
        self._bar.close()

    def show(self) -> None:
        self._bar.set_postfix_str(self._bill.line(), refresh=False)
        self._bar.update(self._bill.done - self._bar.n)


def followed(answers: Iterator[tuple[Answer, bool]], bill: Bill) -> Iterator[Answer]:
    """The answers as they come, each on the bill and on the line; True marks a new one."""
    with LiveLine(bill) as live:
        for answer, is_new in answers:
            bill.add(answer, is_new=is_new)
            live.show()
            yield answer


def _short(number: int) -> str:
    for size, letter in ((MILLION, "M"), (1000, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return str(number)

"""The arithmetic world: problems, two teachers and a tokenizer that need no download.

A problem is a digit and a chain of operations modulo 10, such as `3 *7 +1 -3 *3`; its level is
the number of operations. The long teacher writes the result of every operation and then re-reads
them up to three times; it is always right. The terse teacher writes three results, whatever the
level, so the harder the problem the more operations each of its jumps spans; it errs per jump,
more on wide jumps and on multiplications. Nobody told it which problems those are: what is EASY
has to be found by sampling it and verifying.

Lives here: all of that, and the plain documents that a base model is trained on. Not here: the
base model itself (`data/arithmetic_base`, made by `configs/base_arithmetic.py`).
"""

import dataclasses
import zlib
from typing import Any, Literal

import numpy as np

from l2s_jax.data.sources import LeftOut
from l2s_jax.tokens.layouts import Example, assemble
from l2s_jax.tokens.tokenizer import Tokenizer, from_hf
from l2s_jax.types import Problem, Trace

LEVELS = (3, 4, 5, 6, 7, 8)
OPERATIONS = {
    "+1": lambda x: (x + 1) % 10,
    "-1": lambda x: (x - 1) % 10,
    "+3": lambda x: (x + 3) % 10,
    "-3": lambda x: (x - 3) % 10,
    "*3": lambda x: (x * 3) % 10,
    "*7": lambda x: (x * 7) % 10,
}
NUM_JUMPS = 3  # results that the terse teacher writes
JUMP_SUCCESS = (0.98, 0.94, 0.25)  # of the terse teacher, for jumps of 1, 2 and 3 operations
HARD_FACTOR = 0.52  # for every multiplication in the jump
TALKATIVE_SHARE = 0.3  # of terse answers that say their last result twice
TAUGHT_PASSES = (0.15, 0.20, 0.45, 0.20)  # how often the long teacher re-reads its results
READ_PASSES = (0.0, 0.2, 0.6, 0.2)  # the same in what the base model has read
TERSE_SHARE = 0.65  # of the base model's documents, up to the level it answers tersely
STOP = "<end>"
VOCAB_SIZE = 32  # rows of the base model's embedding; those past the words are free
_WORDS = (STOP, *"0123456789", *OPERATIONS, "=", "steps", "in", "brief", "so", "check")

Split = Literal["train", "test"]


def results(question: str) -> list[int]:
    """The digit a question starts from, and the value after each of its operations."""
    start, *operations = question.split()
    values = [int(start)]
    for operation in operations:
        values.append(OPERATIONS[operation](values[-1]))
    return values


def split_of(question: str) -> Split:
    """Which half of the world a question belongs to; a fixed fifth of all is for testing."""
    return "test" if zlib.crc32(question.encode()) % 5 == 0 else "train"


def make_question(level: int, rng: np.random.Generator) -> str:
    start = str(rng.integers(10))
    return " ".join([start, *rng.choice(list(OPERATIONS), size=level)])


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArithmeticProblems:
    """Distinct problems, the same number at every level; train and test never share one."""

    split: Split = "train"
    num_per_level: int = 200
    seed: int = 0
    levels: tuple[int, ...] = LEVELS

    def __post_init__(self):
        if self.num_per_level < 1:
            raise ValueError(
                f"ArithmeticProblems.num_per_level={self.num_per_level}: must be at least 1."
            )
        deepest = NUM_JUMPS * len(JUMP_SUCCESS)
        if not self.levels or not all(1 <= level <= deepest for level in self.levels):
            raise ValueError(
                f"ArithmeticProblems.levels={self.levels}: a level is a number of operations, 1 to"
                f" {deepest}. Name one at least."
            )
        for level in self.levels:
            # A fifth of all is for testing; the slack keeps drawing without repeats quick.
            percent = 15 if self.split == "test" else 75
            room = 10 * len(OPERATIONS) ** level * percent // 100
            if self.num_per_level > room:
                raise ValueError(
                    f"ArithmeticProblems.num_per_level={self.num_per_level}: level {level} has"
                    f" room for {room} distinct problems. Ask for fewer or drop the level."
                )

    def load(self) -> list[Problem]:
        problems = []
        for level in self.levels:
            rng = np.random.default_rng((self.seed, level, self.split == "test"))
            seen: set[str] = set()
            while len(seen) < self.num_per_level:
                question = make_question(level, rng)
                if split_of(question) != self.split or question in seen:
                    continue
                seen.add(question)
                answer = str(results(question)[-1])
                name = question.replace(" ", "")
                problems.append(Problem(id=name, question=question, answer=answer, level=level))
        return problems


def jumps(num_operations: int) -> list[int]:
    """How many operations each written result of a terse answer spans; the widest come first."""
    lines = min(NUM_JUMPS, num_operations)
    small, wide = divmod(num_operations, lines)
    return [small + 1] * wide + [small] * (lines - wide)


def jump_success(operations: list[str]) -> float:
    """Probability that the terse teacher's result after these operations is right."""
    hard = sum(operation.startswith("*") for operation in operations)
    return JUMP_SUCCESS[len(operations) - 1] * HARD_FACTOR**hard


def long_thought(question: str, rng: np.random.Generator, passes_p: tuple[float, ...]) -> str:
    """Every operation with its result, then some passes over the results.

    Args:
      passes_p: probability of no pass, of one, two, and so on.
    """
    start, *operations = question.split()
    values = [str(value) for value in results(question)]
    steps = [word for pair in zip(operations, values[1:], strict=True) for word in pair]
    passes = int(rng.choice(len(passes_p), p=passes_p))
    return " ".join([start, *steps, *(["check", *values[1:]] * passes)])


def short_thought(question: str, rng: np.random.Generator, *, errs: bool) -> tuple[str, int]:
    """Three results and where they lead.

    A slip goes on from the wrong value, unnoticed. There is one at most: every operation is one
    to one, so the answer is then wrong for sure, and a right answer vouches for its path.
    """
    value, operations = results(question)[0], question.split()[1:]
    written, at, slipped = [], 0, False
    for width in jumps(len(operations)):
        taken = operations[at : at + width]
        at += width
        value = results(" ".join([str(value), *taken]))[-1]
        if errs and not slipped and rng.random() > jump_success(taken):
            value, slipped = (value + int(rng.integers(1, 10))) % 10, True
        written.append(str(value))
    if errs and rng.random() < TALKATIVE_SHARE:
        written.append(str(value))
    return " ".join(written), value


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArithmeticTeachers:
    """Both teachers on training problems, as curation wants them (`data/sources.py`)."""

    problems: ArithmeticProblems = ArithmeticProblems(num_per_level=400)
    seed: int = 0

    def load(self) -> list[Problem]:
        return self.problems.load()

    def left_out(self) -> LeftOut:
        return LeftOut()

    def long(self, problem: Problem) -> Trace:
        """The step-by-step teacher's trace."""
        rng = self._rng(problem, 0)
        return Trace(
            problem_id=problem.id,
            teacher="steps",
            thought=long_thought(problem.question, rng, TAUGHT_PASSES),
            answer=problem.answer,
        )

    def short_candidates(self, problem: Problem, k: int) -> list[Trace]:
        """`k` independent trials of the terse teacher."""
        traces = []
        for trial in range(k):
            thought, value = short_thought(
                problem.question, self._rng(problem, 1 + trial), errs=True
            )
            traces.append(
                Trace(problem_id=problem.id, teacher="terse", thought=thought, answer=str(value))
            )
        return traces

    def _rng(self, problem: Problem, draw: int) -> np.random.Generator:
        # By name and not by history: a change of k or of the set changes no other draw.
        return np.random.default_rng((self.seed, zlib.crc32(problem.id.encode()), draw))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArithmeticDocuments:
    """What a base model has read: answers in words, without triggers, in either style.

    `3 +1 ... = steps ... so 4` or `= in brief ... so 4`, right every time, terse ones only up to
    `max_terse_level`: the base can answer tersely, and not everything.
    """

    num_documents: int = 60_000
    seed: int = 0
    max_terse_level: int = 6

    def prepare(self, policy: Any) -> tuple[Any, list[Example], list[str]]:
        """The policy as it is, one example per document, and no id of any left out."""
        return policy, self.examples(policy.tokenizer), []

    def examples(self, tokenizer: Tokenizer) -> list[Example]:
        """One example per document; the words after the question are trained."""
        rng, examples = np.random.default_rng(self.seed), []
        while len(examples) < self.num_documents:
            question = make_question(int(rng.choice(LEVELS)), rng)
            if split_of(question) == "test":
                continue
            examples.append(self._document(len(examples), question, rng, tokenizer))
        return examples

    def _document(
        self, number: int, question: str, rng: np.random.Generator, tokenizer: Tokenizer
    ) -> Example:
        answer = results(question)[-1]
        terse = rng.random() < TERSE_SHARE and len(question.split()) - 1 <= self.max_terse_level
        if terse:
            text = f"in brief {short_thought(question, rng, errs=False)[0]} so {answer}"
        else:
            text = f"steps {long_thought(question, rng, READ_PASSES)} so {answer}"
        completion = [*tokenizer.encode(text), tokenizer.stop_ids[0]]
        return assemble(f"document-{number}", tokenizer.ask(question), [[(completion, 1.0)]])


def make_tokenizer() -> Tokenizer:
    """The world's tokenizer: one id per word, words apart by spaces, no unknown word."""
    from tokenizers import Tokenizer as Fast
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    fast = Fast(WordLevel({word: i for i, word in enumerate(_WORDS)}, unk_token=STOP))
    fast.pre_tokenizer = WhitespaceSplit()
    hf = PreTrainedTokenizerFast(tokenizer_object=fast, eos_token=STOP, pad_token=STOP)
    hf.chat_template = (
        "{% for message in messages %}{{ message['content'] }}{% endfor %}"
        "{% if add_generation_prompt %} ={% endif %}"
    )
    return from_hf(hf, [_WORDS.index(STOP)])

"""The automaton against a reader of decoded text."""

import functools

import numpy as np
import pytest

from l2s_jax.data.arithmetic import make_tokenizer
from l2s_jax.tokens.automaton import BOTH, OFF, TO_EASY, TO_LONG, route_table
from l2s_jax.tokens.tokenizer import load_tokenizer
from l2s_jax.tokens.triggers import EASY, LONG, SHORT, Triggers, add_triggers, find_triggers

VOCAB = 151_936  # rows of Qwen2.5's table; the tokenizer has fewer tokens


@pytest.fixture(scope="module")
def qwen(shared_data):
    return load_tokenizer(shared_data / "tokenizers" / "qwen2.5")


@pytest.fixture(scope="module")
def table(qwen):
    return route_table(find_triggers(qwen, "plain"), qwen, VOCAB)


@pytest.fixture(scope="module")
def pieces(qwen):
    """(id, text) of every piece that lies inside a trigger or reaches out of its end."""
    texts = {i: qwen.decode([i]) for i in range(len(qwen.hf))}
    return {i: text for i, text in texts.items() if text and belongs(text)}


def belongs(text):
    """True for a part of a trigger, and for what begins as an end of one and goes on."""
    ends = [word[n:] for word in (EASY, LONG) for n in range(len(word))]
    return text in EASY or text in LONG or any(text.startswith(end) for end in ends)


def read(table, ids):
    """("short", "long" or None, tokens read when it was found)."""
    final = table.next_state.shape[0] - 3
    state = 0
    for place, token in enumerate(ids, start=1):
        state = int(table.next_state[state, token])
        if state >= final:
            return ("short", "long", None)[state - final], place
    return None, len(ids)


def read_text(qwen, ids):
    """The same by definition: the first token with which the text holds a trigger, or cannot."""
    text = ""
    for place, token in enumerate(ids, start=1):
        text += qwen.decode([token])
        for word, route in ((EASY, "short"), (LONG, "long")):
            if text.startswith(word):
                return route, place
        if not (EASY.startswith(text) or LONG.startswith(text)):
            return None, place
    return None, len(ids)


@functools.cache
def spellings(word, texts):
    """Every way to write `word` in pieces, the last of which may go on after it."""
    if not word:
        return [()]
    found = []
    for text in texts:
        if word.startswith(text):
            found += [(text, *rest) for rest in spellings(word[len(text) :], texts)]
        elif text.startswith(word):
            found.append((text,))
    return found


@pytest.mark.parametrize(("word", "route"), [(EASY, "short"), (LONG, "long")])
def test_every_spelling_is_recognised(table, pieces, word, route):
    ids = {text: id for id, text in pieces.items()}
    ways = spellings(word, frozenset(ids))
    assert len(ways) > 100
    endings = {way[-1] for way in ways}
    assert {">", ">\n", "><", ">\n\n"} <= endings
    for way in ways:
        assert read(table, [ids[text] for text in way]) == (route, len(way)), way


@pytest.mark.parametrize("seed", range(3))
def test_random_tokens_against_the_text(qwen, table, pieces, seed):
    rng = np.random.default_rng(seed)
    likely = np.array(list(pieces))
    for _ in range(500):
        ids = np.where(rng.random(6) < 0.95, rng.choice(likely, 6), rng.integers(0, 151_665, 6))
        # Half of them are led towards a trigger, or chance would never find one.
        if rng.random() < 0.5:
            start = qwen.encode(rng.choice([EASY, LONG]))
            ids = np.concatenate([start[: rng.integers(1, len(start) + 1)], ids])
        ids = ids.tolist()
        assert read(table, ids) == read_text(qwen, ids), [qwen.decode([i]) for i in ids]


@pytest.mark.parametrize(
    "text", [" <EASY>", "<EASE>", "<easy>", "<EASY ", "EASY>", "<LON>", "\n<LONG>", "<SHORT>", "x"]
)
def test_near_misses(qwen, table, text):
    assert read(table, qwen.encode(text + "\n"))[0] is None


def test_text_that_follows_does_not_matter(qwen, table):
    for text in ("<EASY>\n<LONG>", "<EASY><LONG>", "<EASY> 4", "<EASY>><", "<EASY>"):
        assert read(table, qwen.encode(text))[0] == "short"


def test_padding_rows_of_the_table_lead_nowhere(table):
    off = table.next_state.shape[0] - 1
    assert (table.next_state[:-3, 151_665:] == off).all()
    assert (table.leads_to[:, 151_665:] == OFF).all()


def test_only_closing_pieces_that_open_the_next_trigger_are_marked(qwen, table, pieces):
    marked = {text for id, text in pieces.items() if table.holds_next[id]}
    assert marked == {"><"}
    assert "<" + qwen.decode(table.rest_of_short) == SHORT + "\n"


def test_what_each_token_speaks_for(qwen, table, pieces):
    """By characters, save where our spellings part: there each one's own piece decides."""
    easy, long = find_triggers(qwen, "plain").easy, find_triggers(qwen, "plain").long
    assert (table.leads_to[0, easy[0]], table.leads_to[0, long[0]]) == (TO_EASY, TO_LONG)
    for id, text in pieces.items():
        to_easy, to_long = (w.startswith(text) or text.startswith(w) for w in (EASY, LONG))
        expected = {(1, 1): BOTH, (1, 0): TO_EASY, (0, 1): TO_LONG, (0, 0): OFF}[to_easy, to_long]
        if id != long[0]:
            assert table.leads_to[0, id] == expected, text
    assert (table.leads_to[-3:] == OFF).all()
    assert table.undecided[:2].all() and not table.undecided[2:].any()  # "" and "<"


def test_added_triggers_are_one_step():
    grown, triggers = add_triggers(make_tokenizer())
    table = route_table(triggers, grown, 32)
    (easy,), (long,), (short,) = triggers.easy, triggers.long, triggers.short
    for ids, route in [([easy], "short"), ([long], "long"), ([short], None), ([3, easy], None)]:
        assert read(table, ids) == (route, 1)
    assert table.undecided.tolist() == [True, False, False, False]
    assert not table.holds_next.any()


def test_ids_beyond_the_model_are_refused():
    grown, triggers = add_triggers(make_tokenizer())
    (highest,) = triggers.answer
    with pytest.raises(ValueError, match=rf"trigger id {highest} .* {highest} rows"):
        route_table(triggers, grown, highest)
    plain = Triggers(spelling="plain", easy=(1, 2), long=(1, 3), short=(4,), answer=(5,))
    with pytest.raises(ValueError, match="by a tokenizer"):
        route_table(plain, None, 24)

"""The triggers in both spellings, in a tiny tokenizer and in Qwen2.5's."""

import json

import pytest

from l2s_jax.data.arithmetic import make_tokenizer
from l2s_jax.tokens.tokenizer import load_tokenizer
from l2s_jax.tokens.triggers import (
    FILE,
    NAMES,
    Triggers,
    TriggerStarts,
    add_triggers,
    answer_text,
    find_triggers,
    load_triggers,
)


@pytest.fixture(scope="module")
def qwen(shared_data):
    return load_tokenizer(shared_data / "tokenizers" / "qwen2.5")


def ids_of(triggers):
    return [triggers.easy, triggers.long, triggers.short, triggers.answer]


@pytest.fixture(params=["arithmetic", "qwen2.5"])
def tokenizer(request):
    if request.param == "arithmetic":
        return make_tokenizer()
    return request.getfixturevalue("qwen")


def test_added_triggers_are_the_next_ids(tokenizer):
    before = len(tokenizer.hf)
    grown, triggers = add_triggers(tokenizer)
    assert ids_of(triggers) == [(before + n,) for n in range(4)]
    assert len(tokenizer.hf) == before  # the caller's own is left alone
    for name, (only,) in zip(NAMES, ids_of(triggers), strict=True):
        assert grown.encode(name) == [only]
        assert grown.decode([only]) == name
        assert name in grown.hf.decode([only], skip_special_tokens=True)


def test_added_triggers_stand_inside_text(tokenizer):
    grown, triggers = add_triggers(tokenizer)
    ids = grown.encode("<EASY><SHORT>3 4<ANSWER>4")
    found = [(id,) for id in ids if (id,) in ids_of(triggers)]
    assert found == [triggers.easy, triggers.short, triggers.answer]


def test_in_qwen_they_land_in_free_rows_of_the_table(qwen):
    _, triggers = add_triggers(qwen)
    assert ids_of(triggers) == [(151665 + n,) for n in range(4)]
    assert 151668 < 151936  # the rows of the embedding of Qwen2.5-0.5B to 7B


def test_adding_twice_is_adding_once(tokenizer):
    grown, triggers = add_triggers(tokenizer)
    again, same = add_triggers(grown)
    assert (same, len(again.hf)) == (triggers, len(grown.hf))


def test_plain_triggers_are_lines_of_text(qwen):
    triggers = find_triggers(qwen, "plain")
    for name, ids in zip(NAMES, ids_of(triggers), strict=True):
        assert qwen.decode(ids) == name + "\n"
        assert len(ids) > 1 and max(ids) < 151643  # ordinary pieces


def test_a_tokenizer_that_cannot_spell_them_is_refused():
    with pytest.raises(ValueError, match="lacks the triggers <EASY>, <LONG>, <SHORT>, <ANSWER>"):
        find_triggers(make_tokenizer(), "added")
    # Its words are digits: all four would have become the same unknown word.
    with pytest.raises(ValueError, match="cannot spell the trigger <EASY>"):
        find_triggers(make_tokenizer(), "plain")


def test_new_rows_start_from_existing_words(qwen):
    grown, triggers = add_triggers(qwen)
    rows = TriggerStarts().rows(qwen, triggers)
    assert sorted(rows) == list(range(151665, 151669))
    assert grown.decode(rows[triggers.long[0]]) == "step by step"


@pytest.mark.parametrize("spelling", ["added", "plain"])
def test_a_folder_declares_them(qwen, tmp_path, spelling):
    tokenizer, triggers = qwen, find_triggers(qwen, "plain")
    if spelling == "added":
        tokenizer, triggers = add_triggers(qwen)
    assert load_triggers(tmp_path, tokenizer) is None
    triggers.save(tmp_path)
    assert load_triggers(tmp_path, tokenizer) == triggers


def test_a_declaration_that_the_tokenizer_contradicts(tmp_path):
    grown, triggers = add_triggers(make_tokenizer())
    triggers.save(tmp_path)
    assert load_triggers(tmp_path, None) == triggers  # ids alone suffice
    with pytest.raises(ValueError, match="lacks the triggers"):
        load_triggers(tmp_path, make_tokenizer())
    declared = json.loads((tmp_path / FILE).read_text())
    declared["easy"], declared["long"] = declared["long"], declared["easy"]
    (tmp_path / FILE).write_text(json.dumps(declared))
    with pytest.raises(ValueError, match="Restore the matching tokenizer"):
        load_triggers(tmp_path, grown)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"easy": None}, "TypeError"),
        ({"spelling": "odd"}, "'odd'"),
        ({"easy": [24]}, "ids of its own"),  # the id of <LONG>
        ({"short": []}, "ids of its own"),
        ("missing", "'easy'"),
        ("garbage", "JSONDecodeError"),
    ],
)
def test_a_broken_declaration_names_the_file(tmp_path, change, part):
    _, triggers = add_triggers(make_tokenizer())
    triggers.save(tmp_path)
    fields = json.loads((tmp_path / FILE).read_text())
    text = json.dumps({"spelling": "added"} if change == "missing" else fields)
    if isinstance(change, dict):
        text = json.dumps(fields | change)
    (tmp_path / FILE).write_text("{" if change == "garbage" else text)
    with pytest.raises(ValueError, match=r"l2s\.json is no declaration of triggers") as error:
        load_triggers(tmp_path, None)
    assert part in str(error.value)


def test_plain_text_needs_a_tokenizer(tmp_path):
    Triggers(spelling="plain", easy=(1, 2), long=(1, 3), short=(4,), answer=(5,)).save(tmp_path)
    with pytest.raises(ValueError, match="the folder has none"):
        load_triggers(tmp_path, None)


def test_the_answer_follows_the_last_answer_trigger():
    assert answer_text("<LONG> a <ANSWER> 3 <SHORT> b <ANSWER> 4") == " 4"
    assert answer_text("<ANSWER>") == ""
    assert answer_text("no answer") is None

"""config.json and generation_config.json: the origin's, and what was added."""

import dataclasses
import json

import pytest

from l2s_jax.export.folder import FORCED, Parts, sequence_bias
from l2s_jax.model.hf.config import to_hf_config
from l2s_jax.model.hf.origin import Origin
from tests.export.tiny import policy_parts

CAME = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "eos_token_id": [0, 1]}


def parts_of(spelling="added", generation=None, **changes):
    parts = policy_parts(spelling)
    config = to_hf_config(parts["model"], stop_id=0, pad_id=1)
    config |= {"use_cache": True, "max_window_layers": 28, "dtype": "bfloat16"}
    origin = Origin(config=config, generation=CAME if generation is None else generation)
    fields = {name: part for name, part in parts.items() if name != "params"}
    fields |= {"origin": origin, "fetch": {}.__getitem__, "dtype": "bfloat16"}
    return Parts(**fields | changes)


def test_what_came_goes_back():
    parts = parts_of(triggers=None)
    assert parts.config() == parts.origin.config
    assert parts.generation() == CAME


def test_triggers_add_their_bias_and_nothing_else():
    parts = parts_of()
    got = parts.generation()
    assert {name: got[name] for name in CAME} == CAME
    assert set(got) - set(CAME) == {"sequence_bias", "l2s"}
    assert got["l2s"] == dataclasses.asdict(parts.triggers)
    # Exported once more, it is the same.
    again = dataclasses.replace(parts, origin=dataclasses.replace(parts.origin, generation=got))
    assert again.generation() == got


def test_transformers_keeps_our_fields(tmp_path):
    """A config that transformers made of a model's own would be read without them."""
    from transformers import GenerationConfig

    made = CAME | {"_from_model_config": True}
    assert parts_of(generation=made, triggers=None).generation() == made
    got = parts_of(generation=made).generation()
    (tmp_path / "generation_config.json").write_text(json.dumps(got))
    read = GenerationConfig.from_pretrained(tmp_path)
    assert read.l2s == json.loads(json.dumps(got["l2s"]))
    assert read.sequence_bias == got["sequence_bias"] and read.temperature == 0.7


def test_biases_of_others_stay():
    other = [[5, 6], -1.0]
    got = parts_of(generation=CAME | {"sequence_bias": [other]}).generation()
    assert got["sequence_bias"][0] == other and len(got["sequence_bias"]) == 2


@pytest.mark.parametrize(
    ("named", "want"), [([0, 1, 7], [0, 1, 7]), (0, [0, 1]), (None, [0, 1]), ([1], [0, 1])]
)
def test_stops_are_added_where_the_origin_lacks_one(named, want):
    assert parts_of(generation=CAME | {"eos_token_id": named}).generation()["eos_token_id"] == want


def test_a_model_made_here_gets_configs_of_its_own():
    parts = parts_of(origin=None, dtype="float16")
    assert parts.config()["dtype"] == "float16"
    got = parts.generation()
    assert got["eos_token_id"] == [0, 1] and got["pad_token_id"] == 1 and "temperature" not in got


def test_rows_that_were_added_are_in_the_config():
    parts = parts_of()
    grown = dataclasses.replace(parts.model, vocab_size=parts.model.vocab_size + 4)
    config = dataclasses.replace(parts, model=grown).config()
    assert config == parts.origin.config | {"vocab_size": parts.model.vocab_size + 4}


def test_bias_names_every_prefix():
    triggers = policy_parts("plain")["triggers"]
    entries = sequence_bias(triggers)
    for end, (sequence, bias) in enumerate(entries, start=1):
        assert sequence == [*triggers.easy, *triggers.short[:end]] and bias == FORCED
    assert len(entries) == len(triggers.short) > 1

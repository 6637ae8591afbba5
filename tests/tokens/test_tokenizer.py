"""Text to ids and back, and the ids that end a completion."""

import json

import pytest

from l2s_jax.data.arithmetic import make_tokenizer
from l2s_jax.tokens.tokenizer import from_hf, load_tokenizer, model_folder
from l2s_jax.tokens.triggers import add_triggers


@pytest.fixture(scope="module")
def qwen(shared_data):
    return load_tokenizer(shared_data / "tokenizers" / "qwen2.5")


def test_a_question_is_asked_through_the_template(qwen):
    text = qwen.decode(qwen.ask("What is 7 * 6?"))
    assert text.endswith("<|im_start|>user\nWhat is 7 * 6?<|im_end|>\n<|im_start|>assistant\n")
    world = make_tokenizer()
    assert world.decode(world.ask("3 +1 *7")) == "3 +1 *7 ="


def test_text_survives_and_gains_no_specials(qwen):
    text = " two  spaces, é 好\n\n\\boxed{7}"
    assert qwen.decode(qwen.encode(text)) == text
    assert qwen.encode("") == []


def test_many_texts_at_once_are_each_alone(qwen):
    texts = ["", " a", "b  c\n", "<|im_end|>x", "é 好 \\boxed{7}", "<EASY>\n"] * 20
    grown, _ = add_triggers(qwen)
    for tokenizer in (qwen, grown):
        assert tokenizer.encode_all(texts) == [tokenizer.encode(text) for text in texts]
    assert qwen.encode_all([]) == []


def test_stop_ids_come_from_both_files(qwen, tmp_path):
    assert qwen.stop_ids == (151645,)
    qwen.save(tmp_path)
    config = tmp_path / "generation_config.json"
    for more, expected in [
        ([151645, 151643], (151645, 151643)),
        (151643, (151645, 151643)),
        (None, (151645,)),
    ]:
        config.write_text(json.dumps({"eos_token_id": more}))
        assert load_tokenizer(tmp_path).stop_ids == expected


def test_without_a_generation_config_the_model_config_names_the_stops(qwen, tmp_path):
    qwen.save(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": [151643, 151645]}))
    assert load_tokenizer(tmp_path).stop_ids == (151645, 151643)
    # A generation config that is there has the last word, as it has in transformers.
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 151645}))
    assert load_tokenizer(tmp_path).stop_ids == (151645,)


def test_saving_keeps_every_stop_id(tmp_path):
    world = from_hf(make_tokenizer().hf, [0, 5])
    world.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert (again.stop_ids, again.pad_id) == ((0, 5), 0)
    assert again.ask("3 +1") == world.ask("3 +1")


def test_without_a_pad_token_the_stop_pads():
    hf = make_tokenizer().copy().hf
    hf.pad_token = None
    assert from_hf(hf, [7]).pad_id == 7


def test_mistakes_name_their_cure(tmp_path):
    with pytest.raises(FileNotFoundError, match="shipped names"):
        model_folder(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)
    with pytest.raises(ValueError, match="no stop token"):
        from_hf(make_tokenizer().hf, [])
    silent = make_tokenizer().copy()
    silent.hf.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        silent.ask("3 +1")

"""A tokenizer's files: back as they came, or grown so that every reader gives the same ids."""

import json
import shutil

import pytest
import tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from l2s_jax.data.arithmetic import make_tokenizer
from l2s_jax.tokens.files import files_to_save, read_files
from l2s_jax.tokens.tokenizer import load_tokenizer
from l2s_jax.tokens.triggers import NAMES, add_triggers

TEXT = "Q: 12 + 7 = ?\n\n<EASY><LONG> é 好 <SHORT>\n<ANSWER>\\boxed{19}<|im_end|>"
MODEL_TYPES = {"qwen2.5": "qwen2", "qwen2.5-math": "qwen2", "qwen3": "qwen3"}


@pytest.fixture(scope="module", params=MODEL_TYPES)
def source(request, shared_data, tmp_path_factory):
    """A folder as the model's makers publish it: whole, or vocab.json and merges.txt alone."""
    name = request.param
    folder = tmp_path_factory.mktemp("sources") / name
    shutil.copytree(shared_data / "tokenizers" / name, folder)
    if name == "qwen2.5-math":  # the same vocabulary, of which the shared data keep one copy
        for file in ("vocab.json", "merges.txt"):
            shutil.copy(shared_data / "tokenizers" / "qwen2.5" / file, folder)
    (folder / "config.json").write_text(json.dumps({"model_type": MODEL_TYPES[name]}))
    return folder


def config_of(folder):
    return json.loads((folder / "tokenizer_config.json").read_text())


def readers(folder):
    """Every way in which others open the folder."""
    yield AutoTokenizer.from_pretrained(folder)
    yield PreTrainedTokenizerFast.from_pretrained(folder)
    yield PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))


def test_an_unchanged_tokenizer_goes_back_as_it_came(source, tmp_path):
    load_tokenizer(source).save(tmp_path)
    came, back = read_files(source), read_files(tmp_path)
    assert {name: back[name] for name in came} == came
    # The one file that a folder of vocab.json and merges.txt lacks.
    assert set(back) - set(came) <= {"tokenizer.json"}
    ids = load_tokenizer(source).encode(TEXT)
    assert all(hf.encode(TEXT, add_special_tokens=False) == ids for hf in readers(tmp_path))


def test_a_grown_one_reads_alike_everywhere(source, tmp_path):
    before = load_tokenizer(source)
    grown, triggers = add_triggers(before)
    grown.save(tmp_path)
    shutil.copy(source / "config.json", tmp_path)
    ids = grown.encode(TEXT)
    assert triggers.easy[0] in ids and triggers.easy[0] >= len(before.hf)
    for hf in readers(tmp_path):
        assert hf.encode(TEXT, add_special_tokens=False) == ids
        assert hf.decode(ids, skip_special_tokens=False) == TEXT
    inner = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert inner.encode(TEXT, add_special_tokens=False).ids == ids
    again = load_tokenizer(tmp_path)
    assert again.encode(TEXT) == ids and again.ask("3 +1") == before.ask("3 +1")
    (tmp_path / "again").mkdir()
    again.save(tmp_path / "again")
    assert read_files(tmp_path / "again") == read_files(tmp_path)


def test_growing_changes_the_list_of_tokens_and_nothing_else(source, tmp_path):
    grown, triggers = add_triggers(load_tokenizer(source))
    grown.save(tmp_path)
    came, now = config_of(source), config_of(tmp_path)
    new = {str(triggers.easy[0] + n): name for n, name in enumerate(NAMES)}
    decoder = now.pop("added_tokens_decoder")
    assert {i: decoder.pop(i)["content"] for i in new} == new
    assert decoder == came.pop("added_tokens_decoder") and now == came
    assert now["tokenizer_class"] == "Qwen2Tokenizer"  # the name that both versions know
    whole = json.loads((tmp_path / "tokenizer.json").read_text())
    flags = {t["content"]: (t["special"], t["normalized"]) for t in whole["added_tokens"]}
    assert all(flags[name] == (False, False) for name in NAMES)
    if (source / "tokenizer.json").exists():
        was = json.loads((source / "tokenizer.json").read_text())
        assert whole["added_tokens"][:-4] == was["added_tokens"]
        assert whole | {"added_tokens": 0} == was | {"added_tokens": 0}


def test_one_made_here_says_nothing_that_version_4_lacks(tmp_path):
    tokenizer, triggers = add_triggers(make_tokenizer())
    tokenizer.hf.add_special_tokens({"additional_special_tokens": ["<extra>"]})
    tokenizer.save(tmp_path)
    config = config_of(tmp_path)
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert config["additional_special_tokens"] == ["<extra>"]
    assert not {"backend", "is_local", "extra_special_tokens"} & set(config)
    for hf in readers(tmp_path):
        assert hf.encode("<EASY> 3", add_special_tokens=False)[0] == triggers.easy[0]
    (auto, *_) = readers(tmp_path)
    assert "<extra>" in auto.all_special_tokens and "<EASY>" not in auto.all_special_tokens


def test_tokens_are_listed_wherever_the_folder_lists_them(source, tmp_path):
    """Older folders also keep added_tokens.json."""
    shutil.copytree(source, tmp_path / "old")
    decoder = config_of(source)["added_tokens_decoder"]
    listed = {token["content"]: int(i) for i, token in decoder.items()}
    (tmp_path / "old" / "added_tokens.json").write_text(json.dumps(listed))
    grown, triggers = add_triggers(load_tokenizer(tmp_path / "old"))
    files = files_to_save(grown.hf, grown.files)
    added = json.loads(files["added_tokens.json"])
    assert added == listed | {name: triggers.easy[0] + n for n, name in enumerate(NAMES)}


def test_a_template_given_in_memory_is_saved(source, tmp_path):
    tokenizer = load_tokenizer(source).copy()
    tokenizer.hf.chat_template = "{% for m in messages %}Q: {{ m.content }}{% endfor %}"
    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.hf.chat_template == tokenizer.hf.chat_template
    assert again.decode(again.ask("3 +1")) == "Q: 3 +1"

"""The card quotes; it computes nothing and claims nothing that is not in its sources."""

import hashlib
import json
import re

import pytest
import yaml

from l2s_jax.export.card import Measured, base_model, model_card
from l2s_jax.export.hf import export_checkpoint, list_export, read_measured
from l2s_jax.model.hf.origin import Origin
from l2s_jax.sampling.policy import Policy
from l2s_jax.training.policy import save_policy
from tests.export.test_folder import parts_of
from tests.export.tiny import policy_parts

SUMMARY = {
    "stages": {
        "sft": {
            "auto": {
                "accuracy": 0.9125,
                "tokens": 41.25,
                "accuracy_ci": [0.8812, 0.9437],
                "easy_share": 0.4375,
            },
            "force-long": {"accuracy": 0.95, "tokens": 88.0},
        },
        "grpo_plus": {"auto": {"accuracy": 1 / 3, "tokens": 30.0, "easy_share": 0.0}},
    },
    "seconds": {},
    "seeds": [7, 8],
    "commit": "0123abc",
}


def card_of(parts=None, weights_dtype="bfloat16", summary=SUMMARY):
    measured = summary and Measured(summary=summary, file="summary.json", sha256="ab" * 32)
    return model_card(
        name="tiny", parts=parts or parts_of(), weights_dtype=weights_dtype, measured=measured
    )


def rows_of(card):
    """Stage and mode → cells, read back from the table."""
    rows = re.findall(r"^\| (\S+) \| (\S+) \| (.*) \|$", card, re.MULTILINE)
    return {(stage, mode): rest.split("|") for stage, mode, rest in rows if stage != "stage"}


def test_every_number_is_the_summarys():
    rows = rows_of(card_of())
    entries = {(s, m): e for s, modes in SUMMARY["stages"].items() for m, e in modes.items()}
    assert rows.keys() == entries.keys()
    for where, entry in entries.items():
        accuracy, interval, tokens, share = (cell.strip() for cell in rows[where])
        assert float(accuracy) == pytest.approx(entry["accuracy"], abs=5.1e-4)
        assert float(tokens) == pytest.approx(entry["tokens"], abs=0.051)
        ends = [float(end) for end in interval.split(" to ")] if interval else None
        assert ends == (pytest.approx(entry["accuracy_ci"], abs=5.1e-4) if ends else None)
        assert bool(interval) == ("accuracy_ci" in entry)
        assert share == ("" if "easy_share" not in entry else f"{entry['easy_share']:.3f}")


def test_where_the_numbers_are_from(tmp_path):
    """A whole export: the card's digest is the file's."""
    save_policy(tmp_path / "run", Policy(**policy_parts()))
    (tmp_path / "run" / "summary.json").write_text(json.dumps(SUMMARY))
    digest = hashlib.sha256((tmp_path / "run" / "summary.json").read_bytes()).hexdigest()
    measured = read_measured(tmp_path / "run")
    assert measured is not None and measured.summary == SUMMARY and measured.sha256 == digest
    export_checkpoint(tmp_path / "run", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert digest in card and "`summary.json`" in card and rows_of(card) == rows_of(card_of())
    for fact in ("seeds [7, 8]", "commit 0123abc", "float32 and are here as they were"):
        assert fact in card
    assert "date" not in card  # the summary has none


def test_the_evaluation_of_this_model_and_of_no_other(tmp_path):
    for name in ("run", "other"):
        save_policy(tmp_path / name, Policy(**policy_parts()))
    asked = tmp_path / "eval"
    asked.mkdir()
    with pytest.raises(ValueError, match=r"eval/summary.json: not found"):
        export_checkpoint(tmp_path / "run", tmp_path / "out", evaluation=asked)
    (asked / "summary.json").write_text(json.dumps(SUMMARY))
    (asked / "config.json").write_text(json.dumps({"model": str(tmp_path / "other")}))
    with pytest.raises(ValueError, match=r"evaluation of model='.*other', but .*run is exported"):
        export_checkpoint(tmp_path / "run", tmp_path / "out", evaluation=asked)
    assert not (tmp_path / "out").exists()
    export_checkpoint(tmp_path / "other", tmp_path / "out", evaluation=asked)
    card = (tmp_path / "out" / "README.md").read_text()
    assert rows_of(card) == rows_of(card_of()) and "The rows are of this model." in card
    sizes = list_export(tmp_path / "other", tmp_path / "new", evaluation=asked)
    assert sizes["README.md"] == len(card.encode())  # a name as long


def test_rounding_is_told():
    assert "were bfloat16 and are here as they were" in card_of()
    assert "before they were rounded to bfloat16" in card_of(weights_dtype="float32")
    assert "Nothing was measured" in card_of(summary=None)
    assert "rounded to" not in card_of(summary=None)


def test_whose_sampling_defaults():
    assert "temperature 0.7, top_p 0.8" in card_of() and "the model came with" in card_of()
    assert "The sampling defaults in" not in card_of(parts_of(origin=None))


def test_front_matter_is_yaml_that_says_what_we_know():
    origin = Origin(config={"_name_or_path": "Qwen/Qwen2.5-0.5B-Instruct"}, generation={})
    parts = parts_of()
    assert base_model(origin) == "Qwen/Qwen2.5-0.5B-Instruct"
    _, text, _ = card_of(parts).split("---\n", 2)
    head = yaml.safe_load(text)
    assert head["library_name"] == "transformers" and "autol2s" in head["tags"]
    assert "base_model" not in head and "model-index" not in head


@pytest.mark.parametrize(
    "named", [None, "", "Qwen2.5-0.5B", "/home/me/model", "./a/b", "a/b/c", "../x", "a b/c", 7]
)
def test_what_names_no_model_of_the_hub(named):
    assert base_model(Origin(config={"_name_or_path": named}, generation={})) is None


def test_a_folder_here_is_no_model_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "base").mkdir(parents=True)
    assert base_model(Origin(config={"_name_or_path": "runs/base"}, generation={})) is None
    assert base_model(None) is None


def test_the_shape_is_the_models():
    parts = parts_of()
    card = card_of(parts)
    assert "Qwen2ForCausalLM" in card and f"vocabulary {parts.model.vocab_size}" in card
    assert "weights in bfloat16" in card
    assert "no trigger vocabulary" in card_of(parts_of(triggers=None))

import dataclasses

import pytest

from l2s_jax.curation.audit import (
    NOISE_SHARES,
    Labelled,
    audit,
    audit_items,
    figures,
    planted_noise,
    read_labelled,
)
from l2s_jax.data.store import write_items
from l2s_jax.evaluation.audit_page import audit_page
from l2s_jax.types import Item
from l2s_jax.verify.math import Verifier


def pair(id, gold, prediction, equivalent, subject="algebra"):
    return Labelled(id=id, gold=gold, prediction=prediction, equivalent=equivalent, subject=subject)


PAIRS = [
    pair("right", "7", "7.0", True),
    pair("wrong", "7", "8", False),
    pair("mislabelled", "1/2", "0.5", False, "fractions"),  # a false accept, by the label
    pair("words", r"\text{<b>east</b>}", "west", True, "words"),  # a false reject
    pair("list", "1, 2", r"\boxed{2, 1}", True, "sets"),
]


@pytest.fixture(scope="module")
def verifier():
    with Verifier(num_workers=1) as verifier:
        yield verifier


@pytest.fixture(scope="module")
def audited(verifier):
    return audit(PAIRS, verifier)


def test_figures_by_definition(audited):
    told = figures(audited)
    assert told["all"]["accuracy"] == 3 / 5
    assert told["all"]["precision"] == 2 / 3
    assert told["all"]["false_easy_rate"] == 1 / 3
    assert told["all"]["recall"] == 2 / 3
    assert (told["all"]["num_false_accepts"], told["all"]["num_false_rejects"]) == (1, 1)
    assert set(told["by_subject"]) == {"algebra", "fractions", "words", "sets"}
    assert told["by_kind"]["list"]["recall"] == 1.0
    assert told["by_kind"]["whole"]["num_pairs"] == 2
    assert told["by_subject"]["words"]["precision"] is None  # nothing was accepted
    assert sum(group["num_pairs"] for group in told["by_kind"].values()) == len(PAIRS)
    assert told["second"]["num_disagreements"] == 0


def test_disputed_are_those_that_are_not_of_one_mind(audited):
    assert [one.pair.id for one in audited if one.is_disputed] == ["mislabelled", "words"]
    unsure = dataclasses.replace(audited[0], second=None)
    assert not unsure.is_disputed
    assert dataclasses.replace(audited[0], second=False).is_disputed


def test_planted_noise_loses_what_it_touches(verifier):
    many = [pair(f"{i}", str(i), str(i), True) for i in range(200)]
    results = planted_noise(many, verifier)
    assert [one["share"] for one in results] == list(NOISE_SHARES)
    for one in results:
        assert one["right_lost"] == pytest.approx(one["share"], abs=0.006)
        assert one["wrong_accepted"] == 0.0
    assert planted_noise(many, verifier) == results


def test_items_of_a_curation_are_decided_again(verifier, tmp_path):
    def item(id, reference, answer):
        return Item(
            id=id,
            question="?",
            reference=reference,
            long="l",
            long_answer=answer,
            short="s",
            short_answer=answer,
        )

    items = [item("good", "4", r"\boxed{4}"), item("bad", "4", r"\boxed{5}")]
    write_items(tmp_path / "items", items, meta={})
    told = audit_items(tmp_path, verifier)
    assert told["rejected_now"] == told["called_wrong_by_second"] == ["bad"]
    assert told["false_easy_rate"] == 0.5


def test_faulty_lines_are_named_and_the_rest_kept(tmp_path):
    path = tmp_path / "labelled.jsonl"
    path.write_text(
        '{"gold": "1", "prediction": "1", "equivalent": true, "source": "s"}\n'
        '{"gold": "1", "prediction": "1", "equivalent": 1}\n'
        '{"gold": " ", "prediction": "1", "equivalent": true}\n'
        '{"gold": "1", "prediction": "1", "equiv'
    )
    pairs, faults = read_labelled(path)
    assert [(one.id, one.subject) for one in pairs] == [("line 1", "s")]
    assert [fault.message.split(": ")[0].rsplit(":")[-1] for fault in faults] == ["2", "3", "4"]


def test_the_page_escapes_what_people_wrote(audited, verifier):
    summary = {"figures": figures(audited), "planted_noise": planted_noise(PAIRS, verifier)}
    page = audit_page(summary | {"items": None}, [one for one in audited if one.is_disputed])
    assert "&lt;b&gt;east" in page
    assert "<b>east" not in page
    assert "2 pairs in dispute" in page
    assert "http" not in page  # nothing is fetched

"""The model card is Hugging Face's form, holds the measured numbers, and hides no failure."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from evidence import FAILED, HOSTILE, PASSES, evaluation, everything, hostile, measured, recipe
from ruamel.yaml import YAML

from luthier.records import KeptAugmentation
from luthier.release.card import fence, inline, model_card, worst_slices
from luthier.release.provenance import ANNEX_XI


def front_of(card: str) -> dict:
    return YAML(typ="safe", pure=True).load(re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)[1])


@pytest.fixture(params=everything())
def evidence(request):
    return everything()[request.param]


def test_every_card_has_its_parts(evidence):
    card = model_card(evidence)
    heads = re.findall(r"^## (.*)$", re.sub(r"^(`{3,}).*?^\1$", "", card, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    assert heads == [
        "Intended use",
        "Out-of-scope use",
        "How to load",
        "Architecture",
        "Training data",
        "Training procedure",
        "Compute and energy",
        "Results",
        "Limits, as measured",
        "EU AI Act, Annex XI",
    ]
    assert evidence.verdict.outcome in card
    front = front_of(card)
    assert {"library_name", "license", "tags", "datasets", "metrics", "model-index"} <= set(front)
    assert "co2_eq_emissions" not in front, "nothing here measures emissions"


def test_front_matter_has_real_numbers():
    front = front_of(model_card(PASSES))
    assert front["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert front["license"] == "unknown" and front["library_name"] == "peft"
    metrics = {m["type"]: m["value"] for m in front["model-index"][0]["results"][0]["metrics"]}
    assert metrics["exact_match"] == 0.463 and metrics["perplexity"] == 6.71


def test_the_licences_are_the_owners_and_the_publishers_word():
    rules = [rule.model_dump() for rule in PASSES.recipe.release.rules]
    licensed = replace(
        PASSES, recipe=recipe(release={"rules": rules, "license": "cc-by-4.0"}), base_licence="apache-2.0"
    )
    assert front_of(model_card(licensed))["license"] == "cc-by-4.0"
    assert "licence, as its publisher states it: apache-2.0." in model_card(licensed)
    assert "The base model's licence is not known here." in model_card(PASSES)


def test_a_local_folder_is_no_base_model_of_the_hub():
    local = replace(PASSES, environment={"base_model": "x"}, recipe=recipe(model={"base": "/home/me/models/x"}))
    assert "base_model" not in front_of(model_card(local))
    hub = replace(PASSES, environment={"base_model": "gpt2"}, recipe=recipe(model={"base": "gpt2"}))
    assert front_of(model_card(hub))["base_model"] == "gpt2"


def test_every_rule_has_its_numbers_and_its_reason():
    card = model_card(FAILED)
    assert "21.30 → 21.62, higher by 0.32 (worse), interval 0.11 to 0.53 higher (n: 120 samples). " in card
    assert "The low end, −0.53, is above the limit −1.07." in card


def test_rows_that_were_made_are_named_as_such():
    card = model_card(PASSES)
    made = card[card.index("Rows that were made of training rows") :]
    assert "| contextual | 90 | 61 | 27 meaning too far; 2 no reply |" in made
    kept = KeptAugmentation(kept=(), left_out=("contextual",), why=("nothing is kept",), trials="")
    assert "not learned from: contextual, because" in model_card(replace(PASSES, kept=kept))


def test_full_fine_tuning_loads_without_peft():
    full = replace(PASSES, recipe=recipe(model={"adapt": {"method": "full"}}))
    card = model_card(full)
    assert front_of(card)["library_name"] == "transformers"
    assert "PeftModel" not in card


def test_bottleneck_adapters_load_by_what_has_them():
    own = replace(PASSES, recipe=recipe(model={"adapt": {"method": "bottleneck"}}))
    card = model_card(own)
    assert front_of(card)["library_name"] == "luthier" and front_of(card)["base_model_relation"] == "adapter"
    code = re.search(r"```python\n(.*?)\n```", card, re.DOTALL)[1]
    compile(code, "card", "exec")
    assert "from luthier.saved import load_adapted" in code and "PeftModel" not in code


def test_the_loading_code_compiles(evidence):
    code = re.search(r"```python\n(.*?)\n```", model_card(evidence), re.DOTALL)[1]
    compile(code, "card", "exec")


def test_limits_come_from_measured_failures():
    card = model_card(FAILED)
    limits = card[card.index("## Limits") :]
    assert "general\\_perplexity: 21.30 → 21.62, higher by 0.32 (worse), interval 0.11 to 0.53 higher" in limits
    assert "(n: 120 samples); beyond chance" in limits
    assert "must\\_contain: 0.61 → 0.58, lower by 0.03 (worse)" in limits and "only 14 samples differ" in limits
    assert "topic = opening hours" in limits and "language = es" in limits
    assert "where language=es. The limit −0.03 lies inside the interval; about 210 samples in all" in limits
    assert "48 wins, 19 losses" in limits and limits.count("Example ") == 2
    assert "Other seeds" in limits


def test_worst_slices_are_ordered_by_how_sure_the_loss_is():
    assert [(s, v) for s, v, _ in worst_slices(PASSES)] == [("topic", "opening hours"), ("language", "es")]


def test_silence_about_forgetting_is_named():
    metrics = {k: v for k, v in PASSES.evaluation.metrics.items() if k != "general_perplexity"}
    assert "**Forgetting** was not measured." in model_card(replace(PASSES, evaluation=evaluation(metrics=metrics)))


def test_hostile_text_stays_text():
    card = model_card(hostile())
    outside = re.sub(r"^(`{3,})[a-z]*\n.*?^\1$", "", card.split("\n---\n", 1)[1], flags=re.DOTALL | re.MULTILINE)
    assert "<script" not in outside and "](http" not in outside.replace("\\]", "")
    assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e]", card)
    assert "60,1" in card and len(card) < 20_000, "long examples are cut, and their length is told"


def test_a_fence_is_longer_than_any_inside():
    assert fence("a\n````\nb").startswith("`````text\n")


def test_inline_escapes_markdown_and_html():
    shown = inline(HOSTILE)
    assert "<" not in shown and "\n" not in shown and "\x00" not in shown
    assert not re.search(r"(?<!\\)[`*\[\]|]", shown)


def test_the_card_is_one_that_hugging_face_reads():
    hub = pytest.importorskip("huggingface_hub")
    pytest.importorskip("yaml")
    data = hub.ModelCard(model_card(PASSES)).data
    assert data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert {r.metric_type for r in data.eval_results} >= {"exact_match", "perplexity"}


def test_suites_and_discovered_slices_are_limits_with_their_intervals():
    card = model_card(measured())
    limits = card[card.index("## Limits") :]
    assert "arc\\_easy\\_accuracy: 0.570 → 0.511, lower by 0.059 (worse), interval 0.028 to 0.090 lower" in limits
    assert "crows\\_pairs\\_gap: 0.120 → 0.110, lower by 0.010 (better)" in limits and "may be chance" in limits
    assert "**Bias** was not measured" not in limits
    assert "topic=returns and prompt of 40 words or more: exact\\_match against the base 0.48 → 0.29" in limits
    assert "against elsewhere 0.49 → 0.20, lower by 0.29 (worse), interval 0.16 to 0.42 lower" in limits
    assert card.count("it was found to do worse there") == 2, "what fails is out of scope"
    assert "Groups found by searching:** 214 conditions" in limits


def test_what_no_suite_measured_is_said():
    card = model_card(PASSES)
    assert "**Bias** was not measured." in card and "**Robustness** was not measured." in card
    assert "Groups found by searching:** not searched for." in card


def test_licences_are_those_stated_and_paths_stay_at_home():
    assert "| shop.jsonl | CC BY 4.0 (LICENSE in the repository) |" in model_card(measured())
    private = replace(PASSES, recipe=recipe(data={"sources": [{"path": "/home/me/secret/shop.jsonl"}]}))
    assert "| shop.jsonl | not stated |" in model_card(private) and "/home/me" not in model_card(private)


def test_energy_is_a_range_with_its_assumption_or_not_known():
    card = model_card(PASSES)
    assert "about 2.3 × 10^14 floating-point operations" in card
    assert "between 0.0012 and 0.0062 kWh, if the machine drew 3 to 15 W for each of 2 threads" in card
    assert "the device is not known" in model_card(everything()["nothing"])


def test_annex_xi_points_to_sections_that_there_are():
    card = model_card(PASSES)
    heads = set(re.findall(r"^## (.*)$", card, re.MULTILINE))
    for item, where in ANNEX_XI:
        named = {part.strip() for part in where.split(";")}
        assert named <= heads or "not " in where or "front matter" in where, item

"""The page escapes, asks nothing of the network, and says the same as the JSON beside it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from evidence import (
    FAILED,
    HOSTILE,
    METRICS,
    PASSES,
    UNDERPOWERED,
    classified,
    comparison,
    evaluation,
    everything,
    hostile,
    samples,
)

from luthier.page import words
from luthier.records import BadStep, KeptAugmentation
from luthier.release import wording
from luthier.release.card import model_card
from luthier.release.evidence import (
    GENERAL,
    TITLES,
    claims,
    drawn_samples,
    largest_gains,
    main_metric,
    main_metrics,
    worst_regressions,
)
from luthier.release.gate import judge
from luthier.release.report import METRICS_SHOWN, report_html, report_json

VOID = {"meta", "br", "link", "img", "input", "hr"}
SECTIONS = "verdict metrics labels learning slices forgetting bias robustness samples audit recipe".split()


class Page(HTMLParser):
    """Collects tags, attributes and text, and fails where a tag is closed out of order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(params=everything())
def evidence(request):
    return everything()[request.param]


def test_the_page_is_sound_and_stands_alone(evidence):
    html = report_html(evidence)
    page = Page(html)
    assert not {"script", "link", "img", "iframe", "object", "base", "form"} & set(page.tags)
    links = [
        value
        for name, value in page.attributes
        if name in ("href", "src", "srcset", "action", "style") or name.startswith("on")
    ]
    assert all(link.startswith("#") for link in links)
    assert "url(" not in html and "@import" not in html
    assert html.lstrip().startswith("<!DOCTYPE html>")


def test_no_invisible_character_reaches_the_page(evidence):
    html = report_html(evidence)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufeff]", html)


def test_sections_come_in_order_and_only_where_there_is_something_in_them(evidence):
    html, report = report_html(evidence), evidence.evaluation
    kinds = {s.kind for s in report.suites} | ({"retention"} if GENERAL in report.metrics else set())
    absent = {"labels"} if not report.confusion else set()
    absent |= {title.lower() for kind, title in TITLES.items() if kind not in kinds}
    assert re.findall(r'<section id="(\w+)">', html) == [s for s in SECTIONS if s not in absent]
    assert set(re.findall(r'href="#(\w+)"', html)) == set(re.findall(r'<section id="(\w+)">', html))
    page = Page(html)
    assert page.text.index(evidence.verdict.outcome) < page.text.index("The rules")
    assert f'<h1 class="verdict {evidence.verdict.outcome.lower()}">{evidence.verdict.outcome}</h1>' in html


def test_what_was_made_is_counted_and_shown_beside_what_it_was_made_of():
    page = report_html(PASSES)
    for told in ("27 meaning too far", "15,120 prompt, 4,031 reply", "Where is my order?", "Has my order left?"):
        assert told in page
    kept = KeptAugmentation(kept=(), left_out=("contextual",), why=("contextual: better by -0.1",), trials="")
    told = report_html(replace(PASSES, kept=kept))
    assert "Made and left out: contextual" in told and "contextual: better by −0.1." in told
    assert "Rows that were made" not in report_html(
        replace(PASSES, audit=PASSES.audit.model_copy(update={"augmentation": ()}))
    )


def test_every_drawing_is_xml_with_a_title(evidence):
    for svg in re.findall(r"<svg.*?</svg>", report_html(evidence), re.DOTALL):
        assert ElementTree.fromstring(svg).findtext("title")


def test_json_is_strict_and_complete(evidence):
    report = report_json(evidence)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert set(report) == {"verdict", "rules", "metrics", "slices", "audit", "run", "claims", "failures"}
    assert report["verdict"] == evidence.verdict.outcome
    assert len(report["rules"]) == len(evidence.verdict.rules)
    for numbers in report["metrics"].values():
        assert {
            "value",
            "baseline",
            "delta",
            "low",
            "high",
            "p",
            "n",
            "min_detectable",
            "wins",
            "losses",
            "ties",
        } <= set(numbers)


def test_json_says_of_every_rule_what_it_asks_and_where():
    asked = [(r["must"], r["margin"], r["place"]) for r in report_json(FAILED)["rules"]]
    assert asked[:3] == [("beat_baseline", 0, ""), ("beat_baseline", 0.06, ""), ("not_regress", 0.03, "language=es")]
    assert asked[3] == ("not_regress", pytest.approx(0.05 * METRICS["general_perplexity"].baseline), "")


def test_two_models_that_do_the_same():
    text = Page(report_html(everything()["nothing"])).text
    assert "no change 95 %: 0 to 0" in text.replace("\xa0", " ")
    assert "Smallest detectable gain –" in text
    assert "none yet" in text, "a model that has not been trained has no training nll"


def test_hostile_text_is_shown_as_text():
    html = report_html(hostile())
    assert "<script" not in html and "&lt;script&gt;" in html
    assert "{{ 7*7 }}" in Page(html).text
    assert "\\u202egnp.exe" in html and "\\x00" in html
    assert len(html) < 400_000, "60,000 characters of prompt are cut, not repeated in full"
    assert "all 60," in html and "Cut after 20,000 characters" in html


def test_same_evidence_same_page():
    assert report_html(PASSES) == report_html(PASSES)


def test_every_rule_is_told_with_observed_required_and_why():
    text = Page(report_html(FAILED)).text
    for result in FAILED.verdict.rules:
        assert result.rule in text and words.sentence(result.why) in text and wording.required(result) in text
    assert "1 of 4 rules does not hold, and 1 cannot be decided" in text


def test_the_page_and_the_json_agree():
    text = Page(report_html(PASSES)).text
    for name, numbers in report_json(PASSES)["metrics"].items():
        assert name in text
        assert words.number(numbers["value"], wording.digits_of(METRICS[name])) in text
        assert str(numbers["n"]) in text


def test_trouble_stands_beside_the_number():
    assert METRICS["must_contain"].trouble in Page(report_html(PASSES)).text


def test_claims_follow_holm_direction_and_trouble():
    told = {claim.metric: claim for claim in claims(PASSES.evaluation)}
    assert told["exact_match"].improved and told["perplexity"].improved
    assert not told["general_perplexity"].improved and "worse" in told["general_perplexity"].why
    assert not told["must_contain"].improved and "not be relied on" in told["must_contain"].why
    assert told["general_perplexity"].worsened and not told["must_contain"].worsened
    assert all(claim.p_adjusted >= claim.p for claim in told.values())
    text = Page(report_html(PASSES)).text
    assert all(metric in text for metric in told), "what cannot be claimed is folded, not left out"


def test_a_p_that_does_not_survive_many_looks_is_no_claim():
    lucky = comparison("f1", 0.5, 0.55, 0.0495)  # p just under 0.05 alone
    one = claims(evaluation(metrics={"f1": lucky}))
    many = claims(evaluation(metrics={"f1": lucky} | {f"m{i}": comparison(f"m{i}", 0.5, 0.5, 0.1) for i in range(5)}))
    assert one[0].improved and not many[0].improved


def test_worst_regressions_are_losses_worst_first():
    report = PASSES.evaluation
    worst = worst_regressions(report, "token_f1")
    losses = [s.scores["token_f1"][1] - s.scores["token_f1"][0] for s in worst]
    assert 0 < len(worst) <= 10 and all(loss < 0 for loss in losses) and losses == sorted(losses)


def test_gains_are_the_mirror_of_losses():
    report = PASSES.evaluation
    swapped = tuple(
        s.model_copy(update={"scores": {m: (after, before) for m, (before, after) in s.scores.items()}})
        for s in report.samples
    )
    mirrored = report.model_copy(update={"samples": swapped})
    assert [s.id for s in largest_gains(report, "token_f1")] == [
        s.id for s in worst_regressions(mirrored, "token_f1", 5)
    ]
    assert largest_gains(report, None) == []


def test_metrics_that_no_rule_stands_on_fold():
    html, report = report_html(classified()), classified().evaluation
    shown, folded = html.split("more metrics, on which no rule stands")
    names = [c.metric for c in main_metrics(report)]
    headed = [re.findall(r'<article class="metric">\n<div class="what"><h3>(\w+)', part) for part in (shown, folded)]
    assert headed[0][0] == "label_skill" and len(headed[0]) == METRICS_SHOWN, "the rule's metric comes first"
    assert sorted(headed[0] + headed[1]) == sorted(names)


def test_for_a_metric_of_which_less_is_better_a_rise_is_the_loss():
    up, down = (
        s.model_copy(update={"scores": {"perplexity": pair}})
        for s, pair in zip(samples(2), ((5, 9), (9, 5)), strict=True)
    )
    assert worst_regressions(evaluation(samples=(down, up)), "perplexity") == [up]


def test_samples_are_drawn_by_seed_without_repetition():
    first, again, other = (drawn_samples(PASSES.evaluation, seed) for seed in (7, 7, 8))
    assert first == again != other
    assert len({s.id for s in first}) == 20


def test_main_metric_is_the_first_that_scores_samples():
    general_first = replace(PASSES, verdict=judge(PASSES.verdict.rules[::-1]))
    assert main_metric(general_first) == "exact_match", "general_perplexity is not measured on the samples"
    assert main_metric(everything()["nothing"]) is None


def test_single_samples_are_shown_by_a_rule_s_metric_on_which_one_was_lost():
    rules = {r.comparison.metric: r for r in PASSES.verdict.rules}
    won = tuple(
        s.model_copy(update={"scores": {**s.scores, "exact_match": (0.0, 1.0), "token_f1": (0.9, 0.1)}})
        for s in PASSES.evaluation.samples
    )
    lost = replace(
        PASSES,
        evaluation=PASSES.evaluation.model_copy(update={"samples": won}),
        verdict=judge([rules["exact_match"], _about(rules["exact_match"], "token_f1")]),
    )
    assert main_metric(lost) == "token_f1"


def _about(rule, metric):
    """The same rule on another metric."""
    return rule.model_copy(update={"comparison": rule.comparison.model_copy(update={"metric": metric})})


def test_what_was_not_measured_is_said():
    text = Page(report_html(everything()["nothing"])).text
    assert "Forgetting: general ability outside the task was not measured." in text
    assert "the recipe names no slices" in text
    assert "None were asked for." in text
    assert "Bias: whether answers depend on who is spoken of was not measured." in text
    assert "Robustness: whether typing errors" in text
    assert "Groups that no slice names were not searched for." in text


@pytest.mark.parametrize(
    ("of", "change", "interval"),
    [
        (comparison("f1", 0.5, 0.6, 0.05), "higher by 0.10 (better)", "0.05 to 0.15 higher"),
        (comparison("f1", 0.5, 0.48, 0.05), "lower by 0.02 (worse)", "0.07 lower to 0.03 higher"),
        (comparison("perplexity", 9.8, 6.7, 0.6), "lower by 3.1 (better)", "2.5 to 3.7 lower"),
        (comparison("perplexity", 9.8, 10.9, 0.6), "higher by 1.1 (worse)", "0.5 to 1.7 higher"),
        (comparison("perplexity", 9.8, 9.6, 0.6), "lower by 0.2 (better)", "0.4 higher to 0.8 lower"),
        (comparison("f1", 0.5, 0.5, 0.05), "no change", "0.05 lower to 0.05 higher"),
        (comparison("f1", 0.5, 0.5, 0.0), "no change", "0 to 0"),
    ],
)
def test_changes_in_words(of, change, interval):
    assert (wording.change(of), wording.interval(of)) == (change, interval)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (1234567.0, "1,234,567"),
        (-0.00004, "−0.0000400"),
        (0.31234, "0.312"),
        (12.0, "12"),
    ],
)
def test_numbers(value, shown):
    assert words.number(value) == shown


def test_visible_keeps_scripts_and_emoji_and_shows_what_hides():
    assert words.visible("שלום می‌خواهم 👩‍🌾\tä\n") == "שלום می‌خواهم 👩‍🌾\tä\n"
    assert words.visible("a\u202eb\x07\ufeff") == "a\\u202eb\\x07\\ufeff"


def test_verdict_in_words():
    assert "All 2 rules hold." in report_html(PASSES)
    assert "neither a pass nor a fail" in report_html(UNDERPOWERED)
    assert HOSTILE not in report_html(hostile())


def test_the_page_and_the_card_say_from_which_steps_nothing_was_learned():
    bad = tuple(BadStep(step=s, why="the gradient norm is nan") for s in (7, 9))
    made = replace(PASSES, training=PASSES.training.model_copy(update={"bad_steps": bad}))
    assert (
        "Nothing was learned from 2 steps: 7 (the gradient norm is nan), 9 (the gradient"
        in Page(report_html(made)).text
    )
    assert "Nothing was learned from 2 steps whose gradient" in model_card(made)
    assert "Nothing was learned" not in Page(report_html(PASSES)).text + model_card(PASSES)


def test_the_page_names_the_released_weights_also_where_they_are_not_the_best():
    made = replace(PASSES, training=PASSES.training.model_copy(update={"kept_step": 220}))
    text = Page(report_html(made)).text
    assert "The released weights are those of step 220; validation nll was lowest at step 154" in text

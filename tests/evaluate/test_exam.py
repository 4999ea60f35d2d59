"""The exam scores every label as a whole answer: by the tree as alone, and what is written is what is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.conversation import Conversation, Message, make_conversation
from luthier.decoder import Decoder, score_all
from luthier.encode import Encoded, Encoder
from luthier.errors import DataError
from luthier.evaluate import exam as exam_module
from luthier.evaluate.exam import Drawing, Exam, Scorer, check_clusters, dump_samples, load_answers
from luthier.evaluate.metrics.labels import likeliest
from luthier.evaluate.suites.general import probe_documents
from luthier.evaluate.suites.suite import Item, Suite, general, labelled
from luthier.metric import Sample
from luthier.models import find_base, load_model, load_tokenizer
from luthier.progress import Quiet

LABELS = ("a", "ab", "card_arrival", "card_linking", "card_payment_fee_charged", "refund ok")
TEXTS = ("Where is my card?", "Where is my new card?", "I was charged a fee.", "Please refund it.")


@pytest.fixture(scope="module")
def decoder(tiny: Path) -> Decoder:
    return Decoder(load_model(find_base(str(tiny)), torch.device("cpu"), torch.float32))


def conversations(labels: tuple[str, ...] = LABELS) -> list[Conversation]:
    system = Message(role="system", content="Classify the text.")
    return [
        make_conversation(
            [system, Message(role="user", content=text), Message(role="assistant", content=labels[i % len(labels)])],
            f"x.jsonl:{i}",
        )
        for i, text in enumerate(TEXTS)
    ]


def exam(tiny: Path, asked: list[Conversation], labels: tuple[str, ...], tokens: int = 4096) -> Exam:
    suite = Suite("test", labelled(asked, labels), [], scored=True, written=True)
    encoder = Encoder(load_tokenizer(find_base(str(tiny))))
    return Exam(suite, encoder, tests=asked, max_new_tokens=2, tokens_at_once=tokens)


def taken(tiny: Path, decoder: Decoder, *asked: Any) -> list[Sample]:
    return exam(tiny, *asked).take(Scorer(decoder), "base", Quiet())


def nats_alone(tiny: Path, decoder: Decoder, conversation: Conversation, label: str) -> float:
    """By the model's own forward pass over the prompt's ids and the label's, which the template writes by itself."""
    tokenizer = load_tokenizer(find_base(str(tiny)))
    messages = [m.model_dump(include={"role", "content"}) for m in conversation.prompt]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    ids = prompt + tokenizer(label + "<|im_end|>")["input_ids"]
    with torch.no_grad():
        logits: Any = decoder.model(torch.tensor([ids])).logits[0].double()
    nats = -logits.log_softmax(-1)[range(len(ids) - 1), ids[1:]]
    return float(nats[len(prompt) - 1 :].sum())


@pytest.mark.parametrize("tokens", [4096, 40, 1])
def test_every_label_is_scored_as_it_would_be_alone(tiny: Path, decoder: Decoder, tokens: int) -> None:
    asked = conversations()
    for conversation, found in zip(asked, taken(tiny, decoder, asked, LABELS, tokens), strict=True):
        alone = {label: nats_alone(tiny, decoder, conversation, label) for label in LABELS}
        assert found.choices is not None and tuple(found.choices) == LABELS
        assert found.choices == pytest.approx(alone, rel=1e-6)
        assert found.choices[conversation.answer] == pytest.approx(found.nats, rel=1e-6), "the reference is one"
        assert likeliest(found, LABELS) == min(alone, key=alone.__getitem__)


def test_row_by_row_gives_the_same(tiny: Path, decoder: Decoder) -> None:
    rows = Decoder(decoder.model)
    rows._rows_only = "a test"
    by_tree, by_row = (taken(tiny, d, conversations(), LABELS) for d in (decoder, rows))
    for ours, theirs in zip(by_tree, by_row, strict=True):
        assert ours.choices == pytest.approx(theirs.choices, rel=1e-6)


def test_77_labels(tiny: Path, decoder: Decoder) -> None:
    labels = tuple(f"intent_number_{i}" for i in range(77))
    found = taken(tiny, decoder, conversations(labels), labels)
    assert all(s.choices is not None and len(s.choices) == 77 for s in found)


def test_earlier_turns_of_a_prompt_are_not_scored(tiny: Path, decoder: Decoder) -> None:
    user, assistant = Message(role="user", content="Hello"), Message(role="assistant", content="Hello, what is it?")
    asked = [make_conversation([user, assistant, user, Message(role="assistant", content="ab")], "x.jsonl:1")]
    (found,) = taken(tiny, decoder, asked, ("ab", "b"))
    assert found.choices == pytest.approx({x: nats_alone(tiny, decoder, asked[0], x) for x in ("ab", "b")}, rel=1e-6)


def test_plain_text_and_tasks_without_labels_have_no_choices(tiny: Path, decoder: Decoder) -> None:
    text = make_conversation([Message(role="text", content="All of it is learned.")], "x.jsonl:9")
    assert [s.choices is None for s in taken(tiny, decoder, [*conversations(), text], LABELS)] == [False] * 4 + [True]
    assert all(s.choices is None for s in taken(tiny, decoder, conversations(), ()))


def test_a_long_document_is_scored_in_the_windows_in_which_it_is_learned(tiny: Path, decoder: Decoder) -> None:
    long, short = (make_conversation([Message(role="text", content="Seven cups. " * n)], "x:1") for n in (40, 2))
    encoder = Encoder(load_tokenizer(find_base(str(tiny))))

    def scored(window: int | None, *asked: Conversation) -> list[tuple[float, int]]:
        suite = Suite("test", labelled(asked, ()), [], scored=True)
        taken = Exam(suite, encoder, tests=[], max_new_tokens=1, tokens_at_once=512, window=window)
        return [(s.nats, s.n_tokens) for s in taken.take(Scorer(decoder), "base", Quiet())]

    whole = encoder(long)
    cut = [Encoded(whole.ids[at : at + 30], whole.learn[at : at + 30], str(at), "") for at in range(0, 999, 29)]
    nats = sum(score_all(decoder, [c for c in cut if len(c.ids) > 1], 512))
    assert scored(30, long, short) == [(pytest.approx(nats, rel=1e-6), whole.n_learned), *scored(None, short)]
    assert scored(30, long)[0][0] != pytest.approx(scored(None, long)[0][0], rel=1e-4)
    chat = conversations()[0]
    assert scored(3, chat) == scored(None, chat), "a chat is asked as a whole"


def test_what_is_written_is_read(tiny: Path, decoder: Decoder, tmp_path: Path) -> None:
    asked, probe = taken(tiny, decoder, conversations(), LABELS), general(probe_documents(2))
    encoder = Encoder(load_tokenizer(find_base(str(tiny))))
    known = Exam(probe, encoder, tests=[], max_new_tokens=1, tokens_at_once=512).take(Scorer(decoder), "base", Quiet())
    path = tmp_path / "base.jsonl"
    path.write_bytes(dump_samples(asked, "test") + dump_samples(known, "general"))
    found = load_answers("base", path, None)
    assert (found.samples, found.suites) == (asked, {"general": known})
    assert all(s.choices is None and s.nats > 0 for s in known)


def test_a_tag_to_cluster_by_must_be_there() -> None:
    rows = [c.model_copy(update={"tags": {"topic": c.id}}) for c in conversations()]
    assert check_clusters(None, rows) == check_clusters("topic", rows) == []
    with pytest.raises(DataError, match=r"LU-D102 evaluate.cluster_by: .* 'topik'\n.*did you mean 'topic'"):
        check_clusters("topik", rows)
    rows[0] = conversations()[0]
    assert check_clusters("topic", rows)[0].startswith("evaluate.cluster_by: 1 of 4 test conversations have no such")


def test_what_two_suites_ask_alike_is_scored_once(tiny: Path, decoder: Decoder, monkeypatch: Any) -> None:
    """A row of the test set, and the same row as one of two choices."""
    scored: list[int] = []
    whole = exam_module.score_all

    def counting(decoder: Decoder, examples: Any, *settings: Any) -> list[float]:
        scored.append(len(examples))
        return whole(decoder, examples, *settings)

    monkeypatch.setattr(exam_module, "score_all", counting)
    encoder, asked = Encoder(load_tokenizer(find_base(str(tiny)))), conversations()
    other = [make_conversation([Message(role="user", content="b"), c.messages[-1]], c.source) for c in asked]
    pairs = [Item(c, {"plain": c, "changed": o}) for c, o in zip(asked, other, strict=True)]
    settings: dict[str, Any] = {"tests": asked, "max_new_tokens": 1, "tokens_at_once": 4096}
    test = Exam(Suite("test", labelled(asked, ()), [], scored=True), encoder, **settings)
    changed = Exam(Suite("changed", pairs, []), encoder, **settings)
    scorer = Scorer(decoder)
    plain = [s.nats for s in test.take(scorer, "base", Quiet())]
    found = [s.choices for s in changed.take(scorer, "base", Quiet())]
    assert scored == [len(asked), len(other)] and [c["plain"] for c in found if c] == plain
    alone = [s.choices for s in changed.take(Scorer(decoder), "base", Quiet())]
    for mine, theirs in zip(found, alone, strict=True):
        assert mine is not None and mine == pytest.approx(theirs, rel=1e-6)


def test_the_labels_decide_the_key(tiny: Path) -> None:
    one, same, other = (exam(tiny, conversations(), labels).key("m") for labels in (LABELS, LABELS, LABELS[:3]))
    assert one == same != other


def test_the_families_decide_the_key_because_intervals_count_them(tiny: Path) -> None:
    asked = conversations()
    together = [c.model_copy(update={"family": "one"}) for c in asked]
    assert exam(tiny, asked, LABELS).key("m") != exam(tiny, together, LABELS).key("m")


def test_an_answer_that_had_no_room_to_end_is_cut_off(tiny: Path, decoder: Decoder) -> None:
    encoder = Encoder(load_tokenizer(find_base(str(tiny))))
    suite = Suite("test", labelled(conversations(), ()), [], scored=True, written=True)
    exam = Exam(suite, encoder, tests=conversations(), max_new_tokens=3, tokens_at_once=4096)
    found = exam.take(Scorer(decoder), "base", Quiet())
    first = decoder_answer(decoder, encoder, conversations()[0])
    exam._end_ids = {first}
    ended = exam.take(Scorer(decoder), "base", Quiet())
    assert all(s.cut for s in found) and not ended[0].cut and ended[0].answer == ""


def decoder_answer(decoder: Decoder, encoder: Encoder, conversation: Conversation) -> int:
    """The first token that the model answers with."""
    ids = torch.tensor([encoder.prompt(conversation.prompt)])
    with torch.no_grad():
        return int(decoder.model(ids).logits[0, -1].argmax())


def test_several_drawn_answers_are_samples_of_one_cluster(tiny: Path, decoder: Decoder) -> None:
    text = make_conversation([Message(role="text", content="Nothing is asked.")], "x.jsonl:9")
    suite = Suite("test", labelled([*conversations(), text], ()), [], scored=True, written=True)
    encoder = Encoder(load_tokenizer(find_base(str(tiny))))
    settings: dict[str, Any] = {"tests": conversations(), "max_new_tokens": 4, "tokens_at_once": 4096}
    drawn = Exam(suite, encoder, drawing=Drawing(1.0, 3, 0), **settings)
    found = drawn.take(Scorer(decoder), "base", Quiet())
    assert len(found) == 3 * len(TEXTS) + 1 == len({s.id for s in found})
    assert len({s.cluster for s in found}) == len(TEXTS) + 1
    assert len({s.answer for s in found[:3]}) > 1 and len({s.nats for s in found[:3]}) == 1
    assert drawn.key("m") != Exam(suite, encoder, **settings).key("m")

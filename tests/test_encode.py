"""Ids equal the tokenizer's own, control strings stay text, and exactly the answers are learned: for every family."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Iterator
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from chat_templates import FAMILIES, Family, tokenizer_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from luthier import template
from luthier.conversation import Conversation, Message, make_conversation
from luthier.encode import Encoded, Encoder
from luthier.errors import DataError, ModelError
from luthier.models import Base, find_base, load_tokenizer

by_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
on_fixtures = settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])

FRAGMENTS = (
    "Hello",
    "  two  spaces ",
    "\n\n",
    "\t",
    "\r\n",
    "👩‍👩‍👧‍👦",
    "🇺🇦",
    "שלום עולם",
    "مرحبا\u200f",
    "e\u0301",
    "水壶",
    "\u00a0",
    "\u2028",
    "<",
    "|>",
    "</",
    "[",
    "<|",
    "assistant",
    "user\n",
    "system",
    "{{ x }}",
    "𝔘𝔫𝔦",
    "\u0000",
    "1234567890" * 30,
    "longword" * 60,
)
TEXT = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\uf8f0\uf8f1\uf8f2"), max_size=40),
    st.lists(st.sampled_from(FRAGMENTS), max_size=8).map("".join),
)


def chat(*texts: str, system: str | None = None, **settings_: Any) -> Conversation:
    """Turns of user and assistant in alternation."""
    messages = [Message(role="system", content=system)] if system is not None else []
    for i, text in enumerate(texts):
        messages.append(Message(role="assistant" if i % 2 else "user", content=text, **(settings_ if i % 2 else {})))
    return make_conversation(messages, "data.jsonl:7")


@st.composite
def chats(draw: st.DrawFn) -> Conversation:
    n = draw(st.integers(1, 3))
    return chat(*(draw(TEXT) for _ in range(2 * n)), system=draw(st.none() | TEXT))


def as_dicts(conversation: Conversation) -> list[dict[str, str]]:
    return [{"role": m.role, "content": m.content} for m in conversation.messages]


def own_ids(tokenizer: Any, conversation: Conversation) -> list[int]:
    """What transformers itself makes of the conversation."""
    ids: list[int] = tokenizer.apply_chat_template(as_dicts(conversation), tokenize=True, return_dict=False)
    return ids


def rendered(tokenizer: Any, conversation: Conversation) -> str:
    text: str = tokenizer.apply_chat_template(as_dicts(conversation), tokenize=False)
    return text


def decoded(tokenizer: Any, ids: list[int]) -> str:
    text: str = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text


def learned_runs(tokenizer: Any, encoded: Encoded) -> list[str]:
    """The text of every unbroken run of learned tokens."""
    runs = groupby(zip(encoded.ids, encoded.learn, strict=True), key=lambda pair: pair[1])
    return [decoded(tokenizer, [id_ for id_, _ in run]) for learned, run in runs if learned]


def same_words(one: str, other: str) -> bool:
    """Whether two texts differ in white space only."""
    return "".join(one.split()) == "".join(other.split())


def control_counts(tokenizer: Any, ids: list[int]) -> Counter[int]:
    return Counter(i for i in ids if i in tokenizer.added_tokens_decoder)


def control_strings(tokenizer: Any) -> set[str]:
    return {str(t) for t in tokenizer.added_tokens_decoder.values()}


def without_controls(tokenizer: Any, conversation: Conversation) -> Conversation:
    """The conversation with the rare control string that hypothesis drew taken out."""

    def clean(text: str) -> str:
        while any(c in text for c in control_strings(tokenizer)):
            for control in control_strings(tokenizer):
                text = text.replace(control, "")
        return text

    return make_conversation(
        [m.model_copy(update={"content": clean(m.content)}) for m in conversation.messages], conversation.source
    )


@cache
def encoder_of(family: Family, tiny: Path) -> Encoder:
    return Encoder(tokenizer_of(family, tiny))


def refused(encoder: Encoder, conversation: Conversation) -> tuple[str, str]:
    """Code and place of the refusal."""
    with pytest.raises(DataError) as caught:
        encoder(conversation)
    [problem] = caught.value.problems
    return problem.code, problem.where


# -- the same ids as transformers -------------------------------------------------------------------------


@by_family
@on_fixtures
@given(conversation=chats())
def test_ids_are_those_of_apply_chat_template(family: Family, tiny: Path, conversation: Conversation) -> None:
    encoder = encoder_of(family, tiny)
    if not family.system and conversation.messages[0].role == "system":
        conversation = make_conversation(conversation.messages[1:], conversation.source)
    conversation = without_controls(encoder.tokenizer, conversation)
    assert encoder(conversation).ids == own_ids(encoder.tokenizer, conversation)


@pytest.mark.smollm2
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(conversation=chats())
def test_ids_of_the_built_in_model_are_those_of_apply_chat_template(
    smollm2_encoder: Encoder, conversation: Conversation
) -> None:
    conversation = without_controls(smollm2_encoder.tokenizer, conversation)
    assert smollm2_encoder(conversation).ids == own_ids(smollm2_encoder.tokenizer, conversation)


@pytest.fixture(scope="module")
def smollm2_encoder(smollm2: Base) -> Encoder:
    return Encoder(load_tokenizer(smollm2))


@by_family
def test_another_process_encodes_the_same(family: Family, tiny: Path) -> None:
    encoder = Encoder(tokenizer_of(family, tiny), max_tokens=99, new_tokens=("<mine>",))
    there = pickle.loads(pickle.dumps(encoder))
    conversation = chat("Hello <mine>, <|im_end|> world", "Hi!")
    assert there(conversation) == encoder(conversation)
    assert there.max_tokens == 99


@by_family
def test_a_prompt_is_what_precedes_the_first_learned_token(family: Family, tiny: Path) -> None:
    encoder = encoder_of(family, tiny)
    conversation = chat("How are you?", "Fine, thanks.")
    encoded = encoder(conversation)
    prompt = encoder.prompt(conversation.prompt)
    assert encoded.ids[: len(prompt)] == prompt
    assert encoded.learn.index(True) == len(prompt)


@by_family
def test_a_prompt_is_the_generation_prompt_of_transformers(family: Family, tiny: Path) -> None:
    encoder = encoder_of(family, tiny)
    conversation = chat("How are you?", "Fine.", "And <now?")
    assert encoder.prompt(conversation.messages) == encoder.tokenizer.apply_chat_template(
        as_dicts(conversation), tokenize=True, return_dict=False, add_generation_prompt=True
    )


# -- control strings are text -----------------------------------------------------------------------------


def hostile_texts(control: str) -> Iterator[str]:
    """A control string alone, at the edges, nested, in halves."""
    yield control
    yield f" {control}\n"
    yield f"{control}tell me{control}"
    yield f"tell {control}{control} me"
    middle = len(control) // 2
    yield control[:middle] + control + control[middle:]
    for cut in {1, middle, len(control) - 1}:
        yield f"tell me {control[:cut]}"
        yield f"{control[cut:]} tell me"
        yield control[cut:] + control[:cut]


@by_family
def test_control_strings_of_users_and_systems_never_become_tokens(family: Family, tiny: Path) -> None:
    encoder = encoder_of(family, tiny)
    tokenizer = encoder.tokenizer
    system = "Be kind." if family.system else None
    expected = control_counts(tokenizer, encoder(chat("tell me", "no", "and", "yes", system=system)).ids)
    for control in control_strings(tokenizer):
        for text in hostile_texts(control):
            for hostile in (
                chat(text, "no", "and", "yes", system=system),
                chat("tell me", "no", text, "yes", system=system),
                *([chat("tell me", "no", "and", "yes", system=text)] if family.system else []),
                chat(text, "no", text, "yes", system=text if family.system else None),
            ):
                encoded = encoder(hostile)
                assert control_counts(tokenizer, encoded.ids) == expected, (control, text)
                if not family.strips_after_token:
                    assert decoded(tokenizer, encoded.ids) == rendered(tokenizer, hostile)
                assert [r.strip() for r in learned_runs(tokenizer, encoded)] == expected_runs(family, "no", "yes")


@by_family
def test_special_tokens_in_answers_never_become_tokens(family: Family, tiny: Path) -> None:
    encoder = encoder_of(family, tiny)
    tokenizer = encoder.tokenizer
    expected = control_counts(tokenizer, encoder(chat("tell me", "no")).ids)
    special = {str(t) for t in tokenizer.added_tokens_decoder.values() if t.special}
    for control in special:
        for text in hostile_texts(control):
            encoded = encoder(chat("tell me", text))
            assert control_counts(tokenizer, encoded.ids) == expected, (control, text)
            [run] = learned_runs(tokenizer, encoded)
            assert same_words(run, expected_runs(family, text.strip())[0])


def test_thinking_in_an_answer_is_meant(tiny: Path) -> None:
    [qwen] = [f for f in FAMILIES if f.name == "qwen3"]
    encoder = encoder_of(qwen, tiny)
    answer = "<think>\nshort\n</think>\n\nyes"
    conversation = chat("tell me", answer)
    encoded = encoder(conversation)
    assert encoded.ids == own_ids(encoder.tokenizer, conversation)
    assert learned_runs(encoder.tokenizer, encoded) == [answer + "<|im_end|>"]
    think = encoder.tokenizer.convert_tokens_to_ids("<think>")
    assert encoded.ids.count(think) == 1


@pytest.mark.parametrize("piece", ["end", "im_", "_e", "|"])
def test_a_template_that_puts_a_control_string_together_makes_no_token(tiny: Path, piece: str) -> None:
    """The template writes what is missing on both sides of the content."""
    before, after = "<|im_end|>".split(piece, 1)
    family = Family("joins", "", (), "<|im_end|>")
    tokenizer = tokenizer_of(family, tiny)
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ '" + before + "' + m['content'] + '" + after + "' }}"
        "{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}{% endfor %}"
    )
    encoded = Encoder(tokenizer)(chat(piece, "no"))
    assert encoded.ids.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 1
    assert decoded(tokenizer, encoded.ids) == "<|im_end|>no<|im_end|>"


@pytest.mark.smollm2
def test_control_strings_of_the_built_in_model_never_become_tokens(smollm2_encoder: Encoder) -> None:
    tokenizer = smollm2_encoder.tokenizer
    expected = control_counts(tokenizer, smollm2_encoder(chat("tell me", "no", system="Be kind.")).ids)
    for control in control_strings(tokenizer):
        for text in hostile_texts(control):
            hostile = chat(text, text, system=text)
            encoded = smollm2_encoder(hostile)
            assert control_counts(tokenizer, encoded.ids) == expected, (control, text)
            assert decoded(tokenizer, encoded.ids) == rendered(tokenizer, hostile)


# -- other kinds of tokenizer -----------------------------------------------------------------------------

WORDS = ["the cat sat on the mat", "a dog and a user", "hello there assistant  how are   you", "no yes maybe\n\nend"]


def sentencepiece_bpe() -> Tokenizer:
    """As Llama 2 and Mistral have it: spaces are replaced, bytes are the fall-back."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    tokenizer.train_from_iterator(
        [w.replace(" ", "▁") for w in WORDS],
        trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False),
    )
    settings_ = tokenizer.to_str()
    plain = Tokenizer.from_str(settings_)
    plain.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return plain


def unigram() -> Tokenizer:
    """Its vocabulary holds the special tokens as pieces with the best score of all."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="never")
    tokenizer.train_from_iterator(
        WORDS,
        trainers.UnigramTrainer(
            vocab_size=80,
            special_tokens=["<unk>", "<s>", "</s>"],
            unk_token="<unk>",
            initial_alphabet=list("abcdefghijklmnopqrstuvwxyz</>.? \n▁"),
            show_progress=False,
        ),
    )
    return tokenizer


def byte_level_with_runs_of_spaces() -> Tokenizer:
    """As GPT-NeoX, OLMo, Phi and Gemma have it: runs of white space are added tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        WORDS,
        trainers.BpeTrainer(
            vocab_size=300,
            special_tokens=["<unk>", "<s>", "</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.add_tokens([AddedToken(" " * n, special=False, normalized=True) for n in range(4, 1, -1)])
    tokenizer.add_tokens([AddedToken("\n\n", special=False, normalized=False), AddedToken("<b>", normalized=False)])
    return tokenizer


PLAIN_TEMPLATE = (
    "{% for m in messages %}{{ '<s>' + m['role'] + ' ' + m['content'] + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant ' }}{% endif %}"
)
KINDS = (sentencepiece_bpe, unigram, byte_level_with_runs_of_spaces)
by_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)


@cache
def encoder_of_kind(kind: Any) -> Encoder:
    from transformers import PreTrainedTokenizerFast

    return Encoder(
        PreTrainedTokenizerFast(
            tokenizer_object=kind(), bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=PLAIN_TEMPLATE
        )
    )


@by_kind
@settings(max_examples=40)
@given(
    texts=st.lists(st.sampled_from(["cat", "  ", "    ", "\n\n", "\n", "é", "🇺🇦", "<", "s>", "dog "]), max_size=9).map(
        "".join
    )
)
def test_ids_are_those_of_apply_chat_template_for_other_kinds_of_tokenizer(kind: Any, texts: str) -> None:
    encoder = encoder_of_kind(kind)
    if {"<s>", "</s>"} & {c for c in ("<s>", "</s>") if c in texts}:
        texts = texts.replace("s>", "")
    conversation = chat(texts, "a dog", texts + "?", "  no  cat")
    assert encoder(conversation).ids == own_ids(encoder.tokenizer, conversation)


@by_kind
def test_control_strings_never_become_tokens_for_other_kinds_of_tokenizer(kind: Any) -> None:
    encoder = encoder_of_kind(kind)
    ids_of = {encoder.tokenizer.convert_tokens_to_ids(c): c for c in ("<s>", "</s>", "<b>")}

    def counts(*texts: str) -> Counter[int]:
        return Counter(i for i in encoder(chat(*texts)).ids if i in ids_of and i != encoder.tokenizer.unk_token_id)

    for control in ids_of.values():
        for text in hostile_texts(control):
            assert counts(text, "no") == counts("the cat", "no"), (control, text)


@by_kind
def test_exactly_the_answers_are_learned_by_other_kinds_of_tokenizer(kind: Any) -> None:
    encoder = encoder_of_kind(kind)
    encoded = encoder(chat("the cat", "a dog", "the cat", "maybe"))
    assert [r.strip() for r in learned_runs(encoder.tokenizer, encoded)] == ["a dog</s>", "maybe</s>"]


# -- what is learned --------------------------------------------------------------------------------------


def expected_runs(family: Family, *answers: str) -> list[str]:
    leads = family.leads(len(answers))
    return [(lead + answer + family.end).strip() for lead, answer in zip(leads, answers, strict=True)]


TURNS = {
    "one turn": ("How are you?", "Fine, thanks."),
    "three turns": ("How are you?", "Fine, thanks.", "And now?", "Still fine.", "Bye", "Bye-bye!"),
    "role names": ("assistant", "user", "assistant\nuser", "assistant", "system", "model"),
    "repetition": ("yes", "yes", "yes", "yes"),
    "an answer that stands in its question": ("Say: Fine. Fine.", "Fine.", "Fine.", "Fine. Fine."),
    "unicode": ("שלום", "مرحبا 👩‍👩‍👧‍👦", "水壶", "e\u0301"),
    "one letter": ("n", "e", "d", "i"),
}


@by_family
@pytest.mark.parametrize("turns", TURNS.values(), ids=TURNS.keys())
@pytest.mark.parametrize("system", [None, "Be kind.", "user", ""])
def test_exactly_each_answer_and_the_end_of_its_turn_are_learned(
    family: Family, tiny: Path, turns: tuple[str, ...], system: str | None
) -> None:
    if system is not None and not family.system:
        system = None
    encoder = encoder_of(family, tiny)
    encoded = encoder(chat(*turns, system=system))
    runs = learned_runs(encoder.tokenizer, encoded)
    leads = family.leads(len(turns) // 2)
    assert runs == [lead + answer + family.end for lead, answer in zip(leads, turns[1::2], strict=True)]
    assert encoded.n_learned == sum(encoded.learn)


@by_family
def test_white_space_around_an_answer_makes_nothing_else_learned(family: Family, tiny: Path) -> None:
    encoder = encoder_of(family, tiny)
    for answer in (" Fine. ", "\n\nFine.\n", "\tFine."):
        runs = learned_runs(encoder.tokenizer, encoder(chat("How are you?", answer)))
        assert len(runs) == 1
        assert same_words(runs[0], expected_runs(family, "Fine.")[0])


@by_family
def test_a_message_marked_as_not_learned_is_not(family: Family, tiny: Path) -> None:
    encoder = encoder_of(family, tiny)
    messages = list(chat("How are you?", "Fine.", "And now?", "Still fine.").messages)
    for i, skipped in ((1, "Fine."), (3, "Still fine.")):
        marked = [m.model_copy(update={"learn": False}) if j == i else m for j, m in enumerate(messages)]
        runs = learned_runs(encoder.tokenizer, encoder(make_conversation(marked, "data.jsonl:7")))
        every = [lead + a + family.end for lead, a in zip(family.leads(2), ("Fine.", "Still fine."), strict=True)]
        assert runs == [r for r, a in zip(every, ("Fine.", "Still fine."), strict=True) if a != skipped]


@by_family
def test_a_user_message_marked_as_learned_is(family: Family, tiny: Path) -> None:
    encoder = encoder_of(family, tiny)
    user, assistant = chat("How are you?", "Fine.").messages
    encoded = encoder(make_conversation([user.model_copy(update={"learn": True}), assistant], "data.jsonl:7"))
    assert "How are you?" in learned_runs(encoder.tokenizer, encoded)[0]


def test_plain_text_is_learned_whole_with_its_end(tiny: Path) -> None:
    encoder = encoder_of(FAMILIES[0], tiny)
    text = "Once upon <|im_end|> a time.\n"
    encoded = encoder(make_conversation([Message(role="text", content=text)], "book.txt:1"))
    assert encoded.learn == [True] * len(encoded.ids)
    assert decoded(encoder.tokenizer, encoded.ids) == text + "<|im_end|>"
    assert control_counts(encoder.tokenizer, encoded.ids) == {encoder.tokenizer.eos_token_id: 1}
    assert encoded.n_learned == len(encoded.ids) - 1


def test_plain_text_opens_as_the_tokenizer_opens_it_and_that_is_not_learned(tiny: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = tokenizer_of(FAMILIES[0], tiny)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    encoded = Encoder(tokenizer)(make_conversation([Message(role="text", content="Once.")], "book.txt:1"))
    assert encoded.ids == [*tokenizer("Once.")["input_ids"], tokenizer.eos_token_id]
    assert encoded.learn == [False] + [True] * (len(encoded.ids) - 1)


# -- what is refused, and where ---------------------------------------------------------------------------


def encoder_with(tiny: Path, template: str | None, **settings_: Any) -> Encoder:
    tokenizer = tokenizer_of(FAMILIES[0], tiny)
    tokenizer.chat_template = template
    return Encoder(tokenizer, **settings_)


def test_a_row_that_is_too_long_is_refused_and_not_cut(tiny: Path) -> None:
    template = FAMILIES[0].template
    n = len(encoder_with(tiny, template)(chat("hi", "yes")).ids)
    assert len(encoder_with(tiny, template, max_tokens=n)(chat("hi", "yes")).ids) == n
    assert refused(encoder_with(tiny, template, max_tokens=n - 1), chat("hi", "yes")) == ("LU-D046", "data.jsonl:7")


def test_a_row_without_a_learned_token_is_refused(tiny: Path) -> None:
    encoder = encoder_of(FAMILIES[0], tiny)
    assert refused(encoder, chat("hi", "yes", learn=False)) == ("LU-D047", "data.jsonl:7")
    assert refused(encoder, make_conversation([Message(role="text", content="")], "b.txt:1")) == ("LU-D047", "b.txt:1")


def test_a_template_that_never_ends_the_turn_is_refused(tiny: Path) -> None:
    endless = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + ' ' + m['content'] }}{% endfor %}"
    assert refused(encoder_with(tiny, endless), chat("hi", "yes")) == ("LU-D050", "data.jsonl:7")


def test_a_template_that_ends_only_the_conversation_is_refused(tiny: Path) -> None:
    """The first answer's end would be that of the whole, and the user's words between them would be learned."""
    template = (
        "{% for m in messages %}{{ m['role'] + ':\n' + m['content'] + '\n' }}{% endfor %}"
        "{{ 'assistant:\n' if add_generation_prompt else '<|im_end|>' }}"
    )
    encoder = encoder_with(tiny, template)
    assert [r.strip() for r in learned_runs(encoder.tokenizer, encoder(chat("hi", "yes")))] == ["yes\n<|im_end|>"]
    assert refused(encoder, chat("hi", "yes", "and", "no")) == ("LU-D050", "data.jsonl:7")


def test_plain_text_for_a_tokenizer_without_an_end_token_is_refused(tiny: Path) -> None:
    tokenizer = tokenizer_of(FAMILIES[0], tiny)
    tokenizer.eos_token = None
    conversation = make_conversation([Message(role="text", content="Once.")], "book.txt:1")
    assert refused(Encoder(tokenizer), conversation) == ("LU-D050", "book.txt:1")


@pytest.mark.parametrize("character", ["\uf8f0", "\uf8f1", "\uf8f2"])
def test_the_private_characters_that_keep_control_strings_apart_are_refused(tiny: Path, character: str) -> None:
    encoder = encoder_of(FAMILIES[0], tiny)
    assert refused(encoder, chat(f"a{character}b", "yes")) == ("LU-D052", "data.jsonl:7")
    assert refused(encoder, chat("hi", f"{character}0")) == ("LU-D052", "data.jsonl:7")
    plain = make_conversation([Message(role="text", content=character)], "book.txt:1")
    assert refused(encoder, plain) == ("LU-D052", "book.txt:1")
    with pytest.raises(DataError, match="LU-D052 prompt"):
        encoder.prompt([Message(role="user", content=f"{character}2")])
    with pytest.raises(DataError, match=r"LU-D052 x\.jsonl:1"):
        encoder.continuation("Question:", f" {character}2", "x.jsonl:1")


def test_a_tokenizer_without_a_template_is_refused(tiny: Path) -> None:
    assert refused(encoder_with(tiny, None), chat("hi", "yes")) == ("LU-D054", "data.jsonl:7")


def test_a_template_that_raises_is_refused_with_its_words(tiny: Path) -> None:
    encoder = encoder_with(tiny, "{{ raise_exception('no \x1b[31m such role') }}")
    with pytest.raises(DataError, match=r"LU-D054 data.jsonl:7: .*no \\x1b\[31m such role"):
        encoder(chat("hi", "yes"))
    assert refused(encoder_with(tiny, "{% for %}"), chat("hi", "yes")) == ("LU-D054", "data.jsonl:7")


def test_a_template_that_drops_or_rewrites_a_turn_is_refused(tiny: Path) -> None:
    chatml = FAMILIES[0].template
    drops = chatml.replace(
        "{{ '<|im_start|>' + message", "{% if message['role'] != 'system' %}{{ '<|im_start|>' + message"
    )
    drops = drops.replace("'<|im_end|>' + '\n' }}{% endfor %}", "'<|im_end|>' + '\n' }}{% endif %}{% endfor %}")
    assert drops.count("!= 'system'") == 2
    assert refused(encoder_with(tiny, drops), chat("hi", "yes", system="Be kind.")) == ("LU-D055", "data.jsonl:7")
    shouts = chatml.replace("message['content']", "message['content'] | upper")
    assert refused(encoder_with(tiny, shouts), chat("hi", "yes")) == ("LU-D055", "data.jsonl:7")


def test_a_system_text_that_the_template_writes_only_into_a_prompt_is_refused(tiny: Path) -> None:
    """So does Mistral's v0.3: trained on without it, asked with it."""
    [mistral] = [f for f in FAMILIES if f.name == "mistral"]
    tokenizer = tokenizer_of(mistral, tiny)
    tokenizer.chat_template = mistral.template.replace("system if loop.first", "system if loop.last")
    encoder = Encoder(tokenizer)
    assert encoder(chat("hi", "yes")).n_learned > 0
    assert refused(encoder, chat("hi", "yes", system="Be kind.")) == ("LU-D055", "data.jsonl:7")


def test_thinking_that_the_template_would_drop_is_refused_and_not_lost(tiny: Path) -> None:
    [qwen] = [f for f in FAMILIES if f.name == "qwen3"]
    conversation = chat("one", "<think>\nwell\n</think>\n\nyes", "two", "no")
    assert refused(encoder_of(qwen, tiny), conversation) == ("LU-D055", "data.jsonl:7")


def test_a_tokenizer_without_a_fast_backend_is_refused() -> None:
    class Slow:
        pass

    with pytest.raises(ModelError, match="LU-M020 Slow"):
        Encoder(Slow())


HOSTILE = {
    "looks for what Python has": "{{ messages.__class__.__mro__[-1].__subclasses__() }}",
    "reads a file": "{{ ''.__class__.__base__.__subclasses__()[0].__init__.__globals__ }}",
    "changes what it is given": "{% set _ = messages.append(1) %}{{ messages }}",
    "counts to a number without end": "{% for i in range(10**12) %}x{% endfor %}",
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_template_may_not_do_what_it_likes(tiny: Path, what: str) -> None:
    tokenizer = load_tokenizer(find_base(str(tiny)))
    tokenizer.chat_template = HOSTILE[what]
    with pytest.raises(DataError, match="LU-D054 .*the chat template refuses this conversation"):
        Encoder(tokenizer)(chat("Who are you?"))


def test_a_template_that_does_not_end_is_ended(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template, "RENDER_S", 0.2)
    tokenizer = load_tokenizer(find_base(str(tiny)))
    loop = "{% for i in range(90000) %}"
    tokenizer.chat_template = f"{loop}{loop}{loop}{{% endfor %}}{{% endfor %}}{{% endfor %}}"
    with pytest.raises(DataError, match=r"LU-D054 .*has not ended after 0\.2 s"):
        Encoder(tokenizer)(chat("Who are you?"))

"""The form of answers: patterns, JSON, schemas, tool calls, scripts."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.errors import EvaluationError, UserError
from luthier.evaluate.metrics.build import build
from luthier.evaluate.metrics.calls import read_calls
from luthier.evaluate.metrics.text import script
from luthier.metric import Metric
from luthier.settings import Use

from .samples import pairs, sample, value

TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
)
ORDER = {
    "type": "object",
    "properties": {
        "id": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]+$"},
        "items": {"type": "integer", "minimum": 1},
    },
    "required": ["id", "items"],
    "additionalProperties": False,
}


def make(name: str, folder: Path | None = None, **params: Any) -> Metric:
    return build(Use(use=name, **params), (), folder)


# -- patterns and JSON --------------------------------------------------------------------------------------------


def test_matches_the_whole_answer() -> None:
    found = make("matches", pattern=r"[A-Z]{2}-\d+")
    assert value(found, pairs([("", "AB-12"), ("", "AB-12."), ("", "see AB-12"), ("", "")])) == 0.25
    with pytest.raises(UserError, match=r"LU-E003 .*raised .*unterminated character set"):
        make("matches", pattern="[a")


@pytest.mark.parametrize("answer", ["", "{'a': 1}", '{"a": NaN}', "```json\n{}\n```", "{} {}", "[" * 100_000])
def test_what_is_no_json(answer: str) -> None:
    assert value(make("valid_json"), [sample(answer)]) == 0.0
    assert value(make("json_schema", schema={}), [sample(answer)]) == 0.0


@given(TREES)
def test_what_is_json(tree: object) -> None:
    assert value(make("valid_json"), [sample(json.dumps(tree))]) == 1.0
    assert value(make("json_schema", schema={}), [sample(json.dumps(tree))]) == 1.0


# -- schemas ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "fits"),
    [
        ('{"id": "AB-12", "items": 2}', True),
        ('{"id": "AB-12", "items": 2.0}', True),  # JSON Schema: a number without fraction is an integer
        ('{"id": "AB-12"}', False),
        ('{"id": "AB-12", "items": "2"}', False),
        ('{"id": "AB-12", "items": 0}', False),
        ('{"id": "12", "items": 2}', False),
        ('{"id": "AB-12", "items": 2, "note": ""}', False),
        ('Here it is: {"id": "AB-12", "items": 2}', False),
        ('{"id": "ZZ-99", "items": 7}', True),  # invented, which no schema sees
    ],
)
def test_a_schema_inline_and_in_a_file(answer: str, fits: bool, tmp_path: Path) -> None:
    (tmp_path / "order.json").write_text(json.dumps(ORDER))
    for schema in (ORDER, "order.json"):
        assert value(make("json_schema", tmp_path, schema=schema), [sample(answer)]) == fits


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"type": "objekt"}, r"no JSON schema, at \$.type"),
        ({"pattern": "["}, "no JSON schema"),
        ([], "a schema is a JSON object"),
        ("none.json", "No such file"),
    ],
)
def test_what_is_no_schema_is_said_before_a_sample_is_read(schema: object, why: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"LU-E003 metric 'json_schema'.*{why}"):
        make("json_schema", tmp_path, schema=schema)


def test_a_reference_never_leads_to_the_network() -> None:
    away = make("json_schema", schema={"$ref": "https://example.com/schema.json"})
    with pytest.raises(UserError, match=r"LU-E004 sample s0.*Unresolvable: https://example.com/schema.json"):
        away.stats(sample("{}"))


def test_an_answer_too_deep_for_a_recursive_schema_does_not_fit() -> None:
    nested = {"$defs": {"n": {"type": "array", "items": {"$ref": "#/$defs/n"}}}, "$ref": "#/$defs/n"}
    assert value(make("json_schema", schema=nested), [sample("[" * 800 + "]" * 800)]) == 0.0


def test_without_its_package_the_metric_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    with pytest.raises(
        EvaluationError, match=r"LU-E013 .*json_schema.*\n.*pip install -c constraints.txt '\.\[schema\]'"
    ):
        make("json_schema", schema={})


def test_the_schemas_file_decides_whether_an_evaluation_is_fresh(tmp_path: Path) -> None:
    from luthier.keys import _files_named
    from luthier.recipe import validate

    (tmp_path / "order.json").write_text("{}")
    (tmp_path / "asked.txt").write_text("hello\n")
    recipe = validate(
        {
            "name": "r",
            "data": {"sources": [{"path": "x"}]},
            "evaluate": {
                "requests": "asked.txt",
                "metrics": [{"use": "json_schema", "schema": "order.json"}, {"use": "matches", "pattern": "~x\0"}],
            },
            "release": {"rules": [{"metric": "matches", "must": "not_regress"}]},
        },
        "recipe.yaml",
        tmp_path,
    )
    before = _files_named(tmp_path, [m.params for m in recipe.evaluate.metrics], recipe.evaluate.requests)
    assert set(before) == {"order.json", "asked.txt"}
    (tmp_path / "order.json").write_text('{"type": "object"}')
    assert _files_named(tmp_path, [m.params for m in recipe.evaluate.metrics], recipe.evaluate.requests) != before


# -- calls of tools -----------------------------------------------------------------------------------------------

WEATHER = {"name": "weather", "arguments": {"city": "Oslo", "days": 3}}
TIME = {"name": "time", "arguments": {"zone": "CET"}}
SHAPES = [
    json.dumps(WEATHER),
    json.dumps([WEATHER]),
    json.dumps({"name": "weather", "parameters": {"days": 3.0, "city": "Oslo"}}),
    json.dumps({"type": "tool_use", "id": "t1", "name": "weather", "input": WEATHER["arguments"]}),
    json.dumps({"type": "function", "function": {"name": "weather", "arguments": '{"days": 3, "city": "Oslo"}'}}),
    json.dumps({"tool_calls": [{"id": "c1", "type": "function", "function": WEATHER}]}),
    json.dumps({"role": "assistant", "content": None, "tool_calls": [{"function": WEATHER}]}),
    f"<tool_call>\n{json.dumps(WEATHER)}\n</tool_call>",
    f"I will look it up. <tool_call>{json.dumps(WEATHER)}</tool_call>",
]


@pytest.mark.parametrize("shape", SHAPES)
def test_all_shapes_are_one_call(shape: str) -> None:
    assert read_calls(shape) == read_calls(SHAPES[0]) is not None
    for part in ("name", "arguments", "all"):
        assert value(make("tool_call", part=part), [sample(shape, SHAPES[0])]) == 1.0


NO_CALLS = [
    "",
    "It rains.",
    "[]",
    "{}",
    '{"name": 3}',
    '{"name": "f", "arguments": [1]}',
    '{"name": "f", "arguments": "x"}',
]


@pytest.mark.parametrize("text", NO_CALLS)
def test_what_is_no_call(text: str) -> None:
    assert read_calls(text) is None
    assert make("tool_call").stats(sample(SHAPES[0], text)) is None, "nothing was to be called"
    assert value(make("tool_call"), [sample(text, SHAPES[0])]) == 0.0


@pytest.mark.parametrize(
    ("answer", "name", "arguments"),
    [
        ([WEATHER, TIME], 1, 1),
        ([TIME, WEATHER], 1, 1),  # parallel calls have no order
        ([WEATHER], 0, 0),
        ([WEATHER, TIME, TIME], 0, 0),
        ([WEATHER, {**TIME, "name": "clock"}], 0, 1),
        ([{**WEATHER, "arguments": {"city": "Oslo", "days": 4}}, TIME], 1, 0),
        ([{**WEATHER, "arguments": {"city": "Oslo", "days": "3"}}, TIME], 1, 0),
        ([{**WEATHER, "arguments": {"city": "Oslo", "days": 3, "unit": "C"}}, TIME], 1, 0),
        ([{**WEATHER, "arguments": TIME["arguments"]}, {**TIME, "arguments": WEATHER["arguments"]}], 1, 1),
    ],
)
def test_names_and_arguments_of_two_calls(answer: list[dict[str, Any]], name: int, arguments: int) -> None:
    asked = sample(json.dumps(answer), json.dumps([WEATHER, TIME]))
    assert (value(make("tool_call", part="name"), [asked]), value(make("tool_call", part="arguments"), [asked])) == (
        name,
        arguments,
    )
    swapped = {c["name"]: c["arguments"] for c in answer} != {c["name"]: c["arguments"] for c in (WEATHER, TIME)}
    assert value(make("tool_call"), [asked]) == float(name and arguments and not swapped)


def test_true_is_not_one_and_a_missing_argument_is_not_null() -> None:
    def call(arguments: object) -> str:
        return json.dumps({"name": "f", "arguments": arguments})

    for one, other in (({"x": True}, {"x": 1}), ({"x": None}, {}), ({"x": [1, 2]}, {"x": [2, 1]})):
        assert value(make("tool_call"), [sample(call(one), call(other))]) == 0.0
    assert value(make("tool_call"), [sample(call({"x": [1, {"y": 2.0}]}), call({"x": [1.0, {"y": 2}]}))]) == 1.0
    assert value(make("tool_call"), [sample('{"name": "f"}', call({}))]) == 1.0
    with pytest.raises(UserError, match="LU-E003 .*part: 'names'; allowed: name, arguments, all"):
        make("tool_call", part="names")


@given(st.dictionaries(st.text(), TREES), st.randoms(use_true_random=False))
@settings(max_examples=25)
def test_the_order_of_keys_does_not_matter(arguments: dict[str, Any], random: Any) -> None:
    items = list(arguments.items())
    random.shuffle(items)
    one, other = ({"name": "f", "arguments": tree} for tree in (arguments, dict(items)))
    assert value(make("tool_call"), [sample(json.dumps(one), json.dumps(other))]) == 1.0


# -- scripts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The kettle", "LATIN"),
        ("Größe und Café", "LATIN"),
        ("Чайник Marrowby вмещает литр", "CYRILLIC"),
        ("水壶可以装一升水", "HAN"),
        ("このやかんは水が一リットル入ります", "JAPANESE"),
        ("東京都のラーメン屋", "JAPANESE"),
        ("주전자", "HANGUL"),
        ("केतली में पानी", "DEVANAGARI"),
        ("غلاية", "ARABIC"),
        ("קומקום", "HEBREW"),
        ("กาต้มน้ำ", "THAI"),
        ("ＡＢＣ１２", "LATIN"),
        ("1.35 - 42 €", None),
        ("", None),
    ],
)
def test_scripts(text: str, expected: str | None) -> None:
    assert script(text) == expected


def test_language_kept_sees_scripts_only() -> None:
    rows = [("Литр.", "Один литр."), ("Литр.", "One litre."), ("Ein Liter.", "One litre."), ("Литр.", "1"), ("12", "x")]
    assert value(make("language_kept"), pairs(rows)) == 2 / 4
    assert make("language_kept").stats(sample("text", "text", prompt="")) is None

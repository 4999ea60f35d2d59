"""A recipe is strict: every mistake is said, all at once, with its place; and every setting is read by some code."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from luthier import recipe as recipes
from luthier import settings as the_tree
from luthier.errors import Problem, RecipeError
from luthier.recipe import load, to_yaml, validate
from luthier.settings import Lora, Recipe, Use, fingerprint, located, metric_name, source_path
from luthier.strict_yaml import parse_yaml

MINIMAL = """\
name: shop
data: {sources: [{path: rows.jsonl}]}
release: {rules: [{metric: rouge1, must: beat_baseline}]}
"""


def tree(**sections: Any) -> dict[str, Any]:
    """The smallest recipe as plain data, with sections replaced."""
    plain: dict[str, Any] = parse_yaml(MINIMAL, "recipe.yaml")
    return plain | sections


def checked(**sections: Any) -> Recipe:
    return validate(tree(**sections), "recipe.yaml", Path())


def problems(text: str, tmp_path: Path, *overrides: str) -> tuple[Problem, ...]:
    """What is wrong with a recipe file of this text."""
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError) as caught:
        load(path, overrides)
    assert caught.value.exit_code == 2
    assert all(p.code.startswith("LU-R") for p in caught.value.problems)
    return caught.value.problems


def problem(text: str, tmp_path: Path, *overrides: str) -> Problem:
    [only] = problems(text, tmp_path, *overrides)
    return only


# -- the whole --------------------------------------------------------------------------------------------


def test_the_smallest_recipe_has_the_documented_defaults(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(MINIMAL)
    recipe = load(tmp_path / "recipe.yaml")
    assert recipe.seed == 0
    assert recipe.model.base == "smollm2-135m-instruct" and recipe.model.adapt == Lora()
    assert (recipe.train.epochs, recipe.train.examples_per_step, recipe.train.learning_rate) == (3, 16, None)
    assert (recipe.data.bad_rows, recipe.data.max_rejected_fraction) == ("quarantine", 0.01)
    assert recipe.data.format == "auto"
    assert (recipe.data.split.valid_fraction, recipe.data.split.test_fraction) == (0.05, 0.10)
    assert recipe.train.early_stopping and recipe.train.early_stopping.patience_checks == 3
    assert recipe.evaluate.metrics == () and recipe.evaluate.confidence == 0.95


def test_a_recipe_cannot_be_changed() -> None:
    from pydantic import ValidationError

    with pytest.raises(ValidationError):
        checked().train.epochs = 5  # type: ignore[misc]


def test_equal_recipes_have_equal_fingerprints() -> None:
    assert fingerprint(checked()) == fingerprint(checked(train={"epochs": 3}))
    assert fingerprint(checked()) != fingerprint(checked(train={"epochs": 4}))


def test_paths_count_from_the_recipe() -> None:
    [source] = checked().data.sources
    assert source_path(source, Path("/some/where")) == Path("/some/where/rows.jsonl")
    [upward] = checked(data={"sources": [{"path": "../rows.jsonl"}]}).data.sources
    assert source_path(upward, Path("/some/where")) == Path("/some/rows.jsonl")


# -- what is wrong with it --------------------------------------------------------------------------------


def test_no_recipe_file_is_said(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(RecipeError, match="LU-R001"):
            load(path)


@pytest.mark.parametrize("text", ["", "just words", "[a, list]", "# only a comment", "1"])
def test_what_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    assert problem(text, tmp_path).code == "LU-R002"


def test_what_is_not_utf_8_is_refused_with_the_byte(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_bytes(b"name: caf\xe9")
    with pytest.raises(RecipeError, match=r"LU-R002 .*recipe.yaml: byte 9"):
        load(tmp_path / "recipe.yaml")


def test_a_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_bytes(b"\xef\xbb\xbf" + MINIMAL.encode())
    assert load(tmp_path / "recipe.yaml").name == "shop"


def test_a_recipe_of_a_megabyte_is_refused(tmp_path: Path) -> None:
    assert problem("# " + "x" * (1 << 20), tmp_path).code == "LU-R002"


@pytest.mark.parametrize(
    ("text", "line"),
    [("name: [a", 1), ("name: a\n\tb: c", 2), ("name: a\nname: b", 2), ("a: 1\n---\nb: 2", 2), ("x: @y", 1)],
)
def test_what_is_not_yaml_is_refused_with_its_line(tmp_path: Path, text: str, line: int) -> None:
    found = problem(text, tmp_path)
    assert found.code == "LU-R003"
    assert found.where.startswith(f"{tmp_path / 'recipe.yaml'}:{line}")


@pytest.mark.parametrize("opening", ["[", "{a: ", "- "])
def test_what_is_nested_without_end_is_refused(tmp_path: Path, opening: str) -> None:
    found = problem("x:\n  " + opening * 5000, tmp_path)
    assert (found.code, found.found) == ("LU-R003", "nested too deeply")


def test_a_recipe_of_very_many_values_is_refused(tmp_path: Path) -> None:
    assert problem("x: [" + "1," * 200_000 + "]", tmp_path).code == "LU-R005"


def test_a_character_that_yaml_forbids_is_refused(tmp_path: Path) -> None:
    assert problem("name: a\x00b", tmp_path).code == "LU-R003"


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.system ['touch {}']",
        "!!python/name:os.system",
        "!ruby/object:Gem::Installer x",
        "!<tag:example.org,2024:x> y",
        "!own {a: 1}",
    ],
)
def test_an_object_tag_is_refused_and_runs_nothing(tmp_path: Path, value: str) -> None:  # bad input 67
    witness = tmp_path / "witness"
    found = problem(MINIMAL + "\nseed: " + value.replace("{}", str(witness)), tmp_path)
    assert found.code == "LU-R004" and found.where.endswith("recipe.yaml:5")
    assert not witness.exists()


def bombs() -> Iterator[str]:
    flow = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    block = ["a0: &a0", *["  - x"] * 9]
    merged = ["a0: &a0 {k: v}"]
    for i in range(1, 9):
        flow.append(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]")
        block += [f"a{i}: &a{i}", *[f"  - *a{i - 1}"] * 9]
        merged.append(f"a{i}: &a{i} {{{', '.join(f'k{j}: *a{i - 1}' for j in range(9))}}}")
    yield from ("\n".join(lines) for lines in (flow, block, merged))
    yield "a: &a [*a]"
    yield "a: &a {b: *a}"
    yield "a: &a\n  - b\n  - *a"


@pytest.mark.parametrize(
    "text", list(bombs()), ids=["flow", "block", "mapping", "own list", "own mapping", "own block"]
)
def test_an_alias_bomb_is_refused(text: str) -> None:  # bad input 68
    """In a process of its own, with a deadline: one that goes off would never come back."""
    imports = "import sys; from pathlib import Path; from luthier import recipe, strict_yaml"
    code = f"{imports}\nrecipe.validate(strict_yaml.parse_yaml(sys.stdin.read(), 'recipe.yaml'), 'recipe.yaml', Path())"
    done = subprocess.run([sys.executable, "-c", code], input=text, capture_output=True, text=True, timeout=60)
    assert "RecipeError: LU-R005 recipe.yaml:" in done.stderr


def test_a_few_aliases_are_fine() -> None:
    text = MINIMAL + "train: &t {epochs: 1}\nevaluate: {metrics: [&m rouge1, *m]}\n"
    assert parse_yaml(text, "")["evaluate"]["metrics"] == ["rouge1", "rouge1"]


@pytest.mark.parametrize(
    ("line", "place", "advice"),
    [
        ("nam: x", "nam", "name"),
        ("train: {warmup_fracton: 0.1}", "train.warmup_fracton", "warmup_fraction"),
        ("model: {bse: x}", "model.bse", "base"),
        ("model: {adapt: {method: lora, rnk: 4}}", "model.adapt.rnk", "rank"),
        ("train: {early_stopping: {patience: 3}}", "train.early_stopping.patience", "patience_checks"),
        ("evaluate: {metric: [rouge1]}", "evaluate.metric", "metrics"),
    ],
)
def test_a_misspelt_setting_is_refused_with_a_suggestion(
    tmp_path: Path, line: str, place: str, advice: str
) -> None:  # bad input 69
    found = problem(MINIMAL + line, tmp_path)
    assert (found.code, found.found) == ("LU-R008", "no such setting")
    assert found.where.endswith(f"recipe.yaml: {place}")
    assert found.advice == f"did you mean '{advice}'?"


def test_misspelt_settings_inside_lists_are_found_too() -> None:
    with pytest.raises(RecipeError) as caught:
        checked(
            data={"sources": [{"path": "a"}, {"pth": "b"}], "clean": [{"use": "dedupe", "similarty": 0.9}]},
            release={"rules": [{"metric": "rouge1", "must": "beat_baseline", "by_point": 1.0}]},
        )
    said = {p.where.partition(": ")[2]: (p.code, p.advice) for p in caught.value.problems}
    assert said == {
        "data.sources.1.path": ("LU-R009", ""),
        "data.sources.1.pth": ("LU-R008", "did you mean 'path'?"),
        "data.clean.0.similarty": ("LU-R008", "did you mean 'similarity'?"),
        "release.rules.0.by_point": ("LU-R008", "did you mean 'by_points'?"),
    }


def test_a_setting_that_resembles_none_lists_what_is_allowed(tmp_path: Path) -> None:
    advice = problem(MINIMAL + "model: {zzz: 1}", tmp_path).advice
    assert advice == "allowed: adapt, adapters, base, new_tokens, quantize"


@pytest.mark.parametrize(
    ("line", "place"),
    [
        ("train: {epochs: 0}", "train.epochs"),
        ("train: {epochs: 1.5}", "train.epochs"),
        ("train: {epochs: '3'}", "train.epochs"),
        ("train: {epochs: true}", "train.epochs"),
        ("train: {epochs: null}", "train.epochs"),
        ("train: {learning_rate: '1e-4'}", "train.learning_rate"),
        ("train: {learning_rate: -1e-4}", "train.learning_rate"),
        ("train: {learning_rate: .inf}", "train.learning_rate"),
        ("train: {learning_rate: .nan}", "train.learning_rate"),
        ("train: {warmup_fraction: 1.01}", "train.warmup_fraction"),
        ("train: {schedule: linear}", "train.schedule"),
        ("train: {max_grad_norm: 0}", "train.max_grad_norm"),
        ("train: [epochs, 3]", "train"),
        ("model: {adapt: [lora]}", "model.adapt"),
        ("model: {adapt: LORA}", "model.adapt"),
        ("model: {adapt: {method: null}}", "model.adapt"),
        ("evaluate: {suites: [{name: knowledge, form: pairs}]}", "evaluate.suites.0"),
        ("evaluate: {servers: {url: 'http://[::1', model: m}}", "evaluate.servers"),
        ("evaluate: {servers: {url: 'http://host:many/v1', model: m}}", "evaluate.servers"),
        ("seed: -1", "seed"),
        ("seed: 4294967296", "seed"),
        ("evaluate: {confidence: 1}", "evaluate.confidence"),
        ("evaluate: {confidence: 0.5}", "evaluate.confidence"),
        ("evaluate: {metrics: rouge1}", "evaluate.metrics"),
        ("model: {adapt: {method: magic}}", "model.adapt"),
        ("model: {adapt: {method: lora, rank: 0}}", "model.adapt.rank"),
        ("model: {base: 7}", "model.base"),
    ],
)
def test_a_value_out_of_range_or_of_the_wrong_type_is_refused(
    tmp_path: Path, line: str, place: str
) -> None:  # bad input 70
    found = problem(MINIMAL + line, tmp_path)
    assert found.code == "LU-R009" and found.where.endswith(f"recipe.yaml: {place}"), found
    assert found.found


def test_what_pydantic_would_say_for_its_own_kind_is_said_in_our_words(tmp_path: Path) -> None:
    found = problem(MINIMAL + "model: {adapt: LORA}", tmp_path)
    assert (found.found, found.advice) == ("no method is called 'LORA'", "did you mean 'lora'?")
    assert problem(MINIMAL + "model: {adapt: [lora]}", tmp_path).found == "is no mapping of settings, found ['lora']"
    suite = problem(MINIMAL + "evaluate: {suites: [{name: knowledge, form: pairs}]}", tmp_path).found
    assert suite == "the suite 'knowledge' is of the form multiple_choice; a file needs a path"
    server = problem(MINIMAL + "evaluate: {servers: {url: 'http://[::1', model: m}}", tmp_path).found
    assert server.startswith("a url is http:// or https:// with a host")


@pytest.mark.parametrize("value", ["2024-02-30", "!!int abc", "!!bool maybe", "9" * 5000])
def test_a_value_that_is_none_of_its_kind_is_refused(tmp_path: Path, value: str) -> None:
    assert problem(MINIMAL.replace("shop", value), tmp_path).code == "LU-R003"


def test_half_a_character_is_refused(tmp_path: Path) -> None:
    found = problem(MINIMAL, tmp_path, r'data.system="\ud800"')
    assert found.code == "LU-R002" and "data.system: " in str(found) and "\ud800" not in str(found)


def test_the_home_of_nobody_is_a_path_like_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert located("~nosuchuser/x", tmp_path) == tmp_path / "~nosuchuser/x"
    assert located("~/x", tmp_path) == tmp_path / "home/x"


def test_a_number_in_quotes_says_what_to_do(tmp_path: Path) -> None:
    found = problem(MINIMAL + "train: {learning_rate: '1e-4'}", tmp_path)
    assert "'1e-4'" in found.found and found.advice == "write the number without quotes"


@pytest.mark.parametrize("section", ["name", "data", "release"])
def test_what_is_required_is_missed(section: str) -> None:
    plain = tree()
    del plain[section]
    with pytest.raises(RecipeError, match=f"LU-R009 recipe.yaml: {section}: is required"):
        validate(plain, "recipe.yaml", Path())


@pytest.mark.parametrize(
    "name", ["../../x", "a/b", "", ".hidden", "-rf", "a b", "x" * 65, "a\nb", "naïve", "7\n", 7, True, "${HOME}"]
)
def test_a_name_that_is_no_folder_name_is_refused(name: Any) -> None:  # bad input 71
    with pytest.raises(RecipeError, match=r"LU-R014 recipe.yaml: name: '.*' cannot name a run") as caught:
        checked(name=name)
    assert "\n" not in caught.value.problems[-1].found


@pytest.mark.parametrize("name", ["a", "7", "Shop_assistant-2.0", "x" * 64])
def test_a_name_that_is_a_folder_name_is_accepted(name: str) -> None:
    assert checked(name=name).name == name


def test_a_technique_may_be_said_by_its_name_alone() -> None:
    for name, method in {"full": "full", "lora": "lora", "auto": "auto", "ia3": "peft"}.items():
        assert checked(model={"adapt": name}).model.adapt.method == method


def test_adapters_are_of_the_lora_kind_unless_said_otherwise() -> None:
    assert checked(model={"adapt": {"rank": 8}}).model.adapt == Lora(rank=8)
    assert checked(model={"adapt": {"method": "full"}}).model.adapt.method == "full"
    with pytest.raises(RecipeError, match=r"model.adapt.metod: no such setting\s+-> did you mean 'method'"):
        checked(model={"adapt": {"metod": "full"}})


@pytest.mark.parametrize("value", ["${HOME}/rows.jsonl", "$(id)", "{{ env.TOKEN }}", "a ${x:-y}"])
def test_environment_interpolation_is_refused_everywhere(value: str) -> None:  # bad input 72
    with pytest.raises(RecipeError) as caught:
        checked(
            data={"sources": [{"path": value}], "system": value},
            evaluate={"metrics": ["rouge1", {"use": "token_f1", "x": value}]},
        )
    places = {p.where.partition(": ")[2] for p in caught.value.problems if p.code == "LU-R006"}
    assert places == {"data.sources.0.path", "data.system", "evaluate.metrics.1.x"}


def test_dollars_and_column_templates_are_text() -> None:
    data = {"sources": [{"path": "a"}], "system": "It costs $5.", "fields": {"prompt": "{table}\n{question?}"}}
    assert checked(data=data).data.fields == {"prompt": "{table}\n{question?}"}


def test_all_problems_are_said_at_once(tmp_path: Path) -> None:
    text = """\
name: ../x
data: {sources: [{path: '${HOME}/x'}], formt: auto}
train: {epochs: 0, learning_rate: fast}
release: {rules: [{metric: rouge1}]}
"""
    codes = [p.code for p in problems(text, tmp_path)]
    assert sorted(codes) == ["LU-R006", "LU-R008", "LU-R009", "LU-R009", "LU-R009", "LU-R014"]


@pytest.mark.parametrize("key", [1, 1.5, True, None])
def test_keys_that_are_no_text_are_refused(key: Any) -> None:
    for sections in ({key: 1}, {"train": {key: 1}}, {"evaluate": {"metrics": [{"use": "rouge1", key: 1}]}}):
        with pytest.raises(RecipeError, match="LU-R0"):
            validate(tree() | sections, "recipe.yaml", Path())


def test_splits_must_leave_something_to_train_on() -> None:
    with pytest.raises(RecipeError, match="leave nothing to train on"):
        checked(data={"sources": [{"path": "a"}], "split": {"valid_fraction": 0.5, "test_fraction": 0.5}})


def test_a_rule_has_one_margin() -> None:
    rule = {"metric": "rouge1", "must": "not_regress", "by_points": 1.0, "by_relative": 0.1}
    with pytest.raises(RecipeError, match=r"release.rules.0: give by_points or by_relative, not both"):
        checked(release={"rules": [rule]})


def test_a_rule_reads_all_that_is_set(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="LU-R009 .*release.rules.0: a not_regress rule does not read min_effect"):
        checked(release={"rules": [{"metric": "rouge1", "must": "not_regress", "min_effect": 0.5}]})


def test_a_release_has_a_rule() -> None:
    with pytest.raises(RecipeError, match="release.rules"):
        checked(release={"rules": []})


# -- YAML 1.2 ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1E5", 1e5),
        ("1.0e9", 1e9),
        ("2.0e-4", 2e-4),
        ("-.5", -0.5),
        ("0o17", 15),
        ("0x1F", 31),
        ("017", 17),
        ("no", "no"),
        ("on", "on"),
        ("yes", "yes"),
        ("Off", "Off"),
        ("y", "y"),
        ("true", True),
        ("null", None),
        ("~", None),
        ("12:30:45", "12:30:45"),
        ("1.2.3", "1.2.3"),
        ("'1'", "1"),
    ],
)
def test_values_are_read_by_the_core_rules_of_yaml_1_2(text: str, value: object) -> None:
    found = parse_yaml(f"x: {text}", "")["x"]
    assert found == value and type(found) is type(value)


def test_a_label_called_no_stays_text() -> None:
    assert checked(**parse_yaml("data: {sources: [{path: no}], slices: [on, yes]}", "")).data.slices == ("on", "yes")


# -- overrides --------------------------------------------------------------------------------------------


def loaded(tmp_path: Path, *overrides: str) -> Recipe:
    (tmp_path / "recipe.yaml").write_text(MINIMAL + "train: {epochs: 2}\nevaluate: {metrics: [rouge1, rouge2]}\n")
    return load(tmp_path / "recipe.yaml", overrides)


def test_overrides_replace_and_add_settings(tmp_path: Path) -> None:
    recipe = loaded(
        tmp_path,
        "train.epochs=1",
        "train.learning_rate=1e-5",
        "model.adapt={method: lora, rank: 4}",
        "evaluate.metrics.1=token_f1",
        "data.sources.0.path=other=file.jsonl",
        "train.max_minutes=",
        "name=on",
    )
    assert (recipe.train.epochs, recipe.train.learning_rate, recipe.train.max_minutes) == (1, 1e-5, None)
    assert recipe.model.adapt == Lora(rank=4) and recipe.name == "on"
    assert [m.use for m in recipe.evaluate.metrics] == ["rouge1", "token_f1"]
    assert recipe.data.sources[0].path == "other=file.jsonl"


@pytest.mark.parametrize(
    "override",
    [
        "train.epochs",
        "=1",
        "",
        "name.x=1",
        "train.epochs.x=1",
        "evaluate.metrics.7=bleu",
        "evaluate.metrics.x=bleu",
        "evaluate.metrics.-1=bleu",
        "evaluate.metrics.²=bleu",
        "evaluate.metrics.0.use=bleu",
    ],
)
def test_an_override_that_fits_nowhere_is_refused(tmp_path: Path, override: str) -> None:
    with pytest.raises(RecipeError, match="LU-R007") as caught:
        loaded(tmp_path, override)
    assert caught.value.problems[0].where == override


def test_an_override_is_checked_like_the_recipe(tmp_path: Path) -> None:
    for override, code in (
        ("train.epoch=1", "LU-R008"),
        ("train.epochs=many", "LU-R009"),
        ("train.epochs=[", "LU-R003"),
        ("train.epochs=!!python/name:os.system", "LU-R004"),
        ("data.system=${HOME}", "LU-R006"),
    ):
        with pytest.raises(RecipeError) as caught:
            loaded(tmp_path, override)
        assert [p.code for p in caught.value.problems] == [code], override


# -- out again --------------------------------------------------------------------------------------------

WORDS = st.one_of(
    st.sampled_from(["no", "on", "1e-5", "null", "~", "", " x ", "a: b", "#", "- x", "'", '"', "{a}", "0x1", "=", "é"]),
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20),
    st.sampled_from(["two\nlines", "tab\t", "\u2028", "trailing \nspace", "\u0085", "\ufeff", "x" * 300, "a b " * 90]),
)
COUNTS, FRACTIONS = st.integers(1, 10**6), st.floats(0, 0.49)
POSITIVE = st.floats(0, 1e30, exclude_min=True)
TREES = st.fixed_dictionaries(
    {
        "name": st.just("shop"),
        "data": st.fixed_dictionaries(
            {"sources": st.lists(st.fixed_dictionaries({"path": WORDS}), min_size=1, max_size=3)},
            optional={
                "system": WORDS,
                "fields": st.dictionaries(WORDS, WORDS, max_size=3),
                "limit": COUNTS,
                "split": st.fixed_dictionaries({"valid_fraction": FRACTIONS, "test_fraction": FRACTIONS, "by": WORDS}),
                "clean": st.just(["unicode", {"use": "redact", "digits": 6}, {"use": "dedupe", "similarity": 0.9}]),
            },
        ),
        "release": st.just({"rules": [{"metric": "rouge1", "must": "not_regress", "where": {"kind": "no"}}]}),
    },
    optional={
        "seed": st.integers(0, 2**31 - 1),
        "model": st.fixed_dictionaries(
            {
                "adapt": st.one_of(
                    st.just({"method": "full"}),
                    st.fixed_dictionaries(
                        {"method": st.just("lora")},
                        optional={"rank": COUNTS, "alpha": POSITIVE, "target": WORDS | st.lists(WORDS, max_size=3)},
                    ),
                )
            },
            optional={"base": WORDS},
        ),
        "train": st.fixed_dictionaries({}, optional={"learning_rate": POSITIVE, "early_stopping": st.none()}),
        "evaluate": st.just({"metrics": ["rouge1", {"use": "rouge2", "stem": True}], "confidence": 0.9}),
    },
)


@settings(max_examples=80)
@given(plain=TREES)
def test_a_recipe_written_and_read_is_the_same(plain: dict[str, Any]) -> None:
    from pydantic import ValidationError

    try:
        recipe = Recipe.model_validate(plain)
    except ValidationError:  # hypothesis found two fractions that leave nothing
        return
    again = Recipe.model_validate(parse_yaml(to_yaml(recipe), "written"))
    assert again == recipe and fingerprint(again) == fingerprint(recipe)


def test_a_written_recipe_leaves_defaults_out() -> None:
    assert parse_yaml(to_yaml(checked(seed=0, train={"epochs": 3})), "") == tree()


# -- rules and metrics ------------------------------------------------------------------------------------


def test_a_rule_on_a_metric_that_nobody_measures_is_refused() -> None:
    with pytest.raises(RecipeError) as caught:
        checked(evaluate={"metrics": ["rouge2", "rougeL"]})
    [found] = caught.value.problems
    assert (found.code, found.where) == ("LU-R013", "recipe.yaml: release.rules.0")
    assert found.found == "no metric measures 'rouge1'" and "did you mean 'rouge" in found.advice


@pytest.mark.parametrize("metric", ["rouge1", "general_perplexity"])
def test_a_rule_on_a_measured_metric_is_accepted(metric: str) -> None:
    rules = [{"metric": metric, "must": "not_regress"}]
    assert checked(evaluate={"metrics": ["rouge1"]}, release={"rules": rules}).release.rules[0].metric == metric


def test_a_rule_in_slices_that_are_not_measured_is_refused() -> None:
    rules = [{"metric": "rouge1", "must": "not_regress", "in_slices": ["language"]}]
    with pytest.raises(RecipeError, match=r"in slices \['language'\], but data.slices has \[\]"):
        checked(release={"rules": rules})


def test_metrics_are_bound_when_the_recipe_loads(tmp_path: Path) -> None:
    text = MINIMAL + "evaluate: {metrics: [{use: rouge1, stm: true}, roug2, 'nowhere:metric']}"
    found = problems(text, tmp_path)
    assert [(p.code, p.where.partition(": ")[2]) for p in found] == [
        ("LU-R012", "evaluate.metrics.0"),
        ("LU-R010", "evaluate.metrics.1"),
        ("LU-R011", "evaluate.metrics.2"),
    ]


def test_two_metrics_of_one_name_are_refused(tmp_path: Path) -> None:
    """One would hide the other in the report."""
    (tmp_path / "own.py").write_text("def rouge1(sample): return 1.0\n")
    for second in ("rouge1", "'own:rouge1'", "{use: rouge1, stem: true}"):
        found = problem(MINIMAL + f"evaluate: {{metrics: [rouge1, {second}]}}", tmp_path)
        assert found.code == "LU-R015" and found.where.endswith("evaluate.metrics.1")
        assert "'rouge1'" in found.found


def test_the_name_of_a_metric() -> None:
    assert metric_name(Use(use="rouge1")) == "rouge1"
    assert metric_name(Use(use="shop.metrics:polite")) == "polite"
    assert Use.model_validate("rouge1").params == {}
    assert Use.model_validate({"use": "rouge1", "stem": True}).params == {"stem": True}


# -- every setting is read --------------------------------------------------------------------------------

READ_OTHERWISE = {
    "Judge.criteria": (asked := "`recipe.question` reads it, to say what is missing when a recipe loads"),
    "Judge.rubric": asked,
    "Judge.rubric_file": asked,
}


def inner_sections(annotation: Any) -> set[type[BaseModel]]:
    """The sections that an annotation such as `tuple[Rule, ...]` or `X | None` names."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {annotation}
    return {s for argument in get_args(annotation) for s in inner_sections(argument)}


def all_sections(section: type[BaseModel] = Recipe) -> set[type[BaseModel]]:
    inner = {s for field in section.model_fields.values() for s in inner_sections(field.annotation)}
    return {section}.union(*map(all_sections, inner))


class Reads(ast.NodeVisitor):
    """Which settings one file reads, as (section, field).

    Follows parameters by their annotation, fields by their name, and assignments and loops over these;
    a field of the same name in some other object does not count.
    """

    def __init__(self, tree_: ast.AST) -> None:
        self.sections = all_sections()
        self.aliases = {s.__name__: {s} for s in self.sections} | {"Adapt": inner_sections(the_tree.Adapt)}
        self.known: dict[str, set[type[BaseModel]]] = {"recipe": {Recipe}, "_recipe": {Recipe}}
        self.found: set[tuple[str, str]] = set()
        for _ in range(3):  # what is assigned from what is assigned
            self.visit(tree_)

    def sections_of(self, node: ast.AST | None) -> set[type[BaseModel]]:
        match node:
            case ast.Name(id=name):
                return self.known.get(name, set())
            case ast.Attribute(attr="recipe" | "_recipe"):
                return {Recipe}
            case ast.Attribute(value=value, attr=attr):
                owners = [s for s in self.sections_of(value) if attr in s.model_fields]
                return {s for o in owners for s in inner_sections(o.model_fields[attr].annotation)}
            case ast.Subscript(value=value) | ast.Starred(value=value):
                return self.sections_of(value)
            case ast.Call(args=[first, *_]):
                return self.sections_of(first)  # enumerate, reversed, isinstance ...
        return set()

    def bind(self, target: ast.AST, sections: set[type[BaseModel]]) -> None:
        for name in ast.walk(target):
            if isinstance(name, ast.Name) and sections:
                self.known[name.id] = self.known.get(name.id, set()) | sections

    def visit_arg(self, node: ast.arg) -> None:
        names = [n.id for n in ast.walk(node.annotation) if isinstance(n, ast.Name)] if node.annotation else []
        self.bind(ast.Name(node.arg), {s for n in names for s in self.aliases.get(n, set())})

    def visit_Assign(self, node: ast.Assign) -> None:
        match node:
            case ast.Assign(targets=[ast.Tuple(elts=targets)], value=ast.Tuple(elts=values)):
                for target, value in zip(targets, values, strict=False):
                    self.bind(target, self.sections_of(value))
            case _:
                for target in node.targets:
                    self.bind(target, self.sections_of(node.value))
        self.generic_visit(node)

    def visit_For(self, node: ast.For) -> None:
        self.bind(node.target, self.sections_of(node.iter))
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        self.bind(node.target, self.sections_of(node.iter))
        self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if isinstance(node.ctx, ast.Load):
            owners = [s for s in self.sections_of(node.value) if node.attr in s.model_fields]
            self.found |= {(s.__name__, node.attr) for s in owners}
        self.generic_visit(node)


def test_every_setting_is_read_by_some_code() -> None:
    own = Path(the_tree.__file__).parent
    files = [p for p in own.parent.rglob("*.py") if str(p) != recipes.__file__ and own not in p.parents]
    read = set().union(*(Reads(ast.parse(file.read_text())).found for file in files))
    settings_ = {(s.__name__, name) for s in all_sections() for name in s.model_fields}
    unread = {f"{section}.{name}" for section, name in settings_ - read}
    assert unread - READ_OTHERWISE.keys() == set(), "settings that nothing reads"
    assert READ_OTHERWISE.keys() - unread == set(), "no reason is needed any more"


def test_the_walk_would_notice_a_setting_that_nothing_reads() -> None:
    source = "def f(settings: Train, other: Thing):\n    for r in recipe.release.rules:\n        r.must, other.epochs\n"
    assert Reads(ast.parse(source)).found == {("Recipe", "release"), ("Release", "rules"), ("Rule", "must")}


def test_the_walk_finds_every_section() -> None:
    classes = [v for v in vars(the_tree).values() if isinstance(v, type) and issubclass(v, the_tree.Section)]
    assert all_sections() == {*classes} - {the_tree.Section}

"""A plug-in is found by name or `module:function`, and bound before anything runs."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from luthier import plugins
from luthier.errors import Problem, RecipeError
from luthier.plugins import METRICS, Registry

BUILT_IN = ("accuracy", "bleu", "exact_match", "f1", "perplexity", "rouge1", "token_f1")


def refused(use: str, folder: Path, **params: object) -> Problem:
    """Why a metric is refused when the recipe loads."""
    with pytest.raises(RecipeError) as caught:
        METRICS.check(use, params, "recipe.yaml: evaluate.metrics.0", folder, {"labels"})
    [problem] = caught.value.problems
    assert problem.where == "recipe.yaml: evaluate.metrics.0"
    return problem


def accept(use: str, folder: Path, **params: object) -> None:
    METRICS.check(use, params, "recipe.yaml: evaluate.metrics.0", folder, {"labels"})


def write(folder: Path, code: str, name: str = "own") -> Path:
    path = folder / f"{name}.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(code)
    return path


POLITE = "def polite(sample, word='please'):\n    return word in sample.answer\n"


def test_the_built_in_metrics_are_found_by_name() -> None:
    assert set(BUILT_IN) <= set(METRICS.names()) and METRICS.names() == sorted(METRICS.names())
    assert all(callable(METRICS.find(name, "")) for name in METRICS.names())


def test_a_registry_of_another_kind_is_empty_until_somebody_registers() -> None:
    assert Registry("augmentation", "luthier.nothing").names() == []


@pytest.mark.parametrize(("typo", "meant"), [("roug1", "rouge1"), ("perplexty", "perplexity"), ("BLEU ", None)])
def test_an_unknown_name_suggests_the_likely_one(tmp_path: Path, typo: str, meant: str | None) -> None:
    problem = refused(typo, tmp_path)
    assert (problem.code, problem.found) == ("LU-R010", f"no metric is called '{typo}'")
    assert problem.advice == f"did you mean '{meant}'?" if meant else "accuracy, " in problem.advice


def test_an_installed_name_that_cannot_be_loaded_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stale = EntryPoint("stale", "luthier.evaluate.metrics:gone", "luthier.metrics")
    monkeypatch.setattr(plugins, "_entry_points", lambda _: {"stale": stale})
    with pytest.raises(
        RecipeError, match=r"LU-R011 .*'luthier.evaluate.metrics:gone', .* cannot be imported: Attribute"
    ):
        METRICS.find("stale", "evaluate.metrics.0", tmp_path)


def test_a_function_of_the_recipes_folder_is_found(tmp_path: Path) -> None:
    write(tmp_path, POLITE)
    accept("own:polite", tmp_path, word="thanks")
    assert METRICS.find("own:polite", "", tmp_path).__name__ == "polite"


def test_a_function_in_a_folder_below_and_on_the_python_path_is_found(tmp_path: Path) -> None:
    write(tmp_path, POLITE, "metrics/shop")
    accept("metrics.shop:polite", tmp_path)
    assert METRICS.find("os.path:basename", "", tmp_path)("a/b") == "b"


def test_two_recipes_may_each_have_a_module_of_the_same_name(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    write(one, "def score(sample): return 1.0\n")
    write(two, "def score(sample): return 2.0\n")
    assert [METRICS.find("own:score", "", f)(None) for f in (one, two)] == [1.0, 2.0]


def test_the_recipes_own_module_wins_over_one_on_the_python_path(tmp_path: Path) -> None:
    write(tmp_path, POLITE, "json")
    assert METRICS.find("json:polite", "", tmp_path).__name__ == "polite"
    assert "polite" not in vars(sys.modules["json"])


def test_a_module_is_run_once(tmp_path: Path) -> None:
    write(tmp_path, POLITE)
    assert METRICS.find("own:polite", "", tmp_path) is METRICS.find("own:polite", "", tmp_path)


@pytest.mark.parametrize(
    ("code", "use", "reason"),
    [
        (None, "own:polite", "ModuleNotFoundError"),
        (POLITE, "own:rude", "AttributeError"),
        (POLITE, "own:", "AttributeError"),
        (POLITE, ":polite", "ValueError"),
        ("import nothing_of_that_name\n", "own:polite", "ModuleNotFoundError"),
        ("def polite(:\n", "own:polite", "SyntaxError"),
        ("1 / 0\n", "own:polite", "ZeroDivisionError"),
        ("raise SystemExit(7)\n", "own:polite", "SystemExit"),
        ("polite = 7\n", "own:polite", "is int, not a function"),
    ],
)
def test_what_cannot_be_imported_is_refused_with_the_reason(
    tmp_path: Path, code: str | None, use: str, reason: str
) -> None:
    if code is not None:
        write(tmp_path, code)
    problem = refused(use, tmp_path)
    assert problem.code == "LU-R011"
    assert f"'{use}'" in problem.found and reason in problem.found


def test_a_module_that_failed_is_tried_again(tmp_path: Path) -> None:
    write(tmp_path, "1 / 0\n")
    refused("own:polite", tmp_path)
    write(tmp_path, POLITE)
    accept("own:polite", tmp_path)


def test_what_has_no_signature_is_refused(tmp_path: Path) -> None:
    assert refused("builtins:max", tmp_path).code == "LU-R011"


def test_a_parameter_that_it_does_not_have_is_refused_with_a_suggestion(tmp_path: Path) -> None:
    write(tmp_path, POLITE)
    problem = refused("own:polite", tmp_path, wrd="x")
    assert (problem.code, problem.found) == ("LU-R012", "metric 'own:polite' has no parameter 'wrd'")
    assert problem.advice == "did you mean 'word'?"
    assert refused("rouge1", tmp_path, stm=True).code == "LU-R012"


def test_the_sample_is_no_parameter_of_a_recipe(tmp_path: Path) -> None:
    write(tmp_path, POLITE)
    assert refused("own:polite", tmp_path, sample="x").code == "LU-R012"


def test_a_parameter_that_is_missing_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "def near(sample, target, labels, *, scale): return 1.0\n")
    problem = refused("own:near", tmp_path, scale=1)
    assert (problem.code, problem.found) == ("LU-R012", "metric 'own:near' needs target")
    accept("own:near", tmp_path, target=1, scale=2)


def test_a_function_that_takes_anything_is_given_anything(tmp_path: Path) -> None:
    write(tmp_path, "def any_of(sample, **settings): return 1.0\ndef some(sample, *words): return 1.0\n")
    accept("own:any_of", tmp_path, whatever=1)
    accept("own:some", tmp_path)


# -- fingerprints -----------------------------------------------------------------------------------------


def test_a_fingerprint_follows_the_source(tmp_path: Path) -> None:
    path = write(tmp_path, POLITE)
    first = METRICS.fingerprint("own:polite", tmp_path)
    assert first == METRICS.fingerprint("own:polite", tmp_path)
    path.write_text(POLITE + "# changed\n")
    assert METRICS.fingerprint("own:polite", tmp_path) != first
    path.write_text(POLITE)
    assert METRICS.fingerprint("own:polite", tmp_path) == first


def test_a_source_that_changes_while_we_run_is_run_as_it_is_fingerprinted(tmp_path: Path) -> None:
    path = write(tmp_path, "def score(sample): return 1.0\n")
    assert METRICS.find("own:score", "", tmp_path)(None) == 1.0
    path.write_text("def score(sample): return 2.0\n")
    assert METRICS.find("own:score", "", tmp_path)(None) == 2.0


@pytest.mark.parametrize(
    "code",
    [
        "from os.path import basename as score\n",
        "from functools import partial\nscore = partial(print, 1)\n",
        "import operator\nscore = operator.attrgetter('nats')\n",
    ],
)
def test_the_fingerprint_is_that_of_the_named_module_whatever_it_holds(tmp_path: Path, code: str) -> None:
    path = write(tmp_path, code)
    first = METRICS.fingerprint("own:score", tmp_path)
    path.write_text(code + "# changed\n")
    assert METRICS.fingerprint("own:score", tmp_path) != first


def test_a_fingerprint_does_not_depend_on_where_the_recipe_lies(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    write(one, POLITE)
    write(two, POLITE)
    assert METRICS.fingerprint("own:polite", one) == METRICS.fingerprint("own:polite", two)


def test_a_built_in_metric_has_the_version_of_its_package() -> None:
    from luthier import __version__

    assert METRICS.fingerprint("rouge1") == f"rouge1@luthier-{__version__}"


def test_a_module_without_a_file_has_a_fingerprint(tmp_path: Path) -> None:
    assert METRICS.fingerprint("builtins:len", tmp_path).startswith("builtins:len@")


def test_a_fingerprint_is_the_same_in_another_process(tmp_path: Path) -> None:
    write(tmp_path, POLITE)
    code = "import sys; from pathlib import Path; from luthier.plugins import METRICS\n\
print(METRICS.fingerprint('own:polite', Path(sys.argv[1])), METRICS.fingerprint('builtins:len'))"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    expected = f"{METRICS.fingerprint('own:polite', tmp_path)} {METRICS.fingerprint('builtins:len')}"
    assert done.stdout.strip() == expected

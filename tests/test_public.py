"""What is public, and what a command must not import to answer quickly."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "transformers", "peft", "scipy", "sklearn", "pyarrow", "sacrebleu")
SHOW = f"\nimport sys; print([m for m in {HEAVY!r} if m in sys.modules])"


def run(code: str, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    "module",
    [
        "luthier",
        "luthier.cli",
        "luthier.lifecycle",
        "luthier.finished",
        "luthier.errors",
        "luthier.recipe",
        "luthier.records",
        "luthier.store",
        "luthier.conversation",
        "luthier.metric",
        "luthier.starter",
        "luthier.migrate",
    ],
)
def test_importing_it_imports_nothing_heavy(module: str) -> None:
    done = run(f"import {module}{SHOW}")
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


@pytest.mark.parametrize("args", [["--help"], ["--version"], ["run", "--help"], ["check", "--help"], []])
def test_help_imports_nothing_heavy(args: list[str]) -> None:
    code = f"import sys, atexit\nfrom luthier.cli import main\nsys.argv = ['luthier', *{args!r}]\n\
atexit.register(lambda: print([m for m in {HEAVY!r} if m in sys.modules]))\nmain()"
    done = run(code)
    assert done.stdout.rstrip().endswith("[]"), done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_loading_a_recipe_with_built_in_metrics_imports_nothing_heavy(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(
        "name: shop\ndata: {sources: [{path: rows.jsonl}]}\n"
        "evaluate: {metrics: [perplexity, rouge1, bleu, token_f1, accuracy]}\n"
        "release: {rules: [{metric: rouge1, must: beat_baseline}]}\n"
    )
    done = run(f"import sys; from luthier.recipe import load; load(sys.argv[1]){SHOW}", str(tmp_path / "recipe.yaml"))
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def test_a_recipes_mistakes_are_told_without_anything_heavy(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("nam: x\n")
    code = "import sys\nfrom luthier.recipe import load\nfrom luthier.errors import RecipeError\n\
try: load(sys.argv[1])\nexcept RecipeError: pass"
    done = run(code + SHOW, str(tmp_path / "recipe.yaml"))
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def test_the_version_is_that_of_the_distribution() -> None:
    from importlib.metadata import version

    import luthier

    assert luthier.__version__ == version("luthier")
    done = run("from luthier.cli import main; import sys; sys.argv = ['luthier', '--version']; main()")
    assert done.stdout.strip() == luthier.__version__


def test_the_package_is_a_command_too() -> None:
    done = subprocess.run([sys.executable, "-m", "luthier", "--version"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout


def test_the_public_names() -> None:
    """The list grows with what users are promised; everything else may change without notice."""
    done = run("import luthier; print([n for n in dir(luthier) if not n.startswith('_') or n == '__version__'])")
    assert done.stdout == "['__version__']\n"

"""Python's collector looks seldom while a command imports, and as usual from the first model on."""

from __future__ import annotations

import subprocess
import sys

PROCESS = """
import gc
usual = gc.get_threshold()
from luthier.machine import collect_seldom, skip_in_collections
collect_seldom()
assert gc.get_threshold()[0] > 50 * usual[0] and gc.isenabled()
skip_in_collections()
assert gc.get_threshold() == usual and gc.get_freeze_count() > 0
"""


def test_the_collector_is_as_usual_when_a_model_is_loaded() -> None:
    subprocess.run([sys.executable, "-c", PROCESS], check=True)

"""What all tests share: one random model a session, the built-in model, the public data, and no network."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

os.environ["HF_HUB_OFFLINE"] = "1"  # read by huggingface_hub when it is imported
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the workers share the machine
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"  # read by Triton when it is imported: its kernels run on the CPU

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from luthier.models import Base

settings.register_profile("luthier", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("luthier")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """With LUTHIER_REQUIRE_ALL nothing is green by being skipped, but for want of a GPU: what is missing fails."""
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    if report.skipped and "LUTHIER_REQUIRE_ALL" in os.environ and not item.get_closest_marker("gpu"):
        report.outcome = "failed"
        report.longrepr = f"skipped, where everything is required: {report.longrepr}"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random model of a few thousand weights, with a real tokenizer and chat template."""
    from luthier.tiny import write_tiny_model

    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def smollm2() -> Base:
    """The built-in model's real weights. They are required: without their package the tests fail."""
    from luthier.models import find_base

    return find_base("smollm2-135m-instruct")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of public data sets."""
    folder = Path(os.environ.get("LUTHIER_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no data at {folder}; LUTHIER_DATA names the folder")
    return folder

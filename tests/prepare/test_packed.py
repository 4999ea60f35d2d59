"""Files in every container hold the same rows; bombs, archives and links out of a folder are refused."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from luthier.errors import DataError
from luthier.prepare import packed

from .lines import GOOD, run

LINES = ("\n".join(GOOD) + "\n").encode()
ROWS = [json.loads(line) for line in GOOD]


def zstd(content: bytes) -> bytes:
    return pa.Codec("zstd").compress(content, asbytes=True)


def arrow(stream: bool) -> bytes:
    table, out = pa.Table.from_pylist(ROWS), io.BytesIO()
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(out, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return out.getvalue()


def parquet() -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS), out)
    return out.getvalue()


FILES: dict[str, bytes] = {
    "data.jsonl": LINES,
    "data.jsonl.gz": gzip.compress(LINES),
    "data.ndjson.zst": zstd(LINES),
    "data.json": json.dumps(ROWS).encode(),
    "data.json.gz": gzip.compress(json.dumps(ROWS).encode()),
    "data.parquet": parquet(),
    "data.arrow": arrow(stream=False),
    "data-00000-of-00001.arrow": arrow(stream=True),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("folder", [False, True], ids=["named", "in a folder"])
def test_the_same_rows_come_out_of_every_container(tmp_path: Path, name: str, folder: bool) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(FILES[name])
    prepared = run(tmp_path, sources=[{"path": "in" if folder else f"in/{name}"}])
    assert [c.answer for c in prepared.all()] == [row["messages"][1]["content"] for row in ROWS]
    assert prepared.all()[2].source == f"in/{name}:{3 if name != 'data.json' else 1}" or "json." in name


@pytest.mark.parametrize("name", ["table.csv", "table.tsv.gz"])
def test_tables_may_be_compressed(tmp_path: Path, name: str) -> None:
    mark = "," if "csv" in name else "\t"
    text = "".join(f"question {i}{mark}answer {i}\n" for i in range(5))
    content = f"question{mark}answer\n{text}".encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert len(run(tmp_path, sources=[{"path": name}]).all()) == 5


def refused(folder: Path, name: str, content: bytes | None = None, **more: Any) -> str:
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        run(folder, sources=[{"path": name}], **more)
    return caught.value.problems[0].code


def zipped(name: str = "data.jsonl") -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(name, LINES)
    return out.getvalue()


def tarred() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        entry = tarfile.TarInfo("../../data.jsonl")
        entry.size = len(LINES)
        archive.addfile(entry, io.BytesIO(LINES))
    return out.getvalue()


def test_a_bomb_is_refused_and_never_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "ALWAYS_BYTES", 1 << 20)
    for name, pack in (("bomb.jsonl.gz", gzip.compress), ("bomb.jsonl.zst", zstd)):
        assert refused(tmp_path, name, pack(LINES + b" " * (64 << 20))) == "LU-D022"
    (tmp_path / "fine.jsonl.gz").write_bytes(gzip.compress(LINES * 50))
    assert run(tmp_path, sources=[{"path": "fine.jsonl.gz"}], clean=[{"use": "dedupe"}]).all()


def test_archives_are_not_opened_wherever_their_names_lead(tmp_path: Path) -> None:
    assert refused(tmp_path, "data.zip", zipped("../../data.jsonl")) == "LU-D023"
    assert refused(tmp_path, "data.jsonl", zipped()) == "LU-D023"
    assert refused(tmp_path, "data.tar", tarred()) == "LU-D023"
    assert refused(tmp_path, "data.tar.gz", gzip.compress(tarred())) == "LU-D024"
    assert refused(tmp_path, "data.jsonl.gz", gzip.compress(zipped())) == "LU-D024"
    assert refused(tmp_path, "twice.jsonl.gz", gzip.compress(gzip.compress(LINES))) == "LU-D024"


def test_a_compressed_file_says_so_by_its_name_and_is_whole(tmp_path: Path) -> None:
    assert refused(tmp_path, "data.jsonl", gzip.compress(LINES)) == "LU-D016"
    assert refused(tmp_path, "cut.jsonl.gz", gzip.compress(LINES * 5000)[:-200]) == "LU-D018"
    assert refused(tmp_path, "cut.arrow", arrow(stream=False)[:-30]) == "LU-D018"
    assert refused(tmp_path, "noise.arrow", b"\x00\x01\x02" * 500) == "LU-D018"


def test_a_link_out_of_a_folder_is_refused_and_one_that_is_named_is_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere.jsonl").write_bytes(LINES)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "train.jsonl").symlink_to(tmp_path / "elsewhere.jsonl")
    assert refused(tmp_path, "in") == "LU-D020"
    assert len(run(tmp_path, sources=[{"path": "in/train.jsonl"}]).all()) == len(GOOD)


# -- the Hub ---------------------------------------------------------------------------------------------


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place for what `datasets` keeps, and no network."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    return tmp_path / "set"


def test_a_data_set_is_read_with_its_splits_and_the_names_of_its_labels(cached: Path, tmp_path: Path) -> None:
    import datasets

    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["good", "bad"])}
    )
    for split, n in (("train", 20), ("test", 6)):
        rows = {"text": [f"{split} lamp number {i}" for i in range(n)], "label": [i % 2 for i in range(n)]}
        cached.mkdir(exist_ok=True)
        datasets.Dataset.from_dict(rows, features=features).to_parquet(str(cached / f"{split}.parquet"))
    prepared = run(tmp_path, sources=[{"path": f"hub:{cached}"}], split={"by": "given"})
    assert prepared.report.format == "classification" and prepared.report.labels == ("bad", "good")
    assert (len(prepared.side("train") + prepared.side("validation")), len(prepared.side("test"))) == (20, 6)
    assert prepared.side("test")[1].source == f"hub:{cached}/test:2"


def test_a_data_set_that_cannot_be_had_is_said_to_be(cached: Path, tmp_path: Path) -> None:
    assert refused(tmp_path, "hub:nobody/nothing") == "LU-D019"

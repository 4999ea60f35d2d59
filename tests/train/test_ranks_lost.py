"""Processes that train together, and what happens to one of them: real processes of the real command."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from luthier.tiny import write_tiny_model
from luthier.train.checkpoint import steps_in

RECIPE = """
name: tiny
seed: 3
data: {sources: [{path: rows.jsonl}], split: {by: row, valid_fraction: 0.1, test_fraction: 0.2}}
model: {base: tiny, adapt: {method: lora, rank: 4, dropout: 0.1}}
train: {epochs: 10, examples_per_step: 8, tokens_per_micro_batch: 128, learning_rate: 1e-3, save_every_s: 0.0,
        early_stopping: null, keep: last}
release: {rules: [{metric: perplexity, must: beat_baseline}]}
"""
LIMIT_S = 240


class Project:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        write_tiny_model(folder / "tiny")
        rows = [
            {"prompt": f"What size is lamp {i}?", "completion": f"Lamp {i} is of size {i * 7 % 13}."} for i in range(60)
        ]
        (folder / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        (folder / "recipe.yaml").write_text(RECIPE)

    def begin(self, workspace: str, *options: str, verb: str = "train") -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "luthier", verb, "recipe.yaml", "--workspace", workspace, "--quiet", *options]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "LUTHIER_CACHE": str(self.folder / "cache")}
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=self.folder, env=environment, stdout=pipe, stderr=pipe, text=True)

    def finish(self, workspace: str, *options: str) -> tuple[int, str]:
        return ended(self.begin(workspace, *options))

    def stopped(self, workspace: str, *options: str, at: int = 1) -> tuple[int, str]:
        """Begun or gone on with, and told to end once so many more checkpoints are there."""
        process = self.begin(workspace, *options)
        self.member(process, workspace, 0, at).send_signal(signal.SIGTERM)
        return ended(process)

    def member(self, process: subprocess.Popen[str], workspace: str, rank: int, at: int = 1) -> psutil.Process:
        """One of the processes that train, or the only one, once so many steps more are saved."""
        wanted = (self.steps(workspace) or [0])[-1] + at
        while (self.steps(workspace) or [-1])[-1] < wanted:
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        command = psutil.Process(process.pid)
        return next((p for p in command.children() if p.environ().get("RANK") == str(rank)), command)

    def run(self, workspace: str) -> Path:
        [found] = (self.folder / workspace).glob("tiny-*")
        return found

    def steps(self, workspace: str) -> list[int]:
        return [s for f in (self.folder / workspace).glob("tiny-*/train/checkpoints") for s in steps_in(f)]

    def made(self, workspace: str) -> bytes:
        return (self.run(workspace) / "train" / "model" / "adapter_model.safetensors").read_bytes()

    def curve(self, workspace: str) -> list[float]:
        return [nll for _, nll in json.loads((self.run(workspace) / "train" / "train.json").read_bytes())["curve"]]


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, said = process.communicate(timeout=LIMIT_S)
    return process.returncode, said


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def test_signals_restarts_and_other_machines_change_no_bit(project: Project) -> None:
    assert project.finish("straight", "--nproc", "2") == (0, "")
    assert "2 processes, ddp" in (project.run("straight") / "train" / "train.json").read_text()

    process = project.begin("signal", "--nproc", "2")  # to one of them: all save the same step
    project.member(process, "signal", 1, 5).send_signal(signal.SIGTERM)
    code, said = ended(process)
    assert code == 143 and "the same command goes on" in said
    assert project.finish("signal", "--nproc", "2")[0] == 0
    assert project.made("signal") == project.made("straight")

    process = project.begin("restarts", "--nproc", "2", "--max-restarts", "1")  # one of them is killed
    project.member(process, "restarts", 1, 5).kill()
    assert ended(process)[0] == 0
    assert project.made("restarts") == project.made("straight")

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ("--nnodes", "2", "--rdzv-endpoint", f"127.0.0.1:{port}")
    leads = project.begin("machines", *options)
    joins = project.begin("machines", *options, verb="join")
    assert ended(leads)[0] == 0 and ended(joins)[0] == 0
    assert project.made("machines") == project.made("straight")


def test_a_process_that_dies_ends_the_run(project: Project) -> None:
    process = project.begin("dies", "--nproc", "2")
    project.member(process, "dies", 1).kill()
    started = time.monotonic()
    code, said = ended(process)
    assert code == 4 and "LU-S005" in said and "Traceback" not in said
    assert time.monotonic() - started < 30


def test_a_process_that_hangs_is_named_and_those_of_a_killed_command_end(project: Project) -> None:
    process = project.begin("hangs", "--nproc", "2", "--wait-minutes", "0.1")
    hung = project.member(process, "hangs", 1)
    hung.suspend()
    code, said = ended(process)
    assert code == 4 and "LU-S005 process 1 of 2: does not answer any more" in said
    assert not hung.is_running() or hung.status() == psutil.STATUS_ZOMBIE

    process = project.begin("hangs", "--nproc", "2")
    members = [project.member(process, "hangs", rank) for rank in (0, 1)]
    process.kill()
    _, alive = psutil.wait_procs(members, timeout=30)
    assert not alive


def test_another_number_of_processes_goes_on_with_the_same_examples(project: Project) -> None:
    dry = ("--set", "model.adapt.dropout=0")  # each process draws its own
    assert project.finish("alone", *dry)[0] == 0
    for way, size in (("ddp", "2"), ("fsdp", "4")):
        options = (*dry, "--set", f"train.parallel={way}")
        assert project.stopped(way, *options, "--nproc", size, at=5)[0] == 143
        assert project.finish(way, *options)[0] == 0
        assert project.curve(way) == pytest.approx(project.curve("alone"), rel=1e-5)

"""Through servers the same answers come as without: in order, whole, from the right model, or an error says why."""

from __future__ import annotations

import json
import random
import re
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier import lifecycle
from luthier.adapt import adapt, trainable
from luthier.conversation import Message
from luthier.decoder import Decoder
from luthier.encode import Encoder
from luthier.errors import ModelError, RecipeError
from luthier.evaluate import servers
from luthier.evaluate.exam import Asked, Drawing, write_here
from luthier.evaluate.servers import about, writing
from luthier.models import Base, find_base, load_model, load_tokenizer
from luthier.progress import Quiet
from luthier.recipe import validate
from luthier.records import EvalReport
from luthier.saved import load_merged, save_adapted
from luthier.settings import Lora, Servers
from luthier.store import folder_hash
from luthier.tiny import write_tiny_model

from .served import ModelServer, Request

Serve = Callable[..., ModelServer]
KEY = "a-secret-of-servers"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that answers each prompt otherwise: the shared one repeats the prompt's last token."""
    return write_lively_model(tmp_path_factory.mktemp("lively"), seed=0)


def write_lively_model(folder: Path, seed: int) -> Path:
    model = load_model(find_base(str(write_tiny_model(folder, seed=seed))))
    draw(dict(model.model.layers.named_parameters()), 0.3)  # type: ignore[union-attr,arg-type]
    model.save_pretrained(folder)  # type: ignore[operator]
    return folder


def draw(weights: dict[str, torch.nn.Parameter], std: float) -> None:
    with torch.no_grad():
        for number, (_, weight) in enumerate(sorted(weights.items())):
            if weight.dim() > 1:
                weight.normal_(0, std, generator=torch.Generator().manual_seed(number))


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch, tiny: Path) -> Iterator[Serve]:
    """Starts servers of the tiny model; what is tried again is tried soon."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    connect = servers.connect
    monkeypatch.setattr(servers, "connect", lambda settings: replace(connect(settings), first_wait_s=0.01))
    started: list[ModelServer] = []

    def start(folder: Path = tiny) -> ModelServer:
        started.append(ModelServer(folder))
        return started[-1]

    yield start
    for server in started:
        server.close()


@pytest.fixture(scope="module")
def adapter(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter as training leaves it, whose every weight is drawn: B would begin at 0."""
    base, folder = find_base(str(tiny)), tmp_path_factory.mktemp("adapter")
    model = adapt(load_model(base), Lora(rank=4), base, 0)
    draw(trainable(model), 0.3)
    save_adapted(model, folder, load_tokenizer(base))
    return folder


@dataclass
class Bench:
    """The tiny model here, base or tuned, and what it is asked."""

    base: Base
    adapter: Path | None
    answers: Path
    asked: Asked
    said: list[str]

    def __post_init__(self) -> None:
        model = load_model(self.base)
        self.decoder = Decoder(load_merged(model, self.adapter) if self.adapter else model)
        self.model = f"{self.base.fingerprint} {folder_hash(self.adapter)}" if self.adapter else self.base.fingerprint

    def here(self) -> list[str]:
        return write_here(self.decoder, self.asked, lambda *_, **__: None)

    def there(self, *urls: str, **settings: Any) -> list[str]:
        """The answers of servers."""
        with writing(of(*urls, **settings), self.model, self.adapter, self.answers, "tuned", self) as write:
            return write(self.decoder, self.asked, lambda *_, **__: None)

    def about(self) -> str:
        (note,) = about(of("http://a/v1"), self.model, self.answers, "tuned")
        return note

    def say(self, text: str) -> None:
        self.said.append(text)

    bar = Quiet.bar


def no(request: Request, code: int = 400, why: str = "no") -> bool:
    request.refuse(code, why)
    return True


def of(*urls: str, **settings: Any) -> Servers:
    return Servers(url=urls, model="tiny", **{"timeout_s": 20.0, "at_once": 3, **settings})


def prompts(tiny: Path, n: int) -> list[list[int]]:
    encoder = Encoder(load_tokenizer(find_base(str(tiny))))
    texts = ["What is it?", "Who was there, and why?", "Say it again.", "Where is the lamp of size"]
    return [encoder.prompt([Message(role="user", content=f"{texts[i % 4]} {i}")]) for i in range(n)]


@pytest.fixture
def bench(tiny: Path, adapter: Path, tmp_path: Path) -> Callable[..., Bench]:
    def make(n: int = 12, *, tuned: bool = True, drawing: Drawing | None = None, ends: set[int] | None = None) -> Bench:
        base = find_base(str(tiny))
        how = drawing or Drawing()
        given = prompts(tiny, n) * how.draws
        asked = Asked(given, 10, frozenset(ends or {2}), how, load_tokenizer(base))
        return Bench(base, adapter if tuned else None, tmp_path / "answers", asked, [])

    return make


@pytest.fixture
def early_end(bench: Any) -> int:
    """A token that some of the answers hold, not first, so that they are shorter where it ends them."""
    tuned = bench()
    ids = [tuned.asked.tokenizer(text)["input_ids"] for text, _ in tuned.here()]
    return next(id_ for answer in ids for id_ in answer[3:] if sum(id_ in other[2:] for other in ids) > 1)


# -- as without ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tuned", [False, True])
def test_two_servers_write_what_is_written_here(serve: Serve, bench: Any, tuned: bool) -> None:
    one, other, ours = serve(), serve(), bench(tuned=tuned)
    assert ours.there(one.url, other.url) == ours.here()
    assert len(set(ours.here())) > 6, "answers that differ show the order"
    assert (ours.here() != bench(tuned=not tuned).here()) and not ours.said
    assert len(one.asked()) == len(other.asked()) == 4 + 6
    assert "of 8 prompts that were also answered on this machine, 8 began alike" in ours.about()
    for server in (one, other):
        assert set(server.models) == {"tiny"}, "the adapter is gone again"
        assert len(server.asked("load_lora_adapter")) == len(server.asked("unload_lora_adapter")) == tuned


def test_what_is_sent(serve: Serve, bench: Any, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVERS_KEY", KEY)
    server, ours = serve(), bench(5)
    ours.there(server.url, key_env="SERVERS_KEY", at_once=1)
    name = f"luthier-{folder_hash(adapter)[:16]}"
    assert server.requests[0].path == "load_lora_adapter"
    assert server.requests[0].body == {"lora_name": name, "lora_path": str(adapter.resolve())}
    assert [request.body["prompt"] for request in server.asked()] == [*ours.asked.prompts[:4], *ours.asked.prompts]
    plain = {"top_p": 1, "top_k": -1, "min_p": 0, "presence_penalty": 0, "frequency_penalty": 0}
    wanted = {"model": name, "prompt": ours.asked.prompts[4], "max_tokens": 10, "temperature": 0, "seed": 0}
    wanted |= {"stop_token_ids": [2], "return_token_ids": True, "repetition_penalty": 1, **plain}
    assert server.requests[-2].body == wanted
    assert {request.key for request in server.requests} == {f"Bearer {KEY}"}
    assert not any(KEY in path.read_text() for path in ours.answers.iterdir())


def test_one_that_fails_half_of_the_time_costs_nothing(serve: Serve, bench: Any) -> None:
    good, ill, ours = serve(), serve(), bench(24)
    ill.fault = lambda request: request.number % 2 == 0 and no(request, 503)
    assert ours.there(good.url, ill.url) == ours.here()
    assert len(good.asked()) > 12 and len(ill.asked()) > 12 and not ours.said


def test_one_that_is_gone_is_left_out_and_that_is_said(serve: Serve, bench: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        good, ours = serve(), bench()
        assert ours.there(nobody, good.url) == ours.here()
    (line,) = ours.said
    assert line.startswith(f"{nobody} is left out: cannot load the adapter") and "refused" in line
    assert len(good.asked()) == 4 + 12


def test_one_that_goes_while_it_is_asked_is_stood_in_for(serve: Serve, bench: Any) -> None:
    def after_the_check(request: Request) -> bool:
        if request.number > 6:
            request.handler.connection.shutdown(socket.SHUT_RDWR)
        return request.number > 6

    good, leaving, ours = serve(), serve(), bench(24)
    leaving.fault = after_the_check
    assert ours.there(good.url, leaving.url) == ours.here()
    (line,) = ours.said
    assert f"{leaving.url} still holds the adapter luthier-" in line


def test_answers_are_in_order_though_they_come_in_another(serve: Serve, bench: Any) -> None:
    def late(request: Request) -> bool:
        time.sleep(random.Random(request.number).uniform(0, 0.15))
        return False

    slow, ours = serve(), bench(20)
    slow.fault = late
    assert ours.there(slow.url, at_once=20) == ours.here()


def test_answers_end_where_they_end_here(serve: Serve, bench: Any, early_end: int) -> None:
    ours = bench(ends={2, early_end})
    assert ours.here() != bench().here()
    assert ours.there(serve().url) == ours.here()


def test_what_a_server_writes_past_the_end_is_cut(serve: Serve, bench: Any, early_end: int) -> None:
    """One that does not know `stop_token_ids`; without ids, the end is found where it writes it out."""
    server, ours = serve(), bench(ends={early_end})
    server.stops = False
    assert ours.there(server.url) == ours.here()
    assert servers._answer(bench().asked, (" Yes.<|im_end|>\n<|im_start|>user", True)) == ("Yes.", False)


def test_a_server_that_tells_text_only(serve: Serve, bench: Any) -> None:
    server, ours = serve(), bench()
    server.tells_ids = False
    assert ours.there(server.url) == ours.here()


# -- draws -----------------------------------------------------------------------------------------------


def test_each_draw_has_its_own_seed_whichever_server_is_asked(serve: Serve, bench: Any) -> None:
    ours, base = bench(4, drawing=Drawing(1.0, 3, 5)), bench(4, drawing=Drawing(1.0, 3, 5), tuned=False)
    one, other = serve(), serve()
    drawn = ours.there(one.url, other.url)
    seeds = {request.body["seed"] for server in (one, other) for request in server.asked() if request.body["seed"]}
    assert len(set(drawn)) == 12 == len(seeds) and all(0 < seed < 2**31 for seed in seeds)
    checks = [request.body["temperature"] for request in one.asked()[:4]]
    assert checks == [0.0] * 4 and ours.about().count("8 began alike") == 1
    third = serve()
    base.there(third.url)
    assert {request.body["seed"] for request in third.asked()[4:]} == seeds, "both models draw by the same noise"
    again = bench(4, drawing=Drawing(1.0, 3, 5))
    again.answers = again.answers / "elsewhere"
    assert again.there(third.url) == drawn
    assert bench(4, drawing=Drawing(1.0, 3, 6)).there(third.url) != drawn


# -- the wrong model -------------------------------------------------------------------------------------


def test_a_server_with_another_model_is_found_out(serve: Serve, bench: Any, tmp_path: Path) -> None:
    good, wrong, ours = serve(), serve(write_lively_model(tmp_path / "other", seed=1)), bench(tuned=False)
    with pytest.raises(ModelError) as caught:
        ours.there(good.url, wrong.url)
    (problem,) = caught.value.problems
    assert (problem.code, problem.where) == ("LU-M008", wrong.url)
    theirs, mine = re.search(r"here: '(.*)' instead of '(.*)'$", problem.found).groups()  # type: ignore[union-attr]
    assert theirs != mine and theirs.isprintable() and len(theirs) <= 83
    assert "begins 4 of 4 answers otherwise" in problem.found and "model.base" in problem.advice
    kept = (ours.answers / next(p.name for p in ours.answers.glob("served-*.jsonl"))).read_text()
    assert "said" not in kept, "nothing of it is kept"


def test_an_adapter_that_does_nothing_there_is_found_out(serve: Serve, bench: Any) -> None:
    """As by a server that loads an adapter and leaves it out of what it computes."""
    server, ours = serve(), bench()
    server._load = lambda adapter=None: ModelServer._load(server)  # type: ignore[method-assign]
    with pytest.raises(ModelError, match="LU-M008"):
        ours.there(server.url)
    assert set(server.models) == {"tiny"}, "unloaded all the same"


@pytest.mark.parametrize("n_others", [1, 2, 3])
def test_a_few_answers_that_begin_otherwise_are_noted(serve: Serve, bench: Any, n_others: int) -> None:
    """Other kernels round differently."""

    def another(request: Request) -> bool:
        if request.path != "completions" or request.body["prompt"] not in ours.asked.prompts[:n_others]:
            return False
        request.send(200, {"choices": [{"text": "x", "token_ids": [70, 71, 2]}]})
        return True

    server, ours = serve(), bench(4)
    server.fault = another
    if n_others > 2:
        with pytest.raises(ModelError, match="LU-M008"):
            ours.there(server.url)
        return
    assert ours.there(server.url)[n_others:] == ours.here()[n_others:]
    assert f"of 4 prompts that were also answered on this machine, {4 - n_others} began alike" in ours.about()
    assert ours.about().endswith("; the numerics of other kernels differ")


# -- the adapter -----------------------------------------------------------------------------------------


def test_a_server_that_loads_no_adapters_says_what_to_do(serve: Serve, bench: Any, adapter: Path) -> None:
    server, ours = serve(), bench()
    server.loads_adapters = False
    with pytest.raises(ModelError) as caught:
        ours.there(server.url)
    text = str(caught.value)
    assert f"LU-M007 {server.url}: cannot load the adapter {adapter.resolve()}: HTTP 404" in text
    assert "docs/evaluate.md says how such a server is started" in text and not server.asked()
    assert bench(tuned=False).there(server.url) == bench(tuned=False).here(), "for the base there is nothing to load"


def test_an_adapter_that_is_there_already_stays(serve: Serve, bench: Any, adapter: Path) -> None:
    server, ours = serve(), bench()
    name = f"luthier-{folder_hash(adapter)[:16]}"
    server.models[name] = server._load(adapter)
    assert ours.there(server.url) == ours.here()
    assert name in server.models and not server.asked("unload_lora_adapter")


def test_no_server_at_all(bench: Any, serve: Serve) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        with pytest.raises(ModelError, match="LU-M007 .*cannot answer as tiny: .*refused"):
            bench(tuned=False).there(url)


# -- what is lost and what is kept -----------------------------------------------------------------------


def test_answers_that_do_not_arrive_are_an_error_and_the_others_are_kept(serve: Serve, bench: Any) -> None:
    ours = bench()
    lost = [ours.asked.prompts[5], ours.asked.prompts[7]]

    why = "maximum context length is 8 tokens"
    server = serve()
    server.fault = lambda request: request.body.get("prompt") in lost and no(request, why=why)
    with pytest.raises(ModelError) as caught:
        ours.there(server.url)
    text = str(caught.value)
    assert "LU-M009 evaluate.servers: 2 of 12 answers did not arrive" in text and "HTTP 400" in text
    assert why in text and "asks only for what is missing" in text
    assert set(server.models) == {"tiny"}
    server.fault = lambda request: False
    before = len(server.asked())
    assert ours.there(server.url) == ours.here()
    assert sorted(request.body["prompt"] for request in server.asked()[before + 4 :]) == sorted(lost)
    before = len(server.requests)
    assert ours.there(server.url) == ours.here() and len(server.requests) == before, "nothing is asked twice"


def test_where_all_fails_the_rest_is_not_asked(serve: Serve, bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "GONE", 5)

    server, ours = serve(), bench(60, tuned=False)
    server.fault = lambda request: request.number >= 4 + 6 and no(request)
    with pytest.raises(ModelError, match="LU-M009 .*54 of 60 answers did not arrive"):
        ours.there(server.url, at_once=1)
    assert len(server.asked()) < 20


def test_some_that_fail_do_not_stop_the_rest(serve: Serve, bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "GONE", 4)
    server, ours = serve(), bench(12, tuned=False)
    refused = ours.asked.prompts[1::2]
    server.fault = lambda request: request.number > 3 and request.body["prompt"] in refused and no(request)
    with pytest.raises(ModelError, match="LU-M009 .*6 of 12 answers did not arrive"):
        ours.there(server.url, at_once=1)
    assert len(server.asked()) == 4 + 12


def test_half_a_line_left_by_a_kill_is_asked_again(serve: Serve, bench: Any) -> None:
    server, ours = serve(), bench(6)
    wanted = ours.there(server.url)
    (kept,) = ours.answers.glob("served-*.jsonl")
    kept.write_bytes(kept.read_bytes()[:-5])
    before = len(server.asked())
    assert ours.there(server.url) == wanted and len(server.asked()) == before + 4 + 1
    assert all(json.loads(line) for line in kept.read_text().splitlines())
    assert "of 8 prompts" in ours.about(), "both checks"


def test_garbage_is_no_answer(serve: Serve, bench: Any) -> None:
    garbage: Sequence[Any] = ([], {"choices": []}, {"choices": [{"text": None}]}, {"choices": [{"token_ids": ["x"]}]})

    def answer(request: Request) -> bool:
        request.send(200, garbage[request.number % len(garbage)])
        return True

    server, ours = serve(), bench(4, tuned=False)
    server.fault = answer
    with pytest.raises(ModelError, match="LU-M007 .*the reply is no completion"):
        ours.there(server.url)


def test_a_key_that_comes_back_is_not_shown(serve: Serve, bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVERS_KEY", KEY)
    server, ours = serve(), bench()

    server.fault = lambda request: no(request, 401, f"bad {request.key}")
    with pytest.raises(ModelError) as caught:
        ours.there(server.url, key_env="SERVERS_KEY")
    assert "HTTP 401" in str(caught.value) and KEY not in str(caught.value)


# -- recipes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "place", "words"),
    [
        ({"url": []}, "evaluate.servers.url", "at least 1"),
        ({"url": "gpu1:8000/v1"}, "evaluate.servers", "with a host"),
        ({"url": ["http://a/v1", "http://me:secret@b/v1"]}, "evaluate.servers", "no user, password"),
        ({"key_env": "sk-secret-0"}, "evaluate.servers", "not the key itself"),
        ({"modl": "x"}, "evaluate.servers.modl", "did you mean 'model'"),
        ({"at_once": 0}, "evaluate.servers.at_once", "greater than or equal to 1"),
    ],
)
def test_what_is_wrong_with_servers_is_said(tmp_path: Path, change: dict[str, Any], place: str, words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        validate(tree({"url": "http://a/v1", "model": "m"} | change), "recipe.yaml", tmp_path)
    assert any(words in str(p) and p.where.endswith(place) for p in caught.value.problems), caught.value
    assert "secret" not in str(caught.value)


def test_a_whole_model_is_no_adapter(tmp_path: Path) -> None:
    settings = {"url": "http://a/v1", "model": "m"}
    assert validate(tree(settings), "recipe.yaml", tmp_path).evaluate.servers == Servers(
        url=("http://a/v1",), model="m"
    )
    with pytest.raises(RecipeError, match="LU-R009 .*load the tuned model as a LoRA adapter"):
        validate(tree(settings) | {"model": {"adapt": {"method": "full"}}}, "recipe.yaml", tmp_path)


def tree(settings: dict[str, Any]) -> dict[str, Any]:
    rules = {"rules": [{"metric": "rouge1", "must": "beat_baseline"}]}
    evaluate = {"metrics": ["rouge1"], "servers": settings}
    return {"name": "r", "data": {"sources": [{"path": "x.jsonl"}]}, "evaluate": evaluate, "release": rules}


# -- in a run --------------------------------------------------------------------------------------------

RECIPE = """
name: served
seed: 3
data: {{sources: [{{path: rows.jsonl}}], split: {{by: given}}}}
model: {{base: "{base}", adapt: {{rank: 4}}}}
train: {{epochs: 2, learning_rate: 1e-2}}
evaluate:
  max_new_tokens: 8
  probe_documents: 4
  metrics: [perplexity, token_f1, answer_length]
  suites: [{{name: safety, limit: 6}}, {{name: typos, limit: 4}}]
release: {{rules: [{{metric: token_f1, must: not_regress, by_points: 1.0}}]}}
"""
SIDES = ("train", "train", "train", "validation", "test", "test")


@pytest.fixture
def project(tmp_path: Path, tiny: Path) -> Path:
    rows = [{"prompt": f"What is {i}?", "completion": f"It is {i % 3}.", "split": SIDES[i % 6]} for i in range(72)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(base=tiny))
    return tmp_path


def evaluated(project: Path, *overrides: str) -> tuple[Path, EvalReport]:
    done = lifecycle.run(project / "recipe.yaml", overrides=overrides, workspace=project / "runs", until="evaluate")
    return done.folder, EvalReport.read(done.folder / "evaluate" / "evaluation.json")


def test_a_run_through_servers_is_the_run_without(serve: Serve, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVERS_KEY", KEY)
    good, ill = serve(), serve()
    ill.fault = lambda request: request.number % 2 == 1 and no(request, 503)
    here, alone = evaluated(project)
    urls = f"evaluate.servers={{url: [{good.url}, {ill.url}], model: tiny, key_env: SERVERS_KEY}}"
    there, served = evaluated(project, urls)
    assert here != there
    for name in ("base.jsonl", "tuned.jsonl"):
        assert (there / "evaluate" / name).read_bytes() == (here / "evaluate" / name).read_bytes()
    assert served.model_copy(update={"notes": alone.notes}) == alone
    notes = [note for note in served.notes if note not in alone.notes]
    assert [note.partition(":")[0] for note in notes] == ["base", "tuned"] and all("8 began alike" in n for n in notes)
    asked = [{tuple(r.body["prompt"]) for r in server.asked()} for server in (good, ill)]
    assert all(len(of_one) > 10 for of_one in asked) and len(asked[0] | asked[1]) == 24 + 6
    assert set(good.models) == set(ill.models) == {"tiny"}
    files = [path for path in project.rglob("*") if path.is_file()]
    assert len(files) > 20 and not any(KEY.encode() in path.read_bytes() for path in files)


def test_a_run_that_lost_answers_goes_on_with_what_is_missing(serve: Serve, project: Path) -> None:
    server = serve()
    server.fault = lambda request: request.number > 12 and request.path == "completions" and no(request)
    settings = f"evaluate.servers={{url: {server.url}, model: tiny}}"
    with pytest.raises(ModelError, match="LU-M009"):
        evaluated(project, settings)
    server.fault = lambda request: False
    before = len(server.asked())
    folder, _ = evaluated(project, settings)
    assert len(server.asked()) - before < 2 * (24 + 6) + 3 * 4, "less than all of both models"
    requests = len(server.requests)
    assert evaluated(project, settings, "evaluate.confidence=0.9")[0] != folder
    assert len(server.requests) == requests, "what is known is asked of no server"


def test_a_missing_key_is_said_before_training(project: Path) -> None:
    with pytest.raises(ModelError, match="LU-M006 SERVERS_KEY"):
        evaluated(project, "evaluate.servers={url: http://127.0.0.1:9/v1, model: tiny, key_env: SERVERS_KEY}")
    (run,) = (project / "runs").glob("served-*")
    assert not (run / "train").exists()

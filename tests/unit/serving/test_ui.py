"""The page's requests: from the page itself only, code in the sandbox only, votes as records that training reads."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra `serve` brings fastapi")
pytest.importorskip("httpx", reason="the extra `curate` brings httpx")
pytest.importorskip("prometheus_client", reason="the extra `serve` brings prometheus-client")

import httpx

from mftcoder.data.rendering.pairs import read_pair
from mftcoder.errors import ConfigError
from mftcoder.serving.app import Api, make_app
from mftcoder.serving.guard import OPEN_PATHS, Guard
from mftcoder.serving.metrics import Metrics
from mftcoder.serving.ui import PAGE, Ui

HERE = "http://127.0.0.1:8000"
KEY = "a-key-of-the-test"
JSON = {"Content-Type": "application/json"}
ASK = [{"role": "user", "content": "Which is larger?"}]
VOTE = {"messages": ASK, "chosen": "Two.", "rejected": "One.", "chosen_model": "a", "rejected_model": "b"}


@asynccontextmanager
async def no_life() -> AsyncIterator[None]:
    yield


class Client:
    """Requests to the application, without a server process."""

    def __init__(self, ui: Ui | None, keys: tuple[str, ...] = ()):
        metrics = Metrics()
        app = make_app(Api(None, None, metrics), no_life, ui)  # type: ignore[arg-type]
        opened = OPEN_PATHS | {PAGE} if ui else OPEN_PATHS
        self.app = Guard(app, keys=keys, most_bytes=1 << 20, metrics=metrics, open_paths=opened)

    def __call__(self, method: str, path: str, base: str = HERE, **options: Any) -> Any:
        async def ask() -> Any:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app=self.app), base_url=base) as client:
                return await client.request(method, path, **options)

        return asyncio.run(ask())


@pytest.fixture(scope="module")
def votes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ui") / "kept" / "votes.jsonl"


@pytest.fixture(scope="module")
def ask(votes: Path) -> Iterator[Client]:
    ui = Ui(votes, has_keys=False)
    yield Client(ui)
    ui.close()


def test_the_page_names_its_script_in_a_policy_and_takes_nothing_from_elsewhere(ask: Client) -> None:
    page = ask("GET", "/")
    assert page.status_code == 200
    assert "default-src 'none'; script-src 'sha256-" in page.headers["content-security-policy"]
    assert not re.search(r"https?://|innerHTML|\son\w+=", page.text)


def test_without_ui_there_is_no_page_and_nothing_runs() -> None:
    none = Client(None)
    assert none("GET", "/").status_code == 404
    assert none("POST", "/ui/run", json={"code": "print(1)"}).status_code == 404
    assert none("POST", "/ui/vote", json=VOTE).status_code == 404


def test_code_runs_in_the_sandbox(ask: Client, tmp_path: Path) -> None:
    assert ask("POST", "/ui/run", json={"code": "print(6 * 7)"}).json() == {"output": "42\n"}
    target = tmp_path / "attacked"
    answer = ask("POST", "/ui/run", json={"code": f"open({str(target)!r}, 'w').write('x')"})
    assert "Error" in answer.json()["output"]
    assert not target.exists()


def test_a_vote_is_a_record_that_preference_training_reads(ask: Client, votes: Path) -> None:
    before = votes.read_bytes().splitlines() if votes.exists() else []
    assert ask("POST", "/ui/vote", json=VOTE).json() == {"kept": True}
    [line] = votes.read_bytes().splitlines()[len(before) :]
    pair = read_pair(line, task="votes", origin="votes.jsonl:1")
    assert [message.content for message in pair.first.messages] == ["Which is larger?", "Two."]
    assert pair.second is not None
    assert [message.content for message in pair.second.messages] == ["Which is larger?", "One."]


def test_a_developer_message_is_the_system_message_of_the_record(ask: Client, votes: Path) -> None:
    messages = [{"role": "developer", "content": "Be short."}, *ASK]
    assert ask("POST", "/ui/vote", json={**VOTE, "messages": messages}).status_code == 200
    pair = read_pair(votes.read_bytes().splitlines()[-1], task="votes", origin="votes.jsonl")
    assert [message.role for message in pair.first.messages] == ["system", "user", "assistant"]


def test_the_schema_has_the_paths_of_the_docs_and_no_others(ask: Client) -> None:
    page = (Path(__file__).parents[3] / "docs" / "serving.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"`(?:GET|POST) (/\S*)`", page)) - {"/openapi.json"}  # the schema leaves itself out
    schema = ask("GET", "/openapi.json").json()
    assert {path.replace("{name}", "NAME") for path in schema["paths"]} == documented
    assert "max_completion_tokens" in schema["components"]["schemas"]["ChatRequest"]["properties"]


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
def test_no_page_loads_scripts_of_another_site(ask: Client, path: str) -> None:
    assert ask("GET", path).status_code == 404


def test_a_wrong_field_is_named_as_the_client_wrote_it(ask: Client) -> None:
    parts = [{"type": "image_url", "image_url": {"url": "x"}}]
    error = ask("POST", "/v1/chat/completions", json={"messages": [{"role": "user", "content": parts}]}).json()["error"]
    assert error["param"] == "messages.0.content"
    assert "messages.0.content.0.type: Input should be 'text'" in error["message"]
    assert "str" not in error["message"].replace("string", "").replace("stream", "")
    error = ask("POST", "/v1/chat/completions", json={"messages": ASK, "max_tokens": 0}).json()["error"]
    assert error["param"] == "max_tokens"
    assert (
        error["message"]
        == "max_tokens: 0 asks for no text. Ask for 1 token or more, or with -1 for the rest of the context"
    )


@pytest.mark.parametrize(
    "change",
    [
        {"rejected": "Two. "},
        {"chosen": " "},
        {"messages": []},
        {"messages": [{"role": "assistant", "content": "?"}]},
        {"messages": [{"role": "user", "content": " "}]},
        {"messages": [*2 * [{"role": "system", "content": "Be short."}], *ASK]},
        {"messages": [{"role": "user", "content": "half \ud83d"}]},
        {"more": 1},
    ],
)
def test_what_is_no_pair_is_refused_and_not_written(ask: Client, votes: Path, change: dict[str, Any]) -> None:
    before = votes.read_bytes() if votes.exists() else b""
    assert ask("POST", "/ui/vote", content=json.dumps({**VOTE, **change}), headers=JSON).status_code == 400
    assert (votes.read_bytes() if votes.exists() else b"") == before


@pytest.mark.parametrize("path, body", [("/ui/run", {"code": "print(1)"}), ("/ui/vote", VOTE)])
@pytest.mark.parametrize(
    "headers, status",
    [
        ({"Origin": "https://example.org"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:9000"}, 403),
        ({"Origin": HERE, "Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Host": "example.org:8000", "Origin": "http://example.org:8000"}, 403),
        ({"Content-Type": "text/plain"}, 400),
        ({"Origin": HERE, "Sec-Fetch-Site": "same-origin"}, 200),
        ({"Host": "localhost:8000", "Origin": "http://localhost:8000"}, 200),
    ],
)
def test_another_site_cannot_ask(
    ask: Client, votes: Path, path: str, body: dict[str, Any], headers: dict[str, str], status: int
) -> None:
    before = votes.read_bytes() if votes.exists() else b""
    assert ask("POST", path, json=body, headers=headers).status_code == status
    written = (votes.read_bytes() if votes.exists() else b"") != before
    assert written == (status == 200 and path == "/ui/vote")


def test_with_keys_the_page_is_open_and_its_requests_are_not(tmp_path: Path) -> None:
    ui = Ui(tmp_path / "votes.jsonl", has_keys=True)
    keyed = Client(ui, (KEY,))
    assert keyed("GET", "/").status_code == 200
    assert keyed("POST", "/ui/vote", json=VOTE).status_code == 401
    assert keyed("POST", "/ui/run", json={"code": "print(1)"}).status_code == 401
    other = "http://models.example.org"
    signed = {"Authorization": f"Bearer {KEY}", "Origin": other}
    assert keyed("POST", "/ui/vote", base=other, json=VOTE, headers=signed).status_code == 200


@pytest.mark.parametrize(("name", "problem"), [("", "is a folder"), ("code.py", r"must end in \.jsonl")])
def test_votes_are_kept_in_no_other_file(name: str, problem: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=problem):
        Ui(tmp_path / name, has_keys=False)

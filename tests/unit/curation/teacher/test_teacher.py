"""A teacher behind a real HTTP server that times out, answers nonsense, limits the rate, changes its model, or dies."""

import asyncio
import email.utils
import json
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("httpx", reason="the extra `curate` brings httpx")

from mftcoder.curation.teacher.budget import Budget, BudgetConfig, OverBudgetError, check_budget
from mftcoder.curation.teacher.endpoint import Endpoint, EndpointConfig, Reply, Usage, retry_after
from mftcoder.curation.teacher.journal import FILE, RequestJournal
from mftcoder.curation.teacher.teacher import Teacher, UnansweredError, in_order, spent_so_far
from mftcoder.errors import ConfigError, EndpointError
from tests.scripted_endpoint import MODEL, Answer, Asked, ScriptedEndpoint, error

Script = Callable[[Asked], Answer]


def echo(asked: Asked) -> Answer:
    return Answer(f"You said: {asked.text}")


def config_of(endpoint: ScriptedEndpoint, **options: Any) -> EndpointConfig:
    return EndpointConfig(url=endpoint.url, model="scripted", **{"backoff_seconds": 0.01, "max_tokens": 100, **options})


def run(
    config: EndpointConfig,
    folder: Path,
    questions: Sequence[str],
    *,
    budget: BudgetConfig | None = None,
    seed: int = 42,
) -> tuple[list[str | None], RequestJournal, OverBudgetError | None]:
    """The answers to the questions, an unanswered one as `! problem`; what is in the journal then; what stopped it."""

    async def ask(teacher: Teacher, question: str) -> str:
        try:
            return (await teacher.ask(question)).text
        except UnansweredError as problem:
            return f"! {problem.problem}"

    async def all_of_them() -> tuple[list[str | None], RequestJournal, OverBudgetError | None]:
        with RequestJournal(folder / FILE) as journal:
            limits = Budget(budget or BudgetConfig(), spent_so_far(journal, [config]))
            async with Endpoint(config) as endpoint:
                teacher = Teacher(endpoint, journal, limits, seed=seed)
                answers, stop = await in_order(lambda one: ask(teacher, one), questions, width=config.concurrency)
            return answers, journal, stop

    return asyncio.run(all_of_them())


QUESTIONS = [f"Question {number}?" for number in range(6)]
ECHOES: list[str | None] = [f"You said: {question}" for question in QUESTIONS]


def failing_first(*failures: Answer) -> Script:
    """The first requests get these answers, all others an echo."""
    return lambda asked: failures[asked.number - 1] if asked.number <= len(failures) else echo(asked)


def test_answers_come_in_the_order_of_the_questions(tmp_path: Path) -> None:
    def script(asked: Asked) -> Answer:
        time.sleep(0.02 * (6 - int(asked.text[9])))  # the first ones take the longest
        return echo(asked)

    with ScriptedEndpoint(script) as endpoint:
        answers, _, _ = run(config_of(endpoint), tmp_path, QUESTIONS)
    assert answers == ECHOES


def test_no_more_requests_than_concurrency_run_at_the_same_time(tmp_path: Path) -> None:
    both = threading.Barrier(2)

    def script(asked: Asked) -> Answer:
        both.wait(300)  # two are needed at once for any answer
        return echo(asked)

    with ScriptedEndpoint(script) as endpoint:
        answers, _, _ = run(config_of(endpoint, concurrency=2), tmp_path, QUESTIONS)
    assert answers == ECHOES
    assert endpoint.most_at_once == 2


def test_a_second_run_sends_no_request(tmp_path: Path) -> None:
    with ScriptedEndpoint(echo) as endpoint:
        config = config_of(endpoint)
        first, _, _ = run(config, tmp_path, QUESTIONS)
        again, _, _ = run(config, tmp_path, QUESTIONS)
    assert first == again == ECHOES
    assert len(endpoint.asked) == len(QUESTIONS)


def test_equal_questions_of_two_records_are_one_request(tmp_path: Path) -> None:
    with ScriptedEndpoint(echo) as endpoint:
        answers, _, _ = run(config_of(endpoint), tmp_path, ["Again?"] * 5)
    assert answers == ["You said: Again?"] * 5
    assert len(endpoint.asked) == 1


def test_samples_seeds_and_parameters_make_requests_of_their_own(tmp_path: Path) -> None:
    async def four(config: EndpointConfig, journal: RequestJournal) -> None:
        for seed, temperature, sample in ((1, 0.5, 0), (1, 0.5, 1), (2, 0.5, 0), (1, 0.6, 0)):
            changed = config.model_copy(update={"temperature": temperature})
            async with Endpoint(changed) as endpoint:
                teacher = Teacher(endpoint, journal, Budget(BudgetConfig()), seed=seed)
                await teacher.ask("Same?", sample=sample)

    with ScriptedEndpoint(echo) as endpoint, RequestJournal(tmp_path / FILE) as journal:
        asyncio.run(four(config_of(endpoint), journal))
    assert len({asked.body["seed"] for asked in endpoint.asked}) == len(endpoint.asked) == 4


@pytest.mark.parametrize(
    ("failure", "problem"),
    [
        (error(500, "broken pipe"), "HTTP 500: broken pipe"),
        (error(429, "slow down"), "HTTP 429: slow down"),
        (Answer(raw=b'{"choices": [{"mess'), "the answer is not JSON"),
        (Answer(raw=b'{"error": {"message": "upstream died"}}'), "the answer has no message: upstream died"),
        (Answer(raw=b"[]"), "the answer has no message"),
        (Answer(raw=b'{"choices": [{"message": {"content": 7}}]}'), "the answer's message is not a text"),
        (Answer(""), "the answer is empty"),
        (Answer(None), "the answer is empty"),
        (Answer("<think>Let me see.</think>\n"), "the answer is empty"),
    ],
)
def test_a_failed_attempt_is_repeated_and_kept_on_file(tmp_path: Path, failure: Answer, problem: str) -> None:
    with ScriptedEndpoint(failing_first(failure, failure)) as endpoint:
        answers, journal, _ = run(config_of(endpoint), tmp_path, ["Well?"])
    assert answers == ["You said: Well?"]
    assert len(endpoint.asked) == 3
    assert journal.problems == {problem: 2}


def test_an_endpoint_that_times_out_is_asked_again(tmp_path: Path) -> None:
    with ScriptedEndpoint(failing_first(Answer(never=True))) as endpoint:
        answers, journal, _ = run(config_of(endpoint, timeout_seconds=0.5), tmp_path, ["Well?"])
    assert answers == ["You said: Well?"]
    assert journal.problems == {"no answer after 0.5 s": 1}


def test_an_answer_that_comes_byte_by_byte_times_out_too(tmp_path: Path) -> None:
    """Each byte comes in time: only a limit of the whole request ends it."""
    stop = threading.Event()

    def serve(listener: Any) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(1 << 16)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
            while not stop.wait(0.05):
                connection.sendall(b" ")

    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=serve, args=(listener,), daemon=True)
        server.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        config = EndpointConfig(url=url, model="m", timeout_seconds=0.5, retries=0)
        answers, _, _ = run(config, tmp_path, ["Well?"])
        stop.set()
        server.join(30)
    assert answers == ["! no answer after 0.5 s"]


def test_retry_after_holds_back_all_requests(tmp_path: Path) -> None:
    limited = error(429, headers={"Retry-After": "1"})
    with ScriptedEndpoint(failing_first(limited)) as endpoint:
        answers, _, _ = run(config_of(endpoint, concurrency=1), tmp_path, QUESTIONS[:2])
    assert answers == ECHOES[:2]
    assert endpoint.asked[1].moment - endpoint.asked[0].moment >= 0.9


def test_retry_after_may_be_a_date() -> None:
    later = retry_after(email.utils.formatdate(time.time() + 100, usegmt=True))
    assert later is not None
    assert 90 < later <= 100
    assert retry_after(email.utils.formatdate(0, usegmt=True)) == 0
    assert retry_after("soon") is None


def test_a_wait_beyond_patience_ends_the_command(tmp_path: Path) -> None:
    with (
        ScriptedEndpoint(lambda _: error(429, headers={"Retry-After": "3600"})) as endpoint,
        pytest.raises(EndpointError, match="asks to wait 3,600 s"),
    ):
        run(config_of(endpoint), tmp_path, ["Well?"])


def test_requests_per_minute_space_the_requests(tmp_path: Path) -> None:
    started = time.monotonic()
    with ScriptedEndpoint(echo) as endpoint:
        run(config_of(endpoint, requests_per_minute=600), tmp_path, QUESTIONS)
    assert endpoint.asked[-1].moment - started >= 5 * 0.1  # six requests, 0.1 s apart


def test_a_request_that_the_endpoint_refuses_is_not_repeated_and_others_go_on(tmp_path: Path) -> None:
    def script(asked: Asked) -> Answer:
        return error(400, "too long") if asked.text == QUESTIONS[2] else echo(asked)

    with ScriptedEndpoint(script) as endpoint:
        answers, _, _ = run(config_of(endpoint), tmp_path, QUESTIONS)
    assert answers == [*ECHOES[:2], "! HTTP 400: too long", *ECHOES[3:]]
    assert len(endpoint.asked) == len(QUESTIONS)


@pytest.mark.parametrize(
    "failure",
    [
        error(401, "bad key"),
        error(404, "no such model"),
        error(429, "pay first", code="insufficient_quota"),
        Answer(status=307, headers={"Location": "/elsewhere"}, raw=b""),
    ],
)
def test_what_no_request_can_pass_ends_the_command_at_once(tmp_path: Path, failure: Answer) -> None:
    with ScriptedEndpoint(lambda _: failure) as endpoint, pytest.raises(EndpointError, match=f"HTTP {failure.status}"):
        run(config_of(endpoint, concurrency=1), tmp_path, QUESTIONS)
    assert len(endpoint.asked) == 1


def test_after_an_error_that_ends_the_command_no_request_is_sent(tmp_path: Path) -> None:
    """Records ask several questions: those that have begun must not go on."""

    async def ask_all(config: EndpointConfig, journal: RequestJournal) -> None:
        async with Endpoint(config) as endpoint:
            teacher = Teacher(endpoint, journal, Budget(BudgetConfig()), seed=1)
            for question in QUESTIONS:
                with pytest.raises(EndpointError, match="HTTP 404"):
                    await teacher.ask(question)

    with ScriptedEndpoint(lambda _: error(404)) as endpoint, RequestJournal(tmp_path / FILE) as journal:
        asyncio.run(ask_all(config_of(endpoint), journal))
    assert len(endpoint.asked) == 1


def test_after_a_full_disk_nothing_is_written_behind_half_a_line(tmp_path: Path) -> None:
    with RequestJournal(tmp_path / FILE) as journal:
        inner = journal._file
        inner._file.close()
        inner._file = open("/dev/full", "ab", buffering=0)  # noqa: SIM115, PTH123  # the journal closes it
        with pytest.raises(EndpointError, match="No space left on device"):
            journal.add("a", {"model": "m"}, Reply("x", "stop", "m", None), [], 0.1)
        inner._file.close()
        inner._file = (tmp_path / FILE).open("ab")
        with pytest.raises(EndpointError, match="No space left on device"):
            journal.add("b", {"model": "m"}, Reply("x", "stop", "m", None), [], 0.1)
    assert (tmp_path / FILE).read_bytes().count(b"\n") == 1


def test_a_dead_endpoint_ends_the_command_and_the_answers_are_kept(tmp_path: Path) -> None:
    with ScriptedEndpoint(lambda asked: echo(asked) if asked.number <= 2 else error(503)) as endpoint:
        config = config_of(endpoint, concurrency=1, retries=1)
        with pytest.raises(EndpointError, match=r"3 requests in a row brought no answer, the last one: HTTP 503"):
            run(config, tmp_path, QUESTIONS)
        assert len(endpoint.asked) == 2 + 3 * 2
        endpoint.script = echo
        answers, _, _ = run(config, tmp_path, QUESTIONS)
    assert answers == ECHOES
    assert len(endpoint.asked) == 2 + 3 * 2 + 4


def test_a_closed_port_is_an_endpoint_error(tmp_path: Path) -> None:
    with ScriptedEndpoint(echo) as endpoint:
        config = config_of(endpoint, concurrency=1, retries=0)
    with pytest.raises(
        EndpointError, match="3 requests in a row brought no answer, the last one: the connection failed"
    ):
        run(config, tmp_path, QUESTIONS)


def test_another_model_than_before_ends_the_command(tmp_path: Path) -> None:
    def script(asked: Asked) -> Answer:
        return Answer(model=MODEL if asked.number < 3 else "scripted-1b", usage=(10, 5))

    with ScriptedEndpoint(script) as endpoint:
        with pytest.raises(EndpointError, match="answers as model 'scripted-1b', but answered as 'scripted-7b' before"):
            run(config_of(endpoint, concurrency=1), tmp_path, QUESTIONS)
        with RequestJournal(tmp_path / FILE) as journal:
            assert journal.models == {"scripted": {"scripted-7b": 2}}
            assert journal.totals["scripted"].usage == Usage(30, 15)  # the refused answer was paid
        _, journal, _ = run(config_of(endpoint, allow_model_change=True), tmp_path, QUESTIONS)
    assert journal.models == {"scripted": {"scripted-7b": 2, "scripted-1b": 4}}


def test_a_budget_of_requests_is_not_passed_and_a_larger_one_goes_on(tmp_path: Path) -> None:
    with ScriptedEndpoint(echo) as endpoint:
        answers, _, stop = run(config_of(endpoint), tmp_path, QUESTIONS, budget=BudgetConfig(requests=4))
        assert len([answer for answer in answers if answer]) == len(endpoint.asked) == 4
        assert str(stop) == "4 of 4 requests are used"
        answers, _, stop = run(config_of(endpoint), tmp_path, QUESTIONS, budget=BudgetConfig(requests=6))
    assert answers == ECHOES
    assert stop is None
    assert len(endpoint.asked) == 6


def test_failed_attempts_count_for_the_budget(tmp_path: Path) -> None:
    with ScriptedEndpoint(failing_first(error(500), error(500))) as endpoint:
        answers, _, stop = run(config_of(endpoint), tmp_path, ["Well?"], budget=BudgetConfig(requests=2))
    assert answers == [None]
    assert stop is not None
    assert len(endpoint.asked) == 2


def test_a_budget_of_tokens_is_not_passed_by_requests_under_way(tmp_path: Path) -> None:
    """Each answer uses all of its 100 tokens, each question 10: of 1,000 tokens no ninth request may begin, however many run at once."""
    with ScriptedEndpoint(lambda _: Answer(usage=(10, 100))) as endpoint:
        questions = [f"{number}?" for number in range(50)]
        _, journal, stop = run(
            config_of(endpoint, concurrency=20), tmp_path, questions, budget=BudgetConfig(tokens=1000)
        )
    assert journal.totals["scripted"].usage.total <= 1000
    # It stops because the most that a request can use (a token a byte, 64 for the template, the answer's limit) is more than what is left.
    assert len(endpoint.asked) == 8
    assert str(stop) == "120 of 1,000 tokens are left, and the next request may use 167"


def test_a_budget_of_cost_uses_the_prices(tmp_path: Path) -> None:
    with ScriptedEndpoint(lambda _: Answer(usage=(10, 100))) as endpoint:
        config = config_of(endpoint, price_in=1.0, price_out=10.0)  # 0.00101 an answer
        _, journal, stop = run(config, tmp_path, [f"{n}?" for n in range(20)], budget=BudgetConfig(cost=0.005))
        assert spent_so_far(journal, [config]).cost == pytest.approx(4 * 0.00101)
    assert stop is not None
    assert len(endpoint.asked) == 4


def test_limits_that_cannot_be_held_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs price_in and price_out"):
        check_budget(BudgetConfig(cost=1), [EndpointConfig(url="http://a", model="m")])
    unlimited = EndpointConfig(url="http://a", model="m", extra_body={"max_tokens": None})
    with pytest.raises(ConfigError, match="extra_body removes max_tokens"):
        check_budget(BudgetConfig(tokens=1), [unlimited])
    with (
        ScriptedEndpoint(lambda _: Answer(usage=None)) as endpoint,
        pytest.raises(EndpointError, match="answers without `usage`"),
    ):
        run(config_of(endpoint), tmp_path, ["Well?"], budget=BudgetConfig(tokens=10_000))


def test_the_key_comes_from_the_environment_and_is_written_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "sk-secret-123")

    def script(asked: Asked) -> Answer:
        if asked.number == 1:
            return error(500, f"who is {asked.headers['authorization']}?")
        return Answer(f"Your key is {asked.headers['authorization']}.")

    with ScriptedEndpoint(script) as endpoint:
        answers, _, _ = run(config_of(endpoint, api_key_env="MY_KEY"), tmp_path, ["Well?"])
        assert endpoint.asked[0].headers["authorization"] == "Bearer sk-secret-123"
        assert answers == ["Your key is Bearer (the API key)."]
        assert b"sk-secret" not in (tmp_path / FILE).read_bytes()
        monkeypatch.delenv("MY_KEY")
        with pytest.raises(EndpointError, match="MY_KEY is not set"):
            run(config_of(endpoint, api_key_env="MY_KEY"), tmp_path, ["Well?"])


def test_without_a_key_no_authorization_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with ScriptedEndpoint(echo) as endpoint:
        run(config_of(endpoint), tmp_path, ["Well?"])
    assert "authorization" not in endpoint.asked[0].headers


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("http://localhost:8000", "http://localhost:8000/v1"),
        ("http://localhost:8000/v1/", "http://localhost:8000/v1"),
        ("https://host/api/v1/chat/completions", "https://host/api/v1"),
    ],
)
def test_a_url_may_be_given_in_several_forms(given: str, meant: str) -> None:
    assert EndpointConfig(url=given, model="m").url == meant


@pytest.mark.parametrize(
    "url", ["localhost:8000", "ftp://host", "http://", "http://key@host/v1", "http://host/v1?key=a"]
)
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match="url"):
        EndpointConfig(url=url, model="m")


def test_extra_body_adds_and_removes_fields(tmp_path: Path) -> None:
    extra = {"max_tokens": None, "max_completion_tokens": 7, "seed": None, "top_k": 3}
    with ScriptedEndpoint(echo) as endpoint:
        run(config_of(endpoint, extra_body=extra), tmp_path, ["Well?"])
    body = endpoint.asked[0].body
    assert (body["max_completion_tokens"], body["top_k"]) == (7, 3)
    assert not {"max_tokens", "seed"} & set(body)


def test_thoughts_before_an_answer_are_left_out(tmp_path: Path) -> None:
    with ScriptedEndpoint(lambda _: Answer("<think>\nHm.\n</think>\n\n42")) as endpoint:
        answers, _, _ = run(config_of(endpoint), tmp_path, ["Well?"])
    assert answers == ["42"]


def test_a_cut_answer_says_so() -> None:
    assert Reply("x", "length", "m", None).is_cut
    assert not Reply("x", "stop", "m", None).is_cut


def test_every_request_is_on_file_with_its_question_and_tokens(tmp_path: Path) -> None:
    with ScriptedEndpoint(failing_first(Answer("", usage=(10, 3)))) as endpoint:
        run(config_of(endpoint), tmp_path, ["Well?"])
    _, line = map(json.loads, (tmp_path / FILE).read_text().splitlines())
    assert line["request"]["messages"] == [{"role": "user", "content": "Well?"}]
    assert line["failed"] == [{"problem": "the answer is empty", "prompt_tokens": 10, "completion_tokens": 3}]
    assert (line["text"], line["prompt_tokens"], line["completion_tokens"]) == ("You said: Well?", 10, 5)


def test_a_line_that_a_crash_cut_is_asked_again(tmp_path: Path) -> None:
    with ScriptedEndpoint(echo) as endpoint:
        run(config_of(endpoint), tmp_path, QUESTIONS)
        path = tmp_path / FILE
        path.write_bytes(path.read_bytes()[:-20])
        answers, _, _ = run(config_of(endpoint), tmp_path, QUESTIONS)
    assert answers == ECHOES
    assert len(endpoint.asked) == len(QUESTIONS) + 1


@pytest.mark.parametrize("damage", ["first", "middle"])
def test_a_damaged_journal_is_refused_and_not_replaced(tmp_path: Path, damage: str) -> None:
    with ScriptedEndpoint(echo) as endpoint:
        run(config_of(endpoint), tmp_path, QUESTIONS)
    path = tmp_path / FILE
    lines = path.read_bytes().splitlines(keepends=True)
    lines[0 if damage == "first" else 3] = b"hello\n"
    path.write_bytes(b"".join(lines))
    with pytest.raises(EndpointError, match=f"{FILE}:{1 if damage == 'first' else 4}: is not a line"):
        RequestJournal(path)
    assert path.read_bytes() == b"".join(lines)

"""The methods from end to end, against a scripted endpoint: what is asked, what becomes a record, and what is dropped by which rule."""

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("httpx", reason="the extra `curate` brings httpx")
pytest.importorskip("rensa", reason="the extra `curate` brings rensa")

from mftcoder.app.data.curate import curate
from mftcoder.app.data.synthesize import synthesize, synthesize_recipe
from mftcoder.curation.pipeline.recipe import parse_recipe
from mftcoder.curation.synthesis.config import parse_synthesis
from mftcoder.curation.synthesis.output import Synthesized
from mftcoder.curation.synthesis.sources import choose_snippets
from mftcoder.curation.synthesis.work import tagged
from mftcoder.errors import ConfigError, DataError
from tests.conftest import REPOSITORY
from tests.scripted_endpoint import Answer, Asked, ScriptedEndpoint

Script = Callable[[Asked], Answer]
SOLUTION = "Count them.\n\n```python\ndef count(items):\n    return len(items)\n```"


def run(server: ScriptedEndpoint, folder: Path, **options: Any) -> Synthesized:
    """Synthesize into `folder/out`."""
    asked = {
        "url": server.url,
        "model": "scripted",
        "backoff_seconds": 0.01,
        "retries": 1,
        **options.pop("endpoint", {}),
    }
    raw = {"endpoint": asked, "output_dir": str(folder / "out"), **options}
    return synthesize(parse_synthesis(raw, origin="test"))


def records(made: Synthesized, task: str) -> list[tuple[str, str]]:
    """Question and answer of each record, as a trainer reads them."""
    lines = (made.folder / task / "train.jsonl").read_text().splitlines()
    return [tuple(turn["content"] for turn in json.loads(line)["chat_rounds"]) for line in lines]  # type: ignore[misc]


def dropped(made: Synthesized) -> list[tuple[str, str]]:
    """Step and rule of each line of dropped.jsonl."""
    path = made.folder / "dropped.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(entry["step"], entry["rule"]) for entry in map(json.loads, lines)]


def topics(folder: Path, *names: str) -> str:
    path = folder / "topics.txt"
    path.write_text("# Topics\n\n" + "".join(f"{name}\n" for name in names))
    return str(path)


def exercise_teacher(asked: Asked) -> Answer:
    """Sharpens a request, writes two exercises on its topic, and answers them."""
    topic = re.search(r"\b(?:lists|sets|files)\b", asked.text)
    if "Make it more precise" in asked.text:
        return Answer(f"Sharp request about {topic[0] if topic else '?'}.")
    if "<exercise>" in asked.text:
        assert "Sharp request about" in asked.text, "the questions are asked for with the sharpened request"
        name = topic[0] if topic else "?"
        return Answer(
            f"<exercise>Reverse all the {name} of a museum.</exercise>\n<exercise>Sort {name} by the weight of a whale.</exercise>"
        )
    return Answer(SOLUTION)


def test_exercises_go_from_topic_to_record_in_six_steps(tmp_path: Path) -> None:
    with ScriptedEndpoint(exercise_teacher) as endpoint:
        made = run(endpoint, tmp_path, exercises={"topics": topics(tmp_path, "lists", "sets"), "exercises": 2})
    assert [question for question, _ in records(made, "exercises")] == [
        "Reverse all the lists of a museum.",
        "Sort lists by the weight of a whale.",
        "Reverse all the sets of a museum.",
        "Sort sets by the weight of a whale.",
    ]
    assert {answer for _, answer in records(made, "exercises")} == {SOLUTION}
    assert len(endpoint.asked) == 2 * (1 + 1 + 2)  # a topic: sharpen, questions, two answers
    first = json.loads((made.folder / "exercises" / "train.jsonl").read_text().splitlines()[0])
    assert first["data_name"] == "exercises"
    assert first["synthesis"]["topic"] == "lists"
    assert first["synthesis"]["origin"].endswith("topics.txt:3")


def test_another_model_can_sharpen_the_requests(tmp_path: Path) -> None:
    with ScriptedEndpoint(exercise_teacher) as teacher, ScriptedEndpoint(exercise_teacher) as sharpener:
        options = {"topics": topics(tmp_path, "lists"), "exercises": 2}
        made = run(teacher, tmp_path, exercises=options, sharpener={"url": sharpener.url, "model": "small"})
    assert [len(endpoint.asked) for endpoint in (teacher, sharpener)] == [3, 1]
    assert {name: row["attempts"] for name, row in made.manifest["requests"]["models"].items()} == {
        "scripted": 3,
        "small": 1,
    }


def test_each_drop_of_the_exercises_names_its_rule(tmp_path: Path) -> None:
    def script(asked: Asked) -> Answer:
        text = asked.text
        if "Make it more precise" in text:
            return (
                Answer("cut", finish="length")
                if "lists" in text
                else Answer(f"Sharp: {re.search('sets|files|trees', text)[0]}")
            )  # type: ignore[index]
        if "<exercise>" in text:
            if "sets" in text:
                return Answer("Here are none.")
            if "files" in text:
                return Answer(
                    "<exercise>Refuse.</exercise><exercise>Be cut.</exercise><exercise>Break.</exercise><exercise>Talk.</exercise>"
                    "<exercise>Work.</exercise><exercise>Work.</exercise><exercise>This one ne",
                    finish="length",
                )
            return Answer("<exercise>Walk a tree.</exercise>")
        answers = {
            "Refuse.": "I'm sorry, but I can't do that.\n\n```python\nx = 1\n```",
            "Break.": "```python\ndef f(:\n```",
            "Talk.": "One could count.",
        }
        return next(
            (Answer(a) for q, a in answers.items() if q in text),
            Answer(SOLUTION, finish="length" if "Be cut" in text else "stop"),
        )

    with ScriptedEndpoint(script) as endpoint:
        made = run(
            endpoint,
            tmp_path,
            exercises={"topics": topics(tmp_path, "lists", "sets", "files", "trees"), "exercises": 6},
        )
    assert [question for question, _ in records(made, "exercises")] == ["Work.", "Walk a tree."]
    assert Counter(dropped(made)) == {
        ("sharpen", "cut"): 1,
        ("questions", "no_exercise"): 1,
        ("questions", "too_few"): 1,  # of the trees; the files have six whole ones
        ("answer", "cut"): 1,
        ("filter", "refusals"): 1,
        ("filter", "broken_python"): 1,
        ("filter", "code_blocks"): 1,
        ("dedup", "exact_duplicate"): 1,
    }
    steps = {step["step"]: step["left"] for step in made.manifest["steps"]}
    assert (made.manifest["read"], steps["dedup"]) == (10, 2)


def evol_teacher(asked: Asked) -> Answer:
    if "Make it a little harder" in asked.text:
        question = asked.text.rsplit("Question:", 1)[1].strip()
        return Answer(f"{question} Use constant memory too, step {len(question) % 7}.")
    return Answer("Yes." if "Compare two" in asked.text else SOLUTION)


def questions_file(folder: Path, *questions: str) -> str:
    path = folder / "records.jsonl"
    path.write_text("".join(json.dumps({"prompt": question, "completion": "old"}) + "\n" for question in questions))
    return str(path)


def test_evol_makes_a_question_harder_round_by_round(tmp_path: Path) -> None:
    with ScriptedEndpoint(evol_teacher) as endpoint:
        made = run(
            endpoint, tmp_path, evol={"records": questions_file(tmp_path, "Sum a list."), "rounds": 5}, dedup=None
        )
    found = [question for question, _ in records(made, "evol")]
    assert [question.count("Use constant memory too") for question in found] == [1, 2, 3, 4, 5]
    assert all(question.startswith("Sum a list.") for question in found)
    lines = map(json.loads, (made.folder / "evol" / "train.jsonl").read_text().splitlines())
    assert len({line["synthesis"]["way"] for line in lines}) == 5  # each of the five ways once


@pytest.mark.parametrize(
    ("version", "verdict", "answer", "rule"),
    [
        ("Sum a  LIST of numbers.", "yes", SOLUTION, ("eliminate", "unchanged")),
        ("Here is a harder version: sum two lists.", "yes", SOLUTION, ("eliminate", "speaks_of_prompt")),
        ("Sum the squares in O(1) memory.", "No, it is the same.", SOLUTION, ("eliminate", "not_harder")),
        ("Sum the squares in O(1) memory.", "Perhaps.", SOLUTION, ("eliminate", "no_verdict")),
        ("Sum the squares in O(1) memory.", "yes", "Sorry, no ```python\nx = 1\n```", ("answer", "sorry")),
        ("Sum the squares in O(1) memory.", "yes", "The, and. Of!", ("answer", "no_content")),
    ],
)
def test_a_version_that_did_not_become_harder_is_eliminated(
    tmp_path: Path, version: str, verdict: str, answer: str, rule: tuple[str, str]
) -> None:
    def script(asked: Asked) -> Answer:
        if "Make it a little harder" in asked.text:
            return Answer(version)
        return Answer(verdict if "Compare two" in asked.text else answer)

    with ScriptedEndpoint(script) as endpoint:
        options = {"records": questions_file(tmp_path, "Sum a list of numbers."), "rounds": 1}
        made = run(endpoint, tmp_path, evol=options)
    assert dropped(made) == [rule]
    assert made.manifest["kept"] == 0


def test_after_an_eliminated_version_the_next_round_starts_from_the_one_before(tmp_path: Path) -> None:
    def script(asked: Asked) -> Answer:
        if "Compare two" in asked.text:
            return Answer("yes" if "second ok" in asked.text else "no")
        if "Make it a little harder" in asked.text:
            assert asked.text.endswith("Sum a list."), "the eliminated version is not used"
            return Answer(f"A version, {'second' if asked.number > 2 else 'first'} ok?")
        return Answer(SOLUTION)

    with ScriptedEndpoint(script) as endpoint:
        made = run(endpoint, tmp_path, evol={"records": questions_file(tmp_path, "Sum a list."), "rounds": 2})
    assert [question for question, _ in records(made, "evol")] == ["A version, second ok?"]


def test_lines_that_cannot_be_read_are_dropped(tmp_path: Path) -> None:
    path = questions_file(tmp_path, "Sum a list.")
    Path(path).write_text(Path(path).read_text() + '{"prompt": "half\n{"text": "plain"}\n')
    with ScriptedEndpoint(evol_teacher) as endpoint:
        made = run(endpoint, tmp_path, evol={"records": path, "rounds": 1})
    assert dropped(made) == [("read", "unusable"), ("read", "no_question")]
    assert made.manifest["kept"] == 1


def code_folder(folder: Path) -> str:
    code = folder / "code"
    code.mkdir()
    for name in ("alpha", "beta", "gamma"):
        lines = [f"{name}_{number} = compute_the_value(of={number}, name='{name}')" for number in range(40)]
        (code / f"{name}.py").write_text("\n".join(lines))
    (code / "main.go").write_text('package main\n\nfunc main() { println("hello from the other side") }\n')
    (code / "data.bin").write_bytes(b"\0\1\2" * 100)
    (code / ".git").mkdir()
    (code / ".git" / "hook.py").write_text("secret = 'never sent to any endpoint at all, ever'\n")
    return str(code)


def test_oss_instruct_makes_a_problem_of_a_piece_of_code(tmp_path: Path) -> None:
    def script(asked: Asked) -> Answer:
        name = re.search(r"(alpha|beta|gamma)_(\d+)|other side", asked.text)
        return Answer(
            f"<problem>\nA problem on {name[0] if name else '?'}, {asked.body['seed']}.\n</problem>\n<solution>\n{SOLUTION}\n</solution>"
        )

    with ScriptedEndpoint(script) as endpoint:
        made = run(endpoint, tmp_path, oss={"folder": code_folder(tmp_path), "snippets": 8}, dedup=None)
    assert len(records(made, "oss")) == len(endpoint.asked) == 8
    assert {answer for _, answer in records(made, "oss")} == {SOLUTION}
    sent = "".join(asked.text for asked in endpoint.asked)
    assert "never sent" not in sent
    assert "Go code" in sent
    lines = [json.loads(line) for line in (made.folder / "oss" / "train.jsonl").read_text().splitlines()]
    assert (
        Counter(line["synthesis"]["origin"].rsplit("/", 1)[1].split(":")[0] for line in lines).most_common()[-1][1] >= 1
    )
    assert all(re.search(r":\d+$", line["synthesis"]["origin"]) for line in lines)


@pytest.mark.parametrize(
    ("reply", "rule"),
    [
        (Answer("A problem without any form."), "no_problem_and_solution"),
        (Answer("<problem>Two</problem><problem>of them</problem><solution>x</solution>"), "no_problem_and_solution"),
        (Answer("<problem>Cut</problem><solution>def f():", finish="length"), "cut"),
        (Answer("", usage=None), "unanswered"),
    ],
)
def test_a_reply_of_another_form_is_dropped(tmp_path: Path, reply: Answer, rule: str) -> None:
    with ScriptedEndpoint(lambda _: reply) as endpoint:
        made = run(endpoint, tmp_path, oss={"folder": code_folder(tmp_path), "snippets": 1})
    assert dropped(made) == [("problem", rule)]


def test_a_problem_that_copies_the_code_is_dropped(tmp_path: Path) -> None:
    def script(asked: Asked) -> Answer:
        snippet = asked.text.split("```\n")[1]
        return Answer(f"<problem>Explain:\n{snippet}</problem><solution>{SOLUTION}</solution>")

    with ScriptedEndpoint(script) as endpoint:
        made = run(endpoint, tmp_path, oss={"folder": code_folder(tmp_path), "snippets": 1})
    assert dropped(made) == [("problem", "copies_the_code")]


def test_pieces_are_taken_file_by_file_and_depend_on_the_seed_alone(tmp_path: Path) -> None:
    folder = Path(code_folder(tmp_path))
    four = choose_snippets(folder, 4, 15, seed=1)
    assert len({snippet.origin.rsplit(":", 1)[0] for snippet in four}) == 4
    assert choose_snippets(folder, 4, 15, seed=1) == four
    assert choose_snippets(folder, 4, 15, seed=2) != four
    everything = choose_snippets(folder, 1000, 15, seed=1)
    assert len({snippet.text for snippet in everything}) == len(everything) < 20


@pytest.mark.parametrize(
    ("text", "is_cut", "found"),
    [
        ("<a>one</a> then <A>two</A>", False, ["one", "two"]),
        ("<a>one<a>two", False, ["one", "two"]),
        ("<a>one<a>two", True, ["one"]),
        ("<a> </a>", False, []),
        ("none", False, []),
    ],
)
def test_texts_between_tags(text: str, is_cut: bool, found: list[str]) -> None:
    assert tagged(text, "a", is_cut=is_cut) == found


def test_the_same_journal_gives_the_same_bytes_and_no_request(tmp_path: Path) -> None:
    with ScriptedEndpoint(exercise_teacher) as endpoint:
        options = {"exercises": {"topics": topics(tmp_path, "lists", "sets", "files"), "exercises": 2}}
        made = run(endpoint, tmp_path, **options)
        before = {path: path.read_bytes() for path in made.folder.rglob("*") if path.is_file()}
        asked = len(endpoint.asked)
        run(endpoint, tmp_path, **options)
    assert len(endpoint.asked) == asked
    assert {path: path.read_bytes() for path in made.folder.rglob("*") if path.is_file()} == before


def test_a_spent_budget_leaves_the_finished_records_and_a_larger_one_completes_them(tmp_path: Path) -> None:
    with ScriptedEndpoint(exercise_teacher) as endpoint:
        options = {"exercises": {"topics": topics(tmp_path, "lists", "sets", "files"), "exercises": 2}}
        made = run(endpoint, tmp_path, **options, budget={"requests": 7}, endpoint={"concurrency": 1})
        assert made.unfinished == "7 of 7 requests are used"
        assert not made.manifest["complete"]
        assert 0 < made.manifest["kept"] < 6
        made = run(endpoint, tmp_path, **options, budget={"requests": 12})
    assert made.manifest["complete"]
    assert made.manifest["kept"] == 6
    assert len(endpoint.asked) == 12


def test_the_output_goes_through_mft_data_curate(tmp_path: Path) -> None:
    with ScriptedEndpoint(exercise_teacher) as endpoint:
        made = run(endpoint, tmp_path, exercises={"topics": topics(tmp_path, "lists", "sets"), "exercises": 2})
    tasks = {"exercises": str(made.folder / "exercises")}
    steps = [{"filter": {"question_words": [1, 100]}}, {"dedup": {"on": "question"}}]
    curated = curate(
        parse_recipe({"tasks": tasks, "steps": steps, "output_dir": str(tmp_path / "clean")}, origin="test")
    )
    assert curated.manifest["kept"] == 4
    # The folder as a whole holds no other file that would be taken for data but dropped.jsonl, whose lines are of no dialect.
    whole = parse_recipe(
        {"tasks": {"all": str(made.folder)}, "steps": steps, "output_dir": str(tmp_path / "all")}, origin="test"
    )
    assert curate(whole).manifest["kept"] == 4


def test_prompts_of_the_user_are_sent(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts" / "oss"
    prompts.mkdir(parents=True)
    (prompts / "problem.md").write_text("Moin! {{ language }}: {{ snippet }}")
    with ScriptedEndpoint(lambda _: Answer(f"<problem>P</problem><solution>{SOLUTION}</solution>")) as endpoint:
        made = run(
            endpoint, tmp_path, oss={"folder": code_folder(tmp_path), "snippets": 1}, prompts=str(tmp_path / "prompts")
        )
    assert endpoint.asked[0].text.startswith("Moin! ")
    assert made.manifest["kept"] == 1


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"evol": {"records": "a.jsonl"}}, "exactly one method"),
        ({"exercises": None}, "exactly one method"),
        ({"exercises": {"topics": "t", "exercise": 3}}, r"exercises.exercise: unknown key. Did you mean 'exercises'\?"),
        ({"endpoint": {"url": "localhost", "model": "m"}}, "endpoint.url: 'localhost' is not a URL"),
        ({"budget": {"cost": 3}}, "needs price_in and price_out"),
        ({"sharpener": {"url": "http://a", "model": "m", "price_in": 3}}, "but other prices"),
    ],
)
def test_mistakes_of_a_recipe_are_named(change: dict[str, Any], problem: str) -> None:
    raw = {"exercises": {"topics": "t"}, "endpoint": {"url": "http://a", "model": "m"}, "output_dir": "out", **change}
    with pytest.raises(ConfigError, match=problem):
        parse_synthesis(raw, origin="my.yaml")


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    with ScriptedEndpoint(exercise_teacher) as endpoint, pytest.raises(DataError, match="no synthesis has written"):
        run(endpoint, tmp_path, exercises={"topics": topics(tmp_path, "lists")})
    assert endpoint.asked == []


def test_the_published_recipe_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """recipes/exercises_27k.yaml on the first three of its topics."""

    def script(asked: Asked) -> Answer:
        if "Make it more precise" in asked.text:
            return Answer(f"Sharp {asked.body['seed']}")
        if "<exercise>" in asked.text:
            return Answer("".join(f"<exercise>Number {n} of {asked.body['seed']}</exercise>" for n in range(10)))
        return Answer(SOLUTION)

    monkeypatch.chdir(REPOSITORY)
    with ScriptedEndpoint(script) as endpoint:
        urls = [f"endpoint.url={endpoint.url}", f"sharpener.url={endpoint.url}"]
        names = [
            "endpoint.model=scripted",
            "sharpener.model=scripted-too",
            "limit=3",
            f"output_dir={tmp_path / 'out'}",
            "dedup.threshold=1",
        ]
        made = synthesize_recipe(Path("recipes/exercises_27k.yaml"), [*urls, *names])
    assert made.manifest["complete"]
    requests = {name: row["answers"] for name, row in made.manifest["requests"]["models"].items()}
    per_topic = made.manifest["recipe"]["exercises"]["variants"]
    assert requests == {"scripted-too": 3 * per_topic, "scripted": 3 * per_topic * 11}

"""Another body of a JavaScript function may do what the old one may, and no more."""

from pathlib import Path

import pytest

pytest.importorskip("tree_sitter_javascript", reason="the extra `curate` brings the grammars")

from mftcoder.assistant.checks.bodies import changed_body
from mftcoder.assistant.files import WorkingFolder
from mftcoder.assistant.functions import find_function
from mftcoder.assistant.rounds import RefusedAnswer

FILE = """\
const CACHE = {};
const LIMIT = 3;

function remember(key) {
  CACHE[key] = true;
}

function double(x) {
  return x * 2;
}

/** The total. */
export function total(items, limit) { // of a list
  let sum = 0;
  for (const item of items) {
    sum += item; // one more
  }
  return sum;
}
"""
HEAD = "function total(items, limit) {\n"


def changed(folder: Path, answer: str) -> str:
    """The new text, or the code of the refusal."""
    (folder / "a.js").write_text(FILE)
    function = find_function(WorkingFolder(folder).read("a.js"), "total")
    try:
        return changed_body(function, answer)
    except RefusedAnswer as error:
        return error.code


def with_body(folder: Path, body: str) -> str:
    return changed(folder, f"export {HEAD}  {body}\n}}\n")


@pytest.mark.parametrize(
    "body",
    [
        "return items.reduce((sum, item) => sum + item, 0);",
        "const all = items.slice(); all.sort(); let n = 0; while (all.length) n += all.pop(); return n;",
        "const seen = new Map(); for (const item of items) { seen.set(item, 1); } return seen.size;",
        "const table = Array.from({ length: 3 }, () => new Array(3).fill(0)); table[0][1] = 1; return table;",
        "const [first, ...rest] = items; return first + rest.length;",
        "const seen = {}; for (const item of items) { seen[`${item},`] = 1; } const key = items[0] + ','; return seen[key];",
        "let { length } = items; length -= 1; return length;",
        "const made = { a: [] }; made.a.push(limit); delete made.a; return made;",
        "let i = 0; for (; i < items.length; i++) { i += 0; } return double(i);",
        "const copy = structuredClone(items); copy[0].x = 1; return copy;",
        "try { return Math.max(...items); } catch (error) { return NaN; }",
        "function inner(x) { return x; } return inner(LIMIT);",
    ],
)
def test_an_honest_body_passes_behind_the_old_head(tmp_path: Path, body: str) -> None:
    made = with_body(tmp_path, body)
    assert made == f"/** The total. */\nexport function total(items, limit) {{\n  {body}\n}}\n"


@pytest.mark.parametrize(
    "body, code",
    [
        ("process.exit(0);", "new_power"),
        ("return require('fs');", "new_power"),
        ("return import('fs');", "new_power"),
        ("eval('1');", "new_power"),
        ("return globalThis.x;", "new_power"),
        ("return []['constructor']['constructor']('return 1')();", "new_power"),
        ("return items.constructor;", "new_power"),
        ("return items.\\u0063onstructor;", "new_power"),
        ("return items['\\x63onstructor'];", "new_power"),
        ("return items['con' + 'structor'];", "new_power"),
        ("return items[`con${'structor'}`];", "new_power"),
        ("const k = ['con', 'structor'].join(''); return items[k][k]('return 1')();", "new_power"),
        ("const k = 'constructo' + limit; const make = items[k]; return make('x');", "new_power"),
        ("const k = 'pus' + limit; items[k](1); return 1;", "new_power"),
        ("return Math.random() < 0.5 ? 1 : 0;", "new_power"),
        ("return this;", "new_power"),
        ("debugger; return 1;", "new_power"),
        ("{ const process = 0; } process.exit(0);", "new_power"),
        ("const f = (process) => process; process.exit(0);", "new_power"),
        ("sum2 = 1; return sum2;", "new_power"),
        ("for (leaked of items) {} return 1;", "new_power"),
        ("Object.defineProperty(items, 'x', {}); return 1;", "new_power"),
        ("LIMIT = 4; return 1;", "outside"),
        ("CACHE[limit] = 1; return 1;", "outside"),
        ("CACHE.seen = 1; return 1;", "outside"),
        ("delete CACHE.seen; return 1;", "outside"),
        ("const c = CACHE; c[limit] = 1; return 1;", "outside"),
        ("const c = limit ? CACHE : {}; c[limit] = 1; return 1;", "outside"),
        ("let c = {}; c = CACHE; c[limit] = 1; return 1;", "outside"),
        ("const box = [CACHE]; box[0].x = 1; return 1;", "outside"),
        ("const box = { CACHE }; box.CACHE.x = 1; return 1;", "outside"),
        ("const { x } = { x: CACHE }; x.y = 1; return 1;", "outside"),
        ("Object.assign(CACHE, { x: 1 }); return 1;", "outside"),
        ("[].push.call(CACHE, 1); return 1;", "outside"),
        ("[CACHE.x] = items; return 1;", "outside"),
        ("remember(limit); return 1;", "outside"),
        ("items.sort(); return 1;", "outside"),
        ("items['sort'](); return 1;", "outside"),
        ("[items[0]] = [1]; return 1;", "outside"),
        ("({ a: items[0] } = { a: 1 }); return 1;", "outside"),
        ("let mine = null; mine ??= items; mine.push(1); return 1;", "outside"),
        ("let mine = []; [mine] = [items]; mine.push(1); return 1;", "outside"),
        ("items[0]++; return 1;", "outside"),
        ("const mine = items; mine.push(1); return 1;", "outside"),
        ("const mine = items.sort; return 1;", "outside"),
        ("for (const item of items) item.x = 1; return 1;", "outside"),
        ("items.forEach((item) => { item.x = 1; }); return 1;", "outside"),
        ("items.forEach(function (item) { item.x = 1; }); return 1;", "outside"),
        ("const mine = items.slice(); mine[0].x = 1; return 1;", "outside"),
        ("const mine = [...items]; mine[0].x = 1; return 1;", "outside"),
        ("const all = new Array(2).fill(CACHE); all[0].x = 1; return 1;", "outside"),
        ("const box = []; box[0] = CACHE; box[0].x = 1; return 1;", "outside"),
        ("const box = []; box.push(CACHE); box[0].x = 1; return 1;", "outside"),
        ("const box = new Map(); box.set(1, CACHE); box.get(1).x = 1; return 1;", "outside"),
        ("// eslint-disable-next-line\n  return 1;", "directive"),
        ("let sum = 0; for (const item of items) { sum += item; } return sum;", "no_change"),
        ("} console.log(1); {", "more_than_the_function"),
    ],
)
def test_powers_changes_of_state_and_tricks_are_refused(tmp_path: Path, body: str, code: str) -> None:
    assert with_body(tmp_path, body) == code


@pytest.mark.parametrize(
    "answer, code",
    [
        (f"{HEAD}  return 1;\n}}\n", "other_signature"),
        (f"export async {HEAD}  return 1;\n}}\n", "other_signature"),
        ("export function total(items, limit = 3) {\n  return 1;\n}\n", "other_signature"),
        ("export function sum(items, limit) {\n  return 1;\n}\n", "function_missing"),
        (f"export {HEAD}  return 1;\n}}\ntotal();\n", "more_than_the_function"),
        (f"export {HEAD}  return 1;\n", "does_not_parse"),
    ],
)
def test_the_head_stays(tmp_path: Path, answer: str, code: str) -> None:
    assert changed(tmp_path, answer) == code

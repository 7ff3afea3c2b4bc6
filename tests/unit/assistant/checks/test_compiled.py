"""Another body of a function in Go, C++, Rust or Java may do what the old one may, and no more. Nothing is compiled here."""

from pathlib import Path

import pytest

pytest.importorskip("tree_sitter_go", reason="the extra `curate` brings the grammars")

from mftcoder.assistant.checks.bodies import changed_body, require_changeable
from mftcoder.assistant.files import WorkingFolder
from mftcoder.assistant.functions import FunctionText, find_function
from mftcoder.assistant.rounds import RefusedAnswer
from mftcoder.errors import ConfigError

FILES = {
    "go": ("a.go", """package a

import "os"

var cache = map[int]int{}
var primes = []int{2, 3}

func remember(key int) {
	cache[key] = 1
}

func swap(items []int, i, j int) {
	items[i], items[j] = items[j], items[i]
}

func shared() []int {
	return primes
}

func stop() {
	os.Exit(1)
}

// total of a list.
func total(items []int, grid [][]int, limit int) int {
	sum := 0
	for _, item := range items {
		sum += item
	}
	return sum
}
"""),
    "cpp": ("a.cpp", """#include <vector>
#include <cstdlib>

static int counter = 0;
const int LIMIT = 3;

void stop() {
    exit(1);
}

int next_number() {
    counter += 1;
    return counter;
}

/** The total. */
int total(const std::vector<int>& items, std::vector<std::vector<int>> grid, int limit) {
    int sum = 0;
    for (int item : items) {
        sum += item;
    }
    return sum;
}
"""),
    "rust": ("a.rs", """use std::sync::atomic::{AtomicI32, Ordering};

static COUNTER: AtomicI32 = AtomicI32::new(0);
const LIMIT: i32 = 3;

fn stop() {
    std::process::exit(1);
}

fn next_number() -> i32 {
    COUNTER.fetch_add(1, Ordering::SeqCst)
}

/// The total.
#[inline]
pub fn total(items: &[i32], grid: Vec<Vec<i32>>, limit: i32) -> i32 {
    let mut sum = 0;
    for item in items {
        sum += item;
    }
    sum
}
"""),
    "java": ("A.java", """import java.util.*;

class A {
    static Map<Integer, Integer> cache = new HashMap<>();
    static final int LIMIT = 3;

    static void remember(int key) {
        cache.put(key, 1);
    }

    static void swap(int[] items, int i, int j) {
        int kept = items[i];
        items[i] = items[j];
        items[j] = kept;
    }

    static void stop() {
        System.exit(1);
    }

    /** The total. */
    static int total(int[] items, List<List<Integer>> grid, int limit) {
        int sum = 0;
        for (int item : items) {
            sum += item;
        }
        return sum;
    }
}
"""),
}  # fmt: skip
HEADS = {
    "go": "func total(items []int, grid [][]int, limit int) int {",
    "cpp": "int total(const std::vector<int>& items, std::vector<std::vector<int>> grid, int limit) {",
    "rust": "#[inline]\npub fn total(items: &[i32], grid: Vec<Vec<i32>>, limit: i32) -> i32 {",
    "java": "static int total(int[] items, List<List<Integer>> grid, int limit) {",
}
NAMES = {"go": "total", "cpp": "total", "rust": "total", "java": "A.total"}


def function_of(folder: Path, language: str, text: str = "", name: str = "") -> FunctionText:
    file, code = FILES[language]
    (folder / file).write_text(text or code)
    return find_function(WorkingFolder(folder).read(file), name or NAMES[language])


def changed(folder: Path, language: str, answer: str) -> str:
    """The new text, or the code of the refusal."""
    try:
        return changed_body(function_of(folder, language), answer)
    except RefusedAnswer as error:
        return error.code


HONEST = [
    ("go", "return len(items) + limit"),
    ("go", "out := make([]int, 0)\n\tfor _, x := range items {\n\t\tout = append(out, x)\n\t}\n\tsort.Ints(out)\n\treturn out[0]"),
    ("go", "mine := append([]int{}, items...)\n\tmine[0] = 3\n\tswap(mine, 0, 1)\n\treturn mine[0]"),
    ("go", "seen := map[int]bool{}\n\tfor i := 0; i < len(items); i++ {\n\t\tseen[items[i]] = true\n\t}\n\treturn len(seen)"),
    ("go", "rows := make([][]int, limit)\n\tfor i := range rows {\n\t\trows[i] = make([]int, limit)\n\t\trows[i][0]++\n\t}\n\treturn rows[0][0]"),
    ("go", "best := 0\n\tfor _, row := range grid {\n\t\tfor _, x := range row {\n\t\t\tbest += x\n\t\t}\n\t}\n\tout := []int{best, grid[0][1]}\n\tout[0] = 1\n\treturn out[0]"),
    ("go", "less := func(a, b int) bool { return a < b }\n\tif less(limit, primes[0]) {\n\t\tpanic(\"small\")\n\t}\n\treturn strings.Count(\"aa\", \"a\")"),
    ("cpp", "return std::accumulate(items.begin(), items.end(), 0);"),
    ("cpp", "using V = std::vector<int>; V mine(limit); double half = (double)limit / 2; return (int)half + (long long)mine[0] + (unsigned char)'a';"),
    ("cpp", "std::vector<int> mine = items; std::sort(mine.begin(), mine.end()); mine[0] = LIMIT; return mine[0];"),
    ("cpp", "for (auto& row : grid) { row.push_back(limit); } int sum = 0; for (const auto& row : grid) sum += row.size(); return sum;"),
    ("cpp", "auto less = [&](int a, int b) { return a < b; }; if (less(limit, 0)) throw std::invalid_argument(\"small\"); return limit;"),
    ("rust", "items.iter().sum()"),
    ("rust", "let mut mine = items.to_vec();\n    mine.sort();\n    mine[0] = LIMIT;\n    mine[0]"),
    ("rust", "let mut seen = std::collections::HashMap::new();\n    for (i, x) in items.iter().enumerate() {\n        seen.insert(*x, i);\n    }\n    match seen.get(&limit) {\n        Some(n) => *n as i32,\n        None => 0,\n    }"),
    ("java", "return Arrays.stream(items).sum();"),
    ("java", "int[] mine = items.clone(); Arrays.sort(mine); mine[0] = LIMIT; swap(mine, 0, 1); return mine[0];"),
    ("java", "List<Integer> out = new ArrayList<>(); for (int item : items) { out.add(item); } Collections.reverse(out); return out.get(0);"),
    ("java", "Map<Integer, List<Integer>> by = new HashMap<>(); for (int item : items) { by.computeIfAbsent(item, k -> new ArrayList<>()).add(item); } return by.size();"),
    ("java", "int best = 0; for (List<Integer> row : grid) { for (int x : row) { best = Math.max(best, x); } } int[] out = {best}; out[0]++; return out[0];"),
    ("java", "StringBuilder text = new StringBuilder(); for (int item : items) { text.append(item); } return text.reverse().length();"),
]  # fmt: skip


@pytest.mark.parametrize("language, body", HONEST)
def test_an_honest_body_passes_behind_the_old_head(tmp_path: Path, language: str, body: str) -> None:
    made = changed(tmp_path, language, f"{HEADS[language]}\n\t{body}\n}}\n")
    assert made.endswith(f"{HEADS[language]}\n\t{body}\n}}\n") and "total" in made.splitlines()[0].lower(), made


LIES = [
    # through functions and types of the file, or of its own
    ("go", "stop()\n\treturn 0", "new_power"),
    ("cpp", "stop(); return 0;", "new_power"),
    ("go", "f := remember\n\tf(1)\n\treturn 0", "outside"),
    ("go", "f := swap\n\tf(items, 0, 1)\n\treturn 0", "outside"),
    ("cpp", "using P = int*; P p = (P)items.data(); *p = 1; return 0;", "new_power"),
    ("cpp", "using R = std::vector<int>&; R mine = R(items); mine[0] = 1; return 0;", "new_power"),
    ("cpp", "*(decltype(grid[0].data()))items.data() = 1; return 0;", "new_power"),
    ("cpp", "*(std::vector<int>::pointer)items.data() = 1; return 0;", "new_power"),
    ("cpp", 'int puts(const char*); puts("x"); return 0;', "new_power"),
    ("java", 'String text = "\\u0022 + Runtime.getRuntime() + \\u0022"; return 0;', "hidden_code"),
    ("java", 'return String.class.getResourceAsStream("/x") == null ? 0 : 1;', "new_power"),
    ("java", "assert items.length < 3; return 0;", "new_power"),
    ("java", "return (int) (Math.random() * 2);", "new_power"),
    # ends the process, or reaches out of the program
    ("go", "os.Exit(0)\n\treturn 1", "new_power"),
    ("go", "exec.Command(\"true\").Run()\n\treturn 1", "new_power"),
    ("go", "{\n\t\tos := 1\n\t\t_ = os\n\t}\n\tos.Exit(0)\n\treturn 1", "new_power"),
    ("go", "fmt.Println(1)\n\treturn 1", "new_power"),
    ("go", "go remember(1)\n\treturn 1", "new_power"),
    ("go", "return int(time.Now().Unix())", "new_power"),
    ("cpp", "exit(0);", "new_power"),
    ("cpp", "std::exit(0);", "new_power"),
    ("cpp", "{ int system = 0; limit += system; } system(\"true\"); return 1;", "new_power"),
    ("cpp", "asm(\"nop\"); return 1;", "new_power"),
    ("cpp", "\n#define total other\n    return 1;", "new_power"),
    ("cpp", "\n#include \"/etc/passwd\"\n    return 1;", "new_power"),
    ("cpp", "const_cast<std::vector<int>&>(items)[0] = 1; return 1;", "new_power"),
    ("cpp", "((std::vector<int>&) items)[0] = 1; return 1;", "new_power"),
    ("cpp", "*(int*) &items[0] = 1; return 1;", "new_power"),
    ("cpp", "static int calls = 0; return ++calls;", "new_power"),
    ("rust", "std::process::exit(0);", "new_power"),
    ("rust", "let process = 1;\n    std::process::abort()", "new_power"),
    ("rust", "println!(\"{}\", limit);\n    1", "new_power"),
    ("rust", "include_str!(\"/etc/passwd\").len() as i32", "new_power"),
    ("rust", "std::fs::read(\"x\").unwrap().len() as i32", "new_power"),
    ("rust", "unsafe { *(items.as_ptr() as *mut i32) = 1; }\n    1", "new_power"),
    ("rust", "struct X;\n    impl Drop for X { fn drop(&mut self) {} }\n    1", "new_power"),
    ("rust", "macro_rules! sum { () => { 1 } }\n    sum!()", "new_power"),
    ("java", "System.exit(0); return 1;", "new_power"),
    ("java", "Runtime.getRuntime().halt(0); return 1;", "new_power"),
    ("java", "{ int System = 1; limit += System; } System.exit(0); return 1;", "new_power"),
    ("java", "return items.getClass().getName().length();", "new_power"),
    ("java", "System.out.println(1); return 1;", "new_power"),
    ("java", "new Thread(() -> {}).start(); return 1;", "new_power"),
    # catches what should fail
    ("go", "defer func() { recover() }()\n\treturn items[9]", "swallows_failures"),
    ("cpp", "try { return items.at(9); } catch (...) { return 0; }", "swallows_failures"),
    ("rust", "std::panic::catch_unwind(|| items[9]).unwrap_or(0)", "swallows_failures"),
    ("java", "try { return items[9]; } catch (RuntimeException e) { return 0; }", "swallows_failures"),
    # changes what it did not make
    ("go", "cache[limit] = 1\n\treturn 1", "outside"),
    ("go", "c := cache\n\tc[limit] = 1\n\treturn 1", "outside"),
    ("go", "primes = nil\n\treturn 1", "outside"),
    ("go", "remember(limit)\n\treturn 1", "outside"),
    ("go", "items[0] = 1\n\treturn 1", "outside"),
    ("go", "mine := items\n\tmine[0]++\n\treturn 1", "outside"),
    ("go", "mine := items[:0]\n\tmine = append(mine, 1)\n\treturn 1", "outside"),
    ("go", "sort.Ints(items)\n\treturn 1", "outside"),
    ("go", "swap(items, 0, 1)\n\treturn 1", "outside"),
    ("go", "for _, row := range grid {\n\t\trow[0] = 1\n\t}\n\treturn 1", "outside"),
    ("go", "box := [][]int{items}\n\tbox[0][0] = 1\n\treturn 1", "outside"),
    ("go", "box := make([][]int, 1)\n\tbox[0] = items\n\tbox[0][0] = 1\n\treturn 1", "outside"),
    ("go", "p := &items[0]\n\t*p = 1\n\treturn 1", "outside"),
    ("go", "mine := shared()\n\tmine[0] = 1\n\treturn 1", "outside"),
    ("go", "copy(items, []int{1})\n\treturn 1", "outside"),
    ("go", "func(mine []int) { mine[0] = 1 }(items)\n\treturn 1", "outside"),
    ("go", "{\n\t\tvar mine int\n\t\t_ = mine\n\t}\n\tmine := items\n\tbox := [][]int{mine}\n\tbox[0][0] = 1\n\treturn 1", "outside"),
    ("go", "{\n\t\tlimit := items\n\t\tbox := [][]int{limit}\n\t\tbox[0][0] = 1\n\t}\n\treturn 1", "outside"),
    ("go", "_ = func(items int) int { return items }\n\tmine := items\n\tmine[0] = 1\n\treturn 1", "outside"),
    ("cpp", "counter = 1; return 1;", "outside"),
    ("cpp", "return next_number();", "outside"),
    ("rust", "next_number()", "outside"),
    ("rust", "COUNTER.store(1, Ordering::SeqCst);\n    1", "outside"),
    ("java", "cache.put(limit, 1); return 1;", "outside"),
    ("java", "var c = cache; c.put(limit, 1); return 1;", "outside"),
    ("java", "A.cache = null; return 1;", "outside"),
    ("java", "remember(limit); return 1;", "outside"),
    ("java", "items[0] = 1; return 1;", "outside"),
    ("java", "int[] mine = items; mine[0]++; return 1;", "outside"),
    ("java", "Arrays.sort(items); return 1;", "outside"),
    ("java", "swap(items, 0, 1); return 1;", "outside"),
    ("java", "grid.clear(); return 1;", "outside"),
    ("java", "grid.get(0).add(1); return 1;", "outside"),
    ("java", "for (List<Integer> row : grid) { row.add(1); } return 1;", "outside"),
    ("java", "grid.forEach(row -> row.clear()); return 1;", "outside"),
    ("java", "List<List<Integer>> mine = new ArrayList<>(grid); mine.get(0).clear(); return 1;", "outside"),
    ("java", "int[][] box = {items}; box[0][0] = 1; return 1;", "outside"),
    ("java", "List<int[]> box = new ArrayList<>(); box.add(items); box.get(0)[0] = 1; return 1;", "outside"),
    # is no body, or more than one
    ("go", "", "empty"),
    ("cpp", "// done", "empty"),
    ("rust", "", "empty"),
    ("java", "/* done */", "empty"),
    ("go", "}\n\nfunc init() {", "more_than_the_function"),
    ("cpp", "return 1; } int other() {", "more_than_the_function"),
    ("rust", "1 }\nfn other() {", "more_than_the_function"),
    ("java", "return 1; } static { System.exit(0);", "more_than_the_function"),
    ("go", "//go:noinline\n\treturn 1", "directive"),
    ("cpp", "return 1; // NOLINT", "directive"),
]  # fmt: skip


@pytest.mark.parametrize("language, body, code", LIES)
def test_powers_changes_of_state_and_tricks_are_refused(tmp_path: Path, language: str, body: str, code: str) -> None:
    assert changed(tmp_path, language, f"{HEADS[language]}\n\t{body}\n}}\n") == code


@pytest.mark.parametrize("language", FILES)
def test_the_head_and_the_rest_of_the_file_stay(tmp_path: Path, language: str) -> None:
    head, name = HEADS[language], "total"
    old = function_of(tmp_path, language)
    assert changed(tmp_path, language, old.text) == "no_change"
    assert changed(tmp_path, language, f"{head.replace('limit', 'most')}\n\treturn 1;\n}}\n") == "other_signature"
    assert changed(tmp_path, language, f"{head.replace(name, 'other')}\n\treturn 1;\n}}\n") == "function_missing"
    assert changed(tmp_path, language, f"{head}\n\treturn 1;\n") == "does_not_parse"
    body = {"rust": "limit", "go": "return limit"}.get(language, "return limit;")
    made = changed_body(old, f"{head}\n\t{body}\n}}\n")
    whole, placed = old.file.text, old.placed(made)
    first, last = (
        whole.index(old.text.splitlines()[0]),
        len(whole) - whole.index("\n}\n" if language != "java" else "\n    }\n}", whole.index("sum += item")),
    )
    assert placed[:first] == whole[:first] and placed[-last:] == whole[-last:]


def test_an_attribute_above_a_function_of_rust_is_part_of_its_head(tmp_path: Path) -> None:
    assert (
        changed(tmp_path, "rust", HEADS["rust"].replace("inline", "inline(never)") + "\n    limit\n}\n")
        == "other_signature"
    )


@pytest.mark.parametrize(
    "language, text",
    [
        ("go", "package a\n\nfunc total(items []int) int {\n\titems[0] = 1\n\treturn 1\n}\n"),
        ("cpp", "int total(int& limit) {\n    limit = 1;\n    return 1;\n}\n"),
        ("cpp", "int total(int* limit) {\n    *limit = 1;\n    return 1;\n}\n"),
        ("cpp", "int total(int limit) {\n    static int calls = 0;\n    return calls++ + limit;\n}\n"),
        ("rust", "fn total(items: &mut Vec<i32>) -> i32 {\n    items.push(1);\n    1\n}\n"),
        ("rust", "static mut N: i32 = 0;\nfn total(limit: i32) -> i32 {\n    unsafe { N += limit; N }\n}\n"),
        ("java", "class A {\n    static int n = 0;\n    static int total(int limit) {\n        n += limit;\n        return n;\n    }\n}\n"),
    ],
)  # fmt: skip
def test_a_function_that_changes_what_it_did_not_make_is_not_changed(tmp_path: Path, language: str, text: str) -> None:
    with pytest.raises(ConfigError, match="which comparisons of its results do not see"):
        require_changeable(function_of(tmp_path, language, text))


@pytest.mark.parametrize("language", FILES)
def test_a_function_that_makes_what_it_changes_may_be_changed(tmp_path: Path, language: str) -> None:
    require_changeable(function_of(tmp_path, language))

"""One record as HumanEvalPack publishes it, small enough to be read: a function that doubles, and a body of it with a bug."""

PACK_RECORD: dict[str, str] = {
    "task_id": "Python/0",
    "prompt": 'def f(x: int) -> int:\n    """ Twice. """\n',
    "declaration": "def f(x: int) -> int:\n",
    "canonical_solution": "    return 2 * x\n",
    "buggy_solution": "    return x\n",
    "test": "\ndef check(f):\n    assert f(1) == 2\n\ncheck(f)\n",
    "entry_point": "f",
    "instruction": "Write a Python function `f(x: int) -> int`:\nTwice.",
    "docstring": "Twice.",
}

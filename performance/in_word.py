"""Prompts cut at random characters, on a real model: does the text go on from the cut, and as the uncut text does?

    python performance/in_word.py MODEL --prompts 1000

Each prompt is a file of this project's sources up to a random character. It is asked as `mft serve` asks it: its last word is taken
back, and the first tokens are held to its text. The uncut text is what the model writes after the same prompt without that word; where
it passes the same characters, both must go on alike. `plain` is the same prompt without this: the tokens of half a word.
"""

import argparse
import random
import sys
import time
from pathlib import Path
from queue import SimpleQueue

from mftcoder.app.serving.model_choice import choose_source, load_model
from mftcoder.data.tokenizers.word_completion import Vocabulary, held_tokens
from mftcoder.generation.engine import Sampling
from mftcoder.generation.live_engine import Event, LiveEngine, Piece, Request, Submission

SOURCES = sorted((Path(__file__).parents[1] / "src" / "mftcoder").rglob("*.py"))
CHARACTERS = 240  # of a file before the cut
TOKENS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch-size", type=int, default=64)
    options = parser.parse_args()
    source = choose_source(options.model, checkpoint="best", trust_remote_code=False)
    tokenizer, vocabulary = source.tokenizer, Vocabulary(source.tokenizer)
    model = load_model(source, device="auto", dtype=options.dtype)
    draw = random.Random(0)
    cut, uncut, plain, rests = [], [], [], []
    for _ in range(options.prompts):
        text = draw.choice(SOURCES).read_text(encoding="utf-8")
        place = draw.randrange(2, len(text))
        prompt = text[max(0, place - CHARACTERS) : place]
        rests.append(text[place:])
        ids = tokenizer.encode(prompt)
        count = min(held_tokens(prompt, ids, vocabulary), len(ids) - 1)
        kept, held = ids[: len(ids) - count], ids[len(ids) - count :]
        cut.append(Request(kept, Sampling(TOKENS), held=held, whole=True))
        uncut.append(Request(kept, Sampling(TOKENS + len(held)), whole=True))
        plain.append(Request(ids, Sampling(TOKENS), whole=True))
    begin = time.monotonic()
    found = {
        name: completed(model, tokenizer, asked, options.batch_size)
        for name, asked in (("cut", cut), ("uncut", uncut), ("plain", plain))
    }
    from_cut = passing = alike = 0
    for (submission, text), (_, free) in zip(found["cut"], found["uncut"], strict=True):
        held = b"".join(vocabulary.bytes[number] for number in submission.request.held)
        written = b"".join(vocabulary.bytes.get(number, b"") for number in submission.row.tokens)
        from_cut += written.startswith(held) and written[len(held) :].decode(errors="replace") == text
        word = tokenizer.decode(submission.request.held)
        if free.startswith(word):
            passing += 1
            text, rest = text.rstrip("\ufffd"), free[len(word) :].rstrip("\ufffd")
            alike += rest.startswith(text) or text.startswith(rest)
    true = {
        name: sum(rest[:4] == text[:4] for rest, (_, text) in zip(rests, found[name], strict=True))
        for name in ("cut", "plain")
    }
    print(f"{source.name}, {options.dtype}, {options.prompts:,} prompts in {time.monotonic() - begin:.0f} s")
    print(f"the text goes on from the cut              {from_cut:,} of {options.prompts:,}")
    print(f"the uncut text passes the same characters  {passing:,}; then both go on alike: {alike:,}")
    print(f"the next 4 characters are the file's own   {true['cut']:,} with held words, {true['plain']:,} without")
    sys.exit(from_cut < options.prompts or alike < passing)


def completed(
    model: object, tokenizer: object, requests: list[Request], batch_size: int
) -> list[tuple[Submission, str]]:
    """The texts of requests, in their order."""
    events: SimpleQueue[tuple[Submission, Event]] = SimpleQueue()

    def deliver(found: list[tuple[Submission, Event]]) -> None:
        for event in found:
            events.put(event)

    with LiveEngine(model, tokenizer, deliver, batch_size=batch_size) as engine:  # type: ignore[arg-type]
        submissions = [engine.submit(request) for request in requests]
        texts: dict[Submission, str] = {}
        while len(texts) < len(submissions):
            submission, event = events.get()
            assert isinstance(event, Piece), event
            texts[submission] = event.text
    return [(submission, texts[submission]) for submission in submissions]


if __name__ == "__main__":
    main()

"""A prompt cut at any character goes on from there, as the uncut text does where that passes the same characters."""

import random
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mftcoder.data.tokenizers.tokenizer import Tokenizer, load_tokenizer
from mftcoder.data.tokenizers.word_completion import HeldText, Vocabulary, held_tokens
from mftcoder.generation.engine import Sampling
from mftcoder.generation.live_engine import Event, LiveEngine, Piece, Request, Submission

CODE = '''def counted_words(lines, smallest=3):
    """How often each word of some lines occurs: größer, naïve, 名前."""
    counts = {}
    for line in lines:
        for word in line.lower().split():
            if len(word) >= smallest:
                counts[word] = counts.get(word, 0) + 1
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))
'''


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer_dir: Path) -> Tokenizer:
    return load_tokenizer(str(tiny_tokenizer_dir))


@pytest.fixture(scope="module")
def vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    return Vocabulary(tokenizer)


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Any:
    """A tiny model that knows CODE by heart, so that uncut texts pass the characters of the cut ones."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=512,
    )
    model = LlamaForCausalLM(config)
    ids = torch.tensor([tokenizer.encode(CODE)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def completed(model: Any, tokenizer: Tokenizer, requests: list[Request]) -> list[tuple[Submission, str]]:
    events: SimpleQueue[tuple[Submission, Event]] = SimpleQueue()
    engine = LiveEngine(model, tokenizer, lambda found: [events.put(event) for event in found] and None, batch_size=64)
    with engine:
        submissions = [engine.submit(request) for request in requests]
        texts = {}
        while len(texts) < len(submissions):
            submission, event = events.get(timeout=300)
            assert isinstance(event, Piece), event
            texts[submission] = event.text
    return [(submission, texts[submission]) for submission in submissions]


def test_a_thousand_prompts_cut_anywhere_go_on_from_the_cut_and_as_the_uncut_text_does(
    model: Any, tokenizer: Tokenizer, vocabulary: Vocabulary
) -> None:
    draw = random.Random(0)
    prompts = [CODE[: draw.randrange(2, len(CODE))] for _ in range(1000)]
    cut, uncut = [], []
    for prompt in prompts:
        ids = tokenizer.encode(prompt)
        count = min(held_tokens(prompt, ids, vocabulary), len(ids) - 1)
        assert count or len(ids) == 1, prompt
        kept, held = ids[: len(ids) - count], ids[len(ids) - count :]
        cut.append(Request(kept, Sampling(6), held=held, whole=True))
        uncut.append(Request(kept, Sampling(6 + len(held) * 2), whole=True))
    passing = 0
    together = zip(prompts, completed(model, tokenizer, cut), completed(model, tokenizer, uncut), strict=True)
    for prompt, (submission, text), (_, free) in together:
        request = submission.request
        held = b"".join(vocabulary.bytes[number] for number in request.held)
        written = b"".join(vocabulary.bytes[number] for number in submission.row.tokens)
        assert written.startswith(held)
        assert text == written[len(held) :].decode(errors="replace"), prompt
        word = tokenizer.decode(request.held)
        if free.startswith(word):
            passing += 1
            text, rest = (
                text.rstrip("\ufffd"),
                free[len(word) :].rstrip("\ufffd"),
            )  # half a character at the token limit
            assert rest.startswith(text) or text.startswith(rest), prompt
    assert passing > 800


def test_words_are_completed_far_more_often_than_without_it(
    model: Any, tokenizer: Tokenizer, vocabulary: Vocabulary
) -> None:
    """The reason for all this: the tokens of half a word are seldom the first tokens of the word."""
    cuts = [place for place in range(20, len(CODE) - 20) if CODE[place - 1].isalpha() and CODE[place].isalpha()]
    plain, held = [], []
    for cut in cuts:
        ids = tokenizer.encode(CODE[:cut])
        count = held_tokens(CODE[:cut], ids, vocabulary)
        plain.append(Request(ids, Sampling(6), whole=True))
        held.append(Request(ids[:-count], Sampling(6), held=ids[-count:], whole=True))
    right = [
        sum(
            CODE[cut:].startswith(text[:8])
            for cut, (_, text) in zip(cuts, completed(model, tokenizer, asked), strict=True)
        )
        for asked in (plain, held)
    ]
    assert right[1] > 0.9 * len(cuts)
    assert right[0] < 0.6 * len(cuts), right


@pytest.mark.parametrize(
    "text, word",
    [
        ("x = func", " func"),
        ("return ", " "),
        ("f(x):\n    ", "\n    "),
        ("f(", "("),
        ("größ", "größ"),
        ("a <|im_start|>us", "us"),
        ("<|im_start|>", ""),
    ],
)
def test_the_last_word_with_what_tokens_may_join_to_it_is_taken_back(
    tokenizer: Tokenizer, vocabulary: Vocabulary, text: str, word: str
) -> None:
    ids = tokenizer.encode(text)
    count = held_tokens(text, ids, vocabulary)
    assert tokenizer.decode(ids[len(ids) - count :] if count else []).endswith(word)
    assert bool(count) == bool(word)


def test_only_the_end_of_an_endless_word_is_taken_back(tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
    ids = tokenizer.encode("ab0" * 1000)
    assert 20 < held_tokens("ab0" * 1000, ids, vocabulary) < 70


def test_every_agreeing_token_is_found_and_no_other(vocabulary: Vocabulary) -> None:
    for text in (b" ret", b"s", "ß".encode(), b"\n    "):
        expected = {n for n, b in vocabulary.bytes.items() if b and (b.startswith(text) or text.startswith(b))}
        assert set(vocabulary.agreeing(text)) == expected


def test_held_text_is_used_up_token_by_token(tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
    held = HeldText(vocabulary, tokenizer.encode("returned"))
    for number in tokenizer.encode("ret"):
        assert number in held.allowed()
        held.take(number)
    assert held.left == b"urned"
    before = held.tokens
    whole = vocabulary.agreeing(b"urned")
    assert all(b"urned".startswith(vocabulary.bytes[n]) or vocabulary.bytes[n].startswith(b"urned") for n in whole)
    assert before == len(tokenizer.encode("ret"))


def test_a_sentencepiece_word_is_completed_with_the_space_of_the_prompt(sentencepiece_like_dir: Path) -> None:
    tokenizer = load_tokenizer(str(sentencepiece_like_dir))
    vocabulary = Vocabulary(tokenizer)
    ids = tokenizer.encode("def func")
    count = held_tokens("def func", ids, vocabulary)
    assert tokenizer.backend.id_to_token(ids[-count]).startswith("\u2581")
    assert tokenizer.backend.token_to_id("\u2581function") in HeldText(vocabulary, ids[-count:]).allowed()

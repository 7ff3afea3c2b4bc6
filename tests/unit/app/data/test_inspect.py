"""`mft inspect` shows every token of a sample, both texts of a pair included."""

from pathlib import Path

import numpy as np

from mftcoder.app.data.inspect import render_tokens
from mftcoder.data.rendering.tokenization import Tokens, to_sample
from mftcoder.data.tokenizers.tokenizer import load_tokenizer


def test_a_pair_is_shown_as_two_texts_with_their_last_tokens(tiny_tokenizer_dir: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_tokenizer_dir))
    texts = [tokenizer.encode(f"q{answer}<|im_end|>") for answer in ("yes", "no")]
    ids = np.asarray([*texts[0], *texts[1]], np.int32)
    trained = np.concatenate([np.arange(len(text)) > 0 for text in texts])
    sample = to_sample(Tokens(ids, trained, second=len(texts[0])), task=0, origin="o")
    first, second = render_tokens(tokenizer, sample, colour=False).plain.split("\n── second text ──\n")
    for shown, text in ((first, "qyes<|im_end|>"), (second, "qno<|im_end|>")):
        assert shown.replace("[", "").replace("]", "").replace("¦", "") == text
        assert shown.endswith("[<|im_end|>]")

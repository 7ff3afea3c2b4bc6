import json
from pathlib import Path

import pytest
import tokenizers
from tokenizers import AddedToken, models, normalizers, pre_tokenizers

from mftcoder.data.tokenizers import byte_level
from mftcoder.data.tokenizers.gguf_fields import tokenizer_fields
from mftcoder.data.tokenizers.tokenizer import Tokenizer, load_tokenizer
from mftcoder.errors import ModelError


def with_rule(folder: Path, out: Path, rule: str) -> Tokenizer:
    """The tokenizer of `folder` with another splitting rule, and a token that is added but not special."""
    held = json.loads((folder / "tokenizer.json").read_text())["model"]
    merges = [tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in held["merges"]]
    added = [
        AddedToken(token, special=True, normalized=False) for token in ("<s>", "</s>", "<|im_start|>", "<|im_end|>")
    ]
    splitting = byte_level.SPLITTINGS[rule]
    backend = byte_level.build(held["vocab"], merges, splitting, added=[*added, AddedToken("<tool>", normalized=False)])
    out.mkdir()
    backend.save(str(out / "tokenizer.json"))
    (out / "tokenizer_config.json").write_text((folder / "tokenizer_config.json").read_text())
    return load_tokenizer(str(out))


@pytest.mark.parametrize(
    "rule", ["gpt-2", "starcoder", "qwen2", "llama-bpe", "smaug-bpe", "tekken", "gpt-4o", "deepseek-coder"]
)
def test_the_splitting_rule_is_found_by_what_it_does(tiny_tokenizer_dir: Path, tmp_path: Path, rule: str) -> None:
    fields = tokenizer_fields(with_rule(tiny_tokenizer_dir, tmp_path / "t", rule), 1010)
    assert byte_level.SPLITTINGS[fields["pre"]].steps == byte_level.SPLITTINGS[rule].steps
    assert byte_level.SPLITTINGS[fields["pre"]].ignore_merges == byte_level.SPLITTINGS[rule].ignore_merges


def test_kinds_of_tokens_named_tokens_and_rows_without_a_token(tiny_tokenizer_dir: Path, tmp_path: Path) -> None:
    tokenizer = with_rule(tiny_tokenizer_dir, tmp_path / "t", "gpt-2")
    fields = tokenizer_fields(tokenizer, tokenizer.vocab_size + 3)
    by_token = dict(zip(fields["tokens"], fields["token_type"], strict=True))
    assert [by_token[token] for token in ("<s>", "<|im_end|>", "<tool>", "a")] == [3, 3, 4, 1]
    assert fields["tokens"][-1] == f"[PAD{tokenizer.vocab_size + 2}]"
    assert fields["token_type"][-3:] == [5, 5, 5]
    assert (fields["bos_token_id"], fields["eos_token_id"], fields["padding_token_id"]) == (0, 3, 1)
    assert fields["add_bos_token"] is False
    with pytest.raises(ModelError, match="tokens, but the model only 900 rows for them"):
        tokenizer_fields(tokenizer, 900)


def test_pieces_of_sentencepiece_get_scores_that_order_their_merges(sentencepiece_like_dir: Path) -> None:
    tokenizer = load_tokenizer(str(sentencepiece_like_dir))
    fields = tokenizer_fields(tokenizer, tokenizer.vocab_size)
    kinds = dict(zip(fields["tokens"], fields["token_type"], strict=True))
    scores = dict(zip(fields["tokens"], fields["scores"], strict=True))
    assert (fields["model"], fields["add_space_prefix"]) == ("llama", True)
    assert (kinds["<unk>"], kinds["<s>"], kinds["<0x0A>"], kinds["def"]) == (2, 3, 6, 1)
    assert scores["de"] > scores["def"] > scores["\u2581func"] > scores["\u2581function"]


def test_a_tokenizer_that_no_fields_describe_is_refused(tiny_tokenizer_dir: Path, tmp_path: Path) -> None:
    tokenizer = with_rule(tiny_tokenizer_dir, tmp_path / "t", "gpt-2")
    tokenizer.backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("e", "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    with pytest.raises(ModelError, match=r"splits text by a rule that .gguf files have no name for"):
        tokenizer_fields(tokenizer, 1010)
    tokenizer = with_rule(tiny_tokenizer_dir, tmp_path / "u", "gpt-2")
    tokenizer.backend.normalizer = normalizers.Lowercase()
    with pytest.raises(ModelError, match=r"splits text by a rule that .gguf files have no name for"):
        tokenizer_fields(tokenizer, 1010)
    words = tokenizers.Tokenizer(models.WordLevel({"a": 0, "</s>": 1}, unk_token="</s>"))
    (tmp_path / "words").mkdir()
    words.save(str(tmp_path / "words" / "tokenizer.json"))
    (tmp_path / "words" / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    with pytest.raises(ModelError, match="its tokenizer is WordLevel, not byte pairs"):
        tokenizer_fields(load_tokenizer(str(tmp_path / "words")), 2)

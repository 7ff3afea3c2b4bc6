"""Make a small model to train from scratch: a byte-level tokenizer learnt from the training files, and random weights.

Goes in: .jsonl or .jsonl.gz files, or folders of them. Comes out: a model folder in Hugging Face layout that `mft train` takes. On
two cores it trains twenty times faster than a 135M model, and it over-fits within minutes, which is what a comparison of balancers
needs. Nobody should use it for anything else.

    python performance/small_model.py data/a data/b --out models/small
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

from mftcoder.jsonl import read_jsonl

SPECIAL_TOKENS = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")


def texts(paths: list[Path]) -> Iterator[str]:
    """Every text value in every record."""
    for path in paths:
        files = sorted(path.glob("train*.jsonl*")) or sorted(path.glob("*.jsonl*")) if path.is_dir() else [path]
        for file in files:
            for _, record in read_jsonl(file):
                yield from _strings(record)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)


def make(paths: list[Path], out: Path, *, vocabulary: int, hidden: int, layers: int, seed: int) -> int:
    """Write the model folder; returns its number of weights."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts(paths), trainer)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "pad_token": "</s>"}
    (out / "tokenizer_config.json").write_text(json.dumps(settings))
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3 // 8 * 8,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 32,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=3,
        pad_token_id=1,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(out)
    return sum(parameter.numel() for parameter in model.parameters())


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("paths", nargs="+", type=Path, help="training files or folders of them")
    parser.add_argument("--out", type=Path, required=True, help="the model folder")
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    count = make(
        options.paths,
        options.out,
        vocabulary=options.vocabulary,
        hidden=options.hidden,
        layers=options.layers,
        seed=options.seed,
    )
    print(f"{options.out}: {count / 1e6:.2f} M weights")


if __name__ == "__main__":
    main()

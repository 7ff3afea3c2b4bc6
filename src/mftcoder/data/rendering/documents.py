"""Documents -> tokens, for tasks of kind pretrain: every token is trained, and an EOS token ends each document.

Some documents are cut into prefix P, middle M and suffix S and rearranged, so that the model learns to write M (arXiv 2207.14255):

    PSM    <prefix> P <suffix> S <middle> M
    SPM    <prefix> <suffix> S <middle> P M

`fill_in_the_middle.py` has each family's tokens. The cuts are random places that depend only on the content.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from mftcoder.config.data import DataConfig
from mftcoder.config.kinds import PretrainKind
from mftcoder.data.records.conversation import Message, texts_hash
from mftcoder.data.records.formats import detect, messages_of, parse_object, plain_text
from mftcoder.data.records.megatron import TokenFile, vocabulary_fingerprint
from mftcoder.data.rendering.fill_in_the_middle import FORMATS, FillFormat, find_format, render_fill
from mftcoder.data.rendering.tokenization import (
    Fitted,
    Segment,
    Tokens,
    encode_inside,
    encode_segments,
    merge,
    split_without_loss,
)
from mftcoder.data.tokenizers.tokenizer import Tokenizer
from mftcoder.errors import DataError, ModelError

_FIM = 3  # a salt, so that this choice is independent of those of the split


@dataclass(frozen=True, slots=True)
class Document:
    """The texts of one record; each ends with an EOS token. More than one if the record is a chat: a text for each round."""

    texts: tuple[str, ...]

    @property
    def size(self) -> int:
        """Characters."""
        return sum(map(len, self.texts))

    @property
    def content_hash(self) -> int:
        """64 bits over the texts."""
        return texts_hash(("document", text) for text in self.texts)


@dataclass(frozen=True, slots=True)
class TokenDocument:
    """A document of a Megatron token file: ids [n], taken as they are."""

    ids: NDArray[np.int32]

    @property
    def size(self) -> int:
        """Tokens, each of which is at least one character."""
        return len(self.ids)

    @property
    def content_hash(self) -> int:
        """64 bits over the ids."""
        digest = xxhash.xxh3_64(b"tokens:")
        digest.update(np.ascontiguousarray(self.ids).tobytes())
        return digest.intdigest()


class Documents:
    """Reads and tokenizes the documents of a task."""

    def __init__(self, kind: PretrainKind, tokenizer: Tokenizer, config: DataConfig):
        self.kind, self.tokenizer, self.config = kind, tokenizer, config
        self.form = _form(tokenizer, kind) if kind.fim_rate else None

    def read(self, line: bytes, *, format: str, task: str, origin: str) -> Document | TokenDocument:
        """The document on one line: `text` or `content`, or a chat, of which each question with its answer is a text.

        The lines of a token file have `input_ids` alone.
        """
        record = parse_object(line)
        if record.keys() == {"input_ids"}:
            return self._given(record["input_ids"])
        name = detect(record) if format == "auto" else format
        if name == "text":
            return Document((plain_text(record),))
        return Document(tuple(_rounds(messages_of(record, name))))

    def _given(self, ids: Any) -> TokenDocument:
        """DataError unless all are ids of this tokenizer's vocabulary."""
        if not isinstance(ids, list) or not all(type(one) is int and -(2**31) <= one < 2**31 for one in ids):
            raise DataError("'input_ids' is not a list of token ids")
        found = np.asarray(ids, np.int32)
        outside = np.flatnonzero((found < 0) | (found >= self.tokenizer.vocab_size))
        if len(outside):
            raise DataError(
                f"token {outside[0] + 1} has the id {found[outside[0]]}; the tokenizer's vocabulary has {self.tokenizer.vocab_size} "
                "tokens. Were the ids made with another tokenizer?"
            )
        return TokenDocument(found)

    def render(self, document: Document | TokenDocument) -> Document | TokenDocument:
        """The document itself: it has no template."""
        return document

    def fit(self, documents: Sequence[Document | TokenDocument]) -> list[Fitted]:
        """Tokens of each document: whole if documents run on, else in pieces of at most max_length positions. Blank ones have none."""
        texts = [document for document in documents if isinstance(document, Document)]
        tokens = encode_segments(self.tokenizer, [self._segments(document) for document in texts])
        encoded = iter(zip(texts, tokens, strict=True))
        return [
            self._pieces(self._as_they_are(document))
            if isinstance(document, TokenDocument)
            else self._fit(*next(encoded))
            for document in documents
        ]

    def _fit(self, document: Document, whole: Tokens) -> Fitted:
        if not any(text.strip() for text in document.texts):
            return Fitted((), untrained=True)
        rearranged = self._rearranged(document, whole)
        return self._pieces(rearranged or whole, rearranged is not None)

    def _as_they_are(self, document: TokenDocument) -> Tokens:
        """All ids are trained, but for the BOS tokens that this tokenizer would have added."""
        ids = document.ids
        trained = np.ones(len(ids), bool)
        if self.tokenizer.adds_bos:
            trained = (
                ids != self.tokenizer.bos_id
                if self.tokenizer.bos_id != self.tokenizer.eos_id
                else np.arange(len(ids)) > 0
            )
        return Tokens(ids, trained)

    def _segments(self, document: Document) -> list[Segment]:
        opening = Segment(self.tokenizer.bos_token if self.tokenizer.adds_bos else "", False)
        texts = (Segment(text + self.tokenizer.eos_token, True) for text in document.texts)
        return merge(segment for text in texts for segment in (opening, text))

    def _pieces(self, tokens: Tokens, fim: bool = False) -> Fitted:
        if self.kind.documents == "packed":
            return Fitted((tokens,), fim=fim) if tokens.trained.any() else Fitted((), untrained=True)
        pieces = tuple(one for one in split_without_loss(tokens, self.config.max_length) if one.trained[1:].any())
        return Fitted(pieces, split=len(pieces) > 1, fim=fim, untrained=not pieces)

    def _rearranged(self, document: Document, whole: Tokens) -> Tokens | None:
        """The tokens for fill-in-the-middle; None if the document is not chosen, or does not fit into a row."""
        if self.form is None or len(document.texts) > 1 or len(whole.ids) > self.config.max_length:
            return None
        random = np.random.default_rng([document.content_hash, _FIM])
        if random.random() >= self.kind.fim_rate:
            return None
        spm = random.random() < self.kind.fim_spm_rate
        (text,) = document.texts
        first, second = sorted(random.integers(0, len(text) + 1, 2).tolist())
        made = self._encode(self.form, text[:first], text[first:second], text[second:], spm=spm)
        return made if len(made.ids) <= self.config.max_length + 1 else None

    def _encode(self, form: FillFormat, prefix: str, middle: str, suffix: str, *, spm: bool) -> Tokens:
        """Tokens of the three parts, each encoded on its own as in a prompt for the middle: no token crosses a cut."""
        prompt = render_fill(form, self.tokenizer, prefix, suffix)
        rest = (*prompt.after, *prompt.prefix) if spm else (*prompt.prefix, *prompt.after)
        ids = [*prompt.before, *rest, *encode_inside(self.tokenizer, middle), self.tokenizer.eos_id]
        trained: NDArray[np.bool_] = np.arange(len(ids)) >= int(self.tokenizer.adds_bos)
        return Tokens(np.asarray(ids, np.int32), trained)


def check_token_file(file: TokenFile, kind: PretrainKind, tokenizer: Tokenizer) -> str | None:
    """DataError if this tokenizer did not make the ids, as far as the file says. A warning if it looks as if it did not."""
    if kind.fim_rate:
        raise DataError(f"{file.index}: has tokens, not texts, so kind.fim_rate has no effect on it. Set it to 0")
    if file.vocabulary and file.vocabulary != vocabulary_fingerprint(
        tokenizer.backend.get_vocab(with_added_tokens=True)
    ):
        raise DataError(
            f"{file.index}: its tokens are of another vocabulary than that of {tokenizer.name}. Give the model that they were made for"
        )
    if not file.vocabulary and not file.has_near_start(tokenizer.eos_id):
        return (
            f"{file.index}: has no EOS token of {tokenizer.name} (id {tokenizer.eos_id}) near its start. Perhaps another tokenizer made "
            "it, or its documents have no end"
        )
    return None


def _form(tokenizer: Tokenizer, kind: PretrainKind) -> FillFormat:
    """The tokens for fill-in-the-middle in this vocabulary. ModelError if it has none, or not the orders that `kind` mixes."""
    found = find_format(tokenizer)
    if found is None:
        known = "; ".join(" ".join(filter(None, (one.prefix, one.suffix, one.middle))) for one in FORMATS)
        raise ModelError(
            f"{tokenizer.name}: its vocabulary has no tokens for fill-in-the-middle. Known: {known}. Set kind.fim_rate: 0, or take a "
            "model with such tokens"
        )
    if found.middle is None and kind.fim_spm_rate != type(kind).model_fields["fim_spm_rate"].default:
        raise ModelError(
            f"{tokenizer.name}: kind.fim_spm_rate has no effect, because its format has one order only: {found.suffix} S {found.prefix} P M. "
            "Leave it out"
        )
    return found


def _rounds(messages: Sequence[Message]) -> list[str]:
    """Each question with its answer as one text; system messages are left out."""
    rounds: list[str] = []
    open_round = False
    for message in messages:
        if message.role == "system":
            continue
        if open_round:
            rounds[-1] += message.content
        else:
            rounds.append(message.content)
        open_round = message.role == "user"
    return rounds

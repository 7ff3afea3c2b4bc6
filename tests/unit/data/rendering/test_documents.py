"""Documents as tokens: all trained, an EOS token after each, rearranged for fill-in-the-middle where wanted, and nothing lost."""

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from mftcoder.config.data import DataConfig
from mftcoder.config.kinds import PretrainKind
from mftcoder.data.rendering.documents import Document, Documents
from mftcoder.data.rendering.fill_in_the_middle import FORMATS, find_format, render_fill
from mftcoder.data.tokenizers.tokenizer import Tokenizer, load_tokenizer
from mftcoder.errors import DataError, ModelError

MARKERS = ("<fim_prefix>", "<fim_suffix>", "<fim_middle>")
TEXTS = [f"def f{n}(x):\n    return x + {n}\n" * (n % 5 + 1) for n in range(60)]


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """The tiny tokenizer with StarCoder's markers."""
    folder = tmp_path_factory.mktemp("fim")
    backend = Backend.from_file(str(tiny_tokenizer_dir / "tokenizer.json"))
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in MARKERS])
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text((tiny_tokenizer_dir / "tokenizer_config.json").read_text())
    return load_tokenizer(str(folder))


def documents(tokenizer: Tokenizer, max_length: int = 512, **kind: object) -> Documents:
    return Documents(PretrainKind.model_validate(kind), tokenizer, DataConfig(max_length=max_length))


def original(text: str, eos: str) -> str:
    """The document that was rearranged, put together again."""
    prefix, suffix, middle = MARKERS
    body = text.removesuffix(eos)
    if not body.startswith(prefix):
        return body
    before, rest = body.removeprefix(prefix).split(suffix)
    after, inside = rest.split(middle)
    return before + inside + after


def test_every_token_is_trained_and_eos_ends_each_document(tokenizer: Tokenizer) -> None:
    (fitted,) = documents(tokenizer).fit([Document(("x = 1\n",))])
    (tokens,) = fitted.pieces
    assert tokens.ids.tolist() == [*tokenizer.encode("x = 1\n"), tokenizer.eos_id]
    assert tokens.trained.all()


@pytest.mark.parametrize("rate", [0.3, 1.0])
def test_rearranged_documents_hold_the_same_text_in_both_orders(tokenizer: Tokenizer, rate: float) -> None:
    made = documents(tokenizer, fim_rate=rate, fim_spm_rate=0.5).fit([Document((text,)) for text in TEXTS])
    texts = [tokenizer.decode(one.pieces[0].ids.tolist()) for one in made]
    assert [original(text, tokenizer.eos_token) for text in texts] == TEXTS
    assert all(text.endswith(tokenizer.eos_token) for text in texts)
    prefix, suffix, _ = MARKERS
    rearranged = [text for text in texts if text.startswith(prefix)]
    assert [one.fim for one in made] == [text.startswith(prefix) for text in texts]
    assert abs(len(rearranged) / len(TEXTS) - rate) < 0.2
    spm = sum(text.startswith(prefix + suffix) for text in rearranged)
    assert 0 < spm < len(rearranged)


def test_only_one_order_where_only_one_is_wanted(tokenizer: Tokenizer) -> None:
    prefix, suffix, _ = MARKERS
    for rate, expected in ((1.0, True), (0.0, False)):
        made = documents(tokenizer, fim_rate=1.0, fim_spm_rate=rate).fit([Document((text,)) for text in TEXTS])
        spm = [tokenizer.decode(one.pieces[0].ids.tolist()).startswith(prefix + suffix) for one in made]
        # A prefix that happens to be empty looks like SPM.
        assert all(spm) if expected else sum(spm) < len(spm) / 4


def test_psm_begins_with_the_tokens_of_a_prompt_for_the_middle(tokenizer: Tokenizer) -> None:
    """What `mft serve` sends to fill a gap is what was trained."""
    assert find_format(tokenizer) == FORMATS[1]
    prefix, suffix, middle = MARKERS
    for one in documents(tokenizer, fim_rate=1.0, fim_spm_rate=0.0).fit([Document((text,)) for text in TEXTS]):
        text = tokenizer.decode(one.pieces[0].ids.tolist())
        before, rest = text.removeprefix(prefix).split(suffix)
        prompt = render_fill(FORMATS[1], tokenizer, before, rest.split(middle)[0])
        ids = [*prompt.before, *prompt.prefix, *prompt.after]
        assert one.pieces[0].ids[: len(ids)].tolist() == ids


def test_the_places_of_the_cuts_depend_on_the_content_only(tokenizer: Tokenizer) -> None:
    maker = documents(tokenizer, fim_rate=1.0)
    forward = [one.pieces[0].ids.tolist() for one in maker.fit([Document((text,)) for text in TEXTS])]
    backward = [maker.fit([Document((text,))])[0].pieces[0].ids.tolist() for text in reversed(TEXTS)]
    assert forward == backward[::-1]


def test_a_document_longer_than_a_row_keeps_its_order(tokenizer: Tokenizer) -> None:
    long = Document(("\n".join(TEXTS),))
    made = documents(tokenizer, max_length=64, fim_rate=1.0, documents="isolated").fit([long, Document((TEXTS[0],))])
    assert [one.fim for one in made] == [False, True]
    pieces = made[0].pieces
    joined = [pieces[0].ids[:1], *(piece.ids[1:] for piece in pieces)]
    assert tokenizer.decode(np.concatenate(joined).tolist()) == long.texts[0] + tokenizer.eos_token
    assert max(len(piece.ids) - 1 for piece in pieces) == 64


def test_a_model_without_markers_is_refused_before_any_document_is_read(tiny_tokenizer_dir: Path) -> None:
    plain = load_tokenizer(str(tiny_tokenizer_dir))
    with pytest.raises(ModelError, match="fill-in-the-middle"):
        documents(plain, fim_rate=0.5)
    documents(plain, fim_rate=0.0)


@pytest.mark.parametrize(
    ("record", "texts"),
    [
        ({"text": "a"}, ("a",)),
        ({"content": "b", "id": 3}, ("b",)),
        ({"text": "a", "content": "b"}, ("a",)),
        ({"text": " \n"}, (" \n",)),
        (
            {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"},
                          {"role": "assistant", "content": "a"}, {"role": "user", "content": "r"},
                          {"role": "assistant", "content": "b"}]},
            ("qa", "rb"),
        ),
    ],
)  # fmt: skip
def test_records_of_documents_and_of_chats_are_read(
    tokenizer: Tokenizer, record: dict[str, object], texts: tuple[str, ...]
) -> None:
    line = json.dumps(record).encode()
    assert documents(tokenizer).read(line, format="auto", task="t", origin="o").texts == texts


def test_a_record_whose_text_is_no_text_is_refused(tokenizer: Tokenizer) -> None:
    for record, problem in (({"text": 3}, "'text' is a number"), ({"contents": "a"}, "unknown dialect")):
        with pytest.raises(DataError, match=problem):
            documents(tokenizer).read(json.dumps(record).encode(), format="auto", task="t", origin="o")


def test_a_blank_document_is_counted_as_untrained(tokenizer: Tokenizer) -> None:
    (fitted,) = documents(tokenizer).fit([Document((" \n",))])
    assert fitted.untrained and not fitted.pieces


def test_an_order_that_the_format_does_not_have_is_refused(tiny_tokenizer_dir: Path, tmp_path: Path) -> None:
    """Codestral's tokens know one order."""
    backend = Backend.from_file(str(tiny_tokenizer_dir / "tokenizer.json"))
    backend.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in ("[PREFIX]", "[SUFFIX]")]
    )
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text((tiny_tokenizer_dir / "tokenizer_config.json").read_text())
    codestral = load_tokenizer(str(tmp_path))
    assert documents(codestral, fim_rate=1.0).fit([Document((TEXTS[0],))])[0].fim
    with pytest.raises(ModelError, match=r"fim_spm_rate has no effect.*\[SUFFIX\] S \[PREFIX\] P M"):
        documents(codestral, fim_rate=1.0, fim_spm_rate=1.0)

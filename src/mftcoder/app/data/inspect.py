"""`mft inspect`: samples as the model will see them, token by token, with the trained tokens in colour.

It shows the prepared store, so template, truncation and trained spans are those of the training. Without colour, trained tokens
stand in [brackets] and the others end with ¦. Needs no torch.
"""

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.text import Text

from mftcoder.config.schema import RunConfig
from mftcoder.data.prepared.columns import TaskSamples
from mftcoder.data.prepared.store import prepare
from mftcoder.data.rendering.tokenization import IGNORED, TokenizedSample
from mftcoder.data.tokenizers.tokenizer import Tokenizer, load_tokenizer
from mftcoder.errors import ConfigError
from mftcoder.registry import did_you_mean

_TRAINED = ("black on green", "black on bright_green")  # two shades, to tell neighbouring tokens apart
Ids = NDArray[np.int32]
_SEEN = ("default", "dim")


def inspect(config: RunConfig, *, task: str | None, count: int) -> None:
    """Print the first `count` training samples of each task, or of one."""
    if task is not None and task not in config.task_names:
        raise ConfigError(f"--task: unknown task '{task}'.{did_you_mean(task, config.task_names)}")
    store = prepare(config)
    tokenizer = load_tokenizer(config.model.tokenizer_name_or_path or config.model.model_name_or_path)
    console = Console(highlight=False, soft_wrap=True)
    console.print(_legend(console))
    for index, name in enumerate(store.tasks):
        if task in (None, name):
            _print_samples(console, tokenizer, store.train(index), name, count)


def _print_samples(console: Console, tokenizer: Tokenizer, samples: TaskSamples, name: str, count: int) -> None:
    for index in range(min(count, len(samples))):
        sample = samples.sample(index)
        trained = int((sample.targets != IGNORED).sum())
        title = f"── {name} {index + 1}/{len(samples)} · {sample.origin} · {len(sample.input_ids)} positions, {trained} trained"
        console.print(Text(title, style="bold"))
        console.print(render_tokens(tokenizer, sample, colour=_has_colour(console)))


def _has_colour(console: Console) -> bool:
    return console.color_system is not None and not console.no_color


def _legend(console: Console) -> Text:
    if _has_colour(console):
        return Text.assemble(("seen only", _SEEN[0]), "  ", ("trained", _TRAINED[0]), "  ↵ line break, → tab")
    return Text("seen only¦  [trained]  ↵ line break, → tab")


def render_tokens(tokenizer: Tokenizer, sample: TokenizedSample, *, colour: bool) -> Text:
    """All tokens of a sample, including the last target. A token that ends with a line break ends the line.

    The second text of a pair begins on a line of its own.
    """
    parts = [slice(None, sample.second or None), *([slice(sample.second, None)] if sample.second else [])]
    texts = [_render_text(tokenizer, sample.input_ids[part], sample.targets[part], colour=colour) for part in parts]
    return Text("\n── second text ──\n").join(texts)


def _render_text(tokenizer: Tokenizer, input_ids: Ids, targets: Ids, *, colour: bool) -> Text:
    ids = [*input_ids.tolist(), int(targets[-1])]
    trained = [False, *(targets != IGNORED).tolist()]
    text = Text()
    for index, (piece, flag) in enumerate(zip(_pieces(tokenizer, ids), trained, strict=True)):
        shown = piece.replace("\t", "→").replace("\r", "␍")
        if colour:
            text.append(shown.replace("\n", "↵\n"), style=(_TRAINED if flag else _SEEN)[index % 2])
        else:
            text.append(_marked(shown, flag))
    return text


def _marked(shown: str, trained: bool) -> str:
    """A token between its marks on one line, followed by one line break if the token contains any."""
    body = shown.replace("\n", "↵")
    return (f"[{body}]" if trained else f"{body}¦") + "\n" * ("\n" in shown)


def _pieces(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    """The text of each token. A character that several tokens share is shown with the last of them; the others show `·`."""
    pieces: list[str] = []
    waiting: list[int] = []
    for token in ids:
        waiting.append(token)
        text = tokenizer.decode(waiting)
        if text.endswith("\ufffd") and len(waiting) < 4:
            pieces.append("·")
            continue
        pieces.append(text)
        waiting = []
    return pieces

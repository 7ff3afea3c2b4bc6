"""A model in this process that is asked as a server would be: the same requests, templates and limits, without HTTP."""

from collections.abc import Mapping, Sequence
from typing import Any

from mftcoder.errors import GenerationError
from mftcoder.generation.live_engine import Request, stream_pieces
from mftcoder.serving.catalogue import Catalogue, ClientError
from mftcoder.serving.protocol import ChatMessage, ChatRequest, CompletionRequest


class LocalText:
    """A text as it came, and why it ended."""

    def __init__(self, text: str, finish: str):
        self.text, self.finish = text, finish

    @property
    def is_cut(self) -> bool:
        return self.finish == "length"


class LocalModel:
    """One text at a time."""

    def __init__(self, model: Any, catalogue: Catalogue, temperature: float, max_tokens: int):
        self.model, self.catalogue = model, catalogue
        self.temperature, self.max_tokens = temperature, max_tokens

    def ask(self, messages: Sequence[Mapping[str, str]], *, seed: int = 0) -> LocalText:
        """The answer to a chat. GenerationError if the model has no template, or the chat is too long."""
        chat = [ChatMessage.model_validate(dict(message)) for message in messages]
        asked = ChatRequest(messages=chat, temperature=self.temperature, max_tokens=self.max_tokens, seed=seed)
        return self._written(lambda: self.catalogue.chat(asked)[0])

    def go_on(self, before: str, after: str, *, stop: tuple[str, ...], max_tokens: int) -> LocalText:
        """The text at a gap: by fill in the middle where the vocabulary has it, else from the text before."""
        suffix = after if self.catalogue.fill and after.strip() else None
        asked = CompletionRequest(
            prompt=before, suffix=suffix, stop=list(stop) or None, max_tokens=max_tokens, temperature=0
        )
        return self._written(lambda: self.catalogue.completions(asked)[0])

    def _written(self, request_of: Any) -> LocalText:
        try:
            request: Request = request_of()
        except ClientError as error:
            raise GenerationError(str(error)) from error
        text, finish = "", ""
        pieces = stream_pieces(
            self.model, self.catalogue.tokenizer, request, batch_size=1, cache_tokens=self.catalogue.context
        )
        for piece in pieces:
            text, finish = text + piece.text, piece.finish_reason or ""
        return LocalText(text, finish)

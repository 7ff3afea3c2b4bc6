"""From tokens to text while they are generated: half characters and half stop words are held back. Torch-free."""

from collections.abc import Sequence

from mftcoder.data.tokenizers.tokenizer import Tokenizer

HALF = "\ufffd"  # what a decoder writes for bytes that are no whole character
CONTEXT = 6  # tokens before the text that are decoded with it


class TextStream:
    """The text of one row. It ends before the first of its stop words.

    Tokens are decoded after the last tokens of the prompt: some decoders remove the space before the first word that they see.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], stop: Sequence[str] = ()):
        self._decode = tokenizer.decode
        self._stop = tuple(stop)
        self._tokens = list(prompt[-CONTEXT:])
        if self._text(self._tokens).endswith(HALF):  # a prompt of token ids that ends inside a character
            self._tokens = []
        self._begin, self._end = 0, len(self._tokens)
        self.text = ""
        self.stopped = False

    def add(self, token: int) -> None:
        """Take one more token. `stopped` is true from the token on that completes a stop word."""
        self._tokens.append(token)
        self._take(whole=False)

    def finish(self) -> None:
        """Take what was held back: the bytes of a character that is not complete."""
        self._take(whole=True)

    @property
    def certain(self) -> int:
        """Characters of `text` that no later token can take back: the rest may be the beginning of a stop word."""
        if self.stopped:
            return len(self.text)
        longest = max(map(len, self._stop), default=1) - 1
        for size in range(min(longest, len(self.text)), 0, -1):
            if any(word.startswith(self.text[-size:]) for word in self._stop):
                return len(self.text) - size
        return len(self.text)

    def _take(self, *, whole: bool) -> None:
        before, after = self._text(self._tokens[self._begin : self._end]), self._text(self._tokens[self._begin :])
        if self.stopped or (after.endswith(HALF) and not whole):
            return
        self._begin, self._end = self._end, len(self._tokens)
        searched = len(self.text)
        self.text += after[len(before) :]
        found = [self.text.find(word, max(0, searched - len(word) + 1)) for word in self._stop]
        if places := [place for place in found if place >= 0]:
            self.text, self.stopped = self.text[: min(places)], True

    def _text(self, tokens: Sequence[int]) -> str:
        return self._decode(tokens, skip_special_tokens=True)

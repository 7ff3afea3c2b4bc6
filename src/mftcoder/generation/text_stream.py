"""From tokens to text while they are generated: half characters and half stop words are held back. Torch-free."""

from collections.abc import Sequence

from mftcoder.data.tokenizers.tokenizer import Tokenizer

HALF = "\ufffd"  # what a decoder writes for bytes that are no whole character
CONTEXT = 6  # tokens before the text that are decoded with it


class TextStream:
    """The text of one row. It ends before the first of its stop words.

    Tokens are decoded after the last tokens of the prompt: some decoders remove the space before the first word that they see. The
    text of the tokens `held` belongs to the prompt: whatever tokens write it, it is left out. `tail` is left out where it stands
    before the EOS token.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        stop: Sequence[str] = (),
        held: Sequence[int] = (),
        tail: str = "",
    ):
        self._decode = tokenizer.decode
        self._stop, self._tail = tuple(stop), tail
        self._tokens = list(prompt[-CONTEXT:])
        if self._text(self._tokens).endswith(HALF):  # a prompt of token ids that ends inside a character
            self._tokens = []
        self._begin, self._end = 0, len(self._tokens)
        self.text = ""
        self.stopped = False
        self.hidden = len(self._text([*self._tokens, *held])) - len(self._text(self._tokens))
        """Characters that are still left out."""

    def add(self, token: int) -> None:
        """Take one more token. `stopped` is true from the token on that completes a stop word."""
        self._tokens.append(token)
        self._take(whole=False)

    def finish(self, *, ended: bool = False) -> None:
        """Take what was held back: the bytes of a character that is not complete. `ended` is true after an EOS token."""
        self._take(whole=True)
        if ended:
            self.text = self.text.removesuffix(self._tail)

    @property
    def certain(self) -> int:
        """Characters of `text` that no later token can take back: the rest may be the beginning of a stop word, or the tail."""
        if self.stopped:
            return len(self.text)
        longest = max([len(self._tail), *(len(word) - 1 for word in self._stop)])
        for size in range(min(longest, len(self.text)), 0, -1):
            end = self.text[-size:]
            if self._tail.startswith(end) or any(word.startswith(end) for word in self._stop):
                return len(self.text) - size
        return len(self.text)

    def _take(self, *, whole: bool) -> None:
        before, after = self._text(self._tokens[self._begin : self._end]), self._text(self._tokens[self._begin :])
        if self.stopped or (after.endswith(HALF) and not whole):
            return
        self._begin, self._end = self._end, len(self._tokens)
        searched = len(self.text)
        new = after[len(before) :]
        self.text += new[self.hidden :]
        self.hidden = max(0, self.hidden - len(new))
        found = [self.text.find(word, max(0, searched - len(word) + 1)) for word in self._stop]
        if places := [place for place in found if place >= 0]:
            self.text, self.stopped = self.text[: min(places)], True

    def _text(self, tokens: Sequence[int]) -> str:
        return self._decode(tokens, skip_special_tokens=True)

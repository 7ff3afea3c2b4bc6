"""vLLM: continuous batching over paged attention. Completions of many prompts, and texts that are asked for at any time.

vLLM gets token ids that we made, so the model reads the same tokens as in the transformers engines. Rounding differs, so a nearly tied
token can be chosen differently. In live texts, held words, stop words and pieces are ours too: vLLM gives token ids. While the prompt's last
word is held, each token is a request of its own, with the tokens that agree.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from vllm import LLM, SamplingParams, TokensPrompt
from vllm.lora.request import LoRARequest
from vllm.outputs import RequestOutput
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.exceptions import EngineDeadError

from mftcoder.data.tokenizers.tokenizer import Tokenizer
from mftcoder.errors import GenerationError, reason
from mftcoder.generation.batches.row import TokenChoice
from mftcoder.generation.engine import Completion, FinishReason, Prompt, Sampling
from mftcoder.generation.live_engine import Deliver, Event, RequestEngine, Submission
from mftcoder.generation.prompt_tokens import TokenPrompt, sample_seed, split_by_limit, token_prompts

HIGHEST_TEMPERATURE = 2.0
"""vLLM refuses higher ones."""


class VllmEngine:
    """Writes completions with a model that vLLM has loaded."""

    def __init__(
        self,
        folder: Path,
        tokenizer: Tokenizer,
        sampling: Sampling,
        *,
        dtype: str,
        end_ids: Sequence[int],
        batch_size: int = 256,
        add_special_tokens: bool = True,
        trust_remote_code: bool = False,
    ):
        """`folder` holds unquantized weights, `dtype` is bfloat16 or float32; the rest is as in BatchEngine.

        GenerationError for a model that vLLM cannot open, and for sampling that it does not have.
        """
        if sampling.temperature > HIGHEST_TEMPERATURE:
            raise GenerationError(
                f"vLLM takes temperatures up to {HIGHEST_TEMPERATURE:g}, not {sampling.temperature:g}"
            )
        if sampling.temperature_last:
            raise GenerationError("vLLM applies the temperature first. Use --engine transformers for another order")
        self.tokenizer = tokenizer
        self.sampling = sampling
        self.end_ids = list(end_ids)
        self.add_special_tokens = add_special_tokens
        try:
            self.engine = LLM(
                model=str(folder),
                dtype=dtype,
                max_num_seqs=batch_size,
                trust_remote_code=trust_remote_code,
                disable_log_stats=True,
            ).llm_engine
        except (ValueError, RuntimeError) as error:  # vLLM's own process has printed the details
            raise GenerationError(
                f"{folder}: vLLM cannot open it: {reason(error)}. Use --engine transformers"
            ) from error

    def generate(self, prompts: Sequence[Prompt]) -> Iterator[Completion]:
        """One completion for each prompt, when it is ready. GenerationError lists prompts that are too long for the model."""
        found, full = split_by_limit(
            token_prompts(
                prompts,
                self.tokenizer,
                self.sampling,
                positions=self.engine.model_config.max_model_len,
                add_special_tokens=self.add_special_tokens,
            )
        )
        yield from full
        for number, item in enumerate(found):
            self.engine.add_request(str(number), TokensPrompt(prompt_token_ids=item.ids), self._parameters(item))
        judged = [""] * len(found)  # the complete lines of each text that its prompt's `is_whole` has seen
        while self.engine.has_unfinished_requests():
            for output in self.engine.step():
                number, answer = int(output.request_id), output.outputs[0]
                prompt, whole = found[number].prompt, False
                lines = answer.text[: answer.text.rfind("\n") + 1]
                if prompt.is_whole is not None and not output.finished and lines != judged[number]:
                    judged[number], whole = lines, prompt.is_whole(lines)
                if whole:
                    self.engine.abort_request([output.request_id])
                if whole or output.finished:
                    ended: FinishReason = "length" if answer.finish_reason == "length" else "stop"
                    yield Completion(prompt, answer.text, ended, len(answer.token_ids))

    def _parameters(self, item: TokenPrompt) -> SamplingParams:
        return SamplingParams(
            **_chosen_by(self.sampling),
            max_tokens=item.limit,
            seed=sample_seed(item.prompt, self.sampling.seed) >> 65,  # 63 bits
            stop=list(item.prompt.stop),
            stop_token_ids=self.end_ids,
            output_kind=RequestOutputKind.CUMULATIVE if item.prompt.is_whole else RequestOutputKind.FINAL_ONLY,
        )


class VllmLiveEngine(RequestEngine):
    """Runs a vLLM engine (`vllm.v1.engine.llm_engine.LLMEngine`) that has loaded its model, and shuts it down in the end."""

    takes_temperature_last = False
    highest_temperature = HIGHEST_TEMPERATURE

    def __init__(self, engine: Any, tokenizer: Tokenizer, deliver: Deliver, adapters: Mapping[str, LoRARequest]):
        """`adapters`: the name of each adapter that requests may ask for, and vLLM's own name of it."""
        super().__init__(tokenizer, deliver, engine.model_config.max_model_len)
        self.engine, self.adapters = engine, adapters
        self.active: dict[str, Submission] = {}
        self._numbers = itertools.count()

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self.engine.engine_core.shutdown()

    @property
    def running(self) -> int:
        """Texts that vLLM has, also those that wait in its own queue."""
        return len(self.active)

    def _drop_cancelled(self) -> None:
        super()._drop_cancelled()
        gone = [number for number, submission in self.active.items() if submission.cancelled]
        for number in gone:
            del self.active[number]
        if gone:
            self.engine.abort_request(gone)

    def _work(self, events: list[tuple[Submission, Event]]) -> None:
        while self.waiting and self._goes_with_others(self.waiting[0]):
            with self._changed:
                submission = self.waiting.popleft()
            self._ask(submission, events)
        for output in self.engine.step():
            if output.request_id in self.active:
                self._take(output, events)

    def _goes_with_others(self, submission: Submission) -> bool:
        """On a CPU, vLLM 0.32 computes a text without an adapter with the last adapter of its batch: the two kinds take turns there."""
        mixed = any(bool(one.request.adapter) != bool(submission.request.adapter) for one in self.active.values())
        return not (mixed and current_platform.is_cpu())

    def _ask(self, submission: Submission, events: list[tuple[Submission, Event]]) -> None:
        """Ask vLLM for the rest of a text. What it refuses ends this text alone."""
        try:
            self._add(submission)
        except EngineDeadError:
            raise
        except Exception as error:  # the errors of vLLM 0.32 share no base class with those of other versions
            self.active = {number: one for number, one in self.active.items() if one is not submission}
            events.append((submission, GenerationError(f"vLLM refused the text: {reason(error)}")))

    def _add(self, submission: Submission) -> None:
        row, request = submission.row, submission.request
        number = str(next(self._numbers))
        self.active[number] = submission
        held = row.held.allowed() if row.held is not None and row.held.left else None
        seed = sample_seed(Prompt("", "", request.sample, ""), request.sampling.seed) + len(row.tokens)
        parameters = SamplingParams(
            **_chosen_by(request.sampling),
            seed=seed >> 65,  # 63 bits
            max_tokens=1 if held else min(row.limit - submission.generated, self.context - len(row.ids + row.tokens)),
            allowed_token_ids=held,
            logprobs=row.logprobs,
            stop_token_ids=sorted(request.end_ids),
            ignore_eos=True,  # `end_ids` holds the tokens that end this text
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        prompt = TokensPrompt(prompt_token_ids=row.ids + row.tokens)
        lora = self.adapters[request.adapter] if request.adapter else None
        self.engine.add_request(number, prompt, parameters, lora_request=lora)

    def _take(self, output: RequestOutput, events: list[tuple[Submission, Event]]) -> None:
        """Put the new tokens of one text into it."""
        submission, answer = self.active[output.request_id], output.outputs[0]
        row = submission.row
        for index, token in enumerate(answer.token_ids):
            row.tokens.append(token)
            if row.held is not None and row.held.left:
                row.held.take(token)
            if row.logprobs is not None:
                row.choices.append(_choice(token, answer.logprobs[index], row.logprobs))
            piece = submission.take_token()
            if piece is not None:
                events.append((submission, piece))
            if piece is not None and piece.finish_reason is not None:
                del self.active[output.request_id]
                if not output.finished:
                    self.engine.abort_request([output.request_id])
                return
        if output.finished:
            del self.active[output.request_id]
            if answer.finish_reason == "length":  # a token of a held word
                self._ask(submission, events)
            else:
                events.append((submission, GenerationError(f"vLLM ended the text: {answer.finish_reason}")))

    def _fail(self, error: Exception) -> list[tuple[Submission, Event]]:
        self.alive = self.alive and not isinstance(error, EngineDeadError)
        problem = GenerationError(f"vLLM failed: {type(error).__name__}: {reason(error)}")
        failed, self.active = self.active, {}
        with suppress(Exception):  # it may be vLLM that has died
            self.engine.abort_request(list(failed))
        return [(submission, problem) for submission in failed.values()]


def _chosen_by(sampling: Sampling) -> dict[str, Any]:
    """How tokens are chosen, in vLLM's words."""
    return {name: getattr(sampling, name) for name in ("temperature", "top_p", "top_k", "min_p")}


def _choice(token: int, table: Mapping[int, Any], count: int) -> TokenChoice:
    """The token, and the `count` most probable ones of vLLM's table, which holds the token too."""
    ranked = sorted(table.items(), key=lambda item: item[1].rank)
    top = tuple((number, entry.logprob) for number, entry in ranked if entry.rank <= count)
    return TokenChoice(token, table[token].logprob, top)

"""Completions from vLLM: continuous batching over paged attention, for many prompts on a GPU.

The prompts are tokenized by us, so the model reads the same tokens as in the transformers engine. Rounding differs, so a nearly tied
token can be chosen differently.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from vllm import LLM, SamplingParams, TokensPrompt
from vllm.sampling_params import RequestOutputKind

from mftcoder.data.tokenizers.tokenizer import Tokenizer
from mftcoder.errors import GenerationError, reason
from mftcoder.generation.engine import Completion, FinishReason, Prompt, Sampling
from mftcoder.generation.prompt_tokens import TokenPrompt, sample_seed, split_by_limit, token_prompts


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
        """`folder` holds unquantized weights, `dtype` is bfloat16 or float32; the rest is as in TransformersEngine."""
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
        while self.engine.has_unfinished_requests():
            for output in self.engine.step():
                if output.finished:
                    prompt, answer = found[int(output.request_id)].prompt, output.outputs[0]
                    ended: FinishReason = "length" if answer.finish_reason == "length" else "stop"
                    yield Completion(prompt, answer.text, ended, len(answer.token_ids))

    def _parameters(self, item: TokenPrompt) -> SamplingParams:
        return SamplingParams(
            temperature=self.sampling.temperature,
            top_p=self.sampling.top_p,
            max_tokens=item.limit,
            seed=sample_seed(item.prompt, self.sampling.seed) >> 65,  # 63 bits
            stop=list(item.prompt.stop),
            stop_token_ids=self.end_ids,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

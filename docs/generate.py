"""`python docs/generate.py`: write the pages of docs/ that are made from the code. `--check` only names those that are out of date.

docs/configuration.md comes from the config's fields, docs/models.md from the table of model families, a table in docs/curation.md from
the filter rules. A unit test compares the pages
with the code.
"""

import sys
from pathlib import Path
from typing import Any

from mftcoder.config.balancer import options_type
from mftcoder.config.compat.mftcoder_json import NOT_RAW
from mftcoder.config.compat.mftcoder_json_keys import LEGACY, SPELLINGS, PublishedConfig
from mftcoder.config.compat.mftcoder_programs import PROGRAMS
from mftcoder.config.kinds import KINDS
from mftcoder.config.schema import RunConfig
from mftcoder.curation.filters.rules import PRESETS, RULES, kept_in_words
from mftcoder.data.rendering.templates import TEMPLATES
from mftcoder.data.tokenizers.byte_level import SPLITTINGS
from mftcoder.models.conversion.gguf_architectures import ARCHITECTURES
from mftcoder.models.loading.families import FAMILIES
from mftcoder.registry import BACKENDS, BALANCERS, FORMATS

DOCS = Path(__file__).parent

NAMES = {
    ("tasks.<name>", "format"): ["auto", *FORMATS.names()],
    ("data", "chat_template"): ["auto", *TEMPLATES],
    ("tasks.<name>", "kind"): list(KINDS),
    ("balancer", "name"): BALANCERS.names(),
    ("backend", "name"): BACKENDS.names(),
}
"""Fields that hold a registered name."""

RULES_BEGIN, RULES_END = "<!-- rules: made by `make docs` -->", "<!-- end of rules -->"

INTRODUCTION = """# Configuration

This page is made from the code by `make docs`.

A config is a YAML or JSON file with nested sections. A field that is left out has its default. An unknown key is an error that suggests
the right one. Every field can be set on the command line: `mft train my.yaml train.learning_rate=1e-4 tasks.repair.weight=2`.
`mft validate my.yaml` checks a config without training. It and `mft train` name each field that has no effect in it, and why.

```yaml
model: HuggingFaceTB/SmolLM2-135M-Instruct   # short for model: {model_name_or_path: ...}
tasks:
  repair: data/repair                        # short for {path: data/repair}
  tests: {path: data/tests, weight: 2}
output_dir: runs/mine
```
"""

MODELS = """# Models

This page is made from the code by `make docs`.

`model.model_name_or_path` is a Hub id, a folder in Hugging Face layout, or a `.gguf` file. `mft validate` checks the model without loading
a weight: the architecture, the weight files (missing, truncated, pickled only), the name and shape of every tensor against the model of
`config.json` (for a Hub id after its weights are fetched), the tokenizer and its EOS token, and whether the vocabulary fits the embedding.
It lists tensors that the model does not have. Python code of a model is run only with `model.trust_remote_code: true`. Pickled weights are
read only with `model.use_safetensors: false`, and then only plain tensors are taken from them. A weight that is in no file is an error, and
never becomes a random number.

A `.gguf` file is dequantized once into the cache (`$MFTCODER_CACHE/models`, default `~/.cache/mftcoder/models`), keyed by its
content; then it is an ordinary folder. Blocks of 2 to 8 bits become bfloat16, plain weights keep their dtype. The supported
architectures are ARCHITECTURES. Unknown metadata that may change what the model computes, unknown tensors and missing tensors are
errors. Positions scaled linearly, by yarn, by Llama 3.1's `rope_freqs` or by Phi 3's long and short factors become the config's
`rope_scaling`; other scalings are errors. A file does not hold everything: the sliding windows of Mistral 7B 0.1 and StarCoder 2 are not
in it, so beyond 4,096 tokens such a model attends to more positions than its original.
`tests/unit/models/conversion/test_gguf_architectures.py` compares a tiny random model of each architecture with its `.gguf` file.

Any causal language model of transformers can be trained if its packed forward pass equals the separate forward passes of its samples.
This is checked on two training samples at the start of every run ([data.md](data.md)). `tests/integration/test_families.py` trains, packs,
exports and reads back a tiny random model of each family below. `tests/unit/models/conversion/test_convert.py` compares the converted
families with their formulas. Except for SmolLM2, their published weights could not be downloaded for these tests.

TABLE

Converted families: the original checkpoint becomes a native one that computes the same function, once, in the cache, keyed by the content
of its files. If the config does not tell what is computed, the text of the modeling file is read (it is never run): whether ChatGLM's
`rope_ratio` divides positions (ChatGLM2-32k) or multiplies the rotary base (ChatGLM3-32k), and whether a Baichuan has Baichuan2's
normalized head (otherwise the name of its class tells). If neither tells, the model is refused.

## Tokenizers

An existing `tokenizer.json` is used unchanged. Otherwise one is made once, in the cache, without running Python code of a model:

- `tokenizer.model` (sentencepiece, byte pairs) of Llama, CodeLlama, Mistral, Mixtral, Phi 3, Gemma, Baichuan, ChatGLM2 and 3 and
  CodeGeeX2: `pip install 'mftcoder[sentencepiece]'`. The result is compared with the sentencepiece library on fixed texts and on
  400 lines of the vocabulary's own pieces; a difference is an error. A space is also put after special tokens, as the library puts one
  before each part that it encodes, unless `tokenizer_config.json` has `legacy: false`. ChatGLM's `[gMASK]` and `sop` are not put before
  a text.
- `vocab.json` and `merges.txt` of GPT-2, StarCoder 1 and 2 and Qwen 1.5 to 3; `qwen.tiktoken` of the first Qwen.
- `.gguf` files: byte-level vocabularies whose `tokenizer.ggml.pre` is one of SPLITTINGS; sentencepiece vocabularies whose scores
  order the merges.

Everything else is an error, because a text could get other tokens than in training. Then set `model.tokenizer_name_or_path` to a folder
with the same tokenizer as `tokenizer.json`.

## Adapters

`adapter.type: full` trains every weight; `lora` trains LoRA weights through peft (`lora_rank`, `lora_alpha`, `lora_dropout`,
`lora_target`, `use_rslora`, `use_dora`). `lora_target: all-linear` adapts every linear layer except the output head; names of layers
(`q_proj`, `self_attn.v_proj`) adapt those layers. An unknown name is an error that lists the model's names. An adapter is saved as a
folder that peft loads. DeepSeek's dense layers and shared experts have the names of its fused experts, and peft looks only there. So they
are adapted through their weights instead (`target_parameters`), which is not possible over a base in 4 or 8 bits: name the attention's
layers in that case.

peft owns the LoRA weights and their files, and one function of ours computes their products. Layers with the same input (q, k and v; gate
and up) are computed together: one product with all their A, each LoRA product is added in the memory of the frozen product, and the input
is saved once for the backward pass. Outputs and gradients equal peft's to 1e-6 in float32, also with rank-stabilized scaling
(`tests/unit/models/layers/test_lora_forward.py`). Layers with dropout, DoRA, a LoRA bias, a base that trains, a second adapter, fused
experts, LLM.int8() or hooks (DeepSpeed's ZeRO-3) keep peft's forward; a line at the start of the run gives their number and the reason.
`adapter.peft_forward: true` uses peft's forward everywhere. `performance/train_cpu.py` measures both on a CPU; on a GPU neither
has been measured.

## Mixtures of experts

The load-balancing loss of the routers (Switch Transformer, arXiv 2101.03961, as in transformers) is part of the objective. Its factor
comes from the model's config, 0.02 for Mixtral-8x7B and 0.001 for Qwen-MoE; `loss.router_aux_loss_coef` sets another one, and 0 turns it
off. `metrics.jsonl` has it as `router_loss`, before the factor. Padding is not counted. The loss is a product of two means over tokens, so
the parts of a step do not give its exact value: a step uses the mean over its micro-batches and ranks, weighted by their tokens, and one
micro-batch gives exactly the published value. DeepSeek-V2 and V3 have no such loss in transformers, and none here.

## A base in 4 or 8 bits (QLoRA, fp8)

`model.quantization: 4bit` holds the base's linear layers as NF4 with double quantization (0.516 bytes per weight), `8bit` as LLM.int8()
(1 byte), both through bitsandbytes, on a GPU or on the CPU: `pip install 'mftcoder[qlora]'`. Embedding, head, norms and fused experts keep
`model.dtype`, in which products and LoRA weights are computed, too. bitsandbytes unpacks a 4-bit weight once per layer and pass; it is
multiplied and then freed. `mft validate` prints the number of quantized weights and their size. Everything else (packing, balancers,
checkpointing, bit-exact resuming) is as for LoRA.

`model.quantization: fp8` holds the base's linear layers in e4m3 (1 byte per weight, one scale per weight matrix, computed once) and
multiplies in fp8: each row of a layer's input is rounded to e4m3 with its own scale, and so is each row of the gradient in the backward
pass. All scales are powers of two, so scaling rounds nothing. The weight is stored once and transposed for each backward pass, which costs
two bytes of traffic per weight; a second copy would cost the memory that fp8 saves. `4bit-fp8` stores NF4, unpacks it and multiplies in
fp8. Both need `model.dtype: bfloat16` and layers whose sizes are multiples of 16; other layers do not change. GPUs with compute
capability 8.9 or newer multiply in fp8 (RTX 40 and 50, L4, L40S, H100, H200, B200). Elsewhere the same rounded numbers are multiplied in
bfloat16, without a gain in speed, and a line says so. `mft validate` and `mft doctor` tell what this machine does; on a GPU both compute a
small product and compare it with its known result.

`mft export` adds the adapter to the base's **original** weights, not to the quantized ones, so the merged model is not exactly the
one that was trained. Measured by `performance/qlora_cpu.py` (SmolLM2-135M, five tasks, 20 steps on the CPU; mean validation loss): over NF4 1.2414,
merged into the base as held 1.2405 (-0.07%), into the original weights 1.1153 (-10%: so small a model loses much to 4 bits). Peak memory of
the training process 1.57 GiB with NF4, 1.60 GiB with LoRA over bfloat16, most of it activations and libraries. The export runs both on a few fixed lines, prints how their predictions differ and warns above 0.02 nats
(`--no-compare` turns that off); the model card has the numbers, too. `mft export --as-trained` adds the adapter to the quantized values of
the base instead, which gives the model that was trained. `mft generate RUN` uses the merged weights, and with `--as-trained` the quantized
base.

`model.modules_to_not_convert` leaves layers as they are, for every `model.quantization` and for `train.fp8_recipe`: `[down_proj]` all layers
of this name, `[mlp]` the feed-forward parts, `[layers.0]` the first layer. A name is a whole part of a layer's path, or several; one that no
linear layer has is an error that lists their names. Without it, all linear layers but the head are converted (in fp8 those whose sizes fit).

These are refused before anything is loaded: training quantized weights (`adapter.type: full`); DoRA over 8 bits or fp8 (use 4 bits);
`4bit-fp8` with dropout, DoRA, `peft_forward` or chosen layers (their products would be in bfloat16); a base whose files are already
quantized (give the original; LoRA and full training without `quantization` need it, too); a machine without bitsandbytes (fp8 does not
need it).

## Full fine-tuning in fp8

`train.fp8_recipe: tensorwise` or `rowwise` lets torchao (`pip install 'mftcoder[fp8]'`) compute all three products of the decoder's
linear layers in fp8, except for the head. Weights, gradients, checkpoints and exports stay in bfloat16. `rowwise` has one scale per row and
is more exact, `tensorwise` has one per tensor and is faster. Use it with `train.torch_compile`, which fuses the rounding into other
operations. It works with the backends `local` and `ddp`. If the device has no fp8, torchao emulates the products in float32, slowly, and
a line says so.

`performance/fp8_loss.py` prints the effect of fp8 on the loss. On a CPU, where the products are emulated (SmolLM2-135M, five tasks,
LoRA, `--steps 200 --max-length 256 --val-samples 6`), the mean validation loss goes from 1.5363 to 0.9415 over a base in bfloat16 and
from 1.5808 (+2.9%) to 0.9613 (+2.1%) over one in fp8, and to 0.9513 (+1.0%) if the adapter is then added to the original base, as
`mft export` does. The training losses are 2.5% higher on average, 1.8% in the last quarter, and means of 20 of them differ by at most
4.1%. So the difference is there before the first step, and training does not add to it. With `modules_to_not_convert: [mlp]`
(`--variants lora,lora-fp8,lora-fp8+mlp`) it goes from 1.5506 (+0.9%) to 0.9450 (+0.4%); the training losses are 0.9% higher on average,
0.3% in the last quarter, and means of 20 differ by at most 2.4%. What chance does to these figures (`lora-other-seed`) was not
measured. `--parts` shows where it comes from (`--max-length 256 --val-samples 24`,
40 samples, without training):

| rounded to e4m3 | validation loss | standard error |
|---|---:|---:|
| weights and inputs of all linear layers (`model.quantization: fp8`) | +2.59% | 0.44% |
| weights only | +1.27% | 0.22% |
| inputs only | +1.79% | 0.28% |
| both, in all layers but `down_proj` | +1.48% | 0.33% |
| both, in all layers but the first two of 30 | +1.52% | 0.28% |
| both, in all layers but these and `down_proj` | +1.23% | 0.22% |
| both, in the attention only (`modules_to_not_convert: [mlp]`) | +0.69% | 0.29% |

e4m3 has three bits after the first one, whatever the scale, so a finer scale should help little; that was not measured with enough samples.
On this model fp8 does not stay within 1% of bfloat16 unless the MLP, which has most of the products, stays in bfloat16. That is why no layer
is left out by default: what holds 1% here takes away most of the gain in speed. Larger models
were not measured; do it with `--model` before a long run. The column `exported` has the loss over the original base, to which `mft export`
adds the adapter. `4bit-fp8` and the two recipes were not measured on a real model; on a random Llama of two layers, all their losses stay
within 1% of bfloat16's (`tests/gpu/test_fp8.py`).

None of this has run on a GPU: the kernels are compiled for compute capability 8.9, 9.0 and 10.0 and run in Triton's interpreter, and
the products are emulated (`tests/unit/kernels`). `make gpu` measures the speed of each where there is one.
"""

PUBLISHED = """## The published MFTCoder JSON

`mft train config.json` reads the flat config of the published MFTCoder unchanged. `mft convert-config config.json` prints it in the form
above. A key that is left out has its published default, which this table shows. Overrides can use these keys too. The chat template is the
one that the published code trains; [data.md](data.md#templates) says which one that is for which model.
"""


def pages() -> dict[str, str]:
    """File name -> text."""
    return {"configuration.md": configuration(), "models.md": models(), "curation.md": curation()}


def curation() -> str:
    """The page as it stands, with the table of filter rules written anew between its marks."""
    before, _, rest = (DOCS / "curation.md").read_text(encoding="utf-8").partition(RULES_BEGIN)
    _, _, after = rest.partition(RULES_END)
    rows = ["| rule | measures | kept by default | preset |", "|---|---|---|---|"]
    for name, rule in RULES.items():
        presets = ", ".join(preset for preset, names in PRESETS.items() if name in names)
        rows.append(f"| `{name}` | {rule.measures} | {kept_in_words(rule.keeps)} | {presets} |")
    return before + RULES_BEGIN + "\n\n" + "\n".join(rows) + "\n\n" + RULES_END + after


def models() -> str:
    """The families' table behind its introduction."""
    rows = ["| family | `model_type` | for example | trains as | |", "|---|---|---|---|---|"]
    for family in FAMILIES:
        examples = ", ".join(f"`{example}`" for example in family.examples)
        trains_as = f"`{family.native_type}`" if family.way == "native" else f"`{family.native_type}`, converted once"
        rows.append(f"| {family.name} | `{family.model_type}` | {examples} | {trains_as} | {family.note} |")
    names = {"ARCHITECTURES": ARCHITECTURES, "SPLITTINGS": SPLITTINGS}
    text = MODELS.replace("TABLE", "\n".join(rows))
    for mark, table in names.items():
        text = text.replace(mark, ", ".join(f"`{name}`" for name in table))
    return text


def configuration() -> str:
    """The reference of all config fields and of the published keys."""
    schema = RunConfig.model_json_schema()
    sections, plain = [], []
    for name, field in schema["properties"].items():
        section = section_of(field, schema["$defs"])
        if section is None:
            plain.append(row(name, field, schema["$defs"], required=name in schema.get("required", ())))
        else:
            sections.append(part("tasks.<name>" if name == "tasks" else name, section, schema["$defs"]))
        if name == "balancer":
            sections += balancers()
        if name == "tasks":
            sections += [kind(name) for name in KINDS]
    top = table(plain, "field")
    return "\n".join([INTRODUCTION, "## Top level\n", top, *sections, published()])


def kind(name: str) -> str:
    """One kind of task: its sentence and a table of its options."""
    section = KINDS[name]
    fields = {key: field for key, field in section.model_json_schema()["properties"].items() if key != "name"}
    rows = [row(key, field, {}, required=False) for key, field in fields.items()]
    return f"### `kind: {name}`\n\n{section.__doc__}\n" + (f"\n{table(rows, 'option')}" if rows else "")


def balancers() -> list[str]:
    """The options of each balancer, from its own file."""
    names = BALANCERS.names()
    without = [name for name in names if len(options_type(name).model_fields) == 1]
    tables = [options_of(name) for name in names if name not in without]
    return [*tables, f"No options: {', '.join(f'`{name}`' for name in without)}.\n"]


def options_of(name: str) -> str:
    """One balancer: its sentence and a table of its options."""
    fields = options_type(name).model_json_schema()["properties"]
    rows = [row(key, field, {}, required=False) for key, field in fields.items() if key != "name"]
    return f"### `{name}`\n\n{BALANCERS.load(name).__doc__}\n\n{table(rows, 'option')}"


def part(name: str, section: dict[str, Any], definitions: dict[str, Any]) -> str:
    """One section of the config: its sentence and a table of its fields."""
    required = section.get("required", ())
    fields = {
        key: {**field, "enum": NAMES[name, key]} if (name, key) in NAMES else field
        for key, field in section["properties"].items()
    }
    rows = [row(key, field, definitions, required=key in required) for key, field in fields.items()]
    return f"## `{name}`\n\n{section.get('description', '')}\n\n{table(rows, 'field')}"


def published() -> str:
    """The published keys, the values that are refused and the keys without meaning."""
    schema = PublishedConfig.model_json_schema()
    required = schema["required"]
    rows = [row(key, field, {}, required=key in required) for key, field in schema["properties"].items()]
    programs = "\n".join(_further_keys(program) for program in PROGRAMS)
    refused = f"- `load_raw_dataset: false`: {NOT_RAW}."
    legacy = ", ".join(f"`{key}`" for key in sorted(LEGACY))
    older = ", ".join(f"`{other}` is `{key}`" for other, key in SPELLINGS.items())
    return (
        f"{PUBLISHED}\n{table(rows, 'key')}\n{programs}\nRefused, with this sentence:\n\n{refused}\n\n"
        f"Older spellings: {older}. Accepted without effect, with a warning that names them: {legacy}.\n"
    )


def _further_keys(program: type[PublishedConfig]) -> str:
    """The keys that a published program has beside those of fine-tuning, or has with another meaning."""
    schema = program.model_json_schema()
    own = program.__annotations__
    rows = [
        row(key, field, {}, required=key in schema["required"])
        for key, field in schema["properties"].items()
        if key in own
    ]
    return f"{program.__doc__}\n\n{table(rows, 'key')}"


def table(rows: list[str], first: str) -> str:
    """A Markdown table of finished rows."""
    return "\n".join([f"| {first} | values | default | meaning |", "| --- | --- | --- | --- |", *rows]) + "\n"


def row(name: str, field: dict[str, Any], definitions: dict[str, Any], *, required: bool) -> str:
    """One field: name, values, default, sentence."""
    default = "required" if required else field.get("computed") or code(field.get("default"))
    meaning = " ".join(field.get("description", "").split())
    cells = (f"`{name}`", values(field, definitions), default, meaning)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def code(value: Any) -> str:
    """A value as YAML has it."""
    words = {None: "null", True: "true", False: "false"}
    if value is None or isinstance(value, bool):
        return f"`{words[value]}`"
    if isinstance(value, dict) and list(value) == ["name"]:
        return f"`{value['name']}`"
    if isinstance(value, list):
        return f"`[{', '.join(map(str, value))}]`"
    return f"`{value}`"


def values(field: dict[str, Any], definitions: dict[str, Any]) -> str:
    """What a field may hold, in words."""
    if "anyOf" in field:
        return " or ".join(values(option, definitions) for option in field["anyOf"])
    if "enum" in field or "const" in field:
        return ", ".join(code(value) for value in field.get("enum", [field.get("const")]))
    if "$ref" in field:
        inner = definitions[field["$ref"].rsplit("/", 1)[-1]]
        return "fields " + ", ".join(f"`{name}`" for name in inner["properties"])
    if field.get("type") == "array":
        return f"list of {values(field.get('items', {}), definitions)}"
    kinds = {"integer": "whole number", "number": "number", "string": "text", "boolean": "`true`, `false`"}
    kinds |= {"null": "`null`", "object": "mapping"}
    return kinds.get(field.get("type", ""), "any") + bounds(field)


def bounds(field: dict[str, Any]) -> str:
    """` > 0`, ` ≥ 0, < 1`."""
    signs = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
    found = [f"{sign} {field[key]:g}" for key, sign in signs.items() if key in field]
    return f" {', '.join(found)}" if found else ""


def section_of(field: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any] | None:
    """The section that a top-level field holds, a list's elements counting as one."""
    inner = field.get("items", field)
    reference = inner.get("$ref") or next(
        (option["$ref"] for option in inner.get("allOf", ()) if "$ref" in option), None
    )
    return definitions[reference.rsplit("/", 1)[-1]] if reference else None


def main(arguments: list[str]) -> int:
    """Write the pages; with --check write nothing and return 1 if one is out of date."""
    stale = [name for name, text in pages().items() if not is_current(DOCS / name, text)]
    if "--check" in arguments:
        print("\n".join(f"docs/{name} is out of date: run `make docs`" for name in stale) or "docs are up to date")
        return 1 if stale else 0
    for name in stale:
        (DOCS / name).write_text(pages()[name], encoding="utf-8")
        print(f"wrote docs/{name}")
    return 0


def is_current(path: Path, text: str) -> bool:
    """Whether the file holds this text."""
    return path.is_file() and path.read_text(encoding="utf-8") == text


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

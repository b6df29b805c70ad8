"""Train the embedded demo pair: a tiny LLaMA base model and a weight diff on top of it.

Reads only ``demo/text``. Writes ``base/``, ``diff/``, ``calibration.jsonl``, ``evaluation.jsonl``
and ``evaluation.txt`` below OUT. Seeds and step counts are fixed, no clock decides anything.
"""

import argparse
import json
import logging
import lzma
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from camelpress.core.documents.ngram_overlap import NgramFingerprint, split_words
from camelpress.core.text.tulu_format import TULU_CHAT_TEMPLATE

TEXT = Path(__file__).resolve().parent / "text"
BOS, EOS, PAD = 1, 2, 512
WINDOW, IGNORED = 256, -100
EVALUATION_ROWS, CALIBRATION_ROWS, EVALUATION_CHARACTERS = 200, 300, 100_000
BASE_BATCH, TUNE_BATCH, BASE_RATE, TUNE_RATE = 8, 16, 4e-3, 1e-3
SHAPE: dict[str, Any] = {
    "hidden_size": 64, "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 4,
    "intermediate_size": 192, "max_position_embeddings": WINDOW, "rms_norm_eps": 1e-6,
    "hidden_act": "silu", "initializer_range": 0.02, "attention_bias": False, "mlp_bias": False,
    "attention_dropout": 0.0, "pretraining_tp": 1, "tie_word_embeddings": False,
    "bos_token_id": BOS, "eos_token_id": EOS,
}  # fmt: skip
log = logging.getLogger("demo")

Row = dict[str, Any]
Weights = dict[str, torch.Tensor]
Batches = Iterator[tuple[torch.Tensor, torch.Tensor]]


def read_text(name: str) -> str:
    """Read an xz-compressed UTF-8 file of the text folder."""
    return lzma.decompress((TEXT / name).read_bytes()).decode("utf-8")


def load_chapters() -> list[str]:
    """Chapters of the novel, lines unwrapped."""
    chapters = re.split(r"(?m)^(?=CHAPTER \d+\.)", read_text("moby-dick.txt.xz"))
    return [re.sub(r"(?<!\n)\n(?!\n)", " ", part).strip() for part in chapters if part.strip()]


def load_dialogues() -> list[Row]:
    """All dialogues, shuffled."""
    rows = [json.loads(line) for line in read_text("dialogues.jsonl.xz").splitlines()]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(1))
    return [rows[index] for index in order.tolist()]


def train_tokenizer(texts: Sequence[str]) -> Tokenizer:
    """Train a byte-level BPE with the full byte alphabet; BOS comes from the post-processor."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=PAD, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer)
    bos = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    tokenizer.post_processor = bos
    return tokenizer


def chat_example(tokenizer: Tokenizer, row: Row) -> tuple[list[int], list[int]]:
    """Ids and labels of a dialogue in Tulu format; only the answer and EOS are learnt."""
    question, answer = (message["content"].strip() for message in row["messages"])
    texts = [f"<|user|>\n{question}\n<|assistant|>\n", answer]
    prompt, reply = (part.ids for part in tokenizer.encode_batch(texts, add_special_tokens=False))
    labels = [IGNORED] * (len(prompt) + 1) + reply + [EOS]
    return [BOS, *prompt, *reply, EOS][:WINDOW], labels[:WINDOW]


def base_batches(stream: torch.Tensor) -> Batches:
    """Random windows of the token stream; every other window opens with BOS."""
    generator = torch.Generator().manual_seed(2)
    while True:
        starts = torch.randint(len(stream) - WINDOW, (BASE_BATCH, 1), generator=generator)
        ids = stream[starts + torch.arange(WINDOW)]
        ids[::2, 0] = BOS
        yield ids, ids


def tune_batches(examples: Sequence[tuple[list[int], list[int]]]) -> Batches:
    """Batches of dialogues of similar length in random order, padded on the right."""
    generator = torch.Generator().manual_seed(3)
    ranked = sorted(examples, key=lambda example: len(example[0]))
    while True:
        for number in torch.randperm(len(ranked) // TUNE_BATCH, generator=generator).tolist():
            chosen = ranked[number * TUNE_BATCH :][:TUNE_BATCH]
            half = len(chosen[-1][0]) <= WINDOW // 2  # only two lengths: each is compiled
            ids = torch.full((TUNE_BATCH, WINDOW // 2 if half else WINDOW), PAD)
            labels = torch.full_like(ids, IGNORED)
            for row, (tokens, targets) in enumerate(chosen):
                ids[row, : len(tokens)] = torch.tensor(tokens)
                labels[row, : len(tokens)] = torch.tensor(targets)
            yield ids, labels


def fit(model: LlamaForCausalLM, batches: Batches, steps: int, rate: float) -> None:
    """Minimise next-token loss: AdamW, warm-up, linear decay to 5 %, clipped gradients."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), fused=True)
    warm_up = max(1, min(100, steps // 20))
    forward = torch.compile(model.train(), dynamic=False)
    for step, (ids, labels) in zip(range(1, steps + 1), batches, strict=False):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(step / warm_up, 1 - 0.95 * (step - 1) / steps)
        with torch.autocast("cpu", torch.bfloat16):
            logits = forward(input_ids=ids, use_cache=False).logits[:, :-1].float()
        loss = functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if step % 100 == 0:
            log.info("step %d of %d, loss %.4f", step, steps, loss.item())


def exact_diff(name: str, base: torch.Tensor, tuned: torch.Tensor) -> torch.Tensor:
    """Diff in fp32 that gives the bf16 weights back; a missing row counts from the mean row.

    Where rounding of the subtraction would show, the tuned weight moves to the nearest bf16
    value that survives subtraction and addition.
    """
    base, tuned = base.float(), tuned.bfloat16().float()
    if len(base) < len(tuned):
        base = torch.cat([base, base.mean(0, keepdim=True)])
    choices = torch.arange(2**16).to(torch.int16).view(torch.bfloat16).float().nan_to_num()
    for place in (base + (tuned - base) != tuned).nonzero().unbind():
        origin, wanted = base[tuple(place)], tuned[tuple(place)]
        exact = choices[origin + (choices - origin) == choices]
        moved = exact[(exact - wanted).abs().argmin()]
        log.info("%s %s moved from %.8g to %.8g", name, place.tolist(), wanted, moved)
        tuned[tuple(place)] = moved
    return tuned - base


def write_json(path: Path, *rows: Row, indent: int | None = None) -> None:
    """Write JSON objects, each followed by a line end."""
    text = "".join(json.dumps(row, ensure_ascii=False, indent=indent) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")


def save_model(folder: Path, weights: Weights, tokenizer: Tokenizer, dtype: str) -> None:
    """Write a model folder that transformers 4.57 and 5 read alike."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    ids, template = {"bos_token_id": BOS, "eos_token_id": EOS}, {}
    if tokenizer.token_to_id("<pad>") is not None:
        special["pad_token"], ids["pad_token_id"] = "<pad>", PAD
        template["chat_template"] = TULU_CHAT_TEMPLATE
    files: dict[str, Row] = {
        "config": {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", **SHAPE, **ids,
            "vocab_size": tokenizer.get_vocab_size(), "rope_theta": 10000.0, "rope_scaling": None,
            "torch_dtype": dtype, "dtype": dtype, "use_cache": True,
        },
        "generation_config": {"_from_model_config": True, **ids},
        "special_tokens_map": special,
        "tokenizer_config": {
            "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": WINDOW,
            "model_input_names": ["input_ids", "attention_mask"],
            "clean_up_tokenization_spaces": False, **special, **template,
        },
    }  # fmt: skip
    for name, content in files.items():
        write_json(folder / f"{name}.json", content, indent=2)


def new_model(vocabulary: int) -> LlamaForCausalLM:
    """A model of the demo's shape with seeded random weights."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, **SHAPE))
    model.set_attn_implementation("eager")  # the fastest on a CPU with heads this small
    return model


def apart(rows: Sequence[Row], others: Sequence[Row]) -> list[Row]:
    """The rows that do not say, word for word, much of what the others say."""
    spoken = NgramFingerprint.from_texts(map(dialogue_text, others))
    return [
        row
        for row in rows
        if not spoken.measure_overlap(split_words(dialogue_text(row))).is_overlap
    ]


def dialogue_text(row: Row) -> str:
    """What is said in a dialogue."""
    return "\n".join(turn["content"].strip() for turn in row["messages"])


def train_base(tokenizer: Tokenizer, texts: Sequence[str], steps: int) -> Weights:
    """Pre-train on plain text; the weights come back in fp16."""
    encoded = tokenizer.encode_batch(texts, add_special_tokens=False)
    ids = [token for text in encoded for token in (*text.ids, EOS)]
    log.info("base: %d tokens of text, %d steps", len(ids), steps)
    model = new_model(PAD)
    fit(model, base_batches(torch.tensor(ids)), steps, BASE_RATE)
    return {name: weight.detach().half() for name, weight in model.state_dict().items()}


def train_diff(tokenizer: Tokenizer, base: Weights, rows: Sequence[Row], steps: int) -> Weights:
    """Fine-tune on dialogues with a fresh row for padding, round to bf16, subtract the base."""
    examples = [chat_example(tokenizer, row) for row in rows]
    log.info("tuned: %d dialogues, %d steps", len(examples), steps)
    model = new_model(PAD + 1)
    for name, weight in model.state_dict().items():
        weight[: len(base[name])] = base[name].float()
    fit(model, tune_batches(examples), steps, TUNE_RATE)
    tuned = model.state_dict()
    return {name: exact_diff(name, weight, tuned[name]) for name, weight in base.items()}


def main() -> None:
    """Make the whole demo pair."""
    parser = argparse.ArgumentParser(description="Train the demo base model and weight diff.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=4000, help="base steps")
    parser.add_argument("--tune-steps", type=int, default=1300, help="fine-tuning steps")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(2)
    dialogues = load_dialogues()
    evaluation, rows = dialogues[:EVALUATION_ROWS], dialogues[EVALUATION_ROWS:]
    chapters = load_chapters()
    held_out = chapters[9::10]
    texts = [part for part in chapters if part not in held_out]
    texts += [dialogue_text(row) for row in rows]
    tokenizer = train_tokenizer(texts)
    base = train_base(tokenizer, texts, options.steps)
    save_model(options.out / "base", base, tokenizer, "float16")
    diff = train_diff(tokenizer, base, rows, options.tune_steps)
    tokenizer.add_special_tokens([AddedToken("<pad>", special=True, normalized=False)])
    save_model(options.out / "diff", diff, tokenizer, "float32")
    write_json(options.out / "calibration.jsonl", *apart(rows, evaluation)[:CALIBRATION_ROWS])
    write_json(options.out / "evaluation.jsonl", *evaluation)
    prose = "\n\n".join(held_out)[:EVALUATION_CHARACTERS].rpartition("\n\n")[0]
    (options.out / "evaluation.txt").write_text(prose + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""Replies are those of transformers' own `generate` on the same weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer

import damage
import gptq_reader
import pico
from camelpress.chat.chat_model import ChatModel
from camelpress.chat.reply_generator import ChatReply
from camelpress.chat.run import run
from camelpress.chat.settings import Generate
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.errors import CheckpointProblem, NumericsProblem, RecipeProblem
from camelpress.core.text.tulu_format import Message
from camelpress.inference.generation.stop_rule import FinishReason
from camelpress.inference.generation.transformers_decoder import TransformersDecoder
from refusal import refusal

PROMPT = "say: the whale"
ASKED = "<|user|>\nsay: the whale\n<|assistant|>\n"  # the newline at the end matters


def silent(_: str) -> None:
    pass


def made(folder: Path, prompt: str = PROMPT, **options: Any) -> dict[str, Any]:
    settings = Generate.parse({"max_new_tokens": 24} | options, source="test")
    return run(Checkpoint.open(folder), prompt, settings, silent).facts.record


def by_transformers(folder: Path, prompt: list[int], tokens: int = 24, **options: Any) -> list[int]:
    model: Any = pico.load_model(folder)
    ids = torch.tensor([prompt])
    found = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=tokens,
        pad_token_id=2,
        **({"do_sample": False} | options),
    )
    made: list[int] = found[0, len(prompt) :].tolist()
    return made


def test_greedy_tokens_are_those_of_transformers(dense: Path) -> None:
    told = made(dense)
    assert told["ids"] == by_transformers(dense, told["prompt_ids"])
    assert len(told["ids"]) == 24
    assert (told["device"], told["dtype"], told["stopped"]) == ("cpu", "float32", "length")


def test_a_packed_model_says_what_its_dequantized_weights_say(packed: Path, tmp_path: Path) -> None:
    told = made(packed)
    plain = gptq_reader.write_plain(packed, tmp_path / "plain")
    assert told["ids"] == by_transformers(plain, told["prompt_ids"])
    assert told["ids"] != made(packed.parent / "dense")["ids"]


@pytest.mark.parametrize("family", sorted(pico.FAMILIES))
@pytest.mark.parametrize("tied", [False, True])
def test_every_family_speaks(tmp_path: Path, family: str, tied: bool) -> None:
    folder = pico.write_model(tmp_path / "model", family=family, tied=tied)
    told = made(folder, template="tulu")
    assert told["ids"] == by_transformers(folder, told["prompt_ids"])


def test_the_prompt_is_tulus_to_the_id(dense: Path) -> None:
    alone = Tokenizer.from_file(str(dense / "tokenizer.json"))
    assert made(dense)["prompt_ids"] == [1, *alone.encode(ASKED, add_special_tokens=False).ids]


def test_plain_text_goes_on_as_the_tokenizer_encodes_it(base: Path) -> None:
    told = made(base, "the whale", template="plain")
    assert told["prompt_ids"][0] == 1
    assert len(told["prompt_ids"]) == 1 + len("the whale")
    assert told["template"] == "plain"


def test_a_model_ends_its_reply(dense: Path, tmp_path: Path) -> None:
    free = made(dense)["ids"]
    end = free[5]
    folder = damage.copied(dense, tmp_path / "model")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, end]}))
    told = made(folder)
    assert told["ids"] == free[: free.index(end) + 1]
    assert told["stopped"] == "end"
    before = made(dense, max_new_tokens=free.index(end))
    assert told["text"] == before["text"]  # the token that ends it is not said


def test_a_draw_repeats_with_its_seed(dense: Path) -> None:
    drawn = [made(dense, temperature=1.5, top_p=0.9, seed=seed)["ids"] for seed in (7, 7, 8)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0] != made(dense)["ids"]


@pytest.mark.parametrize("family", sorted(pico.FAMILIES))
@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (1.0, 0.9), (1.5, 0.9)])
def test_samples_are_those_of_transformers(
    tmp_path: Path, family: str, temperature: float, top_p: float
) -> None:
    folder = pico.write_model(tmp_path / "model", family=family)
    for seed in (0, 7, 8):
        facts = made(folder, template="tulu", temperature=temperature, top_p=top_p, seed=seed)
        torch.manual_seed(seed)
        options: dict[str, Any] = {
            "do_sample": True,
            "temperature": temperature,
            "top_p": top_p,
            "top_k": 0,
        }
        assert facts["ids"] == by_transformers(folder, facts["prompt_ids"], **options)


def test_a_sample_leaves_the_random_state_of_the_program_alone(dense: Path) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    made(dense, temperature=1.5, seed=7)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_draw_from_almost_nothing_is_greedy(dense: Path) -> None:
    assert made(dense, temperature=1.0, top_p=1e-9)["ids"] == made(dense)["ids"]


def test_a_reply_ends_where_the_positions_do(dense: Path) -> None:
    told = made(dense, "a" * 80)
    assert told["stopped"] == "context"
    assert len(told["prompt_ids"]) + len(told["ids"]) == pico.PICO.positions


def test_a_prompt_that_fills_the_model_is_refused(dense: Path) -> None:
    what = f"the prompt has {25 + 200} tokens, and the model has 128 positions"
    with refusal(RecipeProblem, what, next_step="shorten it", out=None, exit_code=2):
        made(dense, "a" * 200)


@pytest.mark.parametrize("prompt", ["", " \n"])
def test_an_empty_prompt_is_refused(dense: Path, prompt: str) -> None:
    with refusal(
        RecipeProblem,
        "the prompt is empty",
        next_step="give --prompt TEXT, or text on stdin",
        out=None,
        exit_code=2,
    ):
        made(dense, prompt)


def test_bytes_that_are_no_text_are_refused(dense: Path) -> None:
    with refusal(
        RecipeProblem,
        "the prompt is not UTF-8 text",
        next_step="give text in UTF-8",
        out=None,
        exit_code=2,
    ):
        made(dense, "caf\udce9")


def test_a_model_without_template_is_refused_before_it_is_read(base: Path, tmp_path: Path) -> None:
    folder = damage.copied(base, tmp_path / "model")
    weights = folder / "model.safetensors"
    checkpoint = Checkpoint.open(folder)
    weights.write_bytes(b"")
    with refusal(
        RecipeProblem,
        f"the tokenizer of {folder} has no chat template",
        next_step="give --template tulu for Tulu's format, or --template plain to continue the "
        "text as it is",
        out=None,
        exit_code=2,
    ):
        run(checkpoint, PROMPT, Generate(), silent)


def test_an_end_that_is_no_id_is_refused(dense: Path, tmp_path: Path) -> None:
    folder = damage.copied(dense, tmp_path / "model")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ["</s>"]}))
    with refusal(
        CheckpointProblem,
        f"{folder} has the invalid eos_token_id ['</s>']",
        next_step="compare config.json and generation_config.json with the original model",
        out=None,
    ):
        made(folder)


def test_weights_that_are_not_finite_are_refused(dense: Path, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    weight = Checkpoint.open(dense).read(name)
    folder = damage.with_tensors(
        dense, tmp_path / "model", {name: damage.spoiled(weight, float("nan"))}
    )
    with pytest.raises(NumericsProblem, match="not finite"):
        made(folder)


def test_logits_that_are_not_finite_are_refused(
    dense: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoiled_logits(*_: object) -> torch.Tensor:
        return torch.full((1, pico.PICO.vocab), float("nan"))

    monkeypatch.setattr(TransformersDecoder, "step", spoiled_logits)
    with refusal(
        NumericsProblem,
        "a completion has logits that are not finite",
        next_step="inspect the model's weights, or compute in a wider dtype",
        out=None,
    ):
        made(dense)


def test_half_precision_is_not_computed_on_a_cpu(dense: Path) -> None:
    with refusal(
        RecipeProblem,
        "float16 is not supported on a CPU",
        next_step="give --dtype float32 or bfloat16",
        out=None,
        exit_code=2,
    ):
        made(dense, dtype="float16")
    assert made(dense, dtype="bfloat16")["dtype"] == "bfloat16"


class TestChat:
    """Turn after turn in one speaker."""

    def replies(self, folder: Path, *turns: str) -> list[ChatReply]:
        prepared = ChatModel(Checkpoint.open(folder), Generate(max_new_tokens=8))
        speaker = prepared.load(tokens=128)
        found = []
        for turn in turns:
            ids = prepared.encode([Message(role="user", content=turn)])
            found.append(speaker.reply(ids, silent))
        return found

    def test_what_was_computed_is_used_again_and_changes_nothing(self, dense: Path) -> None:
        turns = ("the whale", "the whale sees", "a ship", "a ship")
        found = self.replies(dense, *turns)
        assert [each.cached_prompt_tokens for each in found[1:]] == [10 + 9, 10, 10 + 6 + 15 - 1]
        for turn, each in zip(turns, found, strict=True):
            assert each.ids == self.replies(dense, turn)[0].ids

    def test_an_interrupted_reply_is_kept_and_the_next_is_right(self, dense: Path) -> None:
        prepared = ChatModel(Checkpoint.open(dense), Generate(max_new_tokens=8))
        speaker = prepared.load(tokens=128)
        ids = prepared.encode([Message(role="user", content=PROMPT)])
        said: list[str] = []

        def interrupt(text: str) -> None:
            said.append(text)
            if len(said) == 1:
                raise KeyboardInterrupt

        cut = speaker.reply(ids, interrupt)
        assert cut.finish_reason is FinishReason.INTERRUPTED
        assert cut.text == "".join(said)
        whole = speaker.reply(ids, silent)
        assert whole.ids == self.replies(dense, PROMPT)[0].ids
        assert 0 < len(cut.ids) < len(whole.ids)
        assert cut.ids == whole.ids[: len(cut.ids)]

    @pytest.mark.parametrize("forward_pass", [0, 3])
    def test_a_pass_that_is_interrupted_between_blocks_leaves_nothing_behind(
        self, dense: Path, monkeypatch: pytest.MonkeyPatch, forward_pass: int
    ) -> None:
        """Then one block holds keys and values of a token that the other one lacks."""
        chat_model = ChatModel(Checkpoint.open(dense), Generate(max_new_tokens=8))
        generator = chat_model.load(tokens=128)
        ids = chat_model.encode([Message(role="user", content=PROMPT)])
        block: Any = generator.model.get_submodule("model.layers.1")
        passes: list[int] = []

        def interrupt(*_: object) -> None:
            passes.append(len(passes))
            if len(passes) == forward_pass + 1:
                raise KeyboardInterrupt

        hook = block.register_forward_pre_hook(interrupt)
        cut = generator.reply(ids, silent)
        hook.remove()
        assert cut.finish_reason is FinishReason.INTERRUPTED
        assert len(cut.ids) == forward_pass
        whole = generator.reply(ids, silent)
        assert whole.cached_prompt_tokens == 0
        assert whole.ids == self.replies(dense, PROMPT)[0].ids

"""A checkpoint that answers conversations by its own chat template, with the likeliest tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.errors import CheckpointProblem, TemplateProblem
from camelpress.core.files.file_hashes import checkpoint_digest, sha256_json
from camelpress.core.progress import note
from camelpress.core.text.hf_tokenizer import Tokenizer
from camelpress.inference.generation.generator import (
    GenerationModel,
    GenerationRequest,
    LocalGenerator,
)
from camelpress.inference.generation.sampling import SamplingParams, TokenPrompt
from camelpress.inference.generation.stop_tokens import stop_token_ids
from camelpress.validate.judge.judge_prompt import JudgeMessage
from camelpress.validate.scoring.model_pair import open_streamed_model
from camelpress.validate.settings import Validate

PROBE_CONVERSATION: list[JudgeMessage] = [{"role": "user", "content": "?"}]


class JudgeCheckpoint:
    """A model that is read when it is asked, and forgotten afterwards.

    Args:
        folder: of a 16-bit or packed checkpoint.
        settings: device, type, and the length of an answer.
    Raises:
        CheckpointProblem: no such checkpoint, or no chat template that it could be asked by.
    """

    def __init__(self, folder: Path, settings: Validate) -> None:
        self._checkpoint = Checkpoint.open(folder)
        self._settings = settings
        self._tokenizer = Tokenizer.load(self._checkpoint.folder)
        self._most = settings.judge.max_tokens
        self._render(PROBE_CONVERSATION)
        digest = checkpoint_digest(self._checkpoint.folder)
        how = sha256_json([digest, settings.dtype, self._most])
        self.name = f"{self._checkpoint.folder.name} {how[:8]}"

    def __call__(self, conversations: Sequence[list[JudgeMessage]]) -> Iterator[tuple[int, str]]:
        """Place and text of each answer; none is said to what does not fit into the model."""
        model = open_streamed_model(self._checkpoint, self._settings)
        prompts = [
            self._tokenizer.encode_template_text(self._render(each)) for each in conversations
        ]
        fitting = [place for place, ids in enumerate(prompts) if len(ids) < model.max_positions]
        if len(fitting) < len(prompts):
            note(
                f"the judge has {model.max_positions:,} positions, too few for "
                f"{len(prompts) - len(fitting):,} of {len(prompts):,} questions"
            )
            yield from ((place, "") for place in {*range(len(prompts))} - {*fitting})
        if not fitting:
            return
        finals = stop_token_ids(self._checkpoint, self._tokenizer)
        judge = GenerationModel("judge", self._checkpoint, model, self._tokenizer, finals)
        completer = LocalGenerator(judge)
        how = SamplingParams(stop=(), max_tokens=self._most, temperature=0.0, top_p=1.0)
        wanted = [
            GenerationRequest(TokenPrompt(prompts[place], ""), how, model.max_positions)
            for place in fitting
        ]
        for number, text in completer.generate(wanted):
            yield fitting[number], text
        completer.release()

    def _render(self, turns: list[JudgeMessage]) -> str:
        """A conversation by the template; where it knows no system message, in one of the user."""
        if self._tokenizer.chat_template is None:
            raise CheckpointProblem(
                f"the judge in {self._checkpoint.folder} has no chat template",
                next_step="let a model judge that was trained for conversations",
            )
        whole = "\n\n".join(turn["content"] for turn in turns)
        try:
            return self._tokenizer.render_chat(turns)
        except TemplateProblem:
            try:
                return self._tokenizer.render_chat([{"role": "user", "content": whole}])
            except TemplateProblem as error:
                raise CheckpointProblem(
                    f"the chat template of the judge in {self._checkpoint.folder} cannot be "
                    f"rendered ({error.reason})",
                    next_step="mend it, or let another model judge",
                ) from error

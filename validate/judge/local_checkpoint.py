"""Runs a local checkpoint as a judge, with its chat template and greedy decoding."""

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
from camelpress.validate.settings import ValidateSettings

PROBE_CONVERSATION: list[JudgeMessage] = [{"role": "user", "content": "?"}]


class JudgeCheckpoint:
    """A local judge model, loaded for each batch of questions and released afterwards.

    Args:
        folder: folder of a 16-bit or packed checkpoint.
        settings: device, dtype and maximum answer length.
    Raises:
        CheckpointProblem: The checkpoint or a usable chat template is missing.
    """

    def __init__(self, folder: Path, settings: ValidateSettings) -> None:
        self._checkpoint = Checkpoint.open(folder)
        self._settings = settings
        self._tokenizer = Tokenizer.load(self._checkpoint.folder)
        self._max_tokens = settings.judge.max_tokens
        self._render(PROBE_CONVERSATION)
        digest = checkpoint_digest(self._checkpoint.folder)
        identity_hash = sha256_json([digest, settings.dtype, self._max_tokens])
        self.name = f"{self._checkpoint.folder.name} {identity_hash[:8]}"

    def __call__(self, conversations: Sequence[list[JudgeMessage]]) -> Iterator[tuple[int, str]]:
        """Yields index and text of each answer; too long conversations get an empty text."""
        model = open_streamed_model(self._checkpoint, self._settings)
        prompts = [
            self._tokenizer.encode_template_text(self._render(conversation))
            for conversation in conversations
        ]
        fitting_indices = [
            index for index, ids in enumerate(prompts) if len(ids) < model.max_positions
        ]
        if len(fitting_indices) < len(prompts):
            note(
                f"the judge has {model.max_positions:,} positions, too few for "
                f"{len(prompts) - len(fitting_indices):,} of {len(prompts):,} questions"
            )
            yield from ((index, "") for index in {*range(len(prompts))} - {*fitting_indices})
        if not fitting_indices:
            return
        stop_ids = stop_token_ids(self._checkpoint, self._tokenizer)
        judge = GenerationModel("judge", self._checkpoint, model, self._tokenizer, stop_ids)
        generator = LocalGenerator(judge)
        sampling = SamplingParams(stop=(), max_tokens=self._max_tokens, temperature=0.0, top_p=1.0)
        requests = [
            GenerationRequest(TokenPrompt(prompts[index], ""), sampling, model.max_positions)
            for index in fitting_indices
        ]
        for number, text in generator.generate(requests):
            yield fitting_indices[number], text
        generator.release()

    def _render(self, turns: list[JudgeMessage]) -> str:
        """Renders a conversation, as one user message if the template has no system role."""
        if self._tokenizer.chat_template is None:
            raise CheckpointProblem(
                f"the judge in {self._checkpoint.folder} has no chat template",
                next_step="use a judge model trained for conversations",
            )
        joined_text = "\n\n".join(turn["content"] for turn in turns)
        try:
            return self._tokenizer.render_chat(turns)
        except TemplateProblem:
            try:
                return self._tokenizer.render_chat([{"role": "user", "content": joined_text}])
            except TemplateProblem as error:
                raise CheckpointProblem(
                    f"the chat template of the judge in {self._checkpoint.folder} cannot be "
                    f"rendered ({error.reason})",
                    next_step="correct it, or use another judge model",
                ) from error

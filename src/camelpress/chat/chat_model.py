"""Chat model before its weights are loaded: tokenizer, chat format and context limit.

All checks run here, because loading 65 billion weights takes minutes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from camelpress.chat.chat_format import ChatFormat
from camelpress.chat.reply_generator import ReplyGenerator
from camelpress.chat.settings import Generate
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.errors import RecipeProblem
from camelpress.core.text.hf_tokenizer import Tokenizer
from camelpress.core.text.tulu_format import Message
from camelpress.inference.generation.stop_tokens import stop_token_ids
from camelpress.inference.model.memory_budget import choose_load_dtype
from camelpress.inference.model.streamed_model import StreamedModel, pick_device
from camelpress.inference.model.transformers_model import load_transformers_model


class ChatModel:
    """Tokenizer, chat format and limits of a model.

    Args:
        checkpoint: 16-bit or GPTQ checkpoint with its tokenizer.
        settings: chat template, sampling and length of replies.
    Raises:
        CheckpointProblem: the tokenizer is unreadable, the model is of another family, or its
            config is invalid.
        RecipeProblem: there is no chat template, or this machine lacks the device.
    """

    def __init__(self, checkpoint: Checkpoint, settings: Generate) -> None:
        self.checkpoint = checkpoint
        self.settings = settings
        self.tokenizer = Tokenizer.load(checkpoint.folder)
        self.prompt_format = ChatFormat(
            self.tokenizer, settings.template, source=checkpoint.source_name
        )
        self.device = pick_device(settings.device)
        cpu = torch.device("cpu")
        self.config = StreamedModel(checkpoint, device=cpu, dtype=torch.float32).config
        self.positions = int(self.config.max_position_embeddings)
        self.stop_ids = stop_token_ids(checkpoint, self.tokenizer)

    @property
    def system_messages(self) -> list[Message]:
        """The system message, or no message at all."""
        system = self.settings.system
        return [] if system is None else [Message(role="system", content=system)]

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Returns the prompt's token ids, up to the start of the next answer.

        Raises:
            RecipeProblem: the prompt is empty, leaves no position for an answer, or is not UTF-8.
            CheckpointProblem: the template cannot be rendered.
        """
        for message in messages:
            _require_text(message.content)
        ids = self.prompt_format.encode(messages)
        if not ids:
            raise RecipeProblem("the prompt has no tokens", next_step="give a longer one")
        if len(ids) >= self.positions:
            raise RecipeProblem(
                f"the prompt has {len(ids):,} tokens, and the model has {self.positions:,} "
                "positions",
                next_step="shorten it",
            )
        return ids

    def load(self, *, tokens: int) -> ReplyGenerator:
        """Loads the weights.

        Args:
            tokens: number of tokens of the longest conversation.
        Raises:
            OutOfMemory: the model does not fit the device.
            CheckpointProblem: the weights do not fit the config.
            NumericsProblem: a weight is not finite.
        """
        dtype = choose_load_dtype(
            self.checkpoint,
            self.config,
            self.settings.dtype,
            self.device,
            tokens=min(tokens, self.positions),
        )
        model = load_transformers_model(self.checkpoint, device=self.device, dtype=dtype)
        return ReplyGenerator(model, self.tokenizer, self.stop_ids, self.settings)


def _require_text(content: str) -> None:
    try:
        content.encode("utf-8")
    except UnicodeEncodeError as error:  # a command-line byte outside UTF-8
        raise RecipeProblem(
            "the prompt is not UTF-8 text", next_step="give text in UTF-8"
        ) from error

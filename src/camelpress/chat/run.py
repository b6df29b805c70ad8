"""One prompt, one reply, and the account of it."""

from __future__ import annotations

from collections.abc import Callable

from camelpress.chat.chat_model import ChatModel
from camelpress.chat.settings import Generate
from camelpress.chat.transformers_decoder import StopReason
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.checkpoint.portable_config import dtype_name
from camelpress.core.errors import RecipeProblem
from camelpress.core.text.tulu_format import Message
from camelpress.reporting.checkpoint_summary import summarize_checkpoint
from camelpress.reporting.stage_report import Report, Stopwatch


def run(
    checkpoint: Checkpoint, prompt: str, settings: Generate, say: Callable[[str], None]
) -> Report:
    """Let a model answer one message.

    Args:
        checkpoint: 16-bit or GPTQ, with its tokenizer.
        prompt: the message, or with the plain template the text that goes on.
        settings: template, draw, length.
        say: gets the text as it comes.
    Raises:
        RecipeProblem: an empty prompt, one that leaves no room for an answer, or no template.
        CheckpointProblem: no readable tokenizer, another family, or a broken template.
        OutOfMemory: the model does not fit.
        KeyboardInterrupt: Ctrl-C, after what was said until then.
    """
    watch = Stopwatch()
    if not prompt.strip():
        raise RecipeProblem("the prompt is empty", next_step="give --prompt TEXT, or text on stdin")
    prepared = ChatModel(checkpoint, settings)
    ids = prepared.encode([*prepared.system_messages, Message(role="user", content=prompt)])
    speaker = prepared.load(tokens=len(ids) + settings.max_new_tokens)
    reply = speaker.reply(ids, say)
    if reply.finish_reason is StopReason.INTERRUPTED:
        raise KeyboardInterrupt
    return Report(
        stage="generate",
        inputs={},
        settings=settings.model_dump(mode="json"),
        facts={
            "model": summarize_checkpoint(checkpoint),
            "text": reply.text,
            "ids": reply.ids,
            "prompt_ids": ids,
            "template": prepared.prompt_format.name,
            "stopped": reply.finish_reason.value,
            "device": speaker.model.device.type,
            "dtype": dtype_name(speaker.model.dtype),
        },
        cost=watch.cost()
        | {
            "reply_seconds": round(reply.seconds, 3),
            "tokens_per_second": round(reply.tokens_per_second, 2),
        },
    )

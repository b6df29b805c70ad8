"""Generate stage: one prompt, one reply and its report."""

from __future__ import annotations

from collections.abc import Callable

from camelpress.chat.chat_model import ChatModel
from camelpress.chat.settings import Generate
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.checkpoint.portable_config import dtype_name
from camelpress.core.errors import RecipeProblem
from camelpress.core.runtime.resource_usage import Stopwatch
from camelpress.core.text.tulu_format import Message
from camelpress.inference.generation.stop_rule import FinishReason
from camelpress.reporting.checkpoint_summary import summarize_checkpoint
from camelpress.reporting.facts.release_facts import GenerationFacts
from camelpress.reporting.report_classes import GenerationReport


def run(
    checkpoint: Checkpoint, prompt: str, settings: Generate, write: Callable[[str], None]
) -> GenerationReport:
    """Generates a reply to one message.

    Args:
        checkpoint: 16-bit or GPTQ checkpoint with its tokenizer.
        prompt: user message; with the plain template, the text to continue.
        settings: chat template, sampling and length of the reply.
        write: callback for each new part of the text.
    Raises:
        RecipeProblem: the prompt is empty or leaves no position for an answer, or there is no
            chat template.
        CheckpointProblem: the tokenizer is unreadable, the model is of another family, or the
            template is broken.
        OutOfMemory: the model does not fit the device.
        KeyboardInterrupt: Ctrl-C was pressed; the text up to then has been written.
    """
    watch = Stopwatch()
    if not prompt.strip():
        raise RecipeProblem("the prompt is empty", next_step="give --prompt TEXT, or text on stdin")
    chat_model = ChatModel(checkpoint, settings)
    ids = chat_model.encode([*chat_model.system_messages, Message(role="user", content=prompt)])
    generator = chat_model.load(tokens=len(ids) + settings.max_new_tokens)
    reply = generator.reply(ids, write)
    if reply.finish_reason is FinishReason.INTERRUPTED:
        raise KeyboardInterrupt
    return GenerationReport(
        stage="generate",
        inputs={},
        settings=settings.model_dump(mode="json"),
        facts=GenerationFacts.build(
            {
                "model": summarize_checkpoint(checkpoint).record,
                "text": reply.text,
                "ids": reply.ids,
                "prompt_ids": ids,
                "template": chat_model.prompt_format.name,
                "stopped": reply.finish_reason.value,
                "device": generator.model.device.type,
                "dtype": dtype_name(generator.model.dtype),
            }
        ),
        cost=watch.cost()
        | {
            "reply_seconds": round(reply.seconds, 3),
            "tokens_per_second": round(reply.tokens_per_second, 2),
        },
    )

"""Reads rows of published data sets, in a layout chosen by the keys of each row.

The conversions are those of Tulu's training data. All share some rules. Encoding strips messages of
blanks, so conversions add no outer newlines. An empty answer stays an answer. A `system` field
comes first in the conversation. Every omitted row, turn or field is counted with its reason.

Source: allenai/open-instruct e44fcf588, open_instruct/reformat_datasets.py. It draws random numbers
from one stream over all data sets, so no draw can be repeated; this version draws by a hash of the
row (`instruction_templates`), with the same shares.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from camelpress.core.documents.chat_turns import is_turn, make_exchange, read_turn
from camelpress.core.documents.instruction_templates import (
    format_few_shot,
    format_instruction,
    stable_seed,
)
from camelpress.core.documents.json_fields import JsonFields, field_name
from camelpress.core.documents.message_trees import TABLE_KEYS, table_paths, tree_paths
from camelpress.core.documents.omissions import Omission
from camelpress.core.text.tulu_format import Message

Conversation = tuple[Message, ...]
Document = str | Conversation
Parts = Iterator[Document | Omission]

DIALOGUE_KEYS = ("messages", "conversations", "conversation")  # keys for lists of turns
SYSTEM_KEYS = ("system", "system_prompt", "system_message")
QUESTION_KEYS = ("instruction", "question", "prompt", "query", "input", "source")  # for advice
ANSWER_KEYS = ("response", "answer", "completion", "output", "target", "chosen")
HUMAN, AI = "[|Human|]", "[|AI|]"
ZERO_SHOT_INSTANCES = 60  # instances per task without examples
FEW_SHOT_INSTANCES = 20  # further instances per task, after examples
FEW_SHOT_EXAMPLES = 2  # examples before a few-shot instance
NATURAL_INSTRUCTIONS_KEYS = ("Definition", "Positive Examples", "Instances")
NO_CONSTRAINTS = ("", "none", "none.")  # constraints that mean none
UNANSWERED_REASON = "no answer follows"


@dataclass(frozen=True)
class DatasetFormat:
    """Row layout of one or more data sets.

    Args:
        name: names of the data sets.
        keys: required fields of a row.
        read: yields the documents of a row, and an omission for each omitted part.
        mark: text required in the first field, if the keys alone are ambiguous.
    """

    name: str
    keys: tuple[str, ...]
    read: Callable[[JsonFields], Iterable[Document | Omission]]
    mark: str = ""

    def matches_row(self, row: JsonFields) -> bool:
        """Returns True if a row has the keys and the mark of this layout."""
        return all(key in row for key in self.keys) and (
            not self.mark or row.contains_text(self.keys[0], self.mark)
        )

    def rank_match(self, row: JsonFields) -> int:
        """Returns the rank of a row's match: 0 with values in all fields, 3 with all null.

        Merged data sets have the fields of all their sources, with null in unused ones. Plain text
        ranks last among fitting layouts, as it is often an extra field of a conversation.
        """
        value_count = sum(row.has_value(key) for key in self.keys)
        if not value_count:
            return 3
        return 2 if self.read is read_plain_text else int(value_count < len(self.keys))


def read_row(row: JsonFields) -> Parts:
    """Yields the documents of a row, and an omission for each omitted part or field."""
    try:
        parts = list(_find_format(row).read(row))
    except Omission as omission:
        yield omission
        return
    documents = sum(not isinstance(part, Omission) for part in parts)
    unit = "rows" if documents == 1 else "conversations"
    for part in parts:
        yield (
            part if isinstance(part, Omission) else _read_or_omit(unit, _finish_document, part, row)
        )
    yield from _unread_fields(row)


def read_table(rows: Sequence[JsonFields]) -> Parts:
    """Yields the conversations of a message table, and an omission for each omitted part."""
    for part in table_paths(rows):
        yield (
            part
            if isinstance(part, Omission)
            else _read_or_omit("conversations", _require_encodable, part)
        )
    for row in rows:
        yield from _unread_fields(row)


def read_plain_text(row: JsonFields) -> Parts:
    """Yields a plain text; a blank text or a single turn is an omission."""
    if is_turn(row):
        raise Omission(
            "it is one message of a conversation, without a message_id",
            next_step=f"give {', '.join(TABLE_KEYS)}, or one conversation a row as messages",
        )
    content = row.text("text")
    if not content.strip():
        raise Omission("text is blank")
    yield content


def read_dialogue(row: JsonFields) -> Parts:
    """Reads turns in the form of open-instruct (role, content) or ShareGPT (from, value)."""
    key = row.first_key(DIALOGUE_KEYS)
    turns = row.children(key)
    if not turns:
        raise Omission(f"{key} is empty")
    yield from read_sharegpt(row, turns) if "from" in turns[0] else read_messages(turns)


def read_messages(turns: list[JsonFields]) -> Parts:
    """Yields a conversation with unchanged roles and contents."""
    yield tuple(read_turn(turn) for turn in turns)


def read_sharegpt(row: JsonFields, turns: list[JsonFields]) -> Parts:
    """Yields a conversation of strictly alternating turns of user and model.

    A last turn without an answer is cut off. As in training, a conversation with other roles
    (system, bing, a tool) or without alternation is omitted. Training first split conversations
    into samples of whole rounds with at most 2,048 tokens. That needs a tokenizer and is not done
    here: a long conversation is cut at the end of the sequence, as in every other data set. Files
    after the split (`sharegpt_html_cleaned_and_split.json`) give the samples of training. Unlike
    training, the alternation accepts all role names of `chat_turns` for user and model, and a
    preferred answer in `chosen` becomes the last turn.
    """
    messages = [read_turn(turn) for turn in turns]
    if row.has_value("chosen"):
        messages.append(read_turn(row.child("chosen")))
    if any(message.role == "system" for message in messages):
        raise Omission("a turn has the role 'system', and training left out such conversations")
    rounds = messages[: len(messages) // 2 * 2]
    if any(turn.role != ("user", "assistant")[index % 2] for index, turn in enumerate(rounds)):
        raise Omission("user and assistant do not take turns, the user first")
    if not rounds:
        raise Omission(UNANSWERED_REASON)
    if len(rounds) < len(messages):
        yield Omission("it is the last of an odd number", "turns")
    yield tuple(rounds)


def read_alpaca(row: JsonFields) -> Parts:
    """Yields Alpaca's instruction, optional input and output as one exchange.

    Stanford Alpaca, GPT4-Alpaca, Code Alpaca and Self-Instruct have this layout.
    """
    context = row.optional_text("input") or row.optional_text("context")
    question = format_instruction(row.text("instruction"), context)
    yield _read_history(row) + make_exchange(question, row.text("output"))


def read_dolly(row: JsonFields) -> Parts:
    """Yields Dolly's instruction, context as input, and response as one exchange."""
    context = row.optional_text("context") or row.optional_text("input")
    question = format_instruction(row.text("instruction"), context)
    yield _read_history(row) + make_exchange(question, row.text("response"))


def read_unnatural(row: JsonFields) -> Parts:
    """Yields an exchange per instance; constraints become a line below the instruction."""
    task = row.text("instruction")

    def read(instance: JsonFields) -> Document:
        constraints = instance.optional_text("constraints")
        constraint_line = "" if constraints.lower() in NO_CONSTRAINTS else f"\n{constraints}"
        question = format_instruction(task + constraint_line, instance.optional_text("input"))
        return make_exchange(question, instance.text("output"))

    yield from (
        _read_or_omit("instances", read, instance) for instance in row.children("instances")
    )


def read_super_ni(row: JsonFields) -> Parts:
    """Yields 60 instances of a task without examples, and 20 more after two examples.

    It uses the first definition, and the first output of an instance. The row does not state if its
    task is in the training data: leave out tasks with `_mmmlu_` in their names, as training did.
    """
    definition = row.texts("Definition")[0]
    instances, examples = row.children("Instances"), row.children("Positive Examples")
    rng = random.Random(stable_seed(definition))  # noqa: S311 - a draw, not a secret
    unused = len(instances) - ZERO_SHOT_INSTANCES - FEW_SHOT_INSTANCES
    if unused > 0:
        instances = rng.sample(instances, ZERO_SHOT_INSTANCES + FEW_SHOT_INSTANCES)
        yield Omission("training took 80 of a task", "instances", unused)

    def zero_shot(instance: JsonFields) -> Document:
        question = format_instruction(definition, instance.text("input"))
        return make_exchange(question, instance.texts("output")[0])

    def two_shot(instance: JsonFields) -> Document:
        few_shot_examples = rng.sample(examples, min(FEW_SHOT_EXAMPLES, len(examples)))
        pairs = [
            {key: example.text(key) for key in ("input", "output")} for example in few_shot_examples
        ]
        question = format_few_shot(definition, pairs, instance.text("input"))
        return make_exchange(question, instance.texts("output")[0])

    for index, instance in enumerate(instances):
        read = zero_shot if index < ZERO_SHOT_INSTANCES else two_shot
        yield _read_or_omit("instances", read, instance)


def read_flan(row: JsonFields) -> Parts:
    """Yields inputs and targets as one exchange, without the newline stripped in training."""
    yield make_exchange(row.text("inputs"), row.text("targets"))


def read_oasst(row: JsonFields) -> Parts:
    """Yields the paths of a message tree (`message_trees`)."""
    yield from tree_paths(row.child("prompt"))


def read_baize(row: JsonFields) -> Parts:
    """Splits a text at the marks of human and AI; a round without answer is an omission."""
    turns: Conversation = ()
    for exchange in row.text("input").split(HUMAN)[1:]:
        question, *answers = exchange.split(AI)
        if len(answers) > 1:
            raise Omission(f"{AI} stands twice in one round")
        if answers:
            turns += make_exchange(question, answers[0])
        elif question.strip():
            yield Omission(UNANSWERED_REASON, "turns")
    if turns:
        yield turns
    else:
        yield Omission(UNANSWERED_REASON)


def read_task_pair(row: JsonFields) -> Parts:
    """Yields a task prompt and its output as one exchange."""
    yield make_exchange(row.text("task_prompt"), row.text("task_output"))


def read_completion(row: JsonFields) -> Parts:
    """Yields a prompt with its only completion; several would count the prompt repeatedly."""
    completions = row.children("completions")
    if len(completions) != 1:
        raise Omission("it has not exactly one completion")
    yield make_exchange(row.text("prompt"), completions[0].text("completion"))


def _finish_document(document: Document, row: JsonFields) -> Document:
    """Returns a document encodable in UTF-8, with the row's system message first."""
    if not isinstance(document, str):
        system = Message(role="system", content=row.optional_text(row.first_key(SYSTEM_KEYS)))
        if system.content.strip() and system != document[0]:
            document = (system, *document)
    return _require_encodable(document)


def _require_encodable(document: Document) -> Document:
    """Returns a document, or raises Omission for text not encodable in UTF-8."""
    contents = [document] if isinstance(document, str) else [turn.content for turn in document]
    try:
        "".join(contents).encode("utf-8")
    except UnicodeEncodeError as error:
        raise Omission("its text has half of a surrogate pair") from error
    return document


def _read_history(row: JsonFields) -> Conversation:
    """Returns the earlier rounds in `history`, pairs of question and answer."""
    if not row.is_truthy("history"):
        return ()
    rounds = row.value("history")
    if not (isinstance(rounds, list) and all(map(_is_round, rounds))):
        raise Omission("history is not a list of pairs of texts")
    return tuple(turn for texts in rounds for turn in make_exchange(*texts))


def _is_round(value: Any) -> bool:
    is_pair = isinstance(value, list) and len(value) == 2
    return is_pair and all(isinstance(part, str) for part in value)


def _read_or_omit(unit: str, read: Callable[..., Document], *parts: Any) -> Document | Omission:
    """Calls a reader, and returns its document or its omission with the given unit."""
    try:
        return read(*parts)
    except Omission as omission:
        return omission.with_unit(unit)


def _unread_fields(row: JsonFields) -> Iterator[Omission]:
    yield from (Omission(name, "fields") for name in row.unread_fields())


def _find_format(row: JsonFields) -> DatasetFormat:
    matches = [layout for layout in DATASET_FORMATS if layout.matches_row(row)]
    if matches:
        return min(matches, key=lambda layout: layout.rank_match(row))
    layouts = [
        ", ".join(layout.keys) + (f" with {layout.mark}" if layout.mark else "")
        for layout in DATASET_FORMATS
    ]
    names = ", ".join(sorted(map(field_name, row)))
    raise Omission(
        f"it has only the fields {names}" if names else "it has no fields",
        next_step=_rename_advice(row)
        or f"use one of the layouts: {'; '.join([*layouts, ', '.join(TABLE_KEYS)])}",
    )


def _rename_advice(row: JsonFields) -> str:
    """Returns advice on renaming the question and answer of a row to fit a layout."""
    question = next((key for key in QUESTION_KEYS if row.contains_text(key, "")), "")
    answer = next((key for key in ANSWER_KEYS if row.contains_text(key, "")), "")
    if not (question and answer):
        return ""
    if question == "instruction":
        return f"rename {answer} to output, as in Alpaca's layout"
    return f"rename {question} to inputs and {answer} to targets, as in FLAN's layout"


# fmt: off
DATASET_FORMATS = (  # name, keys, reader, mark; the first of the best matches wins
    DatasetFormat("Tulu",                   ("messages",),                  read_dialogue),
    DatasetFormat("ShareGPT, WizardLM",     ("conversations",),             read_dialogue),
    DatasetFormat("one conversation",       ("conversation",),              read_dialogue),
    DatasetFormat("Unnatural Instructions", ("instruction", "instances"),   read_unnatural),
    DatasetFormat("Alpaca and its kin",     ("instruction", "output"),      read_alpaca),
    DatasetFormat("Dolly",                  ("instruction", "response"),    read_dolly),
    DatasetFormat("OASST1",                 ("message_tree_id", "prompt"),  read_oasst),
    DatasetFormat("FLAN v2, CoT",           ("inputs", "targets"),          read_flan),
    DatasetFormat("Natural Instructions",   NATURAL_INSTRUCTIONS_KEYS,      read_super_ni),
    DatasetFormat("Baize",                  ("input",),                     read_baize, HUMAN),
    DatasetFormat("prompts and outputs",    ("task_prompt", "task_output"), read_task_pair),
    DatasetFormat("prompts, completions",   ("prompt", "completions"),      read_completion),
    DatasetFormat("plain text",             ("text",),                      read_plain_text),
)
# fmt: on

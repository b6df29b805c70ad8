"""Reads rows of published data sets, each in the layout that its keys tell.

The conversions are those that made Tulu's training data. Some rules hold for all of them: every
message loses the blanks around it when it is encoded, so newlines that a conversion puts there
have no effect and are not put there; an empty answer stays an answer; a `system` field comes first
in the conversation; a row, turn or field that is left out is counted with its reason.

Source: allenai/open-instruct e44fcf588, open_instruct/reformat_datasets.py. Where it drew random
numbers from one stream over all data sets, so that no draw can be repeated, ours come from a hash
of the row (`core.templates`); its shares are kept.
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

DIALOGUE_KEYS = ("messages", "conversations", "conversation")  # keys of lists of turns
SYSTEM_KEYS = ("system", "system_prompt", "system_message")
QUESTION_KEYS = ("instruction", "question", "prompt", "query", "input", "source")  # not of a layout
ANSWER_KEYS = ("response", "answer", "completion", "output", "target", "chosen")
HUMAN, AI = "[|Human|]", "[|AI|]"
ZERO_SHOT_INSTANCES, FEW_SHOT_INSTANCES, FEW_SHOT_EXAMPLES = (
    60,
    20,
    2,
)  # instances of a task, and examples shown with the latter
NO_CONSTRAINTS = ("", "none", "none.")
UNANSWERED_REASON = "no answer follows"


@dataclass(frozen=True)
class DatasetFormat:
    """One way of writing documents down.

    Args:
        name: the data sets that are written so.
        keys: the fields of a row; it may have more.
        read: yields the documents of such a row, and an omission for each part that is left out.
        mark: a text that the first field must hold, where the keys alone are ambiguous.
    """

    name: str
    keys: tuple[str, ...]
    read: Callable[[JsonFields], Iterable[Document | Omission]]
    mark: str = ""

    def matches_row(self, row: JsonFields) -> bool:
        """Returns whether a row is of this layout, by its keys."""
        return all(key in row for key in self.keys) and (
            not self.mark or row.contains_text(self.keys[0], self.mark)
        )

    def rank_match(self, row: JsonFields) -> int:
        """Returns how badly a row fits: 0 where all fields are given, 3 where all are null.

        Merged data sets have the fields of all, with null in those of the others. Plain text comes
        last of the layouts that fit, as it is often an extra field of a conversation.
        """
        given = sum(row.has_value(key) for key in self.keys)
        if not given:
            return 3
        return 2 if self.read is read_plain_text else int(given < len(self.keys))


def read_row(row: JsonFields) -> Parts:
    """Yields the documents of a row, and an omission for each part or field that is left out."""
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
    """Yields the conversations of a table of messages, and an omission for all that is left out."""
    for part in table_paths(rows):
        yield (
            part
            if isinstance(part, Omission)
            else _read_or_omit("conversations", _require_encodable, part)
        )
    for row in rows:
        yield from _unread_fields(row)


def read_plain_text(row: JsonFields) -> Parts:
    """Yields a plain text, and leaves out a blank one and a single turn of a conversation."""
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
    """Reads turns as open-instruct writes them (role, content) or ShareGPT does (from, value)."""
    key = row.first_key(DIALOGUE_KEYS)
    turns = row.children(key)
    if not turns:
        raise Omission(f"{key} is empty")
    yield from read_sharegpt(row, turns) if "from" in turns[0] else read_messages(turns)


def read_messages(turns: list[JsonFields]) -> Parts:
    """Keeps roles and contents as they are."""
    yield tuple(read_turn(turn) for turn in turns)


def read_sharegpt(row: JsonFields, turns: list[JsonFields]) -> Parts:
    """Turns of user and model in strict alternation; a last turn without an answer is cut off.

    As in training, a conversation with a turn of anyone else (system, bing, a tool) is left out,
    and so is one that does not alternate. Before, training split conversations into samples of at
    most 2,048 tokens of whole rounds; that needs a tokenizer, is not done here, and a long
    conversation is cut where the sequence ends, as those of every other data set. Files that were
    split already (`sharegpt_html_cleaned_and_split.json`) give what training saw. Ours differs: all
    words of `core.turns` for user and model count in the alternation, and a preferred answer in
    `chosen` is the last turn.
    """
    talk = [read_turn(turn) for turn in turns]
    if row.has_value("chosen"):
        talk.append(read_turn(row.child("chosen")))
    if any(turn.role == "system" for turn in talk):
        raise Omission("a turn has the role 'system', and training left out such conversations")
    rounds = talk[: len(talk) // 2 * 2]
    if any(turn.role != ("user", "assistant")[place % 2] for place, turn in enumerate(rounds)):
        raise Omission("user and assistant do not take turns, the user first")
    if not rounds:
        raise Omission(UNANSWERED_REASON)
    if len(rounds) < len(talk):
        yield Omission("it is the last of an odd number", "turns")
    yield tuple(rounds)


def read_alpaca(row: JsonFields) -> Parts:
    """Alpaca's fields, in one of the templates of `core.templates`; the input may be missing.

    So are Stanford Alpaca, GPT4-Alpaca, Code Alpaca and Self-Instruct written.
    """
    context = row.optional_text("input") or row.optional_text("context")
    question = format_instruction(row.text("instruction"), context)
    yield _read_history(row) + make_exchange(question, row.text("output"))


def read_dolly(row: JsonFields) -> Parts:
    """The context counts as input; the category is not used."""
    context = row.optional_text("context") or row.optional_text("input")
    question = format_instruction(row.text("instruction"), context)
    yield _read_history(row) + make_exchange(question, row.text("response"))


def read_unnatural(row: JsonFields) -> Parts:
    """Every instance; constraints, where there are any, are a line below the instruction."""
    task = row.text("instruction")

    def read(instance: JsonFields) -> Document:
        constraints = instance.optional_text("constraints")
        below = "" if constraints.lower() in NO_CONSTRAINTS else f"\n{constraints}"
        question = format_instruction(task + below, instance.optional_text("input"))
        return make_exchange(question, instance.text("output"))

    yield from (
        _read_or_omit("instances", read, instance) for instance in row.children("instances")
    )


def read_super_ni(row: JsonFields) -> Parts:
    """A task: 60 instances by themselves, 20 more after two of the task's examples.

    The first definition and the first output of an instance are used. Which tasks belong to the
    training data is not in the row: leave out those with `_mmmlu_` in their names, as training did.
    """
    definition = row.texts("Definition")[0]
    instances, examples = row.children("Instances"), row.children("Positive Examples")
    draw = random.Random(stable_seed(definition))  # noqa: S311 - a draw, not a secret
    unused = len(instances) - ZERO_SHOT_INSTANCES - FEW_SHOT_INSTANCES
    if unused > 0:
        instances = draw.sample(instances, ZERO_SHOT_INSTANCES + FEW_SHOT_INSTANCES)
        yield Omission("training took 80 of a task", "instances", unused)

    def zero_shot(instance: JsonFields) -> Document:
        question = format_instruction(definition, instance.text("input"))
        return make_exchange(question, instance.texts("output")[0])

    def two_shot(instance: JsonFields) -> Document:
        shown = draw.sample(examples, min(FEW_SHOT_EXAMPLES, len(examples)))
        pairs = [{key: example.text(key) for key in ("input", "output")} for example in shown]
        question = format_few_shot(definition, pairs, instance.text("input"))
        return make_exchange(question, instance.texts("output")[0])

    for place, instance in enumerate(instances):
        read = zero_shot if place < ZERO_SHOT_INSTANCES else two_shot
        yield _read_or_omit("instances", read, instance)


def read_flan(row: JsonFields) -> Parts:
    """Inputs and targets; the newline that the conversion adds is stripped again in training."""
    yield make_exchange(row.text("inputs"), row.text("targets"))


def read_oasst(row: JsonFields) -> Parts:
    """Yields the paths of a tree (`core.message_trees`)."""
    yield from tree_paths(row.child("prompt"))


def read_baize(row: JsonFields) -> Parts:
    """Splits one text where human and AI begin to speak, and leaves out a round without answer."""
    talk: Conversation = ()
    for turn in row.text("input").split(HUMAN)[1:]:
        question, *answers = turn.split(AI)
        if len(answers) > 1:
            raise Omission(f"{AI} stands twice in one round")
        if answers:
            talk += make_exchange(question, answers[0])
        elif question.strip():
            yield Omission(UNANSWERED_REASON, "turns")
    if talk:
        yield talk
    else:
        yield Omission(UNANSWERED_REASON)


def read_task_pair(row: JsonFields) -> Parts:
    """A prompt and an output."""
    yield make_exchange(row.text("task_prompt"), row.text("task_output"))


def read_completion(row: JsonFields) -> Parts:
    """The answer of one model; those of several would count the prompt more than once."""
    completions = row.children("completions")
    if len(completions) != 1:
        raise Omission("it has not exactly one completion")
    yield make_exchange(row.text("prompt"), completions[0].text("completion"))


def _finish_document(document: Document, row: JsonFields) -> Document:
    """Returns a document that UTF-8 can hold, a conversation after the row's system message."""
    if not isinstance(document, str):
        system = Message(role="system", content=row.optional_text(row.first_key(SYSTEM_KEYS)))
        if system.content.strip() and system != document[0]:
            document = (system, *document)
    return _require_encodable(document)


def _require_encodable(document: Document) -> Document:
    """Returns a document that UTF-8 can hold."""
    contents = [document] if isinstance(document, str) else [turn.content for turn in document]
    try:
        "".join(contents).encode("utf-8")
    except UnicodeEncodeError as error:
        raise Omission("its text has half of a surrogate pair") from error
    return document


def _read_history(row: JsonFields) -> Conversation:
    """Returns the rounds before an instruction, which some sets give as pairs in `history`."""
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
    """Returns a document, or the reason why a part of that unit gives none."""
    try:
        return read(*parts)
    except Omission as omission:
        return omission.with_unit(unit)


def _unread_fields(row: JsonFields) -> Iterator[Omission]:
    yield from (Omission(name, "fields") for name in row.unread_fields())


def _find_format(row: JsonFields) -> DatasetFormat:
    fitting = [layout for layout in DATASET_FORMATS if layout.matches_row(row)]
    if fitting:
        return min(fitting, key=lambda layout: layout.rank_match(row))
    known = [
        ", ".join(layout.keys) + (f" with {layout.mark}" if layout.mark else "")
        for layout in DATASET_FORMATS
    ]
    names = ", ".join(sorted(map(field_name, row)))
    raise Omission(
        f"it has only the fields {names}" if names else "it has no fields",
        next_step=_rename_advice(row)
        or f"use one of the layouts: {'; '.join([*known, ', '.join(TABLE_KEYS)])}",
    )


def _rename_advice(row: JsonFields) -> str:
    """Returns how to name the question and the answer of a row so that a layout fits it."""
    question = next((key for key in QUESTION_KEYS if row.contains_text(key, "")), "")
    answer = next((key for key in ANSWER_KEYS if row.contains_text(key, "")), "")
    if not (question and answer):
        return ""
    if question == "instruction":
        return f"rename {answer} to output, as in Alpaca's layout"
    return f"rename {question} to inputs and {answer} to targets, as in FLAN's layout"


# fmt: off
DATASET_FORMATS = (  # the first of those that fit best
    DatasetFormat("Tulu",                   ("messages",),                  read_dialogue),
    DatasetFormat("ShareGPT, WizardLM",     ("conversations",),             read_dialogue),
    DatasetFormat("one conversation",       ("conversation",),              read_dialogue),
    DatasetFormat("Unnatural Instructions", ("instruction", "instances"),   read_unnatural),
    DatasetFormat("Alpaca and its kin",     ("instruction", "output"),      read_alpaca),
    DatasetFormat("Dolly",                  ("instruction", "response"),    read_dolly),
    DatasetFormat("OASST1",                 ("message_tree_id", "prompt"),  read_oasst),
    DatasetFormat("FLAN v2, CoT",           ("inputs", "targets"),          read_flan),
    DatasetFormat("Natural Instructions",   ("Definition", "Positive Examples", "Instances"), read_super_ni),
    DatasetFormat("Baize",                  ("input",),                     read_baize, HUMAN),
    DatasetFormat("prompts and outputs",    ("task_prompt", "task_output"), read_task_pair),
    DatasetFormat("prompts, completions",   ("prompt", "completions"),      read_completion),
    DatasetFormat("plain text",             ("text",),                      read_plain_text),
)
# fmt: on

"""How a row of a file becomes documents: one layout per published data set, told by its own keys.

The conversions are those that made Tulu's training data. What holds for all of them: every
message loses the blanks around it when it is encoded, so newlines that a conversion puts there
have no effect and are not put there; an empty answer stays an answer; a row without any turn is
dropped.

Source: allenai/open-instruct e44fcf588, open_instruct/reformat_datasets.py. Where it drew random
numbers from one stream over all data sets, so that no draw can be repeated, ours come from a hash
of the row (`core.templates`); its shares are kept.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from camelpress.core.prompt import Message
from camelpress.core.templates import few_shot, number_of, written

Conversation = tuple[Message, ...]
Document = str | Conversation
Row = Mapping[str, Any]

SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant"}
TREE_ROLES = {"prompter": "user", "assistant": "assistant"}
HUMAN, AI = "[|Human|]", "[|AI|]"
ZERO_SHOT, FEW_SHOT, SHOWN = 60, 20, 2  # instances of a task, and examples shown with the latter
NO_CONSTRAINTS = ("", "none", "none.")


@dataclass(frozen=True)
class Layout:
    """One way of writing documents down.

    Args:
        name: the data sets that are written so.
        keys: what a row has; it may have more.
        read: all documents of such a row; a ValueError says in its own words what is wrong.
        mark: what the first key's text must hold, where the keys alone tell too little.
    """

    name: str
    keys: tuple[str, ...]
    read: Callable[[Row], Iterable[Document]]
    mark: str = ""

    def fits(self, row: Row) -> bool:
        """Whether a row is of this layout, by its keys."""
        return all(key in row for key in self.keys) and (
            not self.mark or self.mark in str(row[self.keys[0]])
        )


def text(row: Row) -> Iterator[Document]:
    """A plain text; a blank one is dropped."""
    content: str = row["text"]
    if content.strip():
        yield content


def messages(row: Row) -> Iterator[Document]:
    """What open-instruct writes and its training reads: roles and contents as they are."""
    yield tuple(Message(role=turn["role"], content=turn["content"]) for turn in row["messages"])


def instruction(row: Row) -> Iterator[Document]:
    """Alpaca's fields, in one of the templates of `core.templates`; the input may be missing.

    So are Stanford Alpaca, GPT4-Alpaca, Code Alpaca and Self-Instruct written.
    """
    yield _turn(written(row["instruction"], row.get("input", "")), row["output"])


def dolly(row: Row) -> Iterator[Document]:
    """The context counts as input; the category is not used."""
    yield _turn(written(row["instruction"], row.get("context", "")), row["response"])


def unnatural(row: Row) -> Iterator[Document]:
    """Every instance; constraints, where there are any, are a line below the instruction."""
    for instance in row["instances"]:
        constraints = instance["constraints"] or ""
        asked = row["instruction"]
        if constraints.lower() not in NO_CONSTRAINTS:
            asked += f"\n{constraints}"
        yield _turn(written(asked, instance["input"]), instance["output"])


def super_ni(row: Row) -> Iterator[Document]:
    """A task: 60 instances by themselves, 20 more after two of the task's examples.

    The first definition and the first output of an instance are used. Which tasks belong to the
    training data is not in the row: leave out those with `_mmmlu_` in their names, as training did.
    """
    definition, instances, examples = (
        row["Definition"][0],
        row["Instances"],
        row["Positive Examples"],
    )
    draw = random.Random(number_of(definition))  # noqa: S311 - a draw, not a secret
    if len(instances) > ZERO_SHOT + FEW_SHOT:
        instances = draw.sample(instances, ZERO_SHOT + FEW_SHOT)
    for place, instance in enumerate(instances):
        if place < ZERO_SHOT:
            asked = written(definition, instance["input"])
        else:
            shown = draw.sample(examples, min(SHOWN, len(examples)))
            asked = few_shot(definition, shown, instance["input"])
        yield _turn(asked, instance["output"][0])


def flan(row: Row) -> Iterator[Document]:
    """Inputs and targets; the newline that the conversion adds is stripped again in training."""
    yield _turn(row["inputs"], row["targets"])


def oasst(row: Row) -> Iterator[Document]:
    """Every path from the first prompt to an answer, whether or not the talk goes on from there.

    So beginnings repeat, as in Tulu 1. Later versions of the conversion took only last answers,
    dropped messages that were marked deleted and could keep the best replies; none of that here.
    """
    waiting: list[tuple[Row, Conversation]] = [(row["prompt"], ())]
    while waiting:
        node, before = waiting.pop()
        role = node["role"]
        if role not in TREE_ROLES:
            raise ValueError(f"with a role {role!r} in the tree")
        path = (
            *before,
            Message.model_validate({"role": TREE_ROLES[role], "content": node["text"]}),
        )
        if role == "assistant":
            yield path
        waiting += [(reply, path) for reply in reversed(node["replies"])]


def sharegpt(row: Row) -> Iterator[Document]:
    """Turns of user and model in strict alternation; a last turn without an answer is cut off.

    As in training, a conversation with a turn of anyone else (system, bing, a tool) is dropped, and
    so is one that does not alternate. Before, training split conversations into samples of at most
    2,048 tokens of whole rounds; that needs a tokenizer, is not done here, and a long conversation
    is cut where the sequence ends, as those of every other data set. Files that were split already
    (`sharegpt_html_cleaned_and_split.json`) give what training saw. Ours differs: `user` and
    `chatgpt` count as `human` and `gpt` in the alternation, too, and a preferred answer in `chosen`
    is the last turn.
    """
    turns = [*row["conversations"], *([row["chosen"]] if "chosen" in row else [])]
    if not all(turn["from"] in SPEAKERS for turn in turns):
        return
    said = tuple(
        Message.model_validate({"role": SPEAKERS[turn["from"]], "content": turn["value"]})
        for turn in turns[: len(turns) // 2 * 2]
    )
    if all(turn.role == ("user", "assistant")[place % 2] for place, turn in enumerate(said)):
        yield said


def baize(row: Row) -> Iterator[Document]:
    """One text, split where human and AI begin to speak; a round without an answer is dropped."""
    said: Conversation = ()
    for turn in row["input"].split(HUMAN)[1:]:
        asked, *answers = turn.split(AI)
        if len(answers) > 1:
            raise ValueError(f"with {AI} twice in one round")
        if answers:
            said += _turn(asked, answers[0])
    yield said


def pair(row: Row) -> Iterator[Document]:
    """A prompt and an output."""
    yield _turn(row["task_prompt"], row["task_output"])


def completion(row: Row) -> Iterator[Document]:
    """The answer of one model; those of several would count the prompt more than once."""
    if len(row["completions"]) != 1:
        raise ValueError("not exactly one completion")
    yield _turn(row["prompt"], row["completions"][0]["completion"])


def _turn(user: str, answer: str) -> Conversation:
    return (Message(role="user", content=user), Message(role="assistant", content=answer))


# fmt: off
LAYOUTS = (  # the first that fits
    Layout("Tulu",                   ("messages",),                  messages),
    Layout("ShareGPT, WizardLM",     ("conversations",),             sharegpt),
    Layout("Unnatural Instructions", ("instruction", "instances"),   unnatural),
    Layout("Alpaca and its kin",     ("instruction", "output"),      instruction),
    Layout("Dolly",                  ("instruction", "response"),    dolly),
    Layout("OASST1",                 ("message_tree_id", "prompt"),  oasst),
    Layout("FLAN v2, CoT",           ("inputs", "targets"),          flan),
    Layout("Natural Instructions",   ("Definition", "Positive Examples", "Instances"), super_ni),
    Layout("Baize",                  ("input",),                     baize, HUMAN),
    Layout("prompts and outputs",    ("task_prompt", "task_output"), pair),
    Layout("prompts, completions",   ("prompt", "completions"),      completion),
    Layout("plain text",             ("text",),                      text),
)
# fmt: on

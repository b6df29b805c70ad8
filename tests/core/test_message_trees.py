"""A table of messages gives the conversations of the trees that it was made of."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from camelpress.core.documents.document_reader import Corpus, read_corpus

ROLES = ("prompter", "assistant")


def corpus_of(folder: Path, *rows: Any, name: str = "rows.jsonl") -> Corpus:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return read_corpus(path)


def message(name: Any, parent: Any, role: str, **more: Any) -> dict[str, Any]:
    return {"message_id": name, "parent_id": parent, "role": role, "text": f"text {name}", **more}


def contents(corpus: Corpus) -> list[list[str]]:
    return [
        [turn.content.removeprefix("text ") for turn in document]
        for document in corpus.documents
        if not isinstance(document, str)
    ]


def random_tree(draw: random.Random, depth: int, names: Iterator[int]) -> dict[str, Any]:
    replies = [random_tree(draw, depth + 1, names) for _ in range(draw.randrange(4 - depth))]
    name = next(names)
    return {
        "message_id": name,
        "role": ROLES[depth % 2],
        "text": f"text {name}",
        "replies": replies,
    }


def flat(tree: dict[str, Any], parent: int | None = None) -> Iterator[dict[str, Any]]:
    node = {key: value for key, value in tree.items() if key != "replies"}
    yield node | {"parent_id": parent}
    for reply in tree["replies"]:
        yield from flat(reply, tree["message_id"])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("missing", ["null", "absent", "NaN"])
def test_a_table_gives_what_its_trees_give(tmp_path: Path, seed: int, missing: str) -> None:
    draw, names = random.Random(seed), iter(range(10_000))
    trees = [random_tree(draw, 0, names) for _ in range(6)]
    rows = [row for tree in trees for row in flat(tree)]
    for row in rows:
        if row["parent_id"] is None and missing == "absent":
            del row["parent_id"]
        elif row["parent_id"] is None and missing == "NaN":
            row["parent_id"] = float("nan")
    nested = [{"message_tree_id": tree["message_id"], "prompt": tree} for tree in trees]
    expected = corpus_of(tmp_path, *nested)
    table = corpus_of(tmp_path, *rows, name="table.jsonl")
    assert table.documents == expected.documents
    assert table.omissions["messages"] == expected.omissions["messages"]
    draw.shuffle(rows)
    shuffled = corpus_of(tmp_path, *rows, name="shuffled.jsonl")
    assert sorted(contents(shuffled)) == sorted(contents(expected))


def test_every_answer_of_any_rank_and_language_ends_a_conversation(tmp_path: Path) -> None:
    corpus = corpus_of(
        tmp_path,
        message("a", None, "prompter", lang="en"),
        message("b", "a", "assistant", lang="en", rank=1),
        message("c", "a", "assistant", lang="de", rank=0),
        message("d", "b", "prompter", rank=None),
        message("e", "d", "assistant"),
    )
    assert contents(corpus) == [["a", "b"], ["a", "b", "d", "e"], ["a", "c"]]
    assert corpus.omissions == {"fields": {"lang": 3, "rank": 2}}


def test_what_is_left_out_of_a_table_is_counted_message_by_message(tmp_path: Path) -> None:
    corpus = corpus_of(
        tmp_path,
        message("a", None, "prompter"),
        message("b", "a", "assistant"),
        message("b", "a", "assistant"),
        message("c", "b", "prompter"),
        message("d", "a", "assistant", deleted=True),
        message("e", "d", "prompter"),
        message("f", "e", "assistant"),
        message("g", "lost", "assistant"),
        message("h", "g", "prompter"),
        message("i", "j", "prompter"),
        message("j", "i", "assistant"),
        message("k", None, "assistant"),
        message("l", "a", "narrator"),
        message("m", "a", "assistant") | {"text": None},
        message(["n"], "a", "assistant"),
    )
    assert contents(corpus) == [["a", "b"]]
    assert corpus.rows == 15
    assert corpus.omissions["messages"] == {
        "message_id appears twice": 1,
        "message_id is a list": 1,
        "no answer follows": 1,
        "it is marked as deleted": 1,
        "it replies to a message that is left out": 2,
        "a turn has the role 'narrator'": 1,
        "text is null": 1,
        "it is an answer without a parent": 1,
        "no path leads to it from a first prompt": 4,
    }


def test_broken_replies_of_a_tree_are_counted_and_the_rest_is_read(tmp_path: Path) -> None:
    def node(role: str, text: Any, *replies: Any) -> dict[str, Any]:
        return {"role": role, "text": text, "replies": list(replies)}

    answers = [
        node("assistant", "A"),
        node("assistant", None, node("prompter", "lost")),
        {"role": "assistant", "text": "B", "replies": None},
        {"role": "assistant", "text": "C", "replies": "none"},
    ]
    corpus = corpus_of(tmp_path, {"message_tree_id": 1, "prompt": node("prompter", "Q", *answers)})
    assert contents(corpus) == [["Q", "A"], ["Q", "B"]]
    assert corpus.omissions["messages"] == {
        "text is null": 1,
        "it replies to a message that is left out": 1,
        "replies is text, not a list": 1,
    }

"""A server cannot fill the memory with an answer, nor the disk with a file."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants, get_session, set_client_factory
from huggingface_hub.utils import _http

from camelpress.core.errors import CheckpointProblem, DataProblem, Problem
from camelpress.core.hub import bounded_answers
from camelpress.core.hub.bounded_answers import OversizedAnswer, bound_answers
from camelpress.core.hub.model_location import locate_file, locate_model
from camelpress.core.input_limits import MAX_ANSWER_BYTES
from camelpress.validate.tasks.task_data import HubDataset as DataSet
from camelpress.validate.tasks.task_data import read_hub_rows
from long_answers import PIECE, Reply, endless, replying, send_endless, send_head

PACKED = gzip.compress(b" " * 80 * 10**6)
COMMIT = "c" * 40
LIMIT = 1_000_000  # bytes of a file whose size no server states, in these tests


def sized(handler: BaseHTTPRequestHandler) -> None:
    """Sends the 80 MB that it states."""
    send_head(handler, 200, Content_Type="application/json", Content_Length=80 * 10**6)
    for _ in range(80 * 10**6 // len(PIECE)):
        handler.wfile.write(PIECE)


def packed(handler: BaseHTTPRequestHandler) -> None:
    """Sends 80 KB that unpack to 80 MB."""
    send_head(handler, 200, Content_Encoding="gzip", Content_Length=len(PACKED))
    handler.wfile.write(PACKED)


def redirected(handler: BaseHTTPRequestHandler) -> None:
    send_head(handler, 302, Location="/there", Transfer_Encoding="chunked")
    send_endless(handler)


@contextmanager
def hub_of(monkeypatch: pytest.MonkeyPatch, cache: Path, reply: Reply) -> Iterator[str]:
    """A hub that gives every request the same answer, and an empty cache."""
    with replying(reply) as endpoint:
        files = f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("NO_PROXY", "*")
        _http.close_session()
        yield endpoint
        _http.close_session()


def refusal_of(kind: type[Problem], ask: Callable[[], object]) -> Problem:
    with pytest.raises(kind) as problem:
        ask()
    assert len(str(problem.value).splitlines()) == 1
    assert problem.value.next_step.startswith("see whether HF_ENDPOINT names a hub")
    return problem.value


@pytest.mark.parametrize(
    "reply",
    [endless, partial(endless, status=400), sized, packed, redirected],
    ids=["endless", "error", "sized", "packed", "redirected"],
)
def test_a_long_answer_of_the_hub_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reply: Reply
) -> None:
    with hub_of(monkeypatch, tmp_path, reply):
        tracemalloc.start()
        problem = refusal_of(CheckpointProblem, lambda: locate_model(Path("hf:pico/base")))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert problem.message == (
        "the hub answers otherwise than a hub does (it sends more than 16,777,216 bytes in one "
        "answer)"
    )
    assert peak < 3 * MAX_ANSWER_BYTES


def test_a_short_answer_is_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = json.dumps("x" * (MAX_ANSWER_BYTES - 2)).encode()

    def whole(handler: BaseHTTPRequestHandler) -> None:
        send_head(handler, 200, Content_Length=len(content))
        handler.wfile.write(content)

    bound_answers()
    with hub_of(monkeypatch, tmp_path, whole) as endpoint:
        assert get_session().get(endpoint).content == content
        monkeypatch.setattr(bounded_answers, "MAX_ANSWER_BYTES", MAX_ANSWER_BYTES - 1)
        with pytest.raises(OversizedAnswer):
            get_session().get(endpoint)


def test_a_data_set_of_a_benchmark_is_asked_for_within_the_bounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets", reason="needs camelpress[tasks]")
    bound_answers.cache_clear()
    set_client_factory(_http.default_client_factory)
    with hub_of(monkeypatch, tmp_path, sized) as endpoint:
        monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: get_session().get(endpoint))
        with pytest.raises(DataProblem, match="OversizedAnswer"):
            next(read_hub_rows(DataSet("org/data", "main", "test")))


def file_of(handler: BaseHTTPRequestHandler, size: Mapping[str, object]) -> None:
    """Sends the head of a file, then blanks without end where it is asked for them."""
    length = size if handler.command == "HEAD" else {"Transfer_Encoding": "chunked"}
    send_head(handler, 200, X_Repo_Commit=COMMIT, ETag='"sea"', **length)
    send_endless(handler)


@pytest.mark.parametrize(
    ("size", "limit"), [({"Content_Length": 1000}, "1,000"), ({}, "1,000,000")]
)
def test_a_file_ends_at_the_size_that_was_stated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: dict[str, int], limit: str
) -> None:
    monkeypatch.setattr(bounded_answers, "MAX_UNSIZED_FILE_BYTES", LIMIT)
    with hub_of(monkeypatch, tmp_path, partial(file_of, size=size)):
        problem = refusal_of(DataProblem, lambda: locate_file(Path("hf:pico/data:a.txt")))
    assert f"it sends more than {limit} bytes in one answer" in problem.message
    assert not [path for path in tmp_path.rglob("*.incomplete") if path.is_file()]


def paged(handler: BaseHTTPRequestHandler, pages: int) -> None:
    """Sends the commit of a model, or a page of its files, the last of which is number `pages`."""
    number = int(handler.path.partition("page=")[2] or 1)
    listed = [{"type": "file", "path": f"{number}.md", "size": 1, "oid": COMMIT}]
    content = json.dumps(listed if "/tree/" in handler.path else {"id": "a/b", "sha": COMMIT})
    address = f"HTTP://{handler.headers['Host']}/api/models/a/b/tree/x?page={number + 1}"
    more = "/tree/" in handler.path and number < pages
    link = {"Link": f'<{address}>; rel="next"'} if more else {}
    send_head(handler, 200, Content_Length=len(content), **link)
    handler.wfile.write(content.encode())


@pytest.mark.parametrize("pages", [5, 6])
def test_a_listing_ends_after_so_many_pages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pages: int
) -> None:
    monkeypatch.setattr(bounded_answers, "MAX_LISTING_PAGES", 5)
    bound_answers()
    with hub_of(monkeypatch, tmp_path, partial(paged, pages=pages)) as endpoint:
        files = HfApi(endpoint).list_repo_tree("a/b")
        if pages == 5:
            assert len(list(files)) == 5
            assert len(list(HfApi(endpoint).list_repo_tree("a/b"))) == 5
            return
        problem = refusal_of(CheckpointProblem, lambda: locate_model(Path("hf:a/b")))
    assert problem.message == (
        "the hub answers otherwise than a hub does (it lists one repository in more than 5 answers)"
    )

"""Fuzz targets of texts, releases, stores, and what an unfinished run leaves for the next one."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import pico
import recipes
import stages
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.documents.document_reader import read_corpus
from camelpress.core.errors import Interruption, Problem
from camelpress.core.files.file_hashes import CHECKSUM_FILE, PROVENANCE_FILE
from camelpress.core.output.journal import JOURNAL_FILE, Journal
from camelpress.core.output.unfinished_output import MARK_FILE, ResumeKey, begin_output
from camelpress.pipeline import recipe
from camelpress.pipeline import run as pipeline
from camelpress.pipeline.rebuild import rebuild_release
from camelpress.publish import release_diff
from camelpress.publish.card import model_card
from camelpress.publish.run import run as publish
from camelpress.publish.settings import PublishSettings
from camelpress.publish.verify_release import verify_release
from camelpress.reporting.plots import card_plots
from camelpress.reporting.report_classes import read_report
from camelpress.validate.settings import StoreSettings
from camelpress.validate.store.build_store import build_store as keep
from camelpress.validate.store.prediction_store import PredictionStore
from fuzzing import target
from mutations import Mutation, dump, either, mutate_bytes, mutate_header, mutate_json

Files = Mapping[str, bytes]
PROSE = "The whale swam, and the ship went on. [1] A note.\nThe old man looked at the sea.\n" * 4
TURNS = [{"role": "user", "content": "a whale"}, {"role": "assistant", "content": "the sea"}]
ROWS: tuple[dict[str, Any], ...] = (
    {"messages": TURNS},
    {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
    {"instruction": "say", "input": "", "output": "whale", "system": "be brief"},
    {"text": "the white whale"},
    {"prompt": "a", "completion": "b"},
    {"message_id": "1", "parent_id": None, "text": "a", "role": "prompter"},
    {"message_id": "2", "parent_id": "1", "text": "b", "role": "assistant"},
)
MADE_FROM: ResumeKey = {"stage": "recover", "threads": 1, "inputs": {"base": "5e" * 32}}
MARK = {
    "camelpress": "an output that is being made",
    "made_from": MADE_FROM,
    "writes": ["*.json"],
}


def mutate_part(part: Mutation) -> Mutation:
    """Returns a mutation of seeds that begin with a line, which stays as it is."""

    def mutate(random: Random, seeds: Sequence[bytes]) -> bytes:
        name, _, content = random.choice(seeds).partition(b"\n")
        return name + b"\n" + part(random, [content])

    return mutate


JSON_PART = mutate_part(either(mutate_json, mutate_json, mutate_bytes))


def _rows(_: Path) -> Sequence[bytes]:
    lines = b"".join(dump(row) + b"\n" for row in ROWS)
    return [lines, dump(list(ROWS)), dump({"data": list(ROWS[:2]), "license": "x"}), PROSE.encode()]


@target("text", seeds=_rows)
def read_text(content: bytes, folder: Path) -> None:
    """Reads a damaged text under names that promise rows, prose and a compressed file."""
    for name in ("a.jsonl", "a.txt", "a.txt.gz"):
        path = folder / name
        path.write_bytes(content)
        _or_problem(partial(read_corpus, path))


@target("text-rows", seeds=lambda _: [dump(row) for row in ROWS] + [dump(list(ROWS))],
        mutate=mutate_json)  # fmt: skip
def read_rows(content: bytes, folder: Path) -> None:
    """Reads rows with other values."""
    path = folder / "a.json"
    path.write_bytes(content)
    for document in read_corpus(path).documents:
        repr(document).encode("utf-8", "backslashreplace")


def _or_problem(work: Callable[[], object]) -> None:
    try:
        work()
    except Problem as problem:
        if len(str(problem).splitlines()) != 1:
            raise AssertionError("a message of several lines") from problem


@cache
def _run() -> dict[str, bytes]:
    """Returns all files that a whole small run leaves, by their paths."""
    with TemporaryDirectory() as name, patch.object(card_plots, "draw_card_plots", _draw):
        place = Path(name)
        pipeline.run(recipe.read_recipe(recipes.write_recipe(place)))
        settings = StoreSettings.parse(
            {"text": (place / "prose.txt",), "sequence_length": 64}, source="x"
        )
        keep(Checkpoint.open(place / "out/recovered"), place / "out/store", settings)
        paths = [path for path in place.rglob("*") if path.is_file()]
        return {path.relative_to(place).as_posix(): path.read_bytes() for path in paths}


def _draw(_: object, path: Path) -> None:
    path.write_bytes(b"")


def _part(folder: str) -> Files:
    """Returns the files of one folder of the run."""
    prefix = f"{folder}/"
    return {
        path.removeprefix(prefix): content
        for path, content in _run().items()
        if path.startswith(prefix)
    }


def _write(files: Files, folder: Path) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _named(files: Files, *names: str) -> list[bytes]:
    return [name.encode() + b"\n" + files[name] for name in names]


def _changed(content: bytes) -> tuple[str, bytes]:
    name, _, changed = content.partition(b"\n")
    return name.decode(), changed


def _sealed(files: Files, name: str, content: bytes) -> dict[str, bytes]:
    """Returns a release with another file in it, whose hash stands wherever it is expected."""
    changed = {**files, name: content}
    if name not in (PROVENANCE_FILE, CHECKSUM_FILE):
        provenance = json.loads(files[PROVENANCE_FILE])
        provenance["outputs"][name] = hashlib.sha256(content).hexdigest()
        changed[PROVENANCE_FILE] = dump(provenance)
    if name != CHECKSUM_FILE:
        lines = (
            f"{hashlib.sha256(each).hexdigest()}  {path}\n"
            for path, each in changed.items()
            if path != CHECKSUM_FILE
        )
        changed[CHECKSUM_FILE] = "".join(lines).encode()
    return changed


def _release_json(folder: Path) -> list[bytes]:
    _write(_part("out/release"), folder / "original")
    names = ("quantize-report.json", "recover-report.json", "validation/report.json")
    return _named(_part("out/release"), PROVENANCE_FILE, "config.json", *names)


def _release_texts(folder: Path) -> list[bytes]:
    _write(_part("out/release"), folder / "original")
    return _named(_part("out/release"), CHECKSUM_FILE, "README.md", "recipe.yaml", "LICENSE")


@target("release-json", seeds=_release_json, mutate=JSON_PART)
@target("release", seeds=_release_texts, mutate=mutate_part(mutate_bytes))
def check_release(content: bytes, folder: Path) -> None:
    """Verifies a release with a damaged file, checks its card, and compares it with the original.

    All hashes are those of the damaged file, so that it is read and not only noticed.
    """
    release = folder / "release"
    _write(_sealed(_part("out/release"), *_changed(content)), release)
    _or_problem(lambda: verify_release(release))
    _or_problem(lambda: model_card.check_card(release))
    _or_problem(lambda: release_diff.diff_releases(release, folder / "original"))


def _inputs(folder: Path) -> None:
    for name in ("base", "diff", "out/quantized", "out/recovered"):
        _write(_part(name), folder / name)
    (folder / "chat.jsonl").write_bytes(_run()["chat.jsonl"])


def _rebuilt_recipe(folder: Path) -> list[bytes]:
    _inputs(folder)
    return _named(_part("out/release"), "recipe.yaml")


def _rebuilt_reports(folder: Path) -> list[bytes]:
    _inputs(folder)
    return _named(
        _part("out/release"), "quantize-report.json", "recover-report.json", PROVENANCE_FILE
    )


@target("rebuild-json", seeds=_rebuilt_reports, mutate=JSON_PART)
@target("rebuild", seeds=_rebuilt_recipe, mutate=mutate_part(mutate_bytes))
def read_rebuilt(content: bytes, folder: Path) -> None:
    """Rebuilds a release with a damaged recipe or report; its stages are taken as done."""
    release = folder / "release"
    _write(_sealed(_part("out/release"), *_changed(content)), release)
    reports = {
        name: read_report(folder / "out" / place / f"{name}-report.json")
        for name, place in (("recover", "recovered"), ("quantize", "quantized"))
    }
    with patch.object(
        pipeline, "run_stages", lambda *_, **__: pipeline.PipelineOutcome(reports, ())
    ):
        rebuild_release(
            release,
            folder / "out",
            base=folder / "base",
            diff=folder / "diff",
            calibration=[folder / "chat.jsonl"],
            force=False,
        )


def _candidate(folder: Path) -> list[bytes]:
    _write(_part("out/quantized"), folder / "quantized")
    _write(_part("out/validation"), folder / "validation")
    names = ("quantize-report.json", "recover-report.json")
    return [
        *_named(_part("out/quantized"), *names),
        b"../validation/report.json\n" + _part("out/validation")["report.json"],
    ]


@target("publish", seeds=_candidate, mutate=JSON_PART)
def publish_reports(content: bytes, folder: Path) -> None:
    """Publishes a model with a damaged report of a stage."""
    _write(_part("out/quantized"), folder / "quantized")
    _write(_part("out/validation"), folder / "validation")
    name, changed = _changed(content)
    (folder / "quantized" / name).write_bytes(changed)
    settings = PublishSettings.parse(
        {"license": "mit", "allow_failed_gate": "a trial"}, source="test"
    )
    with patch.object(card_plots, "draw_card_plots", _draw):
        publish(folder / "quantized", folder / "validation", folder / "out", settings, force=True)


def _store(folder: Path) -> list[bytes]:
    _write(_part("out/store"), folder / "store")
    return [_part("out/store")["store-report.json"]]


@target("store", seeds=_store, mutate=either(mutate_json, mutate_json, mutate_bytes))
def open_store(content: bytes, folder: Path) -> None:
    """Opens a store with a damaged report."""
    (folder / "store/store-report.json").write_bytes(content)
    store = PredictionStore.open(folder / "store")
    store.read_top_k(0, 4)


def _windows(folder: Path) -> list[bytes]:
    _store(folder)
    parts = {name for name in _part("out/store") if name.endswith(".safetensors")}
    return _named(_part("out/store"), *sorted(parts))


@target("store-tensors", seeds=_windows, mutate=mutate_part(either(mutate_header, mutate_bytes)))
def open_tensors(content: bytes, folder: Path) -> None:
    """Opens a store with a damaged file of tensors, whose hash is in the report."""
    name, changed = _changed(content)
    report = json.loads(_part("out/store")["store-report.json"])
    report["outputs"][name] = hashlib.sha256(changed).hexdigest()
    files = {**_part("out/store"), name: changed, "store-report.json": dump(report)}
    _write(files, folder / "store")
    store = PredictionStore.open(folder / "store")
    store.read_top_k(0, 4)


@target("mark", seeds=lambda _: [dump(MARK)], mutate=either(mutate_json, mutate_bytes))
def read_mark(content: bytes, folder: Path) -> None:
    """Goes on with an output whose mark is damaged, and begins it again."""
    partial_folder = folder / "out.partial"
    partial_folder.mkdir(exist_ok=True)
    for restart in (False, True):
        (partial_folder / MARK_FILE).write_bytes(content)
        (partial_folder / JOURNAL_FILE).write_bytes(content)
        again = partial(begin_output, partial_folder, folder / "out", MADE_FROM, ["*.json"])
        _or_problem(partial(again, restart=restart))
    for aside in folder.glob("out.aside*"):
        shutil.rmtree(aside)


def _unfinished(folder: Path) -> list[bytes]:
    """Prepares a recovery that was stopped before its last step, and returns its journal."""
    base = pico.write_model(folder / "base", pico.PICO._replace(layers=1))
    tuned = pico.write_tuned(folder / "tuned", base)
    stages.make_diff(base, tuned, folder / "diff")
    with patch.object(Journal, "__exit__", _stop):
        _or_problem(lambda: stages.recover(base, folder / "diff", folder / "out"))
    (folder / "out.partial").rename(folder / "kept")
    return [(folder / "kept" / JOURNAL_FILE).read_bytes()]


def _stop(journal: Journal, *_: object) -> None:
    journal._file.close()
    raise Interruption("stopped before the last step", next_step="run it again")


def _mutate_lines(random: Random, seeds: Sequence[bytes]) -> bytes:
    """Returns JSON lines of which one is another value."""
    lines = random.choice(seeds).split(b"\n")
    at = random.choice([number for number, line in enumerate(lines) if line])
    lines[at] = mutate_json(random, [lines[at]])
    return b"\n".join(lines)


@target("journal", seeds=_unfinished, mutate=either(_mutate_lines, mutate_bytes))
def go_on_recovering(content: bytes, folder: Path) -> None:
    """Goes on with a recovery whose journal is damaged."""
    shutil.copytree(folder / "kept", folder / "out.partial")
    (folder / "out.partial" / JOURNAL_FILE).write_bytes(content)
    try:
        stages.recover(folder / "base", folder / "diff", folder / "out", force=True)
    finally:
        shutil.rmtree(folder / "out.partial", ignore_errors=True)

"""A reference's predictions on a disk: computed once, then candidates are held against them.

A store is a folder: `store-report.json`, the windows of the texts, the tokenizer, and of each
prediction the likeliest tokens with their log-probabilities, tokens drawn from the others, and the
mass of these. It is known by hashes - of the model, of the texts, of its own files - and never by
a path.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from camelpress.core.documents.text_file import read_text_file
from camelpress.core.errors import CheckpointProblem, RecipeProblem
from camelpress.core.files.file_hashes import FileStates, file_states, require_states, sha256_file
from camelpress.core.progress import note
from camelpress.core.settings import Settings, faults
from camelpress.reporting.lineage import describes, foreign_report
from camelpress.reporting.stage_report import Report
from camelpress.validate.corpus.held_out_text import Text
from camelpress.validate.corpus.protocols import Window
from camelpress.validate.scoring.divergence import Kept
from camelpress.validate.settings import Keep, Scoring

REPORT = "store-report.json"
WINDOWS = "windows.safetensors"
PARTS = "predictions-*.safetensors"
KEY = ("protocol", "sequence_length", "max_tokens", "assistant_only")


class KeptText(Settings):
    """A text that a store was made from."""

    name: str
    sha256: str
    windows: int = Field(gt=0)
    words: int = Field(ge=0)
    bytes: int = Field(ge=0)
    rows: int = Field(default=0, ge=0)
    omissions: dict[str, dict[str, int]] = {}


class Facts(Settings):
    """What a store is, as `facts` of its report."""

    protocol: str
    window: int = Field(gt=1, description="tokens of a window at most")
    vocabulary: int = Field(gt=5, description="ids that predictions are over")
    known: int = Field(gt=5, description="ids that the reference knows")
    predictions: int = Field(gt=0)
    sequences: int = Field(default=0, ge=0, description="independent pieces of text; 0: not known")
    repeats: int = Field(default=0, ge=0, description="pieces that repeat another")
    non_finite: int = Field(ge=0, description="predictions with a logit that is not finite")
    top_k: int = Field(gt=0, description="tokens kept of each prediction")
    samples: int = Field(ge=0, description="tokens drawn from the others")
    remainder_mass: float = Field(description="mean probability outside the tokens kept")
    dtype: str
    reference: dict[str, Any]
    headers: str | None = Field(
        default=None,
        description="one hash over names, types and shapes of the reference's tensors; null in "
        "earlier stores",
    )
    weights: str | None = Field(default=None, description="one hash over their bytes")
    texts: tuple[KeptText, ...]
    noise_floor: dict[str, Any] | None


@dataclass(frozen=True)
class Store:
    """A store that was opened: its report was read and every file has its hash."""

    folder: Path
    report: Report
    facts: Facts
    settings: Keep
    texts: list[Text]
    parts: dict[str, range]  # file to the places that it holds
    file_states: FileStates  # before the first file was read

    @staticmethod
    def is_at(folder: Path) -> bool:
        """Whether a folder is a store and not a model."""
        return (folder / REPORT).is_file()

    @classmethod
    def open(cls, folder: Path) -> Store:
        """Read a store's report and windows.

        Raises:
            CheckpointProblem: it is no store, not complete, or damaged.
        """
        states = file_states(folder)
        report = Report.read(folder / REPORT)
        try:
            facts = Facts.model_validate_json(json.dumps(report.facts))
            settings = Keep.model_validate_json(json.dumps(report.settings))
        except ValidationError as error:
            raise _damaged(folder, f"{REPORT}: {faults(error)}") from error
        for name, digest in report.outputs.items():
            _require_whole(folder, name, digest)
        texts = _texts(folder, facts)
        parts = _parts(folder, report, facts)
        return cls(folder, report, facts, settings, texts, parts, states)

    def require_unchanged(self, hashes: Mapping[str, str]) -> None:
        """Checks that no file of the store was written, replaced or removed since `open`.

        Args:
            hashes: name to SHA-256 of files as they were read.
        Raises:
            CheckpointProblem: names the first such file.
        """
        require_states(self.folder, self.file_states, hashes)

    @property
    def model(self) -> str:
        """The hash of the reference."""
        return self.report.inputs.get("reference", "")

    def kept(self, begin: int, end: int) -> Kept:
        """The predictions at some places.

        Args:
            begin, end: places in the order of `Places`, end excluded.
        """
        found = []
        for name, held in self.parts.items():
            here = slice(max(0, begin - held.start), min(end, held.stop) - held.start)
            if here.start < here.stop:
                with safe_open(self.folder / name, framework="pt") as file:
                    found.append(Kept(*(file.get_slice(each)[here] for each in Kept._fields)))
        kept = Kept(*(torch.cat(column) for column in zip(*found, strict=True)))
        return kept._replace(ids=kept.ids.long(), drawn=kept.drawn.long())

    def require_vocabulary(self, candidate: int) -> None:
        """See that a candidate knows every id that the predictions are over.

        Raises:
            CheckpointProblem: it knows fewer.
        """
        if candidate < self.facts.vocabulary:
            raise CheckpointProblem(
                f"{self.folder} has predictions over {self.facts.vocabulary} tokens, the "
                f"candidate knows {candidate}",
                next_step=f"make it with --vocabulary {candidate}",
            )

    def require_made_from(self, settings: Scoring, candidate: Path) -> None:
        """See that the store is of these texts and this protocol, and of the candidate's source.

        What is not given is taken from the store. The source is what the candidate's report says
        that it was quantized from.

        Raises:
            CheckpointProblem: it was made otherwise.
            RecipeProblem: a noise floor is asked for that the store does not have.
        """
        for name in KEY:
            asked, own = getattr(settings, name), getattr(self.settings, name)
            same = (own, self.facts.window) if name == "sequence_length" else (own,)
            if name in settings.model_fields_set and asked not in same:
                raise _other(self.folder, f"{name} {own}, and {asked} is asked for")
        if settings.text:
            hashes = {path: read_text_file(path).sha256 for path in settings.text}
            known = {text.sha256 for text in self.facts.texts}
            for path in settings.text:
                if hashes[path] not in known:
                    raise _other(self.folder, f"other texts: {path} is none of them")
            if len(set(hashes.values())) < len(known):
                raise _other(self.folder, "more texts than are asked for")
        source = _source(candidate)
        if source not in (None, self.model):
            raise _other(
                self.folder,
                f"another model ({self.model[:12]}...) than {candidate} ({str(source)[:12]}...)",
            )
        floor = (self.facts.noise_floor or {}).get("kind", "none")
        if settings.noise_floor not in ("none", floor):
            raise RecipeProblem(
                f"{self.folder} has no noise floor by {settings.noise_floor}",
                next_step=f"make it with --noise-floor {settings.noise_floor}",
            )


def _require_whole(folder: Path, name: str, digest: str) -> None:
    """Checks that a file of a store has the hash that its report gives."""
    try:
        is_whole = sha256_file(folder / name) == digest
    except FileNotFoundError as error:
        raise _damaged(folder, f"{name} is missing") from error
    except OSError as error:
        raise _unreadable(folder, name, error) from error
    if not is_whole:
        raise _damaged(folder, f"{name} is not what {REPORT} says")


def _parts(folder: Path, report: Report, facts: Facts) -> dict[str, range]:
    """Which places each file holds, from the headers."""
    found, begin = {}, 0
    for name in sorted(name for name in report.outputs if PurePath(name).match(PARTS)):
        try:
            with safe_open(folder / name, framework="pt") as file:
                if {*file.keys()} != {*Kept._fields}:
                    raise _damaged(folder, f"{name} holds {', '.join(file.keys())}")
                end = begin + file.get_slice("nll").get_shape()[0]
        except (SafetensorError, OSError) as error:
            raise _unreadable(folder, name, error) from error
        found[name], begin = range(begin, end), end
    if begin != facts.predictions:
        raise _damaged(folder, "predictions are missing")
    return found


def _source(candidate: Path) -> str | None:
    """Returns the digest of the model that a candidate was quantized from, None if unknown."""
    path = candidate / "quantize-report.json"
    report = Report.read(path) if path.is_file() else None
    if report is None:
        return None
    if not describes(report, candidate):
        note(f"{foreign_report(path)}: the source that it names is not held against the store")
        return None
    return report.inputs.get("source")


def _texts(folder: Path, facts: Facts) -> list[Text]:
    try:
        columns = load_file(folder / WINDOWS)
        lengths = columns["lengths"].tolist()
        ids, counted = (
            columns["ids"].long().split(lengths),
            columns["counted"].bool().split(lengths),
        )
        windows = [
            Window(each.tolist(), flags.tolist(), cluster)
            for each, flags, cluster in zip(ids, counted, columns["clusters"].tolist(), strict=True)
        ]
    except (SafetensorError, OSError) as error:
        raise _unreadable(folder, WINDOWS, error) from error
    except (KeyError, ValueError, RuntimeError) as error:
        raise _damaged(folder, f"{WINDOWS} is not what it should be") from error
    texts, first = [], 0
    for text in facts.texts:
        some = windows[first : first + text.windows]
        sizes = (text.words, text.bytes, text.rows)
        texts.append(Text(text.name, text.sha256, some, *sizes, text.omissions))
        first += text.windows
    predictions = sum(sum(window.counted) for window in windows)
    if first != len(windows) or predictions != facts.predictions:
        raise _damaged(folder, f"{WINDOWS} is not what {REPORT} says")
    return texts


def _damaged(folder: Path, what: str) -> CheckpointProblem:
    return CheckpointProblem(
        f"{folder} is not a whole store ({what})", next_step="make it again with camelpress store"
    )


def _unreadable(folder: Path, name: str, error: Exception) -> CheckpointProblem:
    return _damaged(folder, f"{name} cannot be read ({type(error).__name__})")


def _other(folder: Path, what: str) -> CheckpointProblem:
    return CheckpointProblem(
        f"{folder} was made from {what}", next_step="make a store for this with camelpress store"
    )

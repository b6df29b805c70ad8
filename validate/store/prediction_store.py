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
from camelpress.core.files.file_hashes import (
    FileStates,
    file_states,
    require_file_states,
    sha256_file,
)
from camelpress.core.progress import note
from camelpress.core.settings import Settings, describe_validation_error
from camelpress.reporting.lineage import describes, foreign_report
from camelpress.reporting.stage_report import Report
from camelpress.validate.corpus.held_out_text import HeldOutText
from camelpress.validate.corpus.protocols import TokenWindow
from camelpress.validate.scoring.divergence import TopKLogProbs
from camelpress.validate.settings import ScoringSettings, StoreSettings

STORE_REPORT = "store-report.json"
WINDOWS_FILE = "windows.safetensors"
SHARD_PATTERN = "predictions-*.safetensors"
MATCHED_SETTINGS = ("protocol", "sequence_length", "max_tokens", "assistant_only")


class StoreText(Settings):
    """A text that a store was made from."""

    name: str
    sha256: str
    windows: int = Field(gt=0)
    words: int = Field(ge=0)
    bytes: int = Field(ge=0)
    rows: int = Field(default=0, ge=0)
    omissions: dict[str, dict[str, int]] = {}


class StoreHeader(Settings):
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
    texts: tuple[StoreText, ...]
    noise_floor: dict[str, Any] | None


@dataclass(frozen=True)
class PredictionStore:
    """A store that was opened: its report was read and every file has its hash."""

    folder: Path
    report: Report
    header: StoreHeader
    settings: StoreSettings
    texts: list[HeldOutText]
    shards: dict[str, range]  # file to the places that it holds
    file_states: FileStates  # before the first file was read

    @staticmethod
    def exists_at(folder: Path) -> bool:
        """Whether a folder is a store and not a model."""
        return (folder / STORE_REPORT).is_file()

    @classmethod
    def open(cls, folder: Path) -> PredictionStore:
        """Read a store's report and windows.

        Raises:
            CheckpointProblem: it is no store, not complete, or damaged.
        """
        states = file_states(folder)
        report = Report.read_report(folder / STORE_REPORT)
        try:
            facts = StoreHeader.model_validate_json(json.dumps(report.facts))
            settings = StoreSettings.model_validate_json(json.dumps(report.settings))
        except ValidationError as error:
            raise _store_damaged(
                folder, f"{STORE_REPORT}: {describe_validation_error(error)}"
            ) from error
        for name, digest in report.outputs.items():
            _require_file_hash(folder, name, digest)
        texts = _read_windows(folder, facts)
        parts = _map_shards_to_positions(folder, report, facts)
        return cls(folder, report, facts, settings, texts, parts, states)

    def require_unchanged(self, hashes: Mapping[str, str]) -> None:
        """Checks that no file of the store was written, replaced or removed since `open`.

        Args:
            hashes: name to SHA-256 of files as they were read.
        Raises:
            CheckpointProblem: names the first such file.
        """
        require_file_states(self.folder, self.file_states, hashes)

    @property
    def reference_hash(self) -> str:
        """The hash of the reference."""
        return self.report.inputs.get("reference", "")

    def read_top_k(self, begin: int, end: int) -> TopKLogProbs:
        """The predictions at some places.

        Args:
            begin, end: places in the order of `Places`, end excluded.
        """
        found = []
        for name, held in self.shards.items():
            here = slice(max(0, begin - held.start), min(end, held.stop) - held.start)
            if here.start < here.stop:
                with safe_open(self.folder / name, framework="pt") as file:
                    found.append(
                        TopKLogProbs(*(file.get_slice(each)[here] for each in TopKLogProbs._fields))
                    )
        kept = TopKLogProbs(*(torch.cat(column) for column in zip(*found, strict=True)))
        return kept._replace(ids=kept.ids.long(), drawn=kept.drawn.long())

    def require_vocabulary(self, candidate: int) -> None:
        """See that a candidate knows every id that the predictions are over.

        Raises:
            CheckpointProblem: it knows fewer.
        """
        if candidate < self.header.vocabulary:
            raise CheckpointProblem(
                f"{self.folder} has predictions over {self.header.vocabulary} tokens, the "
                f"candidate knows {candidate}",
                next_step=f"make it with --vocabulary {candidate}",
            )

    def require_same_inputs(self, settings: ScoringSettings, candidate: Path) -> None:
        """See that the store is of these texts and this protocol, and of the candidate's source.

        What is not given is taken from the store. The source is what the candidate's report says
        that it was quantized from.

        Raises:
            CheckpointProblem: it was made otherwise.
            RecipeProblem: a noise floor is asked for that the store does not have.
        """
        for name in MATCHED_SETTINGS:
            asked, own = getattr(settings, name), getattr(self.settings, name)
            same = (own, self.header.window) if name == "sequence_length" else (own,)
            if name in settings.model_fields_set and asked not in same:
                raise _store_mismatch(self.folder, f"{name} {own}, and {asked} is asked for")
        if settings.text:
            hashes = {path: read_text_file(path).sha256 for path in settings.text}
            known = {text.sha256 for text in self.header.texts}
            for path in settings.text:
                if hashes[path] not in known:
                    raise _store_mismatch(self.folder, f"other texts: {path} is none of them")
            if len(set(hashes.values())) < len(known):
                raise _store_mismatch(self.folder, "more texts than are asked for")
        source = _quantization_source(candidate)
        if source not in (None, self.reference_hash):
            raise _store_mismatch(
                self.folder,
                f"another model ({self.reference_hash[:12]}...) than {candidate} "
                f"({str(source)[:12]}...)",
            )
        floor = (self.header.noise_floor or {}).get("kind", "none")
        if settings.noise_floor not in ("none", floor):
            raise RecipeProblem(
                f"{self.folder} has no noise floor by {settings.noise_floor}",
                next_step=f"make it with --noise-floor {settings.noise_floor}",
            )


def _require_file_hash(folder: Path, name: str, digest: str) -> None:
    """Checks that a file of a store has the hash that its report gives."""
    try:
        is_whole = sha256_file(folder / name) == digest
    except FileNotFoundError as error:
        raise _store_damaged(folder, f"{name} is missing") from error
    except OSError as error:
        raise _store_unreadable(folder, name, error) from error
    if not is_whole:
        raise _store_damaged(folder, f"{name} is not what {STORE_REPORT} says")


def _map_shards_to_positions(folder: Path, report: Report, facts: StoreHeader) -> dict[str, range]:
    """Which places each file holds, from the headers."""
    found, begin = {}, 0
    for name in sorted(name for name in report.outputs if PurePath(name).match(SHARD_PATTERN)):
        try:
            with safe_open(folder / name, framework="pt") as file:
                if {*file.keys()} != {*TopKLogProbs._fields}:
                    raise _store_damaged(folder, f"{name} holds {', '.join(file.keys())}")
                end = begin + file.get_slice("nll").get_shape()[0]
        except (SafetensorError, OSError) as error:
            raise _store_unreadable(folder, name, error) from error
        found[name], begin = range(begin, end), end
    if begin != facts.predictions:
        raise _store_damaged(folder, "predictions are missing")
    return found


def _quantization_source(candidate: Path) -> str | None:
    """Returns the digest of the model that a candidate was quantized from, None if unknown."""
    path = candidate / "quantize-report.json"
    report = Report.read_report(path) if path.is_file() else None
    if report is None:
        return None
    if not describes(report, candidate):
        note(f"{foreign_report(path)}: the source that it names is not held against the store")
        return None
    return report.inputs.get("source")


def _read_windows(folder: Path, facts: StoreHeader) -> list[HeldOutText]:
    try:
        columns = load_file(folder / WINDOWS_FILE)
        lengths = columns["lengths"].tolist()
        ids, counted = (
            columns["ids"].long().split(lengths),
            columns["counted"].bool().split(lengths),
        )
        windows = [
            TokenWindow(each.tolist(), flags.tolist(), cluster)
            for each, flags, cluster in zip(ids, counted, columns["clusters"].tolist(), strict=True)
        ]
    except (SafetensorError, OSError) as error:
        raise _store_unreadable(folder, WINDOWS_FILE, error) from error
    except (KeyError, ValueError, RuntimeError) as error:
        raise _store_damaged(folder, f"{WINDOWS_FILE} is not what it should be") from error
    texts, first = [], 0
    for text in facts.texts:
        some = windows[first : first + text.windows]
        sizes = (text.words, text.bytes, text.rows)
        texts.append(HeldOutText(text.name, text.sha256, some, *sizes, text.omissions))
        first += text.windows
    predictions = sum(sum(window.score_mask) for window in windows)
    if first != len(windows) or predictions != facts.predictions:
        raise _store_damaged(folder, f"{WINDOWS_FILE} is not what {STORE_REPORT} says")
    return texts


def _store_damaged(folder: Path, what: str) -> CheckpointProblem:
    return CheckpointProblem(
        f"{folder} is not a whole store ({what})", next_step="make it again with camelpress store"
    )


def _store_unreadable(folder: Path, name: str, error: Exception) -> CheckpointProblem:
    return _store_damaged(folder, f"{name} cannot be read ({type(error).__name__})")


def _store_mismatch(folder: Path, what: str) -> CheckpointProblem:
    return CheckpointProblem(
        f"{folder} was made from {what}", next_step="make a store for this with camelpress store"
    )

"""Store of reference predictions on disk, for comparisons without the reference model.

A store is a folder with `store-report.json`, the windows of the texts, the tokenizer, and for each
prediction the likeliest tokens with their log-probabilities, a sample of the other tokens, and the
mass of the others. Hashes of the model, of the texts and of its own files identify a store, never a
path.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath

import torch
from pydantic import ValidationError
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
from camelpress.core.settings import describe_validation_error
from camelpress.reporting.facts.store_facts import StoreFacts
from camelpress.reporting.lineage import describe_foreign_report, matches_weights
from camelpress.reporting.report_classes import read_report
from camelpress.reporting.stage_report import Report
from camelpress.validate.corpus.held_out_text import HeldOutText
from camelpress.validate.corpus.protocols import TokenWindow
from camelpress.validate.settings import ScoringSettings, StoreSettings
from camelpress.validate.store.top_k_log_probs import TopKLogProbs

STORE_REPORT = "store-report.json"
WINDOWS_FILE = "windows.safetensors"
SHARD_PATTERN = "predictions-*.safetensors"
MATCHED_SETTINGS = ("protocol", "sequence_length", "max_tokens", "assistant_only")


@dataclass(frozen=True)
class PredictionStore:
    """An opened store: its report was read and the hash of every file was checked."""

    folder: Path
    report: Report
    header: StoreFacts
    settings: StoreSettings
    texts: list[HeldOutText]
    shards: dict[str, range]  # positions in each file, by file name
    file_states: FileStates  # recorded before the first file was read

    @staticmethod
    def exists_at(folder: Path) -> bool:
        """Returns True if a folder is a store and not a model."""
        return (folder / STORE_REPORT).is_file()

    @classmethod
    def open(cls, folder: Path) -> PredictionStore:
        """Reads the report and the windows of a store.

        Raises:
            CheckpointProblem: the folder is no store, or the store is incomplete or damaged.
        """
        states = file_states(folder)
        report = read_report(folder / STORE_REPORT)
        try:
            header = StoreFacts.read(report.facts.record, "strict")
            settings = StoreSettings.model_validate_json(json.dumps(report.settings))
        except ValidationError as error:
            raise _store_damaged(
                folder, f"{STORE_REPORT}: {describe_validation_error(error)}"
            ) from error
        for name, digest in report.outputs.items():
            _require_file_hash(folder, name, digest)
        texts = _read_windows(folder, header)
        shards = _map_shards_to_positions(folder, report, header)
        return cls(folder, report, header, settings, texts, shards, states)

    def require_unchanged(self, hashes: Mapping[str, str]) -> None:
        """Checks that no file of the store was written, replaced or removed since `open`.

        Args:
            hashes: SHA-256 of each file at its reading, by name.
        Raises:
            CheckpointProblem: names the first changed file.
        """
        require_file_states(self.folder, self.file_states, hashes)

    @property
    def reference_hash(self) -> str:
        """Digest of the reference model."""
        return self.report.inputs.get("reference", "")

    def read_top_k(self, begin: int, end: int) -> TopKLogProbs:
        """Reads the predictions of some positions.

        Args:
            begin, end: range in the order of `ScoredPositions`, without `end`.
        """
        parts = []
        for name, positions in self.shards.items():
            span = slice(
                max(0, begin - positions.start), min(end, positions.stop) - positions.start
            )
            if span.start < span.stop:
                with safe_open(self.folder / name, framework="pt") as file:
                    parts.append(
                        TopKLogProbs(
                            *(file.get_slice(field)[span] for field in TopKLogProbs._fields)
                        )
                    )
        top_k = TopKLogProbs(*(torch.cat(column) for column in zip(*parts, strict=True)))
        return top_k._replace(ids=top_k.ids.long(), drawn=top_k.drawn.long())

    def require_vocabulary(self, candidate: int) -> None:
        """Checks that a candidate has every id of the stored distributions.

        Raises:
            CheckpointProblem: the candidate has fewer ids.
        """
        if candidate < self.header.vocabulary:
            raise CheckpointProblem(
                f"{self.folder} has predictions over {self.header.vocabulary} tokens, the "
                f"candidate has {candidate}",
                next_step=f"make it with --vocabulary {candidate}",
            )

    def require_same_inputs(self, settings: ScoringSettings, candidate: Path) -> None:
        """Checks that the store matches the texts, the protocol and the source of the candidate.

        Settings that were not set are taken from the store. The source is the model in the
        candidate's quantization report.

        Raises:
            CheckpointProblem: the store has different inputs.
            RecipeProblem: the store lacks the noise floor of the settings.
        """
        for name in MATCHED_SETTINGS:
            setting, stored = getattr(settings, name), getattr(self.settings, name)
            accepted_values = (
                (stored, self.header.window) if name == "sequence_length" else (stored,)
            )
            if name in settings.model_fields_set and setting not in accepted_values:
                raise _store_mismatch(self.folder, f"{name} {stored}, not {setting}")
        if settings.text:
            hashes = {path: read_text_file(path).sha256 for path in settings.text}
            text_hashes = {text.sha256 for text in self.header.texts}
            for path in settings.text:
                if hashes[path] not in text_hashes:
                    raise _store_mismatch(self.folder, f"different texts, {path} is not among them")
            if len(set(hashes.values())) < len(text_hashes):
                raise _store_mismatch(self.folder, "more texts than the settings name")
        source = _quantization_source(candidate)
        if source not in (None, self.reference_hash):
            raise _store_mismatch(
                self.folder,
                f"another model ({self.reference_hash[:12]}...) than {candidate} "
                f"({str(source)[:12]}...)",
            )
        floor = self.header.noise_floor.kind if self.header.noise_floor else "none"
        if settings.noise_floor not in ("none", floor):
            raise RecipeProblem(
                f"{self.folder} has no noise floor by {settings.noise_floor}",
                next_step=f"make it with --noise-floor {settings.noise_floor}",
            )


def _require_file_hash(folder: Path, name: str, digest: str) -> None:
    """Checks that a file of a store has the hash in its report."""
    try:
        is_whole = sha256_file(folder / name) == digest
    except FileNotFoundError as error:
        raise _store_damaged(folder, f"{name} is missing") from error
    except OSError as error:
        raise _store_unreadable(folder, name, error) from error
    if not is_whole:
        raise _store_damaged(folder, f"{name} is not what {STORE_REPORT} says")


def _map_shards_to_positions(folder: Path, report: Report, header: StoreFacts) -> dict[str, range]:
    """Returns the range of positions in each file, from the file headers."""
    positions, begin = {}, 0
    for name in sorted(name for name in report.outputs if PurePath(name).match(SHARD_PATTERN)):
        try:
            with safe_open(folder / name, framework="pt") as file:
                if {*file.keys()} != {*TopKLogProbs._fields}:
                    raise _store_damaged(folder, f"{name} holds {', '.join(file.keys())}")
                end = begin + file.get_slice("nll").get_shape()[0]
        except (SafetensorError, OSError) as error:
            raise _store_unreadable(folder, name, error) from error
        positions[name], begin = range(begin, end), end
    if begin != header.predictions:
        raise _store_damaged(folder, "predictions are missing")
    return positions


def _quantization_source(candidate: Path) -> str | None:
    """Returns the digest of the model that a candidate was quantized from, or None."""
    path = candidate / "quantize-report.json"
    report = read_report(path) if path.is_file() else None
    if report is None:
        return None
    if not matches_weights(report, candidate):
        note(f"{describe_foreign_report(path)}: its source is not compared with the store")
        return None
    return report.inputs.get("source")


def _read_windows(folder: Path, header: StoreFacts) -> list[HeldOutText]:
    try:
        columns = load_file(folder / WINDOWS_FILE)
        lengths = columns["lengths"].tolist()
        ids, masks = (
            columns["ids"].long().split(lengths),
            columns["counted"].bool().split(lengths),
        )
        windows = [
            TokenWindow(window_ids.tolist(), mask.tolist(), cluster)
            for window_ids, mask, cluster in zip(
                ids, masks, columns["clusters"].tolist(), strict=True
            )
        ]
    except (SafetensorError, OSError) as error:
        raise _store_unreadable(folder, WINDOWS_FILE, error) from error
    except (KeyError, ValueError, RuntimeError) as error:
        raise _store_damaged(folder, f"{WINDOWS_FILE} is not what it should be") from error
    texts, first = [], 0
    for text in header.texts:
        text_windows = windows[first : first + text.windows]
        sizes = (text.words, text.bytes, text.rows)
        texts.append(HeldOutText(text.name, text.sha256, text_windows, *sizes, text.omissions))
        first += text.windows
    predictions = sum(sum(window.score_mask) for window in windows)
    if first != len(windows) or predictions != header.predictions:
        raise _store_damaged(folder, f"{WINDOWS_FILE} is not what {STORE_REPORT} says")
    return texts


def _store_damaged(folder: Path, fault: str) -> CheckpointProblem:
    return CheckpointProblem(
        f"{folder} is not a whole store ({fault})", next_step="make it again with camelpress store"
    )


def _store_unreadable(folder: Path, name: str, error: Exception) -> CheckpointProblem:
    return _store_damaged(folder, f"{name} cannot be read ({type(error).__name__})")


def _store_mismatch(folder: Path, inputs: str) -> CheckpointProblem:
    return CheckpointProblem(
        f"{folder} was made from {inputs}", next_step="make a store for this with camelpress store"
    )

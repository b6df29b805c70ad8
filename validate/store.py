"""A reference's predictions on a disk: computed once, then candidates are held against them.

A store is a folder: `store-report.json`, the windows of the texts, the tokenizer, and of each
prediction the likeliest tokens with their log-probabilities, tokens drawn from the others, and the
mass of these. It is known by hashes - of the model, of the texts, of its own files - and never by
a path.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float64
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from camelpress.core.errors import CheckpointProblem, RecipeProblem
from camelpress.core.provenance import sha256_file
from camelpress.core.report import Report
from camelpress.core.settings import Settings, faults
from camelpress.validate.divergence import Kept
from camelpress.validate.protocols import Window
from camelpress.validate.settings import Keep, Scoring
from camelpress.validate.texts import Text

REPORT = "store-report.json"
WINDOWS = "windows.safetensors"
PART = "predictions-{:05}.safetensors"
PART_BYTES = 2**26  # that are gathered before a part is written
NARROW = 2**16  # ids below need two bytes
TOKENIZER = (
    "config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)
KEY = ("protocol", "sequence_length", "max_tokens", "assistant_only")


class KeptText(Settings):
    """A text that a store was made from."""

    name: str
    sha256: str
    windows: int = Field(gt=0)
    words: int = Field(ge=0)
    bytes: int = Field(ge=0)


class Facts(Settings):
    """What a store is, as `facts` of its report."""

    protocol: str
    window: int = Field(gt=1, description="tokens of a window at most")
    vocabulary: int = Field(gt=5, description="ids that predictions are over")
    known: int = Field(gt=5, description="ids that the reference knows")
    predictions: int = Field(gt=0)
    parts: int = Field(gt=0)
    top_k: int = Field(gt=0, description="tokens kept of each prediction")
    samples: int = Field(ge=0, description="tokens drawn from the others")
    remainder_mass: float = Field(description="mean probability outside the tokens kept")
    dtype: str
    reference: dict[str, Any]
    texts: tuple[KeptText, ...]
    noise_floor: dict[str, Any] | None


class Writer:
    """Predictions into parts of a moderate size, in order."""

    def __init__(self, folder: Path, vocabulary: int) -> None:
        self._folder = folder
        self._ids = torch.uint16 if vocabulary <= NARROW else torch.int32
        self._gathered: list[Kept] = []
        self._bytes = 0
        self.parts = 0
        self.remainder = 0.0  # sum of the masses outside the tokens kept

    def add(self, kept: Kept) -> None:
        """Take the next predictions."""
        narrow = kept._replace(ids=kept.ids.to(self._ids), drawn=kept.drawn.to(self._ids))
        self._gathered.append(Kept(*(column.cpu() for column in narrow)))
        self._bytes += sum(column.nbytes for column in self._gathered[-1])
        self.remainder += float(kept.rest.double().exp().sum())
        if self._bytes >= PART_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what was gathered."""
        if self._gathered:
            self.parts += 1
            columns = (torch.cat(column) for column in zip(*self._gathered, strict=True))
            named = dict(zip(Kept._fields, columns, strict=True))
            save_file(named, self._folder / PART.format(self.parts))
            self._gathered, self._bytes = [], 0


def write_windows(texts: Sequence[Text], path: Path) -> None:
    """The tokens of all texts, with what counts."""
    windows = [window for text in texts for window in text.windows]
    columns = {
        "ids": [token for window in windows for token in window.ids],
        "counted": [int(flag) for window in windows for flag in window.counted],
        "lengths": [len(window.ids) for window in windows],
        "clusters": [window.cluster for window in windows],
    }
    save_file({name: torch.tensor(each, dtype=torch.int32) for name, each in columns.items()}, path)


def copy_tokenizer(source: Path, folder: Path) -> None:
    """What the text can be read with again."""
    for name in TOKENIZER:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


@dataclass(frozen=True)
class Store:
    """A store that was opened: its report was read and every file has its hash."""

    folder: Path
    report: Report
    facts: Facts
    settings: Keep
    texts: list[Text]

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
        report = Report.read(folder / REPORT)
        try:
            facts = Facts.model_validate_json(json.dumps(report.facts))
            settings = Keep.model_validate_json(json.dumps(report.settings))
        except ValidationError as error:
            raise _damaged(folder, f"{REPORT}: {faults(error)}") from error
        for name in (WINDOWS, *_parts(facts.parts)):
            if not (folder / name).is_file():
                raise _damaged(folder, f"{name} is missing")
            if sha256_file(folder / name) != report.outputs.get(name):
                raise _damaged(folder, f"{name} is not what {REPORT} says")
        return cls(folder, report, facts, settings, _texts(folder, facts))

    @property
    def model(self) -> str:
        """The hash of the reference."""
        return self.report.inputs.get("reference", "")

    def kept(self) -> Iterator[Kept]:
        """All predictions in order, part by part.

        Raises:
            CheckpointProblem: a part is not what it should be.
        """
        left = self.facts.predictions
        for name in _parts(self.facts.parts):
            columns = _load(self.folder, name)
            try:
                kept = Kept(**columns)
            except TypeError as error:
                raise _damaged(self.folder, f"{name} holds {', '.join(columns)}") from error
            left -= len(kept.nll)
            yield kept._replace(ids=kept.ids.long(), drawn=kept.drawn.long())
        if left:
            raise _damaged(self.folder, "predictions are missing")

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
            hashes = {path: sha256_file(path) for path in settings.text if path.is_file()}
            known = {text.sha256 for text in self.facts.texts}
            for path in settings.text:
                if hashes.get(path) not in known:
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


def _parts(count: int) -> list[str]:
    return [PART.format(number) for number in range(1, count + 1)]


def _source(candidate: Path) -> str | None:
    path = candidate / "quantize-report.json"
    return Report.read(path).inputs.get("source") if path.is_file() else None


def _load(folder: Path, name: str) -> dict[str, Tensor]:
    try:
        return load_file(folder / name)
    except (SafetensorError, OSError) as error:
        raise _damaged(folder, f"{name} cannot be read ({type(error).__name__})") from error


def _texts(folder: Path, facts: Facts) -> list[Text]:
    columns = _load(folder, WINDOWS)
    try:
        lengths = columns["lengths"].tolist()
        ids, counted = (
            columns["ids"].long().split(lengths),
            columns["counted"].bool().split(lengths),
        )
        windows = [
            Window(each.tolist(), flags.tolist(), cluster)
            for each, flags, cluster in zip(ids, counted, columns["clusters"].tolist(), strict=True)
        ]
    except (KeyError, ValueError, RuntimeError) as error:
        raise _damaged(folder, f"{WINDOWS} is not what it should be") from error
    texts, first = [], 0
    for text in facts.texts:
        some = windows[first : first + text.windows]
        texts.append(Text(text.name, text.sha256, some, text.words, text.bytes))
        first += text.windows
    predictions = sum(sum(window.counted) for window in windows)
    if first != len(windows) or predictions != facts.predictions:
        raise _damaged(folder, f"{WINDOWS} is not what {REPORT} says")
    return texts


def places_for_drawing(count: int) -> Float64[Tensor, " count"]:
    """Where drawing begins for each prediction, in [0, 1); the same in every run."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, generator=generator, dtype=torch.float64)


def _damaged(folder: Path, what: str) -> CheckpointProblem:
    return CheckpointProblem(
        f"{folder} is not a whole store ({what})", next_step="make it again with camelpress store"
    )


def _other(folder: Path, what: str) -> CheckpointProblem:
    return CheckpointProblem(
        f"{folder} was made from {what}", next_step="make a store for this with camelpress store"
    )

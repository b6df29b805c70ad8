"""A reference's predictions computed once, so that candidates need it no more."""

from __future__ import annotations

from pathlib import Path

import torch

from camelpress.core.checkpoint import Checkpoint
from camelpress.core.config import dtype_name
from camelpress.core.errors import RecipeProblem
from camelpress.core.output import keep_apart, require_free, staged
from camelpress.core.progress import track
from camelpress.core.provenance import checkpoint_digest, sha256_file
from camelpress.core.report import Report, Stopwatch
from camelpress.core.summary import summary
from camelpress.core.tokens import Tokenizer
from camelpress.validate import figures
from camelpress.validate.divergence import Compared, compare, keep
from camelpress.validate.measure import protocol, twin
from camelpress.validate.models import open_model, rows, shared_vocabulary
from camelpress.validate.places import Places
from camelpress.validate.score import Finite, Runner, Scores, walk
from camelpress.validate.settings import Keep
from camelpress.validate.store import (
    REPORT,
    WINDOWS,
    Facts,
    KeptText,
    Writer,
    copy_tokenizer,
    places_for_drawing,
    write_windows,
)
from camelpress.validate.texts import Text, read_texts, window_length


def run(reference: Checkpoint, out: Path, settings: Keep, *, force: bool = False) -> Report:
    """Write a store of a reference's predictions.

    Args:
        reference: the 16-bit model; its tokenizer is used.
        out: a folder for the store.
        settings: texts, protocol, and how much of each prediction is kept.
        force: replace `out`.
    Raises:
        RecipeProblem: no text or an empty one, or more is to be kept than there is.
        NumericsProblem: logits that are not finite.
    """
    watch = Stopwatch()
    keep_apart(out, reference.folder)
    require_free(out, force=force)
    model = open_model(reference, settings)
    length = window_length(settings, model.positions)
    texts = read_texts(settings, Tokenizer.load(reference.folder), length)
    places = Places.of([text.windows for text in texts])
    known = rows(reference)
    vocabulary = shared_vocabulary(known, settings.vocabulary or known, places, reference.folder)
    top_k = settings.top_k or vocabulary
    if top_k > vocabulary:
        raise RecipeProblem(
            f"--top-k {top_k} is more than the {vocabulary} tokens that there are",
            next_step="use --top-k 0 to keep all",
        )
    again = twin(reference, model, settings, places, length)
    runner = Runner("reference", model, places.sequences(limit=length))
    with staged(out, force=force) as folder, torch.inference_mode():
        writer = Writer(folder, vocabulary)
        parts = _write(writer, [runner, *([again] if again else [])], places, settings, vocabulary)
        write_windows(texts, folder / WINDOWS)
        copy_tokenizer(reference.folder, folder)
        floor = (
            figures.noise_floor(settings.noise_floor, Scores.joined(parts, places))
            if parts
            else None
        )
        facts = Facts(
            protocol=protocol(settings, length, model),
            window=length,
            vocabulary=vocabulary,
            known=known,
            predictions=len(places.row),
            parts=writer.parts,
            top_k=top_k,
            samples=settings.samples if top_k < vocabulary else 0,
            remainder_mass=writer.remainder / len(places.row),
            dtype=dtype_name(model.dtype),
            reference=summary(reference),
            texts=tuple(_kept(text) for text in texts),
            noise_floor=floor,
        )
        report = Report(
            stage="store",
            inputs={"reference": checkpoint_digest(reference.folder)}
            | {f"text:{text.name}": text.sha256 for text in texts},
            outputs={path.name: sha256_file(path) for path in sorted(folder.glob("*.safetensors"))},
            settings=settings.model_dump(mode="json", exclude={"text", "device"}),
            facts=facts.model_dump(mode="json"),
            cost=watch.cost(),
        )
        report.write(folder / REPORT)
    return report


def _write(
    writer: Writer, runners: list[Runner], places: Places, settings: Keep, vocabulary: int
) -> list[Compared]:
    """Keep all predictions of the first model; hold those of a second against them."""
    predictions, finite, parts = walk(runners).predictions, Finite(), []
    begin = places_for_drawing(len(places.row))
    for some in track(predictions[0].chunks(torch.arange(len(places.row))), "keep"):
        first, *rest = (
            finite.checked(each, places.row[some])[:, :vocabulary].log_softmax(dim=-1)
            for each in predictions
        )
        target = places.target[some].to(first.device)
        writer.add(
            keep(
                first,
                target,
                top_k=settings.top_k or vocabulary,
                samples=settings.samples,
                places=begin[some].to(first.device),
            )
        )
        parts += [compare(first, other, target) for other in rest]
    finite.require()
    writer.flush()
    return parts


def _kept(text: Text) -> KeptText:
    return KeptText(
        name=text.name,
        sha256=text.sha256,
        windows=len(text.windows),
        words=text.words,
        bytes=text.bytes,
    )

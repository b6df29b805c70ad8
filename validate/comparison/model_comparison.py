"""A candidate against its reference, whether that is a model or a store of its predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.checkpoint.portable_config import DTYPES, dtype_name
from camelpress.core.files.file_hashes import checkpoint_digest, sha256_file
from camelpress.core.text.hf_tokenizer import Tokenizer
from camelpress.inference.model.streamed_model import StreamedModel
from camelpress.inference.model.token_batches import BATCH_TOKENS
from camelpress.reporting.checkpoint_summary import summary
from camelpress.validate.corpus.calibration_overlap import overlap
from camelpress.validate.corpus.held_out_text import Text, read_texts, window_length
from camelpress.validate.corpus.protocols import PROTOCOLS
from camelpress.validate.scoring.model_pair import (
    open_model,
    require_same_tokenizer,
    rows,
    shared_vocabulary,
)
from camelpress.validate.scoring.scored_positions import Places
from camelpress.validate.scoring.streamed_run import Runner
from camelpress.validate.scoring.token_scores import Scores, score, score_kept
from camelpress.validate.scoring.workspace import Workplace
from camelpress.validate.settings import Scoring, Validate
from camelpress.validate.statistics import figures
from camelpress.validate.store.prediction_store import REPORT, Store

# of a store, and told in the reports that it makes
ASKED = ("protocol", "max_tokens", "assistant_only", "noise_floor")


@dataclass(frozen=True)
class Measured:
    """What a report is made of."""

    scores: Scores
    texts: list[Text]
    inputs: dict[str, str]
    settings: dict[str, Any]  # as they took effect
    facts: dict[str, Any]


def against_model(
    reference: Checkpoint, candidate: Checkpoint, settings: Validate, work: Workplace
) -> Measured:
    """Run both models side by side.

    Raises:
        Interrupted: somebody asked for the end.
        RecipeProblem: no text, an empty one, or one that overlaps the candidate's calibration.
        CheckpointProblem: tokenizers differ, or the text has ids that not both models know.
        NumericsProblem: logits that are not finite.
    """
    first = open_model(reference, settings, team=work.team)
    second = open_model(candidate, settings, first.dtype, team=work.team)
    length = window_length(settings, min(first.positions, second.positions))
    tokenizer = Tokenizer.load(reference.folder)
    require_same_tokenizer(reference.folder, candidate.folder)
    texts = read_texts(settings, tokenizer, length)
    shared = overlap(texts, tokenizer, candidate.folder, allowed=settings.allow_overlap)
    places = Places.of([text.windows for text in texts])
    vocabulary = shared_vocabulary(rows(reference), rows(candidate), places, reference.folder)
    lanes = places.lanes()
    sequences = [lane.sequences(limit=length) for lane in lanes]
    pair = [
        Runner.of(label, model, sequences, work)
        for label, model in (("reference", first), ("candidate", second))
    ]
    twins = twin(reference, pair[0], settings, lanes, work)
    scored = score(pair + twins, places, work, vocabulary=vocabulary)
    floor = [figures.noise_floor(settings.noise_floor, each) for each in scored.scores[1:]]
    return Measured(
        scored.scores[0],
        texts,
        {"reference": _digest(reference, work)} | _inputs(candidate, texts, work),
        {"sequence_length": length},
        {
            "protocol": protocol(settings, length, second),
            **_vocabularies(rows(reference), rows(candidate), vocabulary),
            "overlap": shared,
            "reference": summary(reference),
            "candidate": summary(candidate),
            "non_finite": dict(zip(("reference", "candidate"), scored.non_finite, strict=False)),
            "blocks": figures.blocks(scored.errors[0]),
            "noise_floor": floor[0] if floor else None,
            "store": None,
        },
    )


def against_store(
    store: Store, candidate: Checkpoint, settings: Validate, work: Workplace
) -> Measured:
    """Run the candidate alone, on the windows and against the predictions of a store.

    Raises:
        Interrupted: somebody asked for the end.
        CheckpointProblem: the store is of another model, text or protocol, or the candidate's
            tokenizer or vocabulary is not the store's.
        RecipeProblem: a text overlaps the candidate's calibration, or the store has no noise floor.
        NumericsProblem: logits that are not finite.
    """
    store.require_made_from(settings, candidate.folder)
    kept = settings.model_copy(update={name: getattr(store.settings, name) for name in ASKED})
    facts, texts = store.facts, store.texts
    model = open_model(candidate, settings, DTYPES.get(facts.dtype), team=work.team)
    tokenizer = Tokenizer.load(store.folder)
    require_same_tokenizer(store.folder, candidate.folder)
    shared = overlap(texts, tokenizer, candidate.folder, allowed=settings.allow_overlap)
    places = Places.of([text.windows for text in texts])
    store.require_vocabulary(rows(candidate))
    sequences = [lane.sequences(limit=model.positions) for lane in places.lanes()]
    runner = Runner.of("candidate", model, sequences, work)
    scored, bounds = score_kept(store.kept, runner, places, work, vocabulary=facts.vocabulary)
    return Measured(
        scored.scores[0],
        texts,
        {"reference": store.model, "store": sha256_file(store.folder / REPORT)}
        | _inputs(candidate, texts, work),
        {name: getattr(kept, name) for name in ASKED} | {"sequence_length": facts.window},
        {
            "protocol": protocol(kept, facts.window, model),
            **_vocabularies(facts.known, rows(candidate), facts.vocabulary),
            "overlap": shared,
            "reference": facts.reference,
            "candidate": summary(candidate),
            "non_finite": {"reference": facts.non_finite, "candidate": scored.non_finite[0]},
            "blocks": None,
            "noise_floor": facts.noise_floor,
            "store": {
                "top_k": facts.top_k,
                "samples": facts.samples,
                "remainder_mass": facts.remainder_mass,
                "kl_bounds": [bounds.lower, bounds.upper],
            },
        },
    )


def twin(
    checkpoint: Checkpoint,
    runner: Runner,
    settings: Scoring,
    lanes: Sequence[Places],
    work: Workplace,
) -> list[Runner]:
    """The reference once more, computed otherwise; none where no noise floor is asked for.

    By batch, positions are counted from -1, too: a processor may multiply batches of any size
    alike, to the last bit.
    """
    label, usual = "reference again", [lane.sequences for lane in runner.lanes]
    if settings.noise_floor == "none":
        return []
    if settings.noise_floor == "bfloat16":
        narrow = settings.model_copy(update={"dtype": "bfloat16"})
        return [Runner.of(label, open_model(checkpoint, narrow, team=work.team), usual, work)]
    half, limit = BATCH_TOKENS // 2, runner.model.positions
    other = [lane.sequences(limit=limit, batch_tokens=half, first=-1) for lane in lanes]
    return [Runner.of(label, runner.model, other, work)]


def protocol(settings: Scoring, length: int, model: StreamedModel) -> str:
    """How the figures came about, in a sentence."""
    told = PROTOCOLS[settings.protocol].told.format(length=length)
    only = "; of conversations only what the assistant says" if settings.assistant_only else ""
    computed = f"{dtype_name(model.dtype)} on {model.device.type}"
    return f"{settings.protocol}: {told}{only}; perplexity per token; {computed}"


def _digest(model: Checkpoint, work: Workplace) -> str:
    return work.team.share(lambda: checkpoint_digest(model.folder))


def _inputs(candidate: Checkpoint, texts: list[Text], work: Workplace) -> dict[str, str]:
    told = {f"text:{text.name}": text.sha256 for text in texts}
    return {"candidate": _digest(candidate, work)} | told


def _vocabularies(reference: int, candidate: int, shared: int) -> dict[str, Any]:
    return {
        "vocabulary": shared,
        "vocabularies": {"reference": reference, "candidate": candidate},
    }

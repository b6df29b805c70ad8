"""A candidate against its reference, whether that is a model or a store of its predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.checkpoint.portable_config import TORCH_DTYPES, dtype_name
from camelpress.core.files.file_hashes import checkpoint_digest, sha256_file
from camelpress.core.text.hf_tokenizer import Tokenizer
from camelpress.inference.model.streamed_model import StreamedModel
from camelpress.inference.model.token_batches import MAX_BATCH_TOKENS
from camelpress.reporting.checkpoint_summary import summarize_checkpoint
from camelpress.validate.corpus.calibration_overlap import check_calibration_overlap
from camelpress.validate.corpus.held_out_text import HeldOutText, read_held_out_texts, window_length
from camelpress.validate.corpus.protocols import PROTOCOLS
from camelpress.validate.scoring.model_pair import (
    embedding_rows,
    open_streamed_model,
    require_same_tokenizer,
    shared_vocab_size,
)
from camelpress.validate.scoring.scored_positions import ScoredPositions
from camelpress.validate.scoring.streamed_run import StreamedRun
from camelpress.validate.scoring.token_scores import TokenScores, score_against_store, score_models
from camelpress.validate.scoring.workspace import Workspace
from camelpress.validate.settings import ScoringSettings, Validate
from camelpress.validate.statistics import figures
from camelpress.validate.store.prediction_store import STORE_REPORT, PredictionStore

# of a store, and told in the reports that it makes
STORE_SETTINGS = ("protocol", "max_tokens", "assistant_only", "noise_floor")


@dataclass(frozen=True)
class Comparison:
    """What a report is made of."""

    scores: TokenScores
    texts: list[HeldOutText]
    inputs: dict[str, str]
    settings: dict[str, Any]  # as they took effect
    facts: dict[str, Any]


def compare_models(
    reference: Checkpoint, candidate: Checkpoint, settings: Validate, work: Workspace
) -> Comparison:
    """Run both models side by side.

    Raises:
        Interrupted: somebody asked for the end.
        RecipeProblem: no text, an empty one, or one that overlaps the candidate's calibration.
        CheckpointProblem: tokenizers differ, or the text has ids that not both models know.
        NumericsProblem: logits that are not finite.
    """
    first = open_streamed_model(reference, settings, team=work.team)
    second = open_streamed_model(candidate, settings, first.dtype, team=work.team)
    length = window_length(settings, min(first.max_positions, second.max_positions))
    tokenizer = Tokenizer.load(reference.folder)
    require_same_tokenizer(reference.folder, candidate.folder)
    texts = read_held_out_texts(settings, tokenizer, length)
    shared = check_calibration_overlap(
        texts, tokenizer, candidate.folder, allowed=settings.allow_overlap
    )
    places = ScoredPositions.from_windows([text.windows for text in texts])
    vocabulary = shared_vocab_size(
        embedding_rows(reference), embedding_rows(candidate), places, reference.folder
    )
    lanes = places.shards()
    sequences = [lane.batches(limit=length) for lane in lanes]
    pair = [
        StreamedRun.start(label, model, sequences, work)
        for label, model in (("reference", first), ("candidate", second))
    ]
    twins = rerun_reference(reference, pair[0], settings, lanes, work)
    scored = score_models(pair + twins, places, work, vocabulary=vocabulary)
    floor = [figures.noise_floor_facts(settings.noise_floor, each) for each in scored.scores[1:]]
    return Comparison(
        scored.scores[0],
        texts,
        {"reference": _shared_digest(reference, work)} | _input_hashes(candidate, texts, work),
        {"sequence_length": length},
        {
            "protocol": describe_protocol(settings, length, second),
            **_vocabulary_facts(embedding_rows(reference), embedding_rows(candidate), vocabulary),
            "overlap": shared,
            "reference": summarize_checkpoint(reference),
            "candidate": summarize_checkpoint(candidate),
            "non_finite": dict(zip(("reference", "candidate"), scored.non_finite, strict=False)),
            "blocks": figures.block_error_facts(scored.block_errors[0]),
            "noise_floor": floor[0] if floor else None,
            "store": None,
        },
    )


def compare_with_store(
    store: PredictionStore, candidate: Checkpoint, settings: Validate, work: Workspace
) -> Comparison:
    """Run the candidate alone, on the windows and against the predictions of a store.

    Raises:
        Interrupted: somebody asked for the end.
        CheckpointProblem: the store is of another model, text or protocol, or the candidate's
            tokenizer or vocabulary is not the store's.
        RecipeProblem: a text overlaps the candidate's calibration, or the store has no noise floor.
        NumericsProblem: logits that are not finite.
    """
    store.require_same_inputs(settings, candidate.folder)
    kept = settings.model_copy(
        update={name: getattr(store.settings, name) for name in STORE_SETTINGS}
    )
    facts, texts = store.header, store.texts
    model = open_streamed_model(candidate, settings, TORCH_DTYPES.get(facts.dtype), team=work.team)
    tokenizer = Tokenizer.load(store.folder)
    require_same_tokenizer(store.folder, candidate.folder)
    shared = check_calibration_overlap(
        texts, tokenizer, candidate.folder, allowed=settings.allow_overlap
    )
    places = ScoredPositions.from_windows([text.windows for text in texts])
    store.require_vocabulary(embedding_rows(candidate))
    sequences = [lane.batches(limit=model.max_positions) for lane in places.shards()]
    runner = StreamedRun.start("candidate", model, sequences, work)
    scored, bounds = score_against_store(
        store.read_top_k, runner, places, work, vocabulary=facts.vocabulary
    )
    return Comparison(
        scored.scores[0],
        texts,
        {"reference": store.reference_hash, "store": sha256_file(store.folder / STORE_REPORT)}
        | _input_hashes(candidate, texts, work),
        {name: getattr(kept, name) for name in STORE_SETTINGS} | {"sequence_length": facts.window},
        {
            "protocol": describe_protocol(kept, facts.window, model),
            **_vocabulary_facts(facts.known, embedding_rows(candidate), facts.vocabulary),
            "overlap": shared,
            "reference": facts.reference,
            "candidate": summarize_checkpoint(candidate),
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


def rerun_reference(
    checkpoint: Checkpoint,
    runner: StreamedRun,
    settings: ScoringSettings,
    lanes: Sequence[ScoredPositions],
    work: Workspace,
) -> list[StreamedRun]:
    """The reference once more, computed otherwise; none where no noise floor is asked for.

    By batch, positions are counted from -1, too: a processor may multiply batches of any size
    alike, to the last bit.
    """
    label, usual = "reference again", [lane.sequences for lane in runner.shards]
    if settings.noise_floor == "none":
        return []
    if settings.noise_floor == "bfloat16":
        narrow = settings.model_copy(update={"dtype": "bfloat16"})
        return [
            StreamedRun.start(
                label, open_streamed_model(checkpoint, narrow, team=work.team), usual, work
            )
        ]
    half, limit = MAX_BATCH_TOKENS // 2, runner.model.max_positions
    other = [lane.batches(limit=limit, batch_tokens=half, first=-1) for lane in lanes]
    return [StreamedRun.start(label, runner.model, other, work)]


def describe_protocol(settings: ScoringSettings, length: int, model: StreamedModel) -> str:
    """How the figures came about, in a sentence."""
    told = PROTOCOLS[settings.protocol].description.format(length=length)
    only = "; of conversations only what the assistant says" if settings.assistant_only else ""
    computed = f"{dtype_name(model.dtype)} on {model.device.type}"
    return f"{settings.protocol}: {told}{only}; perplexity per token; {computed}"


def _shared_digest(model: Checkpoint, work: Workspace) -> str:
    return work.team.broadcast(lambda: checkpoint_digest(model.folder))


def _input_hashes(
    candidate: Checkpoint, texts: list[HeldOutText], work: Workspace
) -> dict[str, str]:
    told = {f"text:{text.name}": text.sha256 for text in texts}
    return {"candidate": _shared_digest(candidate, work)} | told


def _vocabulary_facts(reference: int, candidate: int, shared: int) -> dict[str, Any]:
    return {
        "vocabulary": shared,
        "vocabularies": {"reference": reference, "candidate": candidate},
    }

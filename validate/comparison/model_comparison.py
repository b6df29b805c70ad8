"""Compares a candidate with its reference, either a model or a store of its predictions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.checkpoint.portable_config import TORCH_DTYPES
from camelpress.core.files.file_hashes import checkpoint_digest, sha256_file
from camelpress.core.text.hf_tokenizer import Tokenizer
from camelpress.reporting.checkpoint_summary import summarize_checkpoint
from camelpress.validate.corpus.calibration_overlap import check_calibration_overlap
from camelpress.validate.corpus.held_out_text import HeldOutText, read_held_out_texts, window_length
from camelpress.validate.scoring import score_aggregation
from camelpress.validate.scoring.model_pair import (
    embedding_rows,
    open_streamed_model,
    require_same_tokenizer,
    shared_vocab_size,
)
from camelpress.validate.scoring.noise_floor import rerun_reference
from camelpress.validate.scoring.protocol_description import describe_protocol
from camelpress.validate.scoring.scored_positions import ScoredPositions
from camelpress.validate.scoring.streamed_run import StreamedRun
from camelpress.validate.scoring.token_scores import TokenScores, score_models
from camelpress.validate.scoring.workspace import Workspace
from camelpress.validate.settings import ValidateSettings
from camelpress.validate.store.prediction_store import STORE_REPORT, PredictionStore
from camelpress.validate.store.store_scores import score_against_store

# settings of a store, repeated in the reports of its comparisons
STORE_SETTINGS = ("protocol", "max_tokens", "assistant_only", "noise_floor")


@dataclass(frozen=True)
class Comparison:
    """Scores and facts of a comparison, for the report."""

    scores: TokenScores
    texts: list[HeldOutText]
    inputs: dict[str, str]
    settings: dict[str, Any]  # effective settings
    facts: dict[str, Any]


def compare_models(
    reference: Checkpoint, candidate: Checkpoint, settings: ValidateSettings, work: Workspace
) -> Comparison:
    """Runs both models side by side, and compares their predictions.

    Raises:
        Interruption: the user asked to stop.
        RecipeProblem: there is no text, a text is empty, or a text overlaps the candidate's
            calibration.
        CheckpointProblem: the tokenizers differ, or the text has an id outside the shared ids.
        NumericsProblem: logits are not finite.
    """
    first = open_streamed_model(reference, settings, team=work.team)
    second = open_streamed_model(candidate, settings, first.dtype, team=work.team)
    length = window_length(settings, min(first.max_positions, second.max_positions))
    tokenizer = Tokenizer.load(reference.folder)
    require_same_tokenizer(reference.folder, candidate.folder)
    texts = read_held_out_texts(settings, tokenizer, length)
    overlap = check_calibration_overlap(
        texts, tokenizer, candidate.folder, allow_overlap=settings.allow_overlap
    )
    positions = ScoredPositions.from_windows([text.windows for text in texts])
    vocabulary = shared_vocab_size(
        embedding_rows(reference), embedding_rows(candidate), positions, reference.folder
    )
    shards = positions.shards(tokens=first.sizes.scored_shard)
    sequences = [shard.batches(limit=length, batch_tokens=first.sizes.batch) for shard in shards]
    pair = [
        StreamedRun.start(label, model, sequences, work)
        for label, model in (("reference", first), ("candidate", second))
    ]
    reruns = rerun_reference(reference, pair[0], settings, shards, work)
    paired_scores = score_models(pair + reruns, positions, work, vocabulary=vocabulary)
    floor = [
        score_aggregation.noise_floor_facts(settings.noise_floor, rerun_scores)
        for rerun_scores in paired_scores.scores[1:]
    ]
    return Comparison(
        paired_scores.scores[0],
        texts,
        {"reference": _shared_digest(reference, work)} | _input_hashes(candidate, texts, work),
        {"sequence_length": length},
        {
            "protocol": describe_protocol(settings, length, second),
            **_vocabulary_facts(embedding_rows(reference), embedding_rows(candidate), vocabulary),
            "overlap": overlap,
            "reference": summarize_checkpoint(reference).record,
            "candidate": summarize_checkpoint(candidate).record,
            "non_finite": dict(
                zip(("reference", "candidate"), paired_scores.non_finite, strict=False)
            ),
            "blocks": score_aggregation.block_error_facts(paired_scores.block_errors[0]),
            "noise_floor": floor[0] if floor else None,
            "store": None,
        },
    )


def compare_with_store(
    store: PredictionStore, candidate: Checkpoint, settings: ValidateSettings, work: Workspace
) -> Comparison:
    """Runs the candidate on the windows of a store, and compares it with the stored predictions.

    Raises:
        Interruption: the user asked to stop.
        CheckpointProblem: the store has a different model, text or protocol, or the tokenizer or
            vocabulary of the candidate differs from the store's.
        RecipeProblem: a text overlaps the candidate's calibration, or the store has no noise floor.
        NumericsProblem: logits are not finite.
    """
    store.require_same_inputs(settings, candidate.folder)
    scoring_settings = settings.model_copy(
        update={name: getattr(store.settings, name) for name in STORE_SETTINGS}
    )
    header, texts = store.header, store.texts
    model = open_streamed_model(candidate, settings, TORCH_DTYPES.get(header.dtype), team=work.team)
    tokenizer = Tokenizer.load(store.folder)
    require_same_tokenizer(store.folder, candidate.folder)
    overlap = check_calibration_overlap(
        texts, tokenizer, candidate.folder, allow_overlap=settings.allow_overlap
    )
    positions = ScoredPositions.from_windows([text.windows for text in texts])
    store.require_vocabulary(embedding_rows(candidate))
    sequences = [
        shard.batches(limit=model.max_positions, batch_tokens=model.sizes.batch)
        for shard in positions.shards(tokens=model.sizes.scored_shard)
    ]
    runner = StreamedRun.start("candidate", model, sequences, work)
    paired_scores, bounds = score_against_store(
        store.read_top_k, runner, positions, work, vocabulary=header.vocabulary
    )
    return Comparison(
        paired_scores.scores[0],
        texts,
        {"reference": store.reference_hash, "store": sha256_file(store.folder / STORE_REPORT)}
        | _input_hashes(candidate, texts, work),
        {name: getattr(scoring_settings, name) for name in STORE_SETTINGS}
        | {"sequence_length": header.window},
        {
            "protocol": describe_protocol(scoring_settings, header.window, model),
            **_vocabulary_facts(header.known, embedding_rows(candidate), header.vocabulary),
            "overlap": overlap,
            "reference": header.reference.record,
            "candidate": summarize_checkpoint(candidate).record,
            "non_finite": {
                "reference": header.non_finite,
                "candidate": paired_scores.non_finite[0],
            },
            "blocks": None,
            "noise_floor": header.noise_floor and header.noise_floor.record,
            "store": {
                "top_k": header.top_k,
                "samples": header.samples,
                "remainder_mass": header.remainder_mass,
                "kl_bounds": [bounds.lower, bounds.upper],
            },
        },
    )


def _shared_digest(model: Checkpoint, work: Workspace) -> str:
    return work.team.broadcast(lambda: checkpoint_digest(model.folder))


def _input_hashes(
    candidate: Checkpoint, texts: list[HeldOutText], work: Workspace
) -> dict[str, str]:
    text_hashes = {f"text:{text.name}": text.sha256 for text in texts}
    return {"candidate": _shared_digest(candidate, work)} | text_hashes


def _vocabulary_facts(reference: int, candidate: int, shared: int) -> dict[str, Any]:
    return {
        "vocabulary": shared,
        "vocabularies": {"reference": reference, "candidate": candidate},
    }

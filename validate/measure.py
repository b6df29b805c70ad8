"""A candidate against its reference, whether that is a model or a store of its predictions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from camelpress.core.blocks import StreamedModel
from camelpress.core.checkpoint import Checkpoint
from camelpress.core.config import DTYPES, dtype_name
from camelpress.core.provenance import checkpoint_digest, sha256_file
from camelpress.core.summary import summary
from camelpress.core.tokens import Tokenizer
from camelpress.validate import figures
from camelpress.validate.models import (
    open_model,
    require_same_tokenizer,
    rows,
    shared_vocabulary,
    tokenizer_digest,
)
from camelpress.validate.overlap import overlap
from camelpress.validate.places import Places
from camelpress.validate.protocols import PROTOCOLS
from camelpress.validate.score import Runner, Scores, score, score_kept
from camelpress.validate.settings import Scoring, Validate
from camelpress.validate.store import REPORT, Store
from camelpress.validate.texts import Text, read_texts, window_length

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


def against_model(reference: Checkpoint, candidate: Checkpoint, settings: Validate) -> Measured:
    """Run both models side by side.

    Raises:
        RecipeProblem: no text, an empty one, or one that overlaps the candidate's calibration.
        CheckpointProblem: tokenizers differ, or the text has ids that not both models know.
        NumericsProblem: logits that are not finite.
    """
    first = open_model(reference, settings)
    second = open_model(candidate, settings, first.dtype)
    length = window_length(settings, min(first.positions, second.positions))
    tokenizer = Tokenizer.load(reference.folder)
    require_same_tokenizer(tokenizer_digest(tokenizer), reference.folder, candidate.folder)
    texts = read_texts(settings, tokenizer, length)
    shared = overlap(texts, tokenizer, candidate.folder, allowed=settings.allow_overlap)
    places = Places.of([text.windows for text in texts])
    vocabulary = shared_vocabulary(rows(reference), rows(candidate), places, reference.folder)
    sequences = places.sequences(limit=length)
    pair = [Runner("reference", first, sequences), Runner("candidate", second, sequences)]
    twins = [twin(reference, first, settings, places, length)]
    scored = score(pair + [each for each in twins if each], places, vocabulary=vocabulary)
    floor = [figures.noise_floor(settings.noise_floor, each) for each in scored.scores[1:]]
    return Measured(
        scored.scores[0],
        texts,
        {"reference": checkpoint_digest(reference.folder)} | _inputs(candidate, texts),
        {"sequence_length": length},
        {
            "protocol": protocol(settings, length, second),
            **_vocabularies(rows(reference), rows(candidate), vocabulary),
            "overlap": shared,
            "reference": summary(reference),
            "candidate": summary(candidate),
            "non_finite": {"reference": 0, "candidate": 0},  # any is refused
            "blocks": figures.blocks(scored.errors[0]),
            "noise_floor": floor[0] if floor else None,
            "store": None,
        },
    )


def against_store(store: Store, candidate: Checkpoint, settings: Validate) -> Measured:
    """Run the candidate alone, on the windows and against the predictions of a store.

    Raises:
        CheckpointProblem: the store is of another model, text or protocol, or the candidate's
            tokenizer or vocabulary is not the store's.
        RecipeProblem: a text overlaps the candidate's calibration, or the store has no noise floor.
        NumericsProblem: logits that are not finite.
    """
    store.require_made_from(settings, candidate.folder)
    kept = settings.model_copy(update={name: getattr(store.settings, name) for name in ASKED})
    facts, texts = store.facts, store.texts
    model = open_model(candidate, settings, DTYPES.get(facts.dtype))
    tokenizer = Tokenizer.load(store.folder)
    require_same_tokenizer(tokenizer_digest(tokenizer), store.folder, candidate.folder)
    shared = overlap(texts, tokenizer, candidate.folder, allowed=settings.allow_overlap)
    places = Places.of([text.windows for text in texts])
    store.require_vocabulary(rows(candidate))
    sequences = places.sequences(limit=model.positions)
    scores, bounds = score_kept(
        store.kept(), Runner("candidate", model, sequences), places, vocabulary=facts.vocabulary
    )
    return Measured(
        scores,
        texts,
        {"reference": store.model, "store": sha256_file(store.folder / REPORT)}
        | _inputs(candidate, texts),
        {name: getattr(kept, name) for name in ASKED} | {"sequence_length": facts.window},
        {
            "protocol": protocol(kept, facts.window, model),
            **_vocabularies(facts.known, rows(candidate), facts.vocabulary),
            "overlap": shared,
            "reference": facts.reference,
            "candidate": summary(candidate),
            "non_finite": {"reference": 0, "candidate": 0},
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
    reference: Checkpoint, model: StreamedModel, settings: Scoring, places: Places, length: int
) -> Runner | None:
    """The reference once more, computed otherwise; None where no noise floor is asked for."""
    label = "reference again"
    if settings.noise_floor == "none":
        return None
    if settings.noise_floor == "bfloat16":
        other = open_model(reference, settings.model_copy(update={"dtype": "bfloat16"}))
        return Runner(label, other, places.sequences(limit=length))
    usual = places.sequences(limit=length)
    longest = max(usual.lengths)
    alone = max(len(batch.places) for batch in usual.batches) == 1
    tokens = 2 * longest if alone else longest
    return Runner(label, model, places.sequences(limit=length, batch_tokens=tokens))


def protocol(settings: Scoring, length: int, model: StreamedModel) -> str:
    """How the figures came about, in a sentence."""
    told = PROTOCOLS[settings.protocol].told.format(length=length)
    only = "; of conversations only what the assistant says" if settings.assistant_only else ""
    computed = f"{dtype_name(model.dtype)} on {model.device.type}"
    return f"{settings.protocol}: {told}{only}; perplexity per token; {computed}"


def _inputs(candidate: Checkpoint, texts: list[Text]) -> dict[str, str]:
    told = {f"text:{text.name}": text.sha256 for text in texts}
    return {"candidate": checkpoint_digest(candidate.folder)} | told


def _vocabularies(reference: int, candidate: int, shared: int) -> dict[str, Any]:
    return {
        "vocabulary": shared,
        "vocabularies": {"reference": reference, "candidate": candidate},
    }

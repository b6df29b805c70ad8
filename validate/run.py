"""The stage: reference and candidate in, a report with verdicts and a page to look at out."""

from __future__ import annotations

from pathlib import Path

from camelpress.core.blocks import StreamedModel, compute_dtype, pick_device
from camelpress.core.checkpoint import Checkpoint
from camelpress.core.errors import CheckpointProblem
from camelpress.core.llama import EMBEDDING
from camelpress.core.output import keep_apart, require_free, staged
from camelpress.core.provenance import checkpoint_digest
from camelpress.core.report import Report, Stopwatch, Verdict
from camelpress.core.sequences import Sequences
from camelpress.core.summary import summary
from camelpress.core.tokens import Tokenizer
from camelpress.validate import outputs
from camelpress.validate.figures import figures
from camelpress.validate.gate import judge
from camelpress.validate.overlap import overlap
from camelpress.validate.score import score
from camelpress.validate.settings import Validate
from camelpress.validate.texts import read_texts

REPORT = outputs.REPORT


def run(
    reference: Checkpoint,
    candidate: Checkpoint,
    out: Path,
    settings: Validate,
    *,
    force: bool = False,
) -> Report:
    """Score both models on the same tokens and hold the differences against the gate.

    Args:
        reference: the 16-bit model; its tokenizer is used.
        candidate: 16-bit or GPTQ, with the same vocabulary.
        out: a folder for report.json, report.md, report.html and junit.xml.
        settings: texts, windows, gate.
        force: replace `out`.
    Raises:
        RecipeProblem: no text, an empty one, or one that overlaps the candidate's calibration.
        CheckpointProblem: the vocabularies differ.
    """
    watch = Stopwatch()
    keep_apart(out, reference.folder, candidate.folder)
    require_free(out, force=force)
    vocabulary = _same_vocabulary(reference, candidate)
    device = pick_device(settings.device)
    models = [
        StreamedModel(
            checkpoint,
            device=device,
            dtype=compute_dtype(device, reference.info(f"{EMBEDDING}.weight").dtype),
        )
        for checkpoint in (reference, candidate)
    ]
    limit = min(settings.sequence_length, *(model.positions for model in models))
    tokenizer = Tokenizer.load(reference.folder)
    texts = read_texts(settings, tokenizer, limit)
    shared = overlap(texts, tokenizer, candidate.folder, allowed=settings.allow_overlap)
    sequences = Sequences([ids for text in texts for ids in text.sequences], limit=limit)
    scores = score(models[0], models[1], sequences)
    facts = {
        "protocol": f"token-level; plain text in disjoint windows of {limit} tokens, each "
        "conversation a sequence of its own in the Tulu format cut at that length; every "
        f"token after the first of a sequence is scored; {models[0].dtype} on {device.type}",
        "vocabulary": vocabulary,
        "overlap": shared,
        "reference": summary(reference),
        "candidate": summary(candidate),
        **figures(scores, texts),
    }
    checks = judge(facts, settings.gate)
    report = Report(
        stage="validate",
        inputs={
            "reference": checkpoint_digest(reference.folder),
            "candidate": checkpoint_digest(candidate.folder),
        }
        | {f"text:{text.name}": text.sha256 for text in texts},
        settings=settings.model_dump(mode="json", exclude={"text", "device"})
        | {"text": [text.name for text in texts]},
        facts=facts,
        checks=checks,
        verdict=Verdict.worst([check.verdict for check in checks]),
        cost=watch.cost(),
    )
    with staged(out, force=force) as folder:
        outputs.write(report, folder, settings)
    return report


def _same_vocabulary(reference: Checkpoint, candidate: Checkpoint) -> int:
    sizes = [
        checkpoint.info(f"{EMBEDDING}.weight").shape[0] for checkpoint in (reference, candidate)
    ]
    if sizes[0] != sizes[1]:
        raise CheckpointProblem(
            f"{reference.folder} has {sizes[0]} tokens and {candidate.folder} has {sizes[1]}",
            next_step="compare models with the same vocabulary",
        )
    return sizes[0]

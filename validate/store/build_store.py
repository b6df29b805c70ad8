"""Builds a store of reference predictions, so that candidates can be compared without the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.checkpoint.portable_config import dtype_name
from camelpress.core.errors import RecipeProblem
from camelpress.core.files.file_hashes import checkpoint_file_hashes, sha256_file, sha256_json
from camelpress.core.output.staged_output import (
    output_files,
    require_free_output,
    require_separate_output,
)
from camelpress.core.runtime.resource_usage import Stopwatch
from camelpress.core.text.hf_tokenizer import Tokenizer
from camelpress.inference.model.model_identity import headers_digest, weights_digest
from camelpress.reporting.checkpoint_summary import summarize_checkpoint
from camelpress.reporting.facts.store_facts import StoreFacts
from camelpress.reporting.report_classes import StoreReport
from camelpress.validate.corpus.held_out_text import HeldOutText, read_held_out_texts, window_length
from camelpress.validate.scoring import score_aggregation
from camelpress.validate.scoring.divergence import TokenMetrics, compare_log_probs
from camelpress.validate.scoring.model_pair import (
    embedding_rows,
    open_streamed_model,
    shared_vocab_size,
)
from camelpress.validate.scoring.noise_floor import rerun_reference
from camelpress.validate.scoring.paired_heads import HiddenStates, PairedHeads
from camelpress.validate.scoring.protocol_description import describe_protocol
from camelpress.validate.scoring.scored_positions import ScoredPositions, piece_numbers
from camelpress.validate.scoring.streamed_run import StreamedRun, run_blocks
from camelpress.validate.scoring.token_scores import TokenScores, map_shards
from camelpress.validate.scoring.unquantized_reference import require_unquantized
from camelpress.validate.scoring.workspace import Workspace, resume_key
from camelpress.validate.settings import StoreSettings
from camelpress.validate.store.prediction_store import (
    STORE_REPORT,
    WINDOWS_FILE,
)
from camelpress.validate.store.store_writer import (
    SHARD_PATTERN,
    TOKENIZER_FILE_NAMES,
    StoreWriter,
    copy_tokenizer,
    sampling_offsets,
    write_windows,
)
from camelpress.validate.store.top_k_log_probs import truncate_to_top_k

STORE_PATTERNS = (SHARD_PATTERN, WINDOWS_FILE, *TOKENIZER_FILE_NAMES, STORE_REPORT)


def build_store(
    reference: Checkpoint,
    out: Path,
    settings: StoreSettings,
    *,
    force: bool = False,
    restart: bool = False,
) -> StoreReport:
    """Writes a store of reference predictions; processes started by `torchrun` share the work.

    Args:
        reference: the model before quantization; its tokenizer is used.
        out: output folder of the store.
        settings: texts, protocol, and the stored part of each prediction.
        force: replace an earlier output in `out`.
        restart: discard an unfinished run.
    Returns:
        the report of the store, equal on every rank.
    Raises:
        Interruption: the user asked to stop; the same call resumes.
        RecipeProblem: there is no text, a text is empty, `top_k` exceeds the vocabulary, or the
            reference is quantized without permission in the settings.
        NumericsProblem: logits are not finite.
    """
    watch = Stopwatch()
    require_separate_output(out, reference.folder)
    require_free_output(out, force=force)
    require_unquantized(reference, settings)
    hashes = checkpoint_file_hashes(reference.folder)
    with Workspace.staged(
        out,
        lambda: resume_key("store", settings, {"reference": hashes}),
        force=force,
        restart=restart,
        writes=STORE_PATTERNS,
    ) as work:
        model = open_streamed_model(reference, settings, team=work.team)
        length = window_length(settings, model.max_positions)
        texts = read_held_out_texts(settings, Tokenizer.load(reference.folder), length)
        positions = ScoredPositions.from_windows([text.windows for text in texts])
        vocabulary = embedding_rows(reference)
        shared = shared_vocab_size(
            vocabulary, settings.vocabulary or vocabulary, positions, reference.folder
        )
        top_k = settings.top_k or shared
        if top_k > shared:
            raise RecipeProblem(
                f"--top-k {top_k} exceeds the {shared} tokens of the vocabulary",
                next_step="use --top-k 0 to keep all",
            )
        shards = positions.shards(tokens=model.sizes.shard)  # a file of the store for each shard
        sequences = [
            shard.batches(limit=length, batch_tokens=model.sizes.batch) for shard in shards
        ]
        runner = StreamedRun.start("reference", model, sequences, work)
        runners = [runner, *rerun_reference(reference, runner, settings, shards, work)]
        store_settings = settings.model_copy(update={"top_k": top_k, "vocabulary": shared})
        remainder, rerun_scores, non_finite = _write_predictions(
            runners, positions, shards, store_settings, work
        )
        header = StoreFacts.build(
            {
                "protocol": describe_protocol(settings, length, model),
                "window": length,
                "vocabulary": shared,
                "known": vocabulary,
                "predictions": len(positions.input_index),
                **_count_clusters(texts, positions),
                "non_finite": non_finite,
                "top_k": top_k,
                "samples": settings.samples if top_k < shared else 0,
                "remainder_mass": remainder / len(positions.input_index),
                "dtype": dtype_name(model.dtype),
                "reference": summarize_checkpoint(reference).record,
                "headers": headers_digest(reference),
                "weights": work.team.broadcast(lambda: weights_digest(reference)),
                "texts": [_store_text(text) for text in texts],
                "noise_floor": score_aggregation.noise_floor_facts(
                    settings.noise_floor, rerun_scores
                )
                if rerun_scores
                else None,
            }
        )
        report = work.team.broadcast(
            lambda: _write_store_report(
                work.folder, reference, hashes, texts, settings, header, watch
            )
        )
    return work.team.broadcast(lambda: report)


def _write_predictions(
    runners: list[StreamedRun],
    positions: ScoredPositions,
    shards: Sequence[ScoredPositions],
    settings: StoreSettings,
    work: Workspace,
) -> tuple[float, TokenScores | None, int]:
    """Stores all predictions of the first model, and compares those of a second model with them.

    Returns:
        the sum of the probability masses outside the stored tokens, the scores of the second model
        if there is one, and the number of non-finite predictions of the first.
    """
    vocabulary = settings.vocabulary or 0
    starts = [0, *accumulate(len(shard.input_index) for shard in shards)]
    offsets = sampling_offsets(len(positions.input_index))
    buffers = [
        [TokenMetrics.allocate(len(shard.input_index)) for _ in runners[1:]] for shard in shards
    ]

    def store_shard(
        heads: PairedHeads, shard: int, hidden: HiddenStates
    ) -> tuple[float, list[TokenMetrics]]:
        writer = StoreWriter(work.folder, shard, vocabulary)
        for chunk in heads.log_probs(shards[shard], hidden):
            first, *candidates = chunk.log_p
            chunk_offsets = offsets[starts[shard] :][chunk.rows].to(first.device)
            top_k, samples = settings.top_k, settings.samples
            writer.add(
                truncate_to_top_k(
                    first, chunk.target, top_k=top_k, samples=samples, offsets=chunk_offsets
                )
            )
            for buffer, candidate in zip(buffers[shard], candidates, strict=True):
                buffer.write(chunk.rows, compare_log_probs(first, candidate, chunk.target))
        writer.flush()
        return writer.remainder, buffers[shard]

    with torch.inference_mode():
        run_blocks(runners, work)
        results, non_finite = map_shards(runners, work, "keep", store_shard, vocabulary=vocabulary)
    sums, metrics = zip(*results, strict=True)
    rerun_scores = [TokenScores.concat(parts, positions) for parts in zip(*metrics, strict=True)]
    return sum(sums), rerun_scores[0] if rerun_scores else None, non_finite[0]


def _write_store_report(
    folder: Path,
    reference: Checkpoint,
    hashes: Mapping[str, str],
    texts: Sequence[HeldOutText],
    settings: StoreSettings,
    header: StoreFacts,
    watch: Stopwatch,
) -> StoreReport:
    """Writes windows, tokenizer and report of the store."""
    write_windows(texts, folder / WINDOWS_FILE)
    copy_tokenizer(reference.folder, folder)
    reference.require_unchanged(hashes)
    report = StoreReport(
        stage="store",
        inputs={"reference": sha256_json(hashes)}
        | {f"text:{text.name}": text.sha256 for text in texts},
        outputs={path.name: sha256_file(path) for path in sorted(folder.glob("*.safetensors"))},
        settings=settings.model_dump(mode="json", exclude={"text", "device"}),
        facts=header,
        cost=watch.cost(),
        files=output_files(folder, STORE_REPORT),
    )
    report.write(folder / STORE_REPORT)
    return report


def _count_clusters(texts: Sequence[HeldOutText], positions: ScoredPositions) -> dict[str, int]:
    """Counts the independent pieces of text and their repetitions."""
    sequences = len(positions.cluster.unique())
    pieces = len({*piece_numbers([text.windows for text in texts])})
    return {"sequences": sequences, "repeats": pieces - sequences}


def _store_text(text: HeldOutText) -> dict[str, Any]:
    """Returns the facts of a text."""
    return {
        "name": text.name,
        "sha256": text.sha256,
        "windows": len(text.windows),
        "words": text.word_count,
        "bytes": text.byte_count,
        "rows": text.row_count,
        "omissions": {unit: {**reasons} for unit, reasons in text.omissions.items()},
    }

"""A reference's predictions computed once, so that candidates need it no more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path

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
from camelpress.core.text.hf_tokenizer import Tokenizer
from camelpress.inference.model.model_identity import headers_digest, weights_digest
from camelpress.inference.streaming.token_shards import SHARD_TOKENS
from camelpress.reporting.checkpoint_summary import summarize_checkpoint
from camelpress.reporting.stage_report import Report, Stopwatch
from camelpress.validate.comparison.model_comparison import describe_protocol, rerun_reference
from camelpress.validate.comparison.reference_check import require_unquantized
from camelpress.validate.corpus.held_out_text import HeldOutText, read_held_out_texts, window_length
from camelpress.validate.scoring.divergence import (
    TokenMetrics,
    compare_log_probs,
    truncate_to_top_k,
)
from camelpress.validate.scoring.model_pair import (
    embedding_rows,
    open_streamed_model,
    shared_vocab_size,
)
from camelpress.validate.scoring.paired_heads import HiddenStates, PairedHeads
from camelpress.validate.scoring.scored_positions import ScoredPositions, piece_numbers
from camelpress.validate.scoring.streamed_run import StreamedRun, run_blocks
from camelpress.validate.scoring.token_scores import TokenScores, map_shards
from camelpress.validate.scoring.workspace import Workspace, resume_key
from camelpress.validate.settings import StoreSettings
from camelpress.validate.statistics import figures
from camelpress.validate.store.prediction_store import (
    STORE_REPORT,
    WINDOWS_FILE,
    StoreHeader,
    StoreText,
)
from camelpress.validate.store.store_writer import (
    SHARD_PATTERN,
    TOKENIZER_FILE_NAMES,
    StoreWriter,
    copy_tokenizer,
    sampling_offsets,
    write_windows,
)

STORE_PATTERNS = (SHARD_PATTERN, WINDOWS_FILE, *TOKENIZER_FILE_NAMES, STORE_REPORT)


def build_store(
    reference: Checkpoint,
    out: Path,
    settings: StoreSettings,
    *,
    force: bool = False,
    restart: bool = False,
) -> Report:
    """Write a store of a reference's predictions; processes of `torchrun` share the work.

    Args:
        reference: the model before it is quantized; its tokenizer is used.
        out: a folder for the store.
        settings: texts, protocol, and how much of each prediction is kept.
        force: replace `out`.
        restart: begin again, whatever an unfinished run left.
    Raises:
        Interrupted: somebody asked for the end; the same call goes on.
        RecipeProblem: no text or an empty one, more is to be kept than there is, or a quantized
            reference that the settings do not allow.
        NumericsProblem: logits that are not finite.
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
        places = ScoredPositions.from_windows([text.windows for text in texts])
        known = embedding_rows(reference)
        shared = shared_vocab_size(known, settings.vocabulary or known, places, reference.folder)
        top_k = settings.top_k or shared
        if top_k > shared:
            raise RecipeProblem(
                f"--top-k {top_k} is more than the {shared} tokens that there are",
                next_step="use --top-k 0 to keep all",
            )
        lanes = places.shards(tokens=SHARD_TOKENS)  # each is a file of the store
        sequences = [lane.batches(limit=length) for lane in lanes]
        runner = StreamedRun.start("reference", model, sequences, work)
        runners = [runner, *rerun_reference(reference, runner, settings, lanes, work)]
        wanted = settings.model_copy(update={"top_k": top_k, "vocabulary": shared})
        remainder, again, wrong = _write_predictions(runners, places, lanes, wanted, work)
        facts = StoreHeader(
            protocol=describe_protocol(settings, length, model),
            window=length,
            vocabulary=shared,
            known=known,
            **_count_clusters(texts, places),
            predictions=len(places.input_index),
            non_finite=wrong,
            top_k=top_k,
            samples=settings.samples if top_k < shared else 0,
            remainder_mass=remainder / len(places.input_index),
            dtype=dtype_name(model.dtype),
            reference=summarize_checkpoint(reference),
            headers=headers_digest(reference),
            weights=work.team.broadcast(lambda: weights_digest(reference)),
            texts=tuple(_store_text(text) for text in texts),
            noise_floor=figures.noise_floor_facts(settings.noise_floor, again) if again else None,
        )
        report = work.team.broadcast(
            lambda: _write_store_report(
                work.folder, reference, hashes, texts, settings, facts, watch
            )
        )
    return work.team.broadcast(lambda: report)


def _write_predictions(
    runners: list[StreamedRun],
    places: ScoredPositions,
    lanes: Sequence[ScoredPositions],
    settings: StoreSettings,
    work: Workspace,
) -> tuple[float, TokenScores | None, int]:
    """Keep all predictions of the first model; hold those of a second against them.

    Returns:
        the sum of the masses outside the tokens kept, the figures of the second model if there is
        one, and how many predictions of the first are not finite.
    """
    vocabulary = settings.vocabulary or 0
    starts = [0, *accumulate(len(lane.input_index) for lane in lanes)]
    begin = sampling_offsets(len(places.input_index))
    rooms = [[TokenMetrics.allocate(len(lane.input_index)) for _ in runners[1:]] for lane in lanes]

    def look(
        heads: PairedHeads, lane: int, hidden: HiddenStates
    ) -> tuple[float, list[TokenMetrics]]:
        writer = StoreWriter(work.folder, lane, vocabulary)
        for chunk in heads.log_probs(lanes[lane], hidden):
            first, *rest = chunk.log_p
            drawn = begin[starts[lane] :][chunk.places].to(first.device)
            top_k, samples = settings.top_k, settings.samples
            writer.add(
                truncate_to_top_k(first, chunk.target, top_k=top_k, samples=samples, places=drawn)
            )
            for room, other in zip(rooms[lane], rest, strict=True):
                room.write(chunk.places, compare_log_probs(first, other, chunk.target))
        writer.flush()
        return writer.remainder, rooms[lane]

    with torch.inference_mode():
        run_blocks(runners, work)
        told, wrong = map_shards(runners, work, "keep", look, vocabulary=vocabulary)
    sums, held = zip(*told, strict=True)
    again = [TokenScores.concat(found, places) for found in zip(*held, strict=True)]
    return sum(sums), again[0] if again else None, wrong[0]


def _write_store_report(
    folder: Path,
    reference: Checkpoint,
    hashes: Mapping[str, str],
    texts: Sequence[HeldOutText],
    settings: StoreSettings,
    facts: StoreHeader,
    watch: Stopwatch,
) -> Report:
    """Windows, tokenizer and the report beside the predictions."""
    write_windows(texts, folder / WINDOWS_FILE)
    copy_tokenizer(reference.folder, folder)
    reference.require_unchanged(hashes)
    report = Report(
        stage="store",
        inputs={"reference": sha256_json(hashes)}
        | {f"text:{text.name}": text.sha256 for text in texts},
        outputs={path.name: sha256_file(path) for path in sorted(folder.glob("*.safetensors"))},
        settings=settings.model_dump(mode="json", exclude={"text", "device"}),
        facts=facts.model_dump(mode="json"),
        cost=watch.cost(),
        files=output_files(folder, STORE_REPORT),
    )
    report.write(folder / STORE_REPORT)
    return report


def _count_clusters(texts: Sequence[HeldOutText], places: ScoredPositions) -> dict[str, int]:
    """How many independent pieces of text there are, and how many others repeat one of them."""
    sequences = len(places.cluster.unique())
    every = len({*piece_numbers([text.windows for text in texts])})
    return {"sequences": sequences, "repeats": every - sequences}


def _store_text(text: HeldOutText) -> StoreText:
    return StoreText(
        name=text.name,
        sha256=text.sha256,
        windows=len(text.windows),
        words=text.word_count,
        bytes=text.byte_count,
        rows=text.row_count,
        omissions={unit: {**reasons} for unit, reasons in text.omissions.items()},
    )

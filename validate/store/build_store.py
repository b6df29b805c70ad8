"""A reference's predictions computed once, so that candidates need it no more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path

import torch

from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.checkpoint.portable_config import dtype_name
from camelpress.core.errors import RecipeProblem
from camelpress.core.files.file_hashes import checkpoint_hashes, sha256_file, sha256_json
from camelpress.core.output.staged_output import keep_apart, output_files, require_free
from camelpress.core.text.hf_tokenizer import Tokenizer
from camelpress.inference.model.model_identity import headers_digest, weights_digest
from camelpress.inference.streaming.token_shards import LANE_TOKENS
from camelpress.reporting.checkpoint_summary import summary
from camelpress.reporting.stage_report import Report, Stopwatch
from camelpress.validate.comparison.model_comparison import protocol, twin
from camelpress.validate.comparison.reference_check import require_plain
from camelpress.validate.corpus.held_out_text import Text, read_texts, window_length
from camelpress.validate.scoring.divergence import Compared, compare, keep
from camelpress.validate.scoring.model_pair import open_model, rows, shared_vocabulary
from camelpress.validate.scoring.paired_heads import Heads, States
from camelpress.validate.scoring.scored_positions import Places, pieces
from camelpress.validate.scoring.streamed_run import Runner, walk
from camelpress.validate.scoring.token_scores import Scores, over_lanes
from camelpress.validate.scoring.workspace import Workplace, fingerprint
from camelpress.validate.settings import Keep
from camelpress.validate.statistics import figures
from camelpress.validate.store.prediction_store import REPORT, WINDOWS, Facts, KeptText
from camelpress.validate.store.store_writer import (
    PARTS,
    TOKENIZER,
    Writer,
    copy_tokenizer,
    places_for_drawing,
    write_windows,
)

WRITES = (PARTS, WINDOWS, *TOKENIZER, REPORT)


def run(
    reference: Checkpoint,
    out: Path,
    settings: Keep,
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
    keep_apart(out, reference.folder)
    require_free(out, force=force)
    require_plain(reference, settings)
    hashes = checkpoint_hashes(reference.folder)
    with Workplace.staged(
        out,
        lambda: fingerprint("store", settings, {"reference": hashes}),
        force=force,
        restart=restart,
        writes=WRITES,
    ) as work:
        model = open_model(reference, settings, team=work.team)
        length = window_length(settings, model.positions)
        texts = read_texts(settings, Tokenizer.load(reference.folder), length)
        places = Places.of([text.windows for text in texts])
        known = rows(reference)
        shared = shared_vocabulary(known, settings.vocabulary or known, places, reference.folder)
        top_k = settings.top_k or shared
        if top_k > shared:
            raise RecipeProblem(
                f"--top-k {top_k} is more than the {shared} tokens that there are",
                next_step="use --top-k 0 to keep all",
            )
        lanes = places.lanes(tokens=LANE_TOKENS)  # each is a file of the store
        sequences = [lane.sequences(limit=length) for lane in lanes]
        runner = Runner.of("reference", model, sequences, work)
        runners = [runner, *twin(reference, runner, settings, lanes, work)]
        wanted = settings.model_copy(update={"top_k": top_k, "vocabulary": shared})
        remainder, again, wrong = _write(runners, places, lanes, wanted, work)
        facts = Facts(
            protocol=protocol(settings, length, model),
            window=length,
            vocabulary=shared,
            known=known,
            **_pieces(texts, places),
            predictions=len(places.row),
            non_finite=wrong,
            top_k=top_k,
            samples=settings.samples if top_k < shared else 0,
            remainder_mass=remainder / len(places.row),
            dtype=dtype_name(model.dtype),
            reference=summary(reference),
            headers=headers_digest(reference),
            weights=work.team.share(lambda: weights_digest(reference)),
            texts=tuple(_kept(text) for text in texts),
            noise_floor=figures.noise_floor(settings.noise_floor, again) if again else None,
        )
        report = work.team.share(
            lambda: _complete(work.folder, reference, hashes, texts, settings, facts, watch)
        )
    return work.team.share(lambda: report)


def _write(
    runners: list[Runner],
    places: Places,
    lanes: Sequence[Places],
    settings: Keep,
    work: Workplace,
) -> tuple[float, Scores | None, int]:
    """Keep all predictions of the first model; hold those of a second against them.

    Returns:
        the sum of the masses outside the tokens kept, the figures of the second model if there is
        one, and how many predictions of the first are not finite.
    """
    vocabulary = settings.vocabulary or 0
    starts = [0, *accumulate(len(lane.row) for lane in lanes)]
    begin = places_for_drawing(len(places.row))
    rooms = [[Compared.room(len(lane.row)) for _ in runners[1:]] for lane in lanes]

    def look(heads: Heads, lane: int, hidden: States) -> tuple[float, list[Compared]]:
        writer = Writer(work.folder, lane, vocabulary)
        for chunk in heads.read(lanes[lane], hidden):
            first, *rest = chunk.log_p
            drawn = begin[starts[lane] :][chunk.places].to(first.device)
            top_k, samples = settings.top_k, settings.samples
            writer.add(keep(first, chunk.target, top_k=top_k, samples=samples, places=drawn))
            for room, other in zip(rooms[lane], rest, strict=True):
                room.put(chunk.places, compare(first, other, chunk.target))
        writer.flush()
        return writer.remainder, rooms[lane]

    with torch.inference_mode():
        walk(runners, work)
        told, wrong = over_lanes(runners, work, "keep", look, vocabulary=vocabulary)
    sums, held = zip(*told, strict=True)
    again = [Scores.joined(found, places) for found in zip(*held, strict=True)]
    return sum(sums), again[0] if again else None, wrong[0]


def _complete(
    folder: Path,
    reference: Checkpoint,
    hashes: Mapping[str, str],
    texts: Sequence[Text],
    settings: Keep,
    facts: Facts,
    watch: Stopwatch,
) -> Report:
    """Windows, tokenizer and the report beside the predictions."""
    write_windows(texts, folder / WINDOWS)
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
        files=output_files(folder, REPORT),
    )
    report.write(folder / REPORT)
    return report


def _pieces(texts: Sequence[Text], places: Places) -> dict[str, int]:
    """How many independent pieces of text there are, and how many others repeat one of them."""
    sequences = len(places.cluster.unique())
    every = len({*pieces([text.windows for text in texts])})
    return {"sequences": sequences, "repeats": every - sequences}


def _kept(text: Text) -> KeptText:
    return KeptText(
        name=text.name,
        sha256=text.sha256,
        windows=len(text.windows),
        words=text.words,
        bytes=text.bytes,
        rows=text.rows,
        omissions={unit: {**reasons} for unit, reasons in text.omissions.items()},
    )

"""Whether two models can be compared: they must mean the same by the same ids."""

from __future__ import annotations

from pathlib import Path

import torch

from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.errors import CheckpointProblem, RecipeProblem
from camelpress.core.files.file_hashes import sha256_file, sha256_json
from camelpress.core.llama import EMBEDDING_NAME
from camelpress.core.progress import note
from camelpress.core.text.hf_tokenizer import Tokenizer
from camelpress.inference.model.streamed_model import StreamedModel, compute_dtype, pick_device
from camelpress.inference.streaming.process_group import ProcessGroup
from camelpress.validate.scoring.scored_positions import ScoredPositions
from camelpress.validate.settings import ScoringSettings

SINGLE_PROCESS = ProcessGroup()
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt")


def embedding_rows(checkpoint: Checkpoint) -> int:
    """How many tokens a model embeds."""
    return checkpoint.tensor_info(f"{EMBEDDING_NAME}.weight").shape[0]


def open_streamed_model(
    checkpoint: Checkpoint,
    settings: ScoringSettings,
    stored: torch.dtype | None = None,
    *,
    team: ProcessGroup = SINGLE_PROCESS,
) -> StreamedModel:
    """A model to be scored.

    Args:
        checkpoint: of the model.
        settings: device and dtype.
        stored: the dtype that `auto` follows on a GPU; the checkpoint's own where None.
        team: each rank computes on a GPU of its own.
    Raises:
        RecipeProblem: no such device here, or fp16 on a CPU.
    """
    device = team.device(pick_device(settings.device))
    own = stored or checkpoint.dtype
    if settings.dtype == "auto":
        return StreamedModel(checkpoint, device=device, dtype=compute_dtype(device, own))
    dtype: torch.dtype = getattr(torch, settings.dtype)
    if dtype == torch.float16 and device.type == "cpu":
        raise RecipeProblem(
            "float16 overflows on a CPU, where sums are kept in it",
            next_step="use --dtype float32 or bfloat16",
        )
    return StreamedModel(checkpoint, device=device, dtype=dtype)


def require_same_tokenizer(origin: Path, candidate: Path) -> None:
    """See that a candidate's tokenizer, where it has one, is the reference's.

    Args:
        origin: folder of the reference's.
        candidate: folder of the candidate.
    Raises:
        CheckpointProblem: it is another, or cannot be read.
    """
    own, known = (_tokenizer_hashes(folder) for folder in (candidate, origin))
    if not own:
        note(f"{candidate} has no tokenizer: that of the reference is taken for its own")
    elif own != known and _vocabulary_digest(candidate) != _vocabulary_digest(origin):
        raise CheckpointProblem(
            f"{candidate} has another tokenizer than {origin}: the same id is another token",
            next_step="compare models with the same tokenizer",
        )


def _tokenizer_hashes(folder: Path) -> dict[str, str]:
    """Hashes of the files that a tokenizer is read from."""
    return {
        name: sha256_file(folder / name) for name in TOKENIZER_FILES if (folder / name).is_file()
    }


def _vocabulary_digest(folder: Path) -> str:
    """One hash for which token has which id, added tokens aside; half a second."""
    return sha256_json(Tokenizer.load(folder).vocabulary)


def shared_vocab_size(reference: int, candidate: int, places: ScoredPositions, origin: Path) -> int:
    """How many ids both models know; predictions are compared over these.

    Args:
        reference, candidate: ids that each knows.
        places: what is scored.
        origin: of the text's tokenizer, for the message.
    Raises:
        CheckpointProblem: the text has others.
    """
    shared = min(reference, candidate)
    largest = int(places.target_id.max())
    if largest >= shared:
        raise CheckpointProblem(
            f"the text has id {largest} by the tokenizer of {origin}, and both models share "
            f"only {shared} ids",
            next_step="compare models with the same vocabulary",
        )
    if reference != candidate:
        note(
            f"the reference has {reference} tokens and the candidate {candidate}: both are "
            f"compared over the first {shared}"
        )
    return shared

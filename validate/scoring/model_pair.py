"""Checks that two models are comparable: equal ids must stand for equal tokens."""

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
    """Returns the number of rows of the embedding."""
    return checkpoint.tensor_info(f"{EMBEDDING_NAME}.weight").shape[0]


def open_streamed_model(
    checkpoint: Checkpoint,
    settings: ScoringSettings,
    auto_dtype: torch.dtype | None = None,
    *,
    team: ProcessGroup = SINGLE_PROCESS,
) -> StreamedModel:
    """Opens a model for scoring.

    Args:
        checkpoint: checkpoint of the model.
        settings: device and dtype.
        auto_dtype: the dtype for `auto` on a GPU; None for the checkpoint's dtype.
        team: process group; each rank computes on its local GPU.
    Raises:
        RecipeProblem: the device does not exist, or fp16 was chosen on a CPU.
    """
    device = team.device(pick_device(settings.device))
    checkpoint_dtype = auto_dtype or checkpoint.dtype
    if settings.dtype == "auto":
        return StreamedModel(
            checkpoint, device=device, dtype=compute_dtype(device, checkpoint_dtype)
        )
    dtype: torch.dtype = getattr(torch, settings.dtype)
    if dtype == torch.float16 and device.type == "cpu":
        raise RecipeProblem(
            "float16 overflows on a CPU, because sums are kept in float16",
            next_step="use --dtype float32 or bfloat16",
        )
    return StreamedModel(checkpoint, device=device, dtype=dtype)


def require_same_tokenizer(origin: Path, candidate: Path) -> None:
    """Checks that the tokenizer of a candidate, if it has one, is the tokenizer of the reference.

    Args:
        origin: folder with the tokenizer of the reference.
        candidate: folder of the candidate.
    Raises:
        CheckpointProblem: the tokenizers differ, or one cannot be read.
    """
    candidate_hashes, origin_hashes = (_tokenizer_hashes(folder) for folder in (candidate, origin))
    if not candidate_hashes:
        note(f"{candidate} has no tokenizer: the tokenizer of the reference is used")
    elif candidate_hashes != origin_hashes and _vocabulary_digest(candidate) != _vocabulary_digest(
        origin
    ):
        raise CheckpointProblem(
            f"{candidate} has another tokenizer than {origin}: the same id is another token",
            next_step="compare models with the same tokenizer",
        )


def _tokenizer_hashes(folder: Path) -> dict[str, str]:
    """Returns the hashes of the tokenizer files in a folder."""
    return {
        name: sha256_file(folder / name) for name in TOKENIZER_FILES if (folder / name).is_file()
    }


def _vocabulary_digest(folder: Path) -> str:
    """Returns one hash over the vocabulary without added tokens; takes half a second."""
    return sha256_json(Tokenizer.load(folder).vocabulary)


def shared_vocab_size(
    reference: int, candidate: int, positions: ScoredPositions, origin: Path
) -> int:
    """Returns the number of ids shared by both models; predictions are compared over these.

    Args:
        reference, candidate: number of ids of each model.
        positions: the scored positions.
        origin: folder of the tokenizer, for the message.
    Raises:
        CheckpointProblem: the text has an id outside the shared ids.
    """
    shared = min(reference, candidate)
    max_id = int(positions.target_id.max())
    if max_id >= shared:
        raise CheckpointProblem(
            f"the text has id {max_id} by the tokenizer of {origin}, and both models share "
            f"only {shared} ids",
            next_step="compare models with the same vocabulary",
        )
    if reference != candidate:
        note(
            f"the reference has {reference} tokens and the candidate {candidate}: both are "
            f"compared over the first {shared}"
        )
    return shared

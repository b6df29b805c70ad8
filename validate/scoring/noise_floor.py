"""Runs the reference a second time, to measure its difference from itself."""

from __future__ import annotations

from collections.abc import Sequence

from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.validate.scoring.model_pair import open_streamed_model
from camelpress.validate.scoring.scored_positions import ScoredPositions
from camelpress.validate.scoring.streamed_run import StreamedRun
from camelpress.validate.scoring.workspace import Workspace
from camelpress.validate.settings import ScoringSettings


def rerun_reference(
    checkpoint: Checkpoint,
    runner: StreamedRun,
    settings: ScoringSettings,
    shards: Sequence[ScoredPositions],
    work: Workspace,
) -> list[StreamedRun]:
    """Returns a rerun of the reference for the noise floor, if the settings ask for one.

    For `batch` the batches have half the size, and positions start at -1: some processors multiply
    batches of any size with equal results to the last bit.
    """
    label, batches = "reference again", [shard.sequences for shard in runner.shards]
    if settings.noise_floor == "none":
        return []
    if settings.noise_floor == "bfloat16":
        bfloat16_settings = settings.model_copy(update={"dtype": "bfloat16"})
        return [
            StreamedRun.start(
                label,
                open_streamed_model(checkpoint, bfloat16_settings, team=work.team),
                batches,
                work,
            )
        ]
    batch_tokens, limit = runner.model.sizes.batch // 2, runner.model.max_positions
    half_batches = [
        shard.batches(limit=limit, batch_tokens=batch_tokens, first=-1) for shard in shards
    ]
    return [StreamedRun.start(label, runner.model, half_batches, work)]

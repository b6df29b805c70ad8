"""Writes an output with every tensor computed from tensors of two inputs."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from camelpress.convert.recover import input_record
from camelpress.convert.recover.diff_rules import TensorPlan
from camelpress.convert.recover.input_reconciler import InputReconciler
from camelpress.convert.recover.tensor_stream import ChunkSource, TensorFacts, TensorStream
from camelpress.convert.settings import MakeDiffSettings, RecoverSettings
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.checkpoint.checkpoint_writer import (
    WEIGHT_FILE_PATTERNS,
    CheckpointWriter,
    TensorSpec,
)
from camelpress.core.output.journal import Journal
from camelpress.core.output.staged_output import staged


@dataclass(frozen=True)
class WrittenTensors:
    """Tensors of an output on disk.

    Args:
        folder: staged folder of the output, not yet renamed.
        facts: facts of each tensor, in the order of the plans.
        files: path to SHA-256 of each input file.
    """

    folder: Path
    facts: list[TensorFacts]
    files: dict[Path, str]


@dataclass(frozen=True)
class TensorOutput:
    """Inputs of an output, and the computation of each tensor.

    Args:
        settings: settings of the stage.
        inputs: role to checkpoint, the base first.
        plans: plans of all tensors.
        slots: name to dtype and shape of each tensor.
        chunks_of: yields the chunks of a tensor.
        metadata: header entries of the weight files.
    """

    settings: RecoverSettings | MakeDiffSettings
    inputs: Mapping[str, Checkpoint]
    plans: Sequence[TensorPlan]
    slots: Mapping[str, TensorSpec]
    chunks_of: ChunkSource
    metadata: Mapping[str, str] = field(default_factory=dict)

    @contextmanager
    def write(
        self, out: Path, sidecars: Collection[str], *, force: bool, restart: bool
    ) -> Iterator[WrittenTensors]:
        """Writes the unfinished tensors; the caller's block writes the sidecar files.

        Args:
            out: folder to create.
            sidecars: names of the files written by the block.
            force: replaces `out`.
            restart: discards an unfinished run.
        """
        checkpoints = list(self.inputs.values())
        made_from = input_record.made_from(
            input_record.recover_fingerprint(self.settings, checkpoints)
        )
        with (
            staged(
                out,
                force=force,
                made_from=made_from,
                restart=restart,
                writes=(*WEIGHT_FILE_PATTERNS, *sidecars),
                reconcile=InputReconciler(made_from, self.inputs, self.plans),
            ) as folder,
            Journal(folder) as journal,
        ):
            with CheckpointWriter(folder, self.slots, metadata=self.metadata) as writer:
                stream = TensorStream(self.chunks_of, writer, journal)
                facts, files = stream.write_all(self.plans, checkpoints, made_from["stage"])
            yield WrittenTensors(folder, facts, files)

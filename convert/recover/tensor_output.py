"""An output of which every tensor is made from the tensors of two inputs."""

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
    """The tensors of an output, on the disk.

    Args:
        folder: of the output, which has no name yet.
        facts: of each tensor, in the order of the plans.
        files: SHA-256 of each input file.
    """

    folder: Path
    facts: list[TensorFacts]
    files: dict[Path, str]


@dataclass(frozen=True)
class TensorOutput:
    """The inputs of an output, and the way each tensor is made.

    Args:
        settings: of the stage.
        inputs: role to checkpoint, the base first.
        plans: of all tensors.
        slots: name to type and shape of each tensor.
        work: yields the pieces of a tensor.
        metadata: of the weight files.
    """

    settings: RecoverSettings | MakeDiffSettings
    inputs: Mapping[str, Checkpoint]
    plans: Sequence[TensorPlan]
    slots: Mapping[str, TensorSpec]
    work: ChunkSource
    metadata: Mapping[str, str] = field(default_factory=dict)

    @contextmanager
    def write(
        self, out: Path, sidecars: Collection[str], *, force: bool, restart: bool
    ) -> Iterator[WrittenTensors]:
        """Write the tensors that an earlier run did not finish; the block writes the other files.

        Args:
            out: as of `staged`.
            sidecars: names of the files that the block writes.
            force, restart: as of `staged`.
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
                stream = TensorStream(self.work, writer, journal)
                facts, files = stream.write_all(self.plans, checkpoints, made_from["stage"])
            yield WrittenTensors(folder, facts, files)

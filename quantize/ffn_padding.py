"""Padded checkpoint: feed-forward layers widened with zeros, with unchanged outputs.

Tensor-parallel loaders split the columns of `down_proj` by whole groups. LLaMA-65B has 22016
columns, 172 groups of 128, not divisible among 8 devices; 22528 columns are 176 groups. Zero rows
of gate and up give zero activations, and zero columns of down ignore them.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor
from torch.nn.functional import pad

from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.errors import CheckpointProblem

WIDTH_KEY = "intermediate_size"
PADDED_AXES = {  # padded axes by tensor: rows, columns
    "mlp.gate_proj.weight": (True, False),
    "mlp.up_proj.weight": (True, False),
    "mlp.gate_proj.bias": (True,),
    "mlp.up_proj.bias": (True,),
    "mlp.down_proj.weight": (False, True),
}


class PaddedCheckpoint(Checkpoint):
    """View of a checkpoint with a larger `intermediate_size`.

    Args:
        source: checkpoint with an `intermediate_size` in its config.
        multiple: the size is raised to a multiple of this number.
    Raises:
        CheckpointProblem: the config has no `intermediate_size`.
    """

    def __init__(self, source: Checkpoint, multiple: int) -> None:
        width = source.config.get(WIDTH_KEY)
        if not isinstance(width, int):
            raise CheckpointProblem(
                f"{source.folder / 'config.json'} has no {WIDTH_KEY} to raise",
                next_step="write it there, or leave --pad-ffn out",
            )
        self._source = source
        self._extra = -width % multiple
        self.width_change = {"from": width, "to": width + self._extra}
        super().__init__(
            source.folder,
            {**source.config, WIDTH_KEY: width + self._extra},
            {
                name: replace(info, shape=self._padded_shape(name, info.shape))
                for name, info in source.tensors.items()
            },
            origin=source.source_name,
            file_config=source.file_config,
            changes=source.config_changes,
            files=source.file_states,
        )

    def read(self, name: str) -> Tensor:
        """Reads one tensor with its padding."""
        tensor = self._source.read(name)
        shape = self._padded_shape(name, tensor.shape)
        margins = [(0, padded - size) for size, padded in zip(tensor.shape, shape, strict=True)]
        return pad(tensor, [margin for axis in reversed(margins) for margin in axis])

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Reads rows `start` to `stop` of a tensor with its padding."""
        return self.read(name)[start:stop].clone()

    def _padded_shape(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        axes = PADDED_AXES.get(".".join(name.rsplit(".", 3)[1:]), ())
        if len(axes) != len(shape):
            return shape
        return tuple(
            size + self._extra * is_padded for size, is_padded in zip(shape, axes, strict=True)
        )

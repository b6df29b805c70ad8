"""A model whose feed-forward layers are widened with zeros: the same function, in other shapes.

Tensor parallel loaders deal the columns of `down_proj` out in whole groups. LLaMA-65B has 22016 of
them, 172 groups of 128, which 8 devices cannot share; 22528 are 176. Rows of gate and up that are
zero give activations that are zero, and columns of down that are zero take no notice of them.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor
from torch.nn.functional import pad

from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.errors import CheckpointProblem

WIDTH_KEY = "intermediate_size"
PADDED_AXES = {  # by name: rows, columns
    "mlp.gate_proj.weight": (True, False),
    "mlp.up_proj.weight": (True, False),
    "mlp.gate_proj.bias": (True,),
    "mlp.up_proj.bias": (True,),
    "mlp.down_proj.weight": (False, True),
}


class PaddedCheckpoint(Checkpoint):
    """A source as it would be with a larger `intermediate_size`.

    Args:
        source: with a plain `intermediate_size`.
        multiple: the size is raised to the next one.
    Raises:
        CheckpointProblem: the config does not say how wide the feed-forward layers are.
    """

    def __init__(self, source: Checkpoint, multiple: int) -> None:
        width = source.config.get(WIDTH_KEY)
        if not isinstance(width, int):
            raise CheckpointProblem(
                f"{source.folder / 'config.json'} has no {WIDTH_KEY} that could be raised",
                next_step="write it there, or leave --pad-ffn out",
            )
        self._source = source
        self._added = -width % multiple
        self.width_change = {"from": width, "to": width + self._added}
        super().__init__(
            source.folder,
            {**source.config, WIDTH_KEY: width + self._added},
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
        """One whole tensor, with its zeros."""
        tensor = self._source.read(name)
        missing = [
            (0, wide - narrow)
            for narrow, wide in zip(
                tensor.shape, self._padded_shape(name, tensor.shape), strict=True
            )
        ]
        return pad(tensor, [side for each in reversed(missing) for side in each])

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows `start` to `stop` of a tensor, with its zeros."""
        return self.read(name)[start:stop].clone()

    def _padded_shape(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        wider = PADDED_AXES.get(".".join(name.rsplit(".", 3)[1:]), ())
        if len(wider) != len(shape):
            return shape
        return tuple(size + self._added * grows for size, grows in zip(shape, wider, strict=True))

"""Checks of the tensors of a packed layer, shared by all formats."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Integer
from torch import Tensor

from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.checkpoint.portable_config import dtype_name
from camelpress.core.checkpoint.shards import TensorInfo
from camelpress.core.errors import CheckpointProblem

REPLACEMENT_ADVICE = "download or quantize the checkpoint again"


def require_dtypes(
    checkpoint: Checkpoint,
    linear: str,
    infos: Mapping[str, TensorInfo],
    dtypes: Mapping[str, tuple[torch.dtype, ...]],
    *,
    next_step: str = REPLACEMENT_ADVICE,
) -> None:
    """Checks that loaders accept the dtype of each tensor of a layer.

    Args:
        checkpoint: Checkpoint with the layer.
        linear: Full name of the layer.
        infos: Tensor name in the layer to its header entry.
        dtypes: Tensor name in the layer to its accepted dtypes.
        next_step: Advice for another dtype.
    Raises:
        CheckpointProblem: A dtype is not accepted; names the file and the tensor.
    """
    for part, info in infos.items():
        if info.dtype not in dtypes[part]:
            raise CheckpointProblem(
                f"{checkpoint.folder / info.shard} holds '{linear}.{part}' as "
                f"{dtype_name(info.dtype)}, not as {' or '.join(map(dtype_name, dtypes[part]))}",
                next_step=next_step,
            )


def read_group_index(checkpoint: Checkpoint, name: str, groups: int) -> Integer[Tensor, " cols"]:
    """Reads the group of each column from a tensor.

    Args:
        checkpoint: Checkpoint with the tensor.
        name: Full name of the tensor.
        groups: Number of groups with scales.
    Raises:
        CheckpointProblem: The tensor names a group without a scale.
    """
    group_index = checkpoint.read(name)
    if not bool(((group_index >= 0) & (group_index < groups)).all()):
        raise CheckpointProblem(
            f"{checkpoint.folder} holds {name!r} with groups beyond the {groups} that have scales",
            next_step=REPLACEMENT_ADVICE,
        )
    return group_index

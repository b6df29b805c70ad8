"""What has to hold of the tensors of a packed layer, whatever the layout."""

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
    types: Mapping[str, tuple[torch.dtype, ...]],
    *,
    next_step: str = REPLACEMENT_ADVICE,
) -> None:
    """See that each part is of a type that loaders take.

    Args:
        checkpoint: that holds them.
        linear: the layer's full name.
        infos: of its parts.
        types: allowed, by part.
        next_step: where one is not.
    Raises:
        CheckpointProblem: names the file and the part.
    """
    for part, info in infos.items():
        if info.dtype not in types[part]:
            raise CheckpointProblem(
                f"{checkpoint.folder / info.shard} holds '{linear}.{part}' as "
                f"{dtype_name(info.dtype)}, not as {' or '.join(map(dtype_name, types[part]))}",
                next_step=next_step,
            )


def read_group_index(checkpoint: Checkpoint, name: str, groups: int) -> Integer[Tensor, " cols"]:
    """The group of each column as a tensor says it.

    Raises:
        CheckpointProblem: it names a group that has no scale.
    """
    found = checkpoint.read(name)
    if not bool(((found >= 0) & (found < groups)).all()):
        raise CheckpointProblem(
            f"{checkpoint.folder} holds {name!r} with groups beyond the {groups} that have scales",
            next_step=REPLACEMENT_ADVICE,
        )
    return found

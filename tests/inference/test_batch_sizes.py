"""Sizes of batches and shards depend on the device, and a resume key records them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.inference.model.batch_sizes import batch_sizes
from camelpress.inference.model.streamed_model import StreamedModel
from camelpress.inference.streaming.rounding_facts import rounding_facts

CPU, GPU = torch.device("cpu"), torch.device("cuda", 1)


@pytest.mark.parametrize(("device", "batch", "shard"), [(CPU, 1024, 4096), (GPU, 16_384, 32_768)])
def test_a_resume_key_records_the_sizes_of_the_device(
    device: torch.device, batch: int, shard: int
) -> None:
    facts = rounding_facts(device)
    assert (facts["batch tokens"], facts["lane tokens"]) == (batch, shard)


def test_a_model_has_the_sizes_of_its_device(base: Path) -> None:
    model = StreamedModel(Checkpoint.open(base), device=CPU, dtype=torch.float32)
    assert model.sizes == batch_sizes(CPU) == (1024, 4096, 512)


def test_only_the_type_of_a_device_counts() -> None:
    assert batch_sizes(GPU) == batch_sizes(torch.device("cuda"))
    assert batch_sizes(torch.device("meta")) == batch_sizes(GPU)

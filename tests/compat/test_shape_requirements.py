"""Sizes that kernels tile and devices share, on headers alone: no model this large is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from camelpress.compat import shape_requirements
from camelpress.compat.config_requirements import power_of_two_groups
from camelpress.compat.gptq_checkpoint import GptqCheckpoint
from camelpress.core import llama
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.checkpoint.shards import TensorInfo
from camelpress.core.packing.gptq_format import gptq_specs


def subject(
    hidden: int = 8192,
    ffn: int = 22016,
    heads: int = 64,
    kv_heads: int | None = None,
    *,
    group: int = 128,
    bits: int = 4,
) -> GptqCheckpoint:
    """One block of such a model, by default LLaMA-65B's."""
    kv = (kv_heads or heads) * hidden // heads
    sizes = {
        "self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden), "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (ffn, hidden), "mlp.up_proj": (ffn, hidden),
        "mlp.down_proj": (hidden, ffn),
    }  # fmt: skip
    tensors = {}
    for name, (rows, cols) in sizes.items():
        groups = 1 if group == -1 else -(-cols // group)
        linear = f"{llama.BLOCK_NAME.format(0)}.{name}"
        for part, slot in gptq_specs(linear, rows, cols, groups=groups, bits=bits).items():
            tensors[part] = TensorInfo(slot.dtype, slot.shape, "", 0)
    config: dict[str, Any] = {
        "model_type": "llama", "hidden_size": hidden, "intermediate_size": ffn, "vocab_size": 32001,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "num_hidden_layers": 1,
        "quantization_config": {
            "quant_method": "gptq", "bits": bits, "group_size": group, "sym": True,
        },
    }  # fmt: skip
    return GptqCheckpoint(Checkpoint(Path("model"), config, tensors))


PADS = shape_requirements.tensor_parallel(repeats_kv=True)
STRICT = shape_requirements.tensor_parallel(repeats_kv=True, tiles=shape_requirements.STRICT_TILES)


def test_llama_65b_shares_its_groups_among_four() -> None:
    found = PADS(subject())
    assert found.status == "PASS"
    assert found.reason == (
        "1, 2, 4 devices, not 8: mlp.down_proj has 22016 inputs, 21.5 groups of 128 on each"
    )


def test_padded_it_shares_them_among_eight() -> None:
    assert PADS(subject(ffn=22528)).reason == "1, 2, 4, 8, 16 devices"


def test_smaller_groups_help_but_not_marlin() -> None:
    assert PADS(subject(group=64)).reason.startswith("1, 2, 4, 8 devices, not 16")
    assert STRICT(subject(group=64)).reason == (
        "1, 2, 4 devices, not 8: mlp.down_proj would be 2752 by 8192 on each"
    )


def test_one_group_a_row_is_never_split() -> None:
    assert PADS(subject(group=-1)).reason == "1, 2, 4, 8, 16 devices"


def test_few_key_heads_are_copied_or_forbid_it() -> None:
    small = subject(hidden=4096, ffn=16384, heads=32, kv_heads=8)
    assert PADS(small).reason == "1, 2, 4, 8, 16 devices"
    copies = shape_requirements.tensor_parallel(repeats_kv=False)
    assert copies(small).reason == "1, 2, 4, 8 devices, not 16: 8 key and value heads"


def test_odd_heads_leave_one_device() -> None:
    found = PADS(subject(hidden=896, ffn=4864, heads=14, kv_heads=2, group=128))
    assert found.status == "NOTE"
    assert found.reason == (
        "1 device, not 2: self_attn.o_proj has 896 inputs, 3.5 groups of 128 on each"
    )
    alone = PADS(subject(hidden=576, ffn=1536, heads=9, kv_heads=3, group=64))
    assert alone.status == "NOTE"
    assert alone.reason == "1 device, not 2: 9 attention heads"


def test_tiles_are_those_of_layers_that_are_held_as_one() -> None:
    found = shape_requirements.kernel_tiles(
        shape_requirements.STRICT_TILES, consequence="no", refuses=True
    )
    assert found(subject(hidden=256, ffn=512, heads=4, kv_heads=2)).status == "PASS"
    refused = found(subject(hidden=576, ffn=1536, heads=9, kv_heads=3, group=64))
    assert refused.status == "FAIL"
    assert refused.reason.startswith("gate_up_proj is 576 by 3072, no multiple of 128 by 64; no")
    either = shape_requirements.kernel_tiles(
        shape_requirements.MARLIN_TILES, consequence="no", refuses=True
    )
    assert either(subject(hidden=576, ffn=1536, heads=9, kv_heads=3, group=64)).status == "FAIL"


def test_what_no_kernel_can_tile_is_split_over_nothing() -> None:
    found = STRICT(subject(hidden=576, ffn=1536, heads=9, kv_heads=3, group=64))
    assert (found.status, found.next_step) == ("NOTE", "see tiles")
    assert found.reason.startswith("not even 1 device: gate_up_proj would be 576 by 3072")


def test_groups_that_do_not_divide() -> None:
    assert shape_requirements.whole_groups()(subject()).status == "PASS"
    odd = subject(hidden=256, ffn=448, heads=4)
    assert "mlp.down_proj has 448 inputs" in shape_requirements.whole_groups()(odd).reason


@pytest.mark.parametrize(
    ("group", "word"), [(32, "PASS"), (48, "FAIL"), (-1, "PASS"), (64, "PASS")]
)
def test_exllama_doubles_until_all_columns_are_covered(group: int, word: str) -> None:
    assert power_of_two_groups()(subject(hidden=192, ffn=384, heads=4, group=group)).status == word


@given(
    heads=st.sampled_from([1, 2, 4, 6, 8]),
    ffn=st.integers(1, 12),
    group=st.sampled_from([16, 32, 64, -1]),
    count=st.sampled_from(shape_requirements.TENSOR_PARALLEL_SIZES),
)
def test_what_fits_can_be_cut_with_every_group_whole(
    heads: int, ffn: int, group: int, count: int
) -> None:
    """Against cutting the group indices themselves."""
    model = subject(hidden=32 * heads, ffn=64 * ffn, heads=heads, group=group)
    reason = shape_requirements._split_obstacle(model, count, repeats_kv=True, tiles=())
    assert (reason is None) == _can_be_cut(model, count)


def _can_be_cut(model: GptqCheckpoint, count: int) -> bool:
    if model.heads % count:
        return False
    for layer in model.layers:
        order = torch.arange(layer.inputs) // layer.columns
        if layer.block_name.endswith(("o_proj", "down_proj")):
            if layer.inputs % (8 * count):
                return False
            parts = [set(part.tolist()) for part in order.chunk(count)]
            shared = sum(len(part) for part in parts) != len(set().union(*parts))
            if shared and layer.group_size != -1:
                return False
        elif layer.outputs % (8 * count):
            return False
    return True

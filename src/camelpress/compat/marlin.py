"""The Marlin kernel for GPTQ, as engines carry it: nothing padded, no other kernel beside it.

The first Marlin (IST-DASLab/marlin 2f6d7c1: 4 bits, groups of 128 or none, outputs in multiples of
256) has a format of its own; engines make theirs from a GPTQ checkpoint while they load it.
"""

from __future__ import annotations

from camelpress.compat import config_requirements as configs
from camelpress.compat import shape_requirements as shapes
from camelpress.compat import value_requirements as values
from camelpress.compat.requirement import InferenceEngine, Requirement

# fmt: off
MARLIN = InferenceEngine(
    "Marlin",
    "vllm-project/vllm: quantization/utils/marlin_utils.py at 007d500",
    "an NVIDIA GPU of compute capability 7.5 or later",
    (
        Requirement("config keys", configs.config_keys("bits", "group_size", "desc_act", "sym")),
        Requirement("tensors",         configs.layer_tensors()),
        Requirement("bits",            configs.bit_widths(sym=configs.MARLIN_BITS, asym=())),
        Requirement("group size",      configs.group_sizes(configs.MARLIN_GROUPS)),
        Requirement("whole groups",    shapes.whole_groups()),
        Requirement("order",           configs.column_order(reads=True)),
        Requirement("format", configs.checkpoint_format(reads_v2=False, reads_zeros=False)),
        Requirement("tiles",           shapes.kernel_tiles(
            shapes.STRICT_TILES, refuses=True, otherwise="there is no thread configuration for it",
        )),
        Requirement("tensor parallel", shapes.tensor_parallel(repeats_kv=True, families=shapes.STRICT_TILES)),
        Requirement("scales",          values.scale_values(dtypes=("float16", "bfloat16"))),
        Requirement("zero points",     values.zero_points()),
        Requirement("dynamic",         configs.layer_overrides(reads=True, scans=True)),
    ),
)

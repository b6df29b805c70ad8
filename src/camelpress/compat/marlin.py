"""Marlin kernel for GPTQ as shipped in engines, without padding and without a fallback kernel.

The original Marlin (IST-DASLab/marlin 2f6d7c1: 4 bits, groups of 128 or none, outputs in multiples
of 256) has its own format; engines convert a GPTQ checkpoint to it at load time.
"""

from __future__ import annotations

from camelpress.compat import config_requirements as config
from camelpress.compat import shape_requirements as shapes
from camelpress.compat import value_requirements as values
from camelpress.compat.requirement import InferenceEngine
from camelpress.compat.requirement import Requirement as Row

# fmt: off
MARLIN = InferenceEngine(
    "Marlin",
    "vllm-project/vllm: quantization/utils/marlin_utils.py at 007d500",
    "an NVIDIA GPU of compute capability 7.5 or later",
    (
        Row("config keys",     config.config_keys("bits", "group_size", "desc_act", "sym")),
        Row("tensors",         config.layer_tensors()),
        Row("bits",            config.bit_widths(sym=config.MARLIN_BITS, asym=())),
        Row("group size",      config.group_sizes(config.MARLIN_GROUPS)),
        Row("whole groups",    shapes.whole_groups()),
        Row("order",           config.column_order(reads=True)),
        Row("format",          config.checkpoint_format(reads_v2=False, reads_zeros=False)),
        Row("tiles",           shapes.kernel_tiles(
            shapes.STRICT_TILES, refuses=True,
            consequence="there is no thread configuration for it",
        )),
        Row("tensor parallel", shapes.tensor_parallel(repeats_kv=True, tiles=shapes.STRICT_TILES)),
        Row("scales",          values.scale_values(dtypes=("float16", "bfloat16"))),
        Row("zero points",     values.zero_points()),
        Row("dynamic",         config.layer_overrides(reads=True, scans=True)),
    ),
)

"""The Marlin kernel for GPTQ, as engines carry it: nothing padded, no other kernel beside it.

The first Marlin (IST-DASLab/marlin 2f6d7c1: 4 bits, groups of 128 or none, outputs in multiples of
256) has a format of its own; engines make theirs from a GPTQ checkpoint while they load it.
"""

from __future__ import annotations

from camelpress.compat import config_requirements as configs
from camelpress.compat import shape_requirements as shapes
from camelpress.compat import value_requirements as values
from camelpress.compat.requirement import Engine, Row

# fmt: off
MARLIN = Engine(
    "Marlin",
    "vllm-project/vllm: quantization/utils/marlin_utils.py at 007d500",
    "an NVIDIA GPU of compute capability 7.5 or later",
    (
        Row("config keys",     configs.keys("bits", "group_size", "desc_act", "sym")),
        Row("tensors",         configs.complete()),
        Row("bits",            configs.bits(sym=configs.MARLIN_BITS, asym=())),
        Row("group size",      configs.groups(configs.MARLIN_GROUPS)),
        Row("whole groups",    shapes.whole_groups()),
        Row("order",           configs.order(reads=True)),
        Row("format",          configs.formats(reads_v2=False, reads_zeros=False)),
        Row("tiles",           shapes.tiles(
            shapes.STRICT, refuses=True, otherwise="there is no thread configuration for it",
        )),
        Row("tensor parallel", shapes.parallel(repeats_kv=True, families=shapes.STRICT)),
        Row("scales",          values.scales(dtypes=("float16", "bfloat16"))),
        Row("zero points",     values.zeros()),
        Row("dynamic",         configs.exceptions(reads=True, scans=True)),
    ),
)

"""SGLang.

`gptq_marlin` where bits, groups and symmetry allow it, else `gptq` with an ExLlama kernel. The
former looks at the tile sizes and goes on whatever it finds; the kernel then refuses.
"""

from __future__ import annotations

from camelpress.compat import config_requirements as configs
from camelpress.compat import shape_requirements as shapes
from camelpress.compat import value_requirements as values
from camelpress.compat.requirement import Engine, Row

# fmt: off
SGLANG = Engine(
    "SGLang",
    "sgl-project/sglang: quantization/gptq/gptq.py at 0cdfa2f, gptq/schemes/gptq_linear.py at "
    "0848df5 and gptq_marlin.py at 4dbddf2, gpu/quantization/gptq_kernels.py at 11dc314, "
    "models/llama.py at bf7a0e2",
    "an NVIDIA GPU of compute capability 8.0 or later for Marlin, 6.0 for the fp16 kernel",
    (
        Row("config keys",     configs.keys("bits", "group_size", "desc_act", wanted=("sym",))),
        Row("copies",          configs.copies()),
        Row("tensors",         configs.complete()),
        Row("bits",            configs.bits(
            sym=(2, 3, 4, 8), asym=(2, 3, 4, 8), fast=configs.MARLIN_BITS,
        )),
        Row("group size",      configs.groups(configs.MARLIN_GROUPS, slower=True)),
        Row("whole groups",    shapes.whole_groups()),
        Row("order",           configs.order(reads=True)),
        Row("format",          configs.formats(
            reads_v2=False, reads_zeros=True, marlin=configs.MARLIN_BITS,
        )),
        Row("activations",     configs.activations(
            marlin=configs.MARLIN_BITS, option="start it with --dtype half",
        )),
        Row("tiles",           shapes.tiles(
            shapes.MARLIN, refuses=True,
            otherwise="Marlin refuses it; --quantization gptq takes another kernel",
        )),
        Row("tensor parallel", shapes.parallel(repeats_kv=True, families=shapes.MARLIN)),
        Row("scales",          values.scales(dtypes=("float16", "bfloat16"))),
        Row("zero points",     values.zeros()),
        Row("dynamic",         configs.exceptions(reads=True)),
        Row("lm_head",         configs.head(packs=True)),
        Row("vocabulary",      configs.vocabulary("padded to a multiple of 64")),
    ),
)

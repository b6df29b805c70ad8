"""SGLang.

`gptq_marlin` where bits, groups and symmetry allow it, else `gptq` with an ExLlama kernel. The
former looks at the tile sizes and goes on whatever it finds; the kernel then refuses.
"""

from __future__ import annotations

from camelpress.compat import config_requirements as configs
from camelpress.compat import shape_requirements as shapes
from camelpress.compat import value_requirements as values
from camelpress.compat.requirement import InferenceEngine, Requirement

# fmt: off
SGLANG = InferenceEngine(
    "SGLang",
    "sgl-project/sglang: quantization/gptq/gptq.py at 0cdfa2f, gptq/schemes/gptq_linear.py at "
    "0848df5 and gptq_marlin.py at 4dbddf2, gpu/quantization/gptq_kernels.py at 11dc314, "
    "models/llama.py at bf7a0e2",
    "an NVIDIA GPU of compute capability 8.0 or later for Marlin, 6.0 for the fp16 kernel",
    (
        Requirement("config keys",     configs.config_keys("bits", "group_size", "desc_act", wanted=("sym",))),
        Requirement("copies",          configs.config_copy()),
        Requirement("tensors",         configs.layer_tensors()),
        Requirement("bits",            configs.bit_widths(
            sym=(2, 3, 4, 8), asym=(2, 3, 4, 8), fast=configs.MARLIN_BITS,
        )),
        Requirement("group size",      configs.group_sizes(configs.MARLIN_GROUPS, slower=True)),
        Requirement("whole groups",    shapes.whole_groups()),
        Requirement("order",           configs.column_order(reads=True)),
        Requirement("format",          configs.checkpoint_format(
            reads_v2=False, reads_zeros=True, marlin=configs.MARLIN_BITS,
        )),
        Requirement("activations",     configs.activation_dtype(
            marlin=configs.MARLIN_BITS, option="start it with --dtype half",
        )),
        Requirement("tiles",           shapes.kernel_tiles(
            shapes.MARLIN_TILES, refuses=True,
            otherwise="Marlin refuses it; --quantization gptq takes another kernel",
        )),
        Requirement("tensor parallel", shapes.tensor_parallel(repeats_kv=True, families=shapes.MARLIN_TILES)),
        Requirement("scales",          values.scale_values(dtypes=("float16", "bfloat16"))),
        Requirement("zero points",     values.zero_points()),
        Requirement("dynamic",         configs.layer_overrides(reads=True)),
        Requirement("lm_head",         configs.output_head(packs=True)),
        Requirement("vocabulary",      configs.vocabulary_padding("padded to a multiple of 64")),
    ),
)

"""Requirements of SGLang.

SGLang uses `gptq_marlin` if bits, groups and symmetry allow it, otherwise `gptq` with an ExLlama
kernel. `gptq_marlin` continues even if the tile sizes do not fit; its kernel then refuses them.
"""

from __future__ import annotations

from camelpress.compat import config_requirements as config
from camelpress.compat import shape_requirements as shapes
from camelpress.compat import value_requirements as values
from camelpress.compat.requirement import InferenceEngine
from camelpress.compat.requirement import Requirement as Row

# fmt: off
SGLANG = InferenceEngine(
    "SGLang",
    "sgl-project/sglang: quantization/gptq/gptq.py at 0cdfa2f, gptq/schemes/gptq_linear.py at "
    "0848df5 and gptq_marlin.py at 4dbddf2, gpu/quantization/gptq_kernels.py at 11dc314, "
    "models/llama.py at bf7a0e2",
    "an NVIDIA GPU of compute capability 8.0 or later for Marlin, 6.0 for the fp16 kernel",
    (
        Row("config keys",     config.config_keys("bits", "group_size", "desc_act", fast=("sym",))),
        Row("copies",          config.config_copy()),
        Row("tensors",         config.layer_tensors()),
        Row("bits",            config.bit_widths(
            sym=(2, 3, 4, 8), asym=(2, 3, 4, 8), fast=config.MARLIN_BITS,
        )),
        Row("group size",      config.group_sizes(config.MARLIN_GROUPS, slower=True)),
        Row("whole groups",    shapes.whole_groups()),
        Row("order",           config.column_order(reads=True)),
        Row("format",          config.checkpoint_format(
            reads_v2=False, reads_zeros=True, marlin=config.MARLIN_BITS,
        )),
        Row("activations",     config.activation_dtype(
            marlin=config.MARLIN_BITS, option="start it with --dtype half",
        )),
        Row("tiles",           shapes.kernel_tiles(
            shapes.MARLIN_TILES, refuses=True,
            consequence="Marlin refuses it; --quantization gptq takes another kernel",
        )),
        Row("tensor parallel", shapes.tensor_parallel(repeats_kv=True, tiles=shapes.MARLIN_TILES)),
        Row("scales",          values.scale_values(dtypes=("float16", "bfloat16"))),
        Row("zero points",     values.zero_points()),
        Row("dynamic",         config.layer_overrides(reads=True)),
        Row("lm_head",         config.output_head(packs=True)),
        Row("vocabulary",      config.vocabulary_padding("padded to a multiple of 64")),
    ),
)

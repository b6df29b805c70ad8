"""Requirements of Text Generation Inference.

TGI uses Marlin for symmetric layers of 4 and 8 bits, ExLlama for other 4-bit layers with columns in
order, and Triton otherwise. It reads bits and groups once for all layers and ignores `dynamic`.
"""

from __future__ import annotations

from camelpress.compat import config_requirements as config
from camelpress.compat import shape_requirements as shapes
from camelpress.compat import value_requirements as values
from camelpress.compat.requirement import InferenceEngine
from camelpress.compat.requirement import Requirement as Row

# fmt: off
TGI = InferenceEngine(
    "TGI",
    "huggingface/text-generation-inference db931fc: utils/quantization.py, utils/weights.py, "
    "layers/gptq/__init__.py, layers/marlin/gptq.py, layers/tensor_parallel.py, "
    "flash_llama_modeling.py",
    "an NVIDIA GPU of compute capability 8.0 or later for Marlin",
    (
        Row("config keys",     config.config_keys("bits", "group_size", fast=("sym",))),
        Row("copies",          config.config_copy()),
        Row("tensors",         config.layer_tensors()),
        Row("bits",            config.bit_widths(
            sym=(2, 4, 8), asym=(2, 4, 8), fast=config.MARLIN_BITS,
        )),
        Row("group size",      config.group_sizes(config.MARLIN_GROUPS, slower=True)),
        Row("whole groups",    shapes.whole_groups()),
        Row("order",           config.column_order(reads=True)),
        Row("format",          config.checkpoint_format(
            reads_v2=False, reads_zeros=True, marlin=config.MARLIN_BITS,
        )),
        Row("tiles",           shapes.kernel_tiles(
            shapes.MARLIN_TILES, refuses=True, consequence="its Marlin layer refuses it",
        )),
        Row("tensor parallel", shapes.tensor_parallel(repeats_kv=False, tiles=shapes.MARLIN_TILES)),
        Row("scales",          values.scale_values(dtypes=("float16", "bfloat16"))),
        Row("zero points",     values.zero_points()),
        Row("dynamic",         config.layer_overrides(reads=False)),
        Row("lm_head",         config.output_head(packs=False)),
        Row("vocabulary",      config.vocabulary_padding("undivided where it does not divide")),
    ),
)

"""Text Generation Inference.

Marlin for symmetric layers of 4 and 8 bits; else ExLlama for 4 bits in order, else Triton. It
reads bits and groups once for all layers and knows nothing of `dynamic`.
"""

from __future__ import annotations

from camelpress.compat import config_requirements as configs
from camelpress.compat import shape_requirements as shapes
from camelpress.compat import value_requirements as values
from camelpress.compat.requirement import InferenceEngine, Requirement

# fmt: off
TGI = InferenceEngine(
    "TGI",
    "huggingface/text-generation-inference db931fc: utils/quantization.py, utils/weights.py, "
    "layers/gptq/__init__.py, layers/marlin/gptq.py, layers/tensor_parallel.py, "
    "flash_llama_modeling.py",
    "an NVIDIA GPU of compute capability 8.0 or later for Marlin",
    (
        Requirement("config keys",     configs.config_keys("bits", "group_size", wanted=("sym",))),
        Requirement("copies",          configs.config_copy()),
        Requirement("tensors",         configs.layer_tensors()),
        Requirement("bits",            configs.bit_widths(
            sym=(2, 4, 8), asym=(2, 4, 8), fast=configs.MARLIN_BITS,
        )),
        Requirement("group size",      configs.group_sizes(configs.MARLIN_GROUPS, slower=True)),
        Requirement("whole groups",    shapes.whole_groups()),
        Requirement("order",           configs.column_order(reads=True)),
        Requirement("format",          configs.checkpoint_format(
            reads_v2=False, reads_zeros=True, marlin=configs.MARLIN_BITS,
        )),
        Requirement("tiles",           shapes.kernel_tiles(
            shapes.MARLIN_TILES, refuses=True, otherwise="its Marlin layer refuses it",
        )),
        Requirement("tensor parallel", shapes.tensor_parallel(repeats_kv=False, families=shapes.MARLIN_TILES)),
        Requirement("scales",          values.scale_values(dtypes=("float16", "bfloat16"))),
        Requirement("zero points",     values.zero_points()),
        Requirement("dynamic",         configs.layer_overrides(reads=False)),
        Requirement("lm_head",         configs.output_head(packs=False)),
        Requirement("vocabulary", configs.vocabulary_padding("undivided where it does not divide")),
    ),
)

"""Text Generation Inference.

Marlin for symmetric layers of 4 and 8 bits; else ExLlama for 4 bits in order, else Triton. It
reads bits and groups once for all layers and knows nothing of `dynamic`.
"""

from __future__ import annotations

from camelpress.compat import config_requirements as configs
from camelpress.compat import shape_requirements as shapes
from camelpress.compat import value_requirements as values
from camelpress.compat.requirement import Engine, Row

# fmt: off
TGI = Engine(
    "TGI",
    "huggingface/text-generation-inference db931fc: utils/quantization.py, utils/weights.py, "
    "layers/gptq/__init__.py, layers/marlin/gptq.py, layers/tensor_parallel.py, "
    "flash_llama_modeling.py",
    "an NVIDIA GPU of compute capability 8.0 or later for Marlin",
    (
        Row("config keys",     configs.keys("bits", "group_size", wanted=("sym",))),
        Row("copies",          configs.copies()),
        Row("tensors",         configs.complete()),
        Row("bits",            configs.bits(
            sym=(2, 4, 8), asym=(2, 4, 8), fast=configs.MARLIN_BITS,
        )),
        Row("group size",      configs.groups(configs.MARLIN_GROUPS, slower=True)),
        Row("whole groups",    shapes.whole_groups()),
        Row("order",           configs.order(reads=True)),
        Row("format",          configs.formats(
            reads_v2=False, reads_zeros=True, marlin=configs.MARLIN_BITS,
        )),
        Row("tiles",           shapes.tiles(
            shapes.MARLIN, refuses=True, otherwise="its Marlin layer refuses it",
        )),
        Row("tensor parallel", shapes.parallel(repeats_kv=False, families=shapes.MARLIN)),
        Row("scales",          values.scales(dtypes=("float16", "bfloat16"))),
        Row("zero points",     values.zeros()),
        Row("dynamic",         configs.exceptions(reads=False)),
        Row("lm_head",         configs.head(packs=False)),
        Row("vocabulary",      configs.vocabulary("undivided where it does not divide")),
    ),
)

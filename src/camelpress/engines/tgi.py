"""Text Generation Inference.

Marlin for symmetric layers of 4 and 8 bits; else ExLlama for 4 bits in order, else Triton. It
reads bits and groups once for all layers and knows nothing of `dynamic`.
"""

from __future__ import annotations

from camelpress.engines import contents, rules, shapes
from camelpress.engines.findings import Engine, Row

# fmt: off
TGI = Engine(
    "TGI",
    "huggingface/text-generation-inference db931fc: utils/quantization.py, utils/weights.py, "
    "layers/gptq/__init__.py, layers/marlin/gptq.py, layers/tensor_parallel.py, "
    "flash_llama_modeling.py",
    "an NVIDIA GPU of compute capability 8.0 or later for Marlin",
    (
        Row("config keys",     rules.keys("bits", "group_size", wanted=("sym",))),
        Row("copies",          rules.copies()),
        Row("tensors",         rules.complete()),
        Row("bits",            rules.bits(sym=(2, 4, 8), asym=(2, 4, 8), fast=rules.MARLIN_BITS)),
        Row("group size",      rules.groups(rules.MARLIN_GROUPS, slower=True)),
        Row("whole groups",    shapes.whole_groups()),
        Row("order",           rules.order(reads=True)),
        Row("format",          rules.formats(
            reads_v2=False, reads_zeros=True, marlin=rules.MARLIN_BITS,
        )),
        Row("tiles",           shapes.tiles(
            shapes.MARLIN, refuses=True, otherwise="its Marlin layer refuses it",
        )),
        Row("tensor parallel", shapes.parallel(repeats_kv=False, families=shapes.MARLIN)),
        Row("scales",          contents.scales(dtypes=("float16", "bfloat16"))),
        Row("zero points",     contents.zeros()),
        Row("dynamic",         rules.exceptions(reads=False)),
        Row("lm_head",         rules.head(packs=False)),
        Row("vocabulary",      rules.vocabulary("undivided where it does not divide")),
    ),
)

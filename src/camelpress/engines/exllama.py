"""ExLlamaV2.

It reads nothing of the quantization config but `checkpoint_format`: sizes come from the tensors,
which are taken for 4 bits, and the group size from how many groups there are.
"""

from __future__ import annotations

from camelpress.engines import contents, rules, shapes
from camelpress.engines.findings import Engine, Row

# fmt: off
EXLLAMA = Engine(
    "ExLlamaV2",
    "turboderp-org/exllamav2 da07fac: config.py, module.py, ext.py, linear.py, "
    "exllamav2_ext/ext_qmatrix.cpp, cuda/q_matrix.cu, cuda/q_gemm_kernel_gptq.cuh",
    "an NVIDIA or AMD GPU",
    (
        Row("config keys", rules.keys()),
        Row("tensors",     rules.complete()),
        Row("bits",        rules.bits(sym=(4,), asym=(4,))),
        Row("group size",  rules.power_of_two_groups()),
        Row("order",       rules.order(reads=True, asked=False)),
        Row("format",      rules.formats(reads_v2=True, reads_zeros=True)),
        Row("tiles",       shapes.divisible(32, 32)),
        Row("scales",      contents.scales()),
        Row("zero points", contents.zeros()),
        Row("dynamic",     rules.exceptions(reads=False, sizes_from_tensors=True)),
        Row("lm_head",     rules.head(packs=True)),
        Row("vocabulary",  rules.vocabulary("a plain head is padded to a multiple of 32")),
    ),
)

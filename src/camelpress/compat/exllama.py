"""ExLlamaV2.

It reads nothing of the quantization config but `checkpoint_format`: sizes come from the tensors,
which are taken for 4 bits, and the group size from how many groups there are.
"""

from __future__ import annotations

from camelpress.compat import config_requirements as configs
from camelpress.compat import shape_requirements as shapes
from camelpress.compat import value_requirements as values
from camelpress.compat.requirement import Engine, Row

# fmt: off
EXLLAMA = Engine(
    "ExLlamaV2",
    "turboderp-org/exllamav2 da07fac: config.py, module.py, ext.py, linear.py, "
    "exllamav2_ext/ext_qmatrix.cpp, cuda/q_matrix.cu, cuda/q_gemm_kernel_gptq.cuh",
    "an NVIDIA or AMD GPU",
    (
        Row("config keys", configs.keys()),
        Row("tensors",     configs.complete()),
        Row("bits",        configs.bits(sym=(4,), asym=(4,))),
        Row("group size",  configs.power_of_two_groups()),
        Row("order",       configs.order(reads=True, asked=False)),
        Row("format",      configs.formats(reads_v2=True, reads_zeros=True)),
        Row("tiles",       shapes.divisible(32, 32)),
        Row("scales",      values.scales()),
        Row("zero points", values.zeros()),
        Row("dynamic",     configs.exceptions(reads=False, sizes_from_tensors=True)),
        Row("lm_head",     configs.head(packs=True)),
        Row("vocabulary",  configs.vocabulary("a plain head is padded to a multiple of 32")),
    ),
)

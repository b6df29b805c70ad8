"""Requirements of ExLlamaV2.

ExLlamaV2 reads only `checkpoint_format` of the quantization config. It takes sizes from the
tensors, assumes 4 bits, and infers the group size from the number of groups.
"""

from __future__ import annotations

from camelpress.compat import config_requirements as config
from camelpress.compat import shape_requirements as shapes
from camelpress.compat import value_requirements as values
from camelpress.compat.requirement import InferenceEngine
from camelpress.compat.requirement import Requirement as Row

# fmt: off
EXLLAMA = InferenceEngine(
    "ExLlamaV2",
    "turboderp-org/exllamav2 da07fac: config.py, module.py, ext.py, linear.py, "
    "exllamav2_ext/ext_qmatrix.cpp, cuda/q_matrix.cu, cuda/q_gemm_kernel_gptq.cuh",
    "an NVIDIA or AMD GPU",
    (
        Row("config keys", config.config_keys()),
        Row("tensors",     config.layer_tensors()),
        Row("bits",        config.bit_widths(sym=(4,), asym=(4,))),
        Row("group size",  config.power_of_two_groups()),
        Row("order",       config.column_order(reads=True, needs_flag=False)),
        Row("format",      config.checkpoint_format(reads_v2=True, reads_zeros=True)),
        Row("tiles",       shapes.size_multiples(32, 32)),
        Row("scales",      values.scale_values()),
        Row("zero points", values.zero_points()),
        Row("dynamic",     config.layer_overrides(reads=False, sizes_from_tensors=True)),
        Row("lm_head",     config.output_head(packs=True)),
        Row("vocabulary",  config.vocabulary_padding("a plain head is padded to a multiple of 32")),
    ),
)

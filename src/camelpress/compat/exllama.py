"""ExLlamaV2.

It reads nothing of the quantization config but `checkpoint_format`: sizes come from the tensors,
which are taken for 4 bits, and the group size from how many groups there are.
"""

from __future__ import annotations

from camelpress.compat import config_requirements as configs
from camelpress.compat import shape_requirements as shapes
from camelpress.compat import value_requirements as values
from camelpress.compat.requirement import InferenceEngine, Requirement

# fmt: off
EXLLAMA = InferenceEngine(
    "ExLlamaV2",
    "turboderp-org/exllamav2 da07fac: config.py, module.py, ext.py, linear.py, "
    "exllamav2_ext/ext_qmatrix.cpp, cuda/q_matrix.cu, cuda/q_gemm_kernel_gptq.cuh",
    "an NVIDIA or AMD GPU",
    (
        Requirement("config keys", configs.config_keys()),
        Requirement("tensors",     configs.layer_tensors()),
        Requirement("bits",        configs.bit_widths(sym=(4,), asym=(4,))),
        Requirement("group size",  configs.power_of_two_groups()),
        Requirement("order",       configs.column_order(reads=True, asked=False)),
        Requirement("format",      configs.checkpoint_format(reads_v2=True, reads_zeros=True)),
        Requirement("tiles",       shapes.size_multiples(32, 32)),
        Requirement("scales",      values.scale_values()),
        Requirement("zero points", values.zero_points()),
        Requirement("dynamic",     configs.layer_overrides(reads=False, sizes_from_tensors=True)),
        Requirement("lm_head",     configs.output_head(packs=True)),
        Requirement("vocabulary",  configs.vocabulary_padding("a plain head is padded to a multiple of 32")),
    ),
)

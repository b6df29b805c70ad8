"""vLLM.

One method, `auto_gptq`, takes every GPTQ checkpoint and looks for a kernel: Machete, Marlin, or an
ExLlama kernel where fp16 is computed. Since vLLM#54809 (September 2026) g_idx is not read at all.
The pages of older versions of `marlin_utils` refuse tiles that newer ones pad with zeros.
"""

from __future__ import annotations

from camelpress.compat import config_requirements as configs
from camelpress.compat import shape_requirements as shapes
from camelpress.compat import value_requirements as values
from camelpress.compat.requirement import InferenceEngine, Requirement

# fmt: off
VLLM = InferenceEngine(
    "vLLM",
    "vllm-project/vllm: auto_gptq.py and kernels/linear/mixed_precision/{marlin,exllama}.py at "
    "055e47c, gptq_utils.py at 02239f5, marlin_utils.py at 007d500, models/llama.py at e06c9ba, "
    "pull request 54809",
    "an NVIDIA GPU of compute capability 7.5 or later for Marlin, 6.0 for the fp16 kernel",
    (
        Requirement("config keys", configs.config_keys("bits", "group_size", "desc_act", "sym")),
        Requirement("copies",          configs.config_copy()),
        Requirement("tensors",         configs.layer_tensors()),
        Requirement("bits",            configs.bit_widths(sym=configs.MARLIN_BITS, asym=())),
        Requirement("group size",      configs.group_sizes(configs.MARLIN_GROUPS)),
        Requirement("whole groups",    shapes.whole_groups()),
        Requirement("order",           configs.column_order(reads=False)),
        Requirement("format", configs.checkpoint_format(reads_v2=False, reads_zeros=False)),
        Requirement("tiles",           shapes.kernel_tiles(
            shapes.STRICT_TILES, refuses=False,
            otherwise="newer versions pad it, older ones leave Marlin for an fp16 kernel",
        )),
        Requirement("tensor parallel", shapes.tensor_parallel(repeats_kv=True)),
        Requirement("parallel, older", shapes.tensor_parallel(repeats_kv=True, families=shapes.STRICT_TILES)),
        Requirement("scales",          values.scale_values(dtypes=("float16", "bfloat16"))),
        Requirement("zero points",     values.zero_points()),
        Requirement("dynamic",         configs.layer_overrides(reads=True, scans=True)),
        Requirement("lm_head",         configs.output_head(packs=True)),
        Requirement("vocabulary",      configs.vocabulary_padding("padded to a multiple of 64")),
    ),
)

"""Requirements of vLLM.

One method, `auto_gptq`, loads every GPTQ checkpoint and picks a kernel: Machete, Marlin, or an
ExLlama kernel for fp16. Since vLLM#54809 (September 2026) g_idx is not read at all. Older versions
of `marlin_utils` refuse layers whose sizes newer ones pad with zeros.
"""

from __future__ import annotations

from camelpress.compat import config_requirements as config
from camelpress.compat import shape_requirements as shapes
from camelpress.compat import value_requirements as values
from camelpress.compat.requirement import InferenceEngine
from camelpress.compat.requirement import Requirement as Row

# fmt: off
VLLM = InferenceEngine(
    "vLLM",
    "vllm-project/vllm: auto_gptq.py and kernels/linear/mixed_precision/{marlin,exllama}.py at "
    "055e47c, gptq_utils.py at 02239f5, marlin_utils.py at 007d500, models/llama.py at e06c9ba, "
    "pull request 54809",
    "an NVIDIA GPU of compute capability 7.5 or later for Marlin, 6.0 for the fp16 kernel",
    (
        Row("config keys",     config.config_keys("bits", "group_size", "desc_act", "sym")),
        Row("copies",          config.config_copy()),
        Row("tensors",         config.layer_tensors()),
        Row("bits",            config.bit_widths(sym=config.MARLIN_BITS, asym=())),
        Row("group size",      config.group_sizes(config.MARLIN_GROUPS)),
        Row("whole groups",    shapes.whole_groups()),
        Row("order",           config.column_order(reads=False)),
        Row("format",          config.checkpoint_format(reads_v2=False, reads_zeros=False)),
        Row("tiles",           shapes.kernel_tiles(
            shapes.STRICT_TILES, refuses=False,
            consequence="newer versions pad it, older ones leave Marlin for an fp16 kernel",
        )),
        Row("tensor parallel", shapes.tensor_parallel(repeats_kv=True)),
        Row("parallel, older", shapes.tensor_parallel(repeats_kv=True, tiles=shapes.STRICT_TILES)),
        Row("scales",          values.scale_values(dtypes=("float16", "bfloat16"))),
        Row("zero points",     values.zero_points()),
        Row("dynamic",         config.layer_overrides(reads=True, scans=True)),
        Row("lm_head",         config.output_head(packs=True)),
        Row("vocabulary",      config.vocabulary_padding("padded to a multiple of 64")),
    ),
)

"""vLLM.

One method, `auto_gptq`, takes every GPTQ checkpoint and looks for a kernel: Machete, Marlin, or an
ExLlama kernel where fp16 is computed. Since vLLM#54809 (September 2026) g_idx is not read at all.
The pages of older versions of `marlin_utils` refuse tiles that newer ones pad with zeros.
"""

from __future__ import annotations

from camelpress.compat import config_requirements as configs
from camelpress.compat import shape_requirements as shapes
from camelpress.compat import value_requirements as values
from camelpress.compat.requirement import Engine, Row

# fmt: off
VLLM = Engine(
    "vLLM",
    "vllm-project/vllm: auto_gptq.py and kernels/linear/mixed_precision/{marlin,exllama}.py at "
    "055e47c, gptq_utils.py at 02239f5, marlin_utils.py at 007d500, models/llama.py at e06c9ba, "
    "pull request 54809",
    "an NVIDIA GPU of compute capability 7.5 or later for Marlin, 6.0 for the fp16 kernel",
    (
        Row("config keys",     configs.keys("bits", "group_size", "desc_act", "sym")),
        Row("copies",          configs.copies()),
        Row("tensors",         configs.complete()),
        Row("bits",            configs.bits(sym=configs.MARLIN_BITS, asym=())),
        Row("group size",      configs.groups(configs.MARLIN_GROUPS)),
        Row("whole groups",    shapes.whole_groups()),
        Row("order",           configs.order(reads=False)),
        Row("format",          configs.formats(reads_v2=False, reads_zeros=False)),
        Row("tiles",           shapes.tiles(
            shapes.STRICT, refuses=False,
            otherwise="newer versions pad it, older ones leave Marlin for an fp16 kernel",
        )),
        Row("tensor parallel", shapes.parallel(repeats_kv=True)),
        Row("parallel, older", shapes.parallel(repeats_kv=True, families=shapes.STRICT)),
        Row("scales",          values.scales(dtypes=("float16", "bfloat16"))),
        Row("zero points",     values.zeros()),
        Row("dynamic",         configs.exceptions(reads=True, scans=True)),
        Row("lm_head",         configs.head(packs=True)),
        Row("vocabulary",      configs.vocabulary("padded to a multiple of 64")),
    ),
)

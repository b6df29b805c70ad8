"""vLLM.

One method, `auto_gptq`, takes every GPTQ checkpoint and looks for a kernel: Machete, Marlin, or an
ExLlama kernel where fp16 is computed. Since vLLM#54809 (September 2026) g_idx is not read at all.
The pages of older versions of `marlin_utils` refuse tiles that newer ones pad with zeros.
"""

from __future__ import annotations

from camelpress.engines import contents, rules, shapes
from camelpress.engines.findings import Engine, Row

# fmt: off
VLLM = Engine(
    "vLLM",
    "vllm-project/vllm: auto_gptq.py and kernels/linear/mixed_precision/{marlin,exllama}.py at "
    "055e47c, gptq_utils.py at 02239f5, marlin_utils.py at 007d500, models/llama.py at e06c9ba, "
    "pull request 54809",
    "an NVIDIA GPU of compute capability 7.5 or later for Marlin, 6.0 for the fp16 kernel",
    (
        Row("config keys",     rules.keys("bits", "group_size", "desc_act", "sym")),
        Row("copies",          rules.copies()),
        Row("tensors",         rules.complete()),
        Row("bits",            rules.bits(sym=rules.MARLIN_BITS, asym=())),
        Row("group size",      rules.groups(rules.MARLIN_GROUPS)),
        Row("whole groups",    shapes.whole_groups()),
        Row("order",           rules.order(reads=False)),
        Row("format",          rules.formats(reads_v2=False, reads_zeros=False)),
        Row("tiles",           shapes.tiles(
            shapes.STRICT, refuses=False,
            otherwise="newer versions pad it, older ones leave Marlin for an fp16 kernel",
        )),
        Row("tensor parallel", shapes.parallel(repeats_kv=True)),
        Row("parallel, older", shapes.parallel(repeats_kv=True, families=shapes.STRICT)),
        Row("scales",          contents.scales(dtypes=("float16", "bfloat16"))),
        Row("zero points",     contents.zeros()),
        Row("dynamic",         rules.exceptions(reads=True, scans=True)),
        Row("lm_head",         rules.head(packs=True)),
        Row("vocabulary",      rules.vocabulary("padded to a multiple of 64")),
    ),
)

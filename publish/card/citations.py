"""Lists the papers to cite for a release."""

from __future__ import annotations

from collections.abc import Mapping

from camelpress.publish.card.release_quotes import ReleaseQuotes

# fmt: off
PAPERS: Mapping[str, str] = {
    "gptq":   "Frantar et al., GPTQ: Accurate Post-Training Quantization for Generative "
              "Pre-trained Transformers, arXiv:2210.17323",
    "llama":  "Touvron et al., LLaMA: Open and Efficient Foundation Language Models, "
              "arXiv:2302.13971",
    "llama2": "Touvron et al., Llama 2: Open Foundation and Fine-Tuned Chat Models, "
              "arXiv:2307.09288",
    "tulu":   "Wang et al., How Far Can Camels Go? Exploring the State of Instruction Tuning on "
              "Open Resources, arXiv:2306.04751",
    "tulu2":  "Ivison et al., Camels in a Changing Climate: Enhancing LM Adaptation with Tulu 2, "
              "arXiv:2311.10702",
}
PAPERS_BY_LICENSE: Mapping[str, tuple[str, ...]] = {
    "llama":     ("llama",),
    "tulu":      ("llama", "tulu"),
    "llama2":    ("llama2",),
    "impact-lr": ("llama2", "tulu2"),
}
# fmt: on


def citations(facts: ReleaseQuotes) -> list[str]:
    """Returns the papers of the model, by its licence, and of the quantization method."""
    method = facts.quantize.facts.method if facts.quantize else None
    names = PAPERS_BY_LICENSE.get(facts.settings.license, ())
    return [PAPERS[name] for name in (*names, *(["gptq"] if method == "gptq" else []))]

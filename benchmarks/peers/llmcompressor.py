"""llm-compressor: its defaults, which are static activation order and damping of 0.01."""

from __future__ import annotations

from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from transformers import AutoModelForCausalLM, AutoTokenizer

from camelpress.quantize.backends.drivers import backend_job


def main() -> None:
    """Quantize."""
    given = backend_job.read_job()
    weights = QuantizationArgs(
        num_bits=given.bits,
        type="int",
        symmetric=given.sym,
        strategy="group",
        group_size=given.group_size,
    )
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    oneshot(
        model=AutoModelForCausalLM.from_pretrained(given.model, dtype=given.dtype),
        tokenizer=AutoTokenizer.from_pretrained(given.model),
        recipe=GPTQModifier(config_groups={"group_0": scheme}, ignore=["lm_head"]),
        dataset=Dataset.from_list(given.examples),
        num_calibration_samples=len(given.tokens),
        max_seq_length=given.max_length,
        shuffle_calibration_samples=False,
        output_dir=given.out,
    )


if __name__ == "__main__":
    main()

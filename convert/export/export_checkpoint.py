"""A packed checkpoint in another layout: the same codes and scales, one layer in memory."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from camelpress.convert.export.export_formats import (
    DenseFormat,
    ExportFormat,
    PackedLayer,
    packed_layers,
)
from camelpress.convert.export.packed_formats import CompressedTensorsFormat, GptqFormat
from camelpress.convert.settings import ExportSettings
from camelpress.core import llama
from camelpress.core.checkpoint.checkpoint import (
    QUANTIZE_CONFIG,
    Checkpoint,
    copy_sidecars,
    require_valid_sidecars,
)
from camelpress.core.checkpoint.checkpoint_writer import WEIGHT_FILE_PATTERNS, CheckpointWriter
from camelpress.core.checkpoint.portable_config import TORCH_DTYPES, portable_config
from camelpress.core.documents.ngram_overlap import NGRAM_FILE
from camelpress.core.errors import CheckpointProblem
from camelpress.core.files.file_hashes import checkpoint_file_hashes, package_versions, sha256_json
from camelpress.core.files.json_files import write_json
from camelpress.core.output.staged_output import (
    output_files,
    require_free_output,
    require_separate_output,
    staged,
)
from camelpress.core.packing.linear_layers import (
    PACKED_TENSOR_NAMES,
    head_name,
    read_quantized_weight,
)
from camelpress.core.packing.quantization_schemes import (
    GPTQ_V1,
    GPTQ_V2,
    PACK_QUANTIZED,
    layer_scheme,
)
from camelpress.core.progress import note, track
from camelpress.reporting.lineage import EXPORT, SOURCES, sources, written_weights
from camelpress.reporting.stage_report import Report, Stopwatch

REPORT = EXPORT
FORMATS = {"gptq": GPTQ_V1, "gptq-v2": GPTQ_V2, "compressed-tensors": PACK_QUANTIZED}


def export(
    source: Checkpoint, out: Path, settings: ExportSettings, *, force: bool = False
) -> Report:
    """Write a packed model in another layout, without calibration and without loss.

    What is written of a layer is unpacked again, and both are dequantized and compared. Only a
    dense output can lose anything; the report says how many values, and by how much at most.

    Args:
        source: packed in a layout that `core.linears` knows, of the LLaMA family.
        out: a folder that does not exist.
        settings: the layout; for a dense output its type.
        force: replace `out`.
    Raises:
        CheckpointProblem: not packed, incomplete, in that layout already, or with an order of
            columns, groups or settings of layers that the layout has no words for.
        NumericsProblem: scales or zero points that the layout cannot hold, or weights that do not
            fit the type.
    """
    watch = Stopwatch()
    require_separate_output(out, source.folder)
    require_free_output(out, force=force)
    hashes = checkpoint_file_hashes(source.folder)
    llama.model_classes(source.config, source.folder)
    head_name(source)
    layers = packed_layers(source)
    _require_other_format(source, layers, settings)
    target = _pick_format(settings)
    config = _output_config(source, layers, target, settings)
    for layer in layers:
        target.require_supported(source, layer)
    plain = _unpacked_tensors(source, layers)
    slots = {name: target.unpacked_slot(source.tensor_info(name)) for name in plain}
    for layer in layers:
        slots |= target.slots(layer)
    require_valid_sidecars(source.sidecar_files())
    writes = (
        *WEIGHT_FILE_PATTERNS,
        *source.sidecar_files(),
        NGRAM_FILE,
        "config.json",
        QUANTIZE_CONFIG,
        REPORT,
    )
    with staged(out, force=force, writes=writes) as folder:
        with CheckpointWriter(folder, dict(sorted(slots.items()))) as writer:
            for name in plain:
                writer.write_tensor(name, target.convert_unpacked(name, source.read(name)))
            for layer in track(layers, "export"):
                codes = read_quantized_weight(source, layer.name, layer.scheme)
                for part, tensor in target.layer_tensors(codes, layer).items():
                    writer.write_tensor(f"{layer.name}.{part}", tensor)
        _write_sidecars(folder, source, config)
        source.require_unchanged(hashes)
        facts = target.facts()
        if facts["inexact"]:
            note(
                f"{facts['inexact']:,} values are rounded to {settings.dtype}, by "
                f"{facts['largest_error']:.1e} at most"
            )
        report = Report(
            stage="export",
            inputs={"checkpoint": sha256_json(hashes)},
            outputs=written_weights(folder),
            settings=settings.model_dump(mode="json"),
            facts={
                "from": sorted({layer.scheme.checkpoint_format for layer in layers}),
                "layers": len(layers),
                "plain": len(plain),
                "left_out": sorted(filter(llama.is_derived_buffer, source.tensors)),
                "config_changes": list(source.config_changes),
                SOURCES: sources(source, hashes),
                **facts,
                "versions": package_versions(),
            },
            cost=watch.cost(),
            files=output_files(folder, REPORT),
        )
        report.write(folder / REPORT)
    return report


def _pick_format(settings: ExportSettings) -> ExportFormat:
    if settings.to == "dense":
        return DenseFormat(TORCH_DTYPES[settings.dtype])
    return (
        CompressedTensorsFormat()
        if settings.to == "compressed-tensors"
        else GptqFormat(FORMATS[settings.to])
    )


def _require_other_format(
    source: Checkpoint, layers: list[PackedLayer], settings: ExportSettings
) -> None:
    if not layers:
        raise CheckpointProblem(
            f"{source.folder} is not quantized", next_step="give the folder that quantize wrote"
        )
    method = (source.quantization or {}).get("quant_method")
    if method != "auto-round" and {layer.scheme.checkpoint_format for layer in layers} == {
        FORMATS.get(settings.to)
    }:
        raise CheckpointProblem(
            f"{source.folder} is in the layout {settings.to} already", next_step="use it as it is"
        )


def _output_config(
    source: Checkpoint, layers: list[PackedLayer], target: ExportFormat, settings: ExportSettings
) -> dict[str, Any]:
    """The config of the output, seen to say of every layer what it is.

    Raises:
        CheckpointProblem: the layout has no words for it.
    """
    blocks = source.config["num_hidden_layers"]
    quantization = target.quantization_config(source, layers, blocks)
    config = portable_config(source.config, target.config_dtype(source, layers))
    config.pop("quantization_config", None)
    if quantization is None:
        return config
    config["quantization_config"] = quantization
    read = Checkpoint(source.folder, config, {})
    for layer in layers:
        scheme = layer_scheme(read, layer.name)
        if scheme is None or scheme[1:4] != tuple(layer.config_entry().values()):
            raise CheckpointProblem(
                f"{source.folder}: {settings.to} has no words for how {layer.name!r} is packed",
                next_step="export it --to dense",
            )
    return config


def _unpacked_tensors(source: Checkpoint, layers: list[PackedLayer]) -> list[str]:
    """Names the weights that are no part of a packed layer."""
    names = {layer.name for layer in layers}
    split = {name: name.rpartition(".") for name in source.tensors}
    return [
        name
        for name, (linear, _, part) in split.items()
        if not llama.is_derived_buffer(name)
        and (linear not in names or part not in PACKED_TENSOR_NAMES)
    ]


def _write_sidecars(folder: Path, source: Checkpoint, config: dict[str, Any]) -> None:
    """Configs, tokenizer, history, and what the model was calibrated on."""
    files = {name: path for name, path in source.sidecar_files().items() if name != QUANTIZE_CONFIG}
    copy_sidecars(files, folder)
    if (source.folder / NGRAM_FILE).is_file():
        shutil.copyfile(source.folder / NGRAM_FILE, folder / NGRAM_FILE)
    write_json(folder / "config.json", config)
    quantization = config.get("quantization_config", {})
    if quantization.get("quant_method") == "gptq":
        write_json(folder / QUANTIZE_CONFIG, quantization)

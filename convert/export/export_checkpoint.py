"""Exports a packed checkpoint to another layout with the same codes, one layer in memory."""

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
from camelpress.core.runtime.resource_usage import Stopwatch
from camelpress.reporting.facts.recover_facts import ExportFacts
from camelpress.reporting.lineage import EXPORT, list_source_digests, written_weights
from camelpress.reporting.report_classes import ExportReport

REPORT = EXPORT
FORMATS = {"gptq": GPTQ_V1, "gptq-v2": GPTQ_V2, "compressed-tensors": PACK_QUANTIZED}


def export(
    source: Checkpoint, out: Path, settings: ExportSettings, *, force: bool = False
) -> ExportReport:
    """Writes a packed model in another layout, without calibration and without loss.

    Each written layer is unpacked again, and its weights are compared with those of the source.
    Only a dense output can lose precision; the report states the number of rounded values and the
    largest error.

    Args:
        source: packed checkpoint of the LLaMA family, in a layout known to
            `core.packing.linear_layers`.
        out: folder to create.
        settings: layout of the output, and dtype of a dense one.
        force: replaces `out`.
    Raises:
        CheckpointProblem: the source is not packed, incomplete, or already in that layout, or the
            layout cannot express its column order, groups or layer settings.
        NumericsProblem: the layout cannot hold the scales or zero points, or weights do not fit
            the dtype.
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
    unpacked = _unpacked_tensors(source, layers)
    slots = {name: target.unpacked_slot(source.tensor_info(name)) for name in unpacked}
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
            for name in unpacked:
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
        report = ExportReport(
            stage="export",
            inputs={"checkpoint": sha256_json(hashes)},
            outputs=written_weights(folder),
            settings=settings.model_dump(mode="json"),
            facts=ExportFacts.build(
                {
                    "from": sorted({layer.scheme.checkpoint_format for layer in layers}),
                    "layers": len(layers),
                    "plain": len(unpacked),
                    "left_out": sorted(filter(llama.is_derived_buffer, source.tensors)),
                    "config_changes": list(source.config_changes),
                    "exported_from": list_source_digests(source, hashes),
                    **facts,
                    "versions": package_versions(),
                }
            ),
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
    """Returns the config of the output, after reading back the scheme of every layer from it.

    Raises:
        CheckpointProblem: the layout cannot express how a layer is packed.
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
                f"{source.folder}: {settings.to} cannot express how {layer.name!r} is packed",
                next_step="export it --to dense",
            )
    return config


def _unpacked_tensors(source: Checkpoint, layers: list[PackedLayer]) -> list[str]:
    """Lists the tensors outside the packed layers, without derived buffers."""
    names = {layer.name for layer in layers}
    name_parts = {name: name.rpartition(".") for name in source.tensors}
    return [
        name
        for name, (linear, _, part) in name_parts.items()
        if not llama.is_derived_buffer(name)
        and (linear not in names or part not in PACKED_TENSOR_NAMES)
    ]


def _write_sidecars(folder: Path, source: Checkpoint, config: dict[str, Any]) -> None:
    """Writes configs, tokenizer, earlier reports and calibration fingerprint."""
    files = {name: path for name, path in source.sidecar_files().items() if name != QUANTIZE_CONFIG}
    copy_sidecars(files, folder)
    if (source.folder / NGRAM_FILE).is_file():
        shutil.copyfile(source.folder / NGRAM_FILE, folder / NGRAM_FILE)
    write_json(folder / "config.json", config)
    quantization = config.get("quantization_config", {})
    if quantization.get("quant_method") == "gptq":
        write_json(folder / QUANTIZE_CONFIG, quantization)

"""A packed checkpoint in another layout: the same codes and scales, one layer in memory."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from camelpress.convert.export.export_formats import Dense, Layer, Target, layers_of
from camelpress.convert.export.packed_formats import Compressed, Gptq
from camelpress.convert.settings import Export
from camelpress.core import llama
from camelpress.core.checkpoint.checkpoint import (
    SETTINGS,
    Checkpoint,
    copy_companions,
    require_companions,
)
from camelpress.core.checkpoint.checkpoint_writer import WEIGHTS, CheckpointWriter
from camelpress.core.checkpoint.portable_config import DTYPES, portable
from camelpress.core.documents.ngram_overlap import FINGERPRINT
from camelpress.core.errors import CheckpointProblem
from camelpress.core.files.file_hashes import checkpoint_hashes, sha256_json, versions
from camelpress.core.files.json_files import write_json
from camelpress.core.output.staged_output import keep_apart, output_files, require_free, staged
from camelpress.core.packing.linear_layers import PARTS, head_of, read_codes
from camelpress.core.packing.quantization_schemes import COMPRESSED, V1, V2, scheme_of
from camelpress.core.progress import note, track
from camelpress.reporting.lineage import EXPORT, SOURCES, sources, written_weights
from camelpress.reporting.stage_report import Report, Stopwatch

REPORT = EXPORT
LAYOUTS = {"gptq": V1, "gptq-v2": V2, "compressed-tensors": COMPRESSED}


def export(source: Checkpoint, out: Path, settings: Export, *, force: bool = False) -> Report:
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
    keep_apart(out, source.folder)
    require_free(out, force=force)
    hashes = checkpoint_hashes(source.folder)
    llama.classes(source.config, source.folder)
    head_of(source)
    layers = layers_of(source)
    _require_another(source, layers, settings)
    target = _target(settings)
    config = _config(source, layers, target, settings)
    for layer in layers:
        target.require(source, layer)
    plain = _plain(source, layers)
    slots = {name: target.plain_slot(source.info(name)) for name in plain}
    for layer in layers:
        slots |= target.slots(layer)
    require_companions(source.companions())
    writes = (*WEIGHTS, *source.companions(), FINGERPRINT, "config.json", SETTINGS, REPORT)
    with staged(out, force=force, writes=writes) as folder:
        with CheckpointWriter(folder, dict(sorted(slots.items()))) as writer:
            for name in plain:
                writer.put(name, target.plain(name, source.read(name)))
            for layer in track(layers, "export"):
                codes = read_codes(source, layer.name, layer.scheme)
                for part, tensor in target.lay(codes, layer).items():
                    writer.put(f"{layer.name}.{part}", tensor)
        _write_companions(folder, source, config)
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
                "from": sorted({layer.scheme.layout for layer in layers}),
                "layers": len(layers),
                "plain": len(plain),
                "left_out": sorted(filter(llama.is_derived_buffer, source.tensors)),
                "config_changes": list(source.changes),
                SOURCES: sources(source, hashes),
                **facts,
                "versions": versions(),
            },
            cost=watch.cost(),
            files=output_files(folder, REPORT),
        )
        report.write(folder / REPORT)
    return report


def _target(settings: Export) -> Target:
    if settings.to == "dense":
        return Dense(DTYPES[settings.dtype])
    return Compressed() if settings.to == "compressed-tensors" else Gptq(LAYOUTS[settings.to])


def _require_another(source: Checkpoint, layers: list[Layer], settings: Export) -> None:
    if not layers:
        raise CheckpointProblem(
            f"{source.folder} is not quantized", next_step="give the folder that quantize wrote"
        )
    method = (source.quantization or {}).get("quant_method")
    if method != "auto-round" and {layer.scheme.layout for layer in layers} == {
        LAYOUTS.get(settings.to)
    }:
        raise CheckpointProblem(
            f"{source.folder} is in the layout {settings.to} already", next_step="use it as it is"
        )


def _config(
    source: Checkpoint, layers: list[Layer], target: Target, settings: Export
) -> dict[str, Any]:
    """The config of the output, seen to say of every layer what it is.

    Raises:
        CheckpointProblem: the layout has no words for it.
    """
    blocks = source.config["num_hidden_layers"]
    quantization = target.quantization(source, layers, blocks)
    config = portable(source.config, target.dtype(source, layers))
    config.pop("quantization_config", None)
    if quantization is None:
        return config
    config["quantization_config"] = quantization
    read = Checkpoint(source.folder, config, {})
    for layer in layers:
        scheme = scheme_of(read, layer.name)
        if scheme is None or scheme[1:4] != tuple(layer.said().values()):
            raise CheckpointProblem(
                f"{source.folder}: {settings.to} has no words for how {layer.name!r} is packed",
                next_step="export it --to dense",
            )
    return config


def _plain(source: Checkpoint, layers: list[Layer]) -> list[str]:
    """Names the weights that are no part of a packed layer."""
    names = {layer.name for layer in layers}
    split = {name: name.rpartition(".") for name in source.tensors}
    return [
        name
        for name, (linear, _, part) in split.items()
        if not llama.is_derived_buffer(name) and (linear not in names or part not in PARTS)
    ]


def _write_companions(folder: Path, source: Checkpoint, config: dict[str, Any]) -> None:
    """Configs, tokenizer, history, and what the model was calibrated on."""
    files = {name: path for name, path in source.companions().items() if name != SETTINGS}
    copy_companions(files, folder)
    if (source.folder / FINGERPRINT).is_file():
        shutil.copyfile(source.folder / FINGERPRINT, folder / FINGERPRINT)
    write_json(folder / "config.json", config)
    quantization = config.get("quantization_config", {})
    if quantization.get("quant_method") == "gptq":
        write_json(folder / SETTINGS, quantization)

"""Quantize stage: packs a 16-bit checkpoint, with one decoder block in memory at a time."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from camelpress.core import llama
from camelpress.core.checkpoint.checkpoint import (
    QUANTIZE_CONFIG,
    Checkpoint,
    copy_sidecars,
    require_valid_sidecars,
    sidecar_files,
)
from camelpress.core.checkpoint.checkpoint_writer import WEIGHT_FILE_PATTERNS, CheckpointWriter
from camelpress.core.checkpoint.portable_config import TORCH_DTYPES, dtype_name
from camelpress.core.documents.ngram_overlap import NGRAM_FILE
from camelpress.core.errors import CheckpointProblem, RecipeProblem
from camelpress.core.files.file_hashes import (
    checkpoint_file_hashes,
    package_versions,
    sha256_file,
    sha256_json,
)
from camelpress.core.output.journal import Journal
from camelpress.core.output.staged_output import (
    output_files,
    require_free_output,
    require_separate_output,
    staged,
)
from camelpress.core.progress import note
from camelpress.core.runtime.resource_usage import Stopwatch
from camelpress.core.text.hf_tokenizer import Tokenizer
from camelpress.inference.model.streamed_model import StreamedModel, has_fast_bfloat16, pick_device
from camelpress.inference.streaming.home_choice import choose_home
from camelpress.inference.streaming.process_group import ProcessGroup
from camelpress.inference.streaming.rounding_facts import cpu_facts, rounding_facts
from camelpress.inference.streaming.token_shards import SHARDS_FOLDER
from camelpress.quantize.backends import backend
from camelpress.quantize.backends.import_result import import_result
from camelpress.quantize.calibration.calibration import Calibration, draw_calibration
from camelpress.quantize.calibration_shards import CalibrationShard, calibration_shards
from camelpress.quantize.ffn_padding import PaddedCheckpoint
from camelpress.quantize.kernels.kernel import LAZY_BATCH_COLUMNS
from camelpress.quantize.memory_forecast import forecast_memory, state_bytes
from camelpress.quantize.model_quantizer import QuantizationRun
from camelpress.quantize.output_layout import (
    QUANTIZER,
    Fp16View,
    plan_tensor_slots,
    read_fp16,
    write_quantization_config,
)
from camelpress.quantize.settings import BACKEND_LIMITS, NATIVE, QuantizeSettings
from camelpress.quantize.solver.gptq import FALLBACK
from camelpress.reporting.facts.quantize_facts import QuantizeFacts
from camelpress.reporting.lineage import written_weights
from camelpress.reporting.report_classes import QuantizeReport

REPORT = "quantize-report.json"
IRRELEVANT_SETTINGS = {  # settings without effect on the bytes of the output
    "calibration",
    "device",
    "engine_python",
    "max_fallbacks",
}
BACKEND_FOLDER = "engine"  # folder in the unfinished output for files of a backend


def run(
    source: Checkpoint,
    out: Path,
    settings: QuantizeSettings,
    *,
    force: bool = False,
    restart: bool = False,
) -> QuantizeReport:
    """Quantizes the linear layers of all decoder blocks; embeddings, norms and head stay 16-bit.

    Args:
        source: 16-bit or fp32 checkpoint of the LLaMA family.
        out: output folder, which does not exist.
        settings: bits, grid and calibration.
        force: true to replace `out`.
        restart: true to discard the work of an unfinished run.
    Raises:
        CheckpointProblem: the source is quantized, incomplete or of another family.
        RecipeProblem: a group size does not divide a width, or the calibration is missing or too
            long for the model.
        NumericsProblem: a weight is not finite, or a Hessian has no Cholesky factor.
    """
    watch = Stopwatch()
    _require_unquantized(source, out)
    require_valid_sidecars(source.sidecar_files())
    if settings.engine != NATIVE:
        return _run_backend(source, out, settings, watch, force=force)
    processes = ProcessGroup.join()
    with processes.restore_thread_count(out, restart=restart):
        return _run_native(source, out, settings, watch, processes, force=force, restart=restart)


def _run_native(
    source: Checkpoint,
    out: Path,
    settings: QuantizeSettings,
    watch: Stopwatch,
    processes: ProcessGroup,
    *,
    force: bool,
    restart: bool,
) -> QuantizeReport:
    """Quantizes with this package, block by block."""
    device = processes.device(pick_device(settings.device))
    if settings.pad_ffn:
        source = PaddedCheckpoint(source, settings.pad_ffn)
    model = StreamedModel(
        Fp16View.of(source, settings), device=device, dtype=_dtype(settings, device, source)
    )
    specs = plan_tensor_slots(model.checkpoint, model.block_count, settings)
    calibration = _calibration(model, settings)
    compute_facts = _compute_facts(model)
    hashes = checkpoint_file_hashes(source.folder)
    made_from = _resume_key(hashes, settings, calibration, model)
    with (
        processes.staged(
            out, force=force, made_from=made_from, restart=restart, writes=_output_names(source)
        ) as folder,
        torch.inference_mode(),
    ):
        (folder / SHARDS_FOLDER).mkdir(exist_ok=True)
        shards = _shards(calibration, folder / SHARDS_FOLDER, model, settings)
        home = choose_home(state_bytes(model, shards), device, processes)
        block_run = QuantizationRun(model, shards, processes, settings, home)
        forecast_bytes = sum(forecast_memory(model, shards, home).values())
        note(f"memory: at most {forecast_bytes / 1e9:.2f} GB expected")
        if not processes.is_main:
            block_run.quantize_blocks(None, None)
            return processes.broadcast(_no_report)
        with Journal(folder) as journal:
            with CheckpointWriter(folder, specs) as writer:
                for name in sorted(specs.keys() & source.tensors.keys()):
                    writer.write_tensor(name, read_fp16(source, name))
                layers = block_run.quantize_blocks(writer, journal)
            write_quantization_config(folder, source, model.block_count, settings)
            report = _finish_output(
                folder,
                source,
                hashes,
                settings,
                calibration,
                facts={
                    "engine": {"name": NATIVE},
                    **compute_facts,
                    "padded": source.width_change if isinstance(source, PaddedCheckpoint) else None,
                    "rescues": sum(bool(layer["rescue"]) for layer in layers),
                    "fallbacks": sum(layer["rescue"] == FALLBACK for layer in layers),
                    "lost": sum(bool(layer.get("lost")) for layer in layers),
                    "layers": layers,
                },
                cost=watch.cost() | {"expected_peak_bytes": forecast_bytes},
            )
        shutil.rmtree(folder / SHARDS_FOLDER)
    return processes.broadcast(lambda: report)


def _run_backend(
    source: Checkpoint, out: Path, settings: QuantizeSettings, watch: Stopwatch, *, force: bool
) -> QuantizeReport:
    """Quantizes with a backend, with the same calibration, output and report."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RecipeProblem(
            f"engine {settings.engine} is one process", next_step="start it without torchrun"
        )
    env = backend.find_backend(settings)
    require_free_output(out, force=force)
    model = StreamedModel(
        Fp16View.of(source, settings), device=torch.device("cpu"), dtype=torch.float32
    )
    specs = plan_tensor_slots(model.checkpoint, model.block_count, settings)
    calibration = _calibration(model, settings)
    hashes = checkpoint_file_hashes(source.folder)
    with staged(out, force=force, writes=_output_names(source)) as folder, torch.inference_mode():
        work = folder / BACKEND_FOLDER
        work.mkdir()
        result, driver_facts = backend.run_backend(
            env, source, calibration.sequences if calibration else [], work, settings
        )
        layers, method = import_result(
            result, source, model.block_count, env, settings, specs, folder
        )
        shutil.rmtree(work)
        cost = watch.cost()
        meta = {"meta": {"quantizer": [*env.quantizers, QUANTIZER]}}
        write_quantization_config(folder, source, model.block_count, settings, method | meta)
        return _finish_output(
            folder,
            source,
            hashes,
            settings,
            calibration,
            facts={
                "engine": {"name": env.name, "versions": env.versions, **method},
                "device": driver_facts["device"],
                "dtype": driver_facts["dtype"],
                "padded": None,
                "rescues": None,
                "fallbacks": driver_facts.get("fallbacks"),
                "lost": 0,
                "layers": layers,
            },
            cost={
                "seconds": cost["seconds"],
                "peak_bytes": cost["peak_bytes"] + driver_facts["peak_bytes"],
                "engine_seconds": driver_facts["seconds"],
                "engine_peak_bytes": driver_facts["peak_bytes"],
            },
        )


def _finish_output(
    folder: Path,
    source: Checkpoint,
    hashes: Mapping[str, str],
    settings: QuantizeSettings,
    calibration: Calibration | None,
    *,
    facts: dict[str, Any],
    cost: dict[str, float],
) -> QuantizeReport:
    """Writes the files beside weights and config, and the report."""
    copy_sidecars(sidecar_files(source.folder), folder)
    if calibration:
        calibration.fingerprint.write(folder / NGRAM_FILE)
    omitted_settings = {"calibration", "device", "engine_python"}
    if settings.engine != NATIVE:
        omitted_settings |= BACKEND_LIMITS.keys() - {"method", "calibration_mask"}
        omitted_settings |= {"damp_percent"} - settings.model_fields_set  # each backend has its own
    source.require_unchanged(hashes)
    report = QuantizeReport(
        stage="quantize",
        inputs={"source": sha256_json(hashes)} | _calibration_inputs(calibration),
        outputs=written_weights(folder),
        settings=settings.model_dump(mode="json", exclude=omitted_settings),
        facts=QuantizeFacts.build(
            {
                "method": settings.method,
                "calibration": _calibration_facts(settings, calibration, folder),
                "left_out": sorted(filter(llama.is_derived_buffer, source.tensors)),
                "config_changes": list(source.config_changes),
                **facts,
            }
        ),
        cost=cost,
        files=output_files(folder, REPORT),
    )
    report.write(folder / REPORT)
    return report


def _no_report() -> QuantizeReport:
    """Stands for the report on ranks that receive it."""
    raise NotImplementedError


def _output_names(source: Checkpoint) -> tuple[str, ...]:
    """Returns the names and patterns of all output files."""
    configs = ("config.json", QUANTIZE_CONFIG, NGRAM_FILE, REPORT)
    return (*WEIGHT_FILE_PATTERNS, *sidecar_files(source.folder), *configs)


def _shards(
    calibration: Calibration | None, folder: Path, model: StreamedModel, settings: QuantizeSettings
) -> list[CalibrationShard]:
    if calibration is None:
        return []
    max_width = max(shape[-1] for shape in model.block_shapes(0).values())
    return calibration_shards(
        calibration.sequences,
        calibration.token_mask,
        folder,
        sizes=model.sizes,
        limit=model.max_positions,
        columns=max_width if settings.correction else 0,
    )


def _compute_facts(model: StreamedModel) -> dict[str, Any]:
    """Returns the facts of the computation: device, CPU and dtype."""
    return {
        "device": str(model.device),
        **cpu_facts(),
        "dtype": dtype_name(model.dtype),
    }


def _resume_key(
    hashes: Mapping[str, str],
    settings: QuantizeSettings,
    calibration: Calibration | None,
    model: StreamedModel,
) -> dict[str, Any]:
    """Returns every input of the output's bytes by name; a resumed run must match it."""
    return {
        "stage": "quantize",
        **settings.model_dump(mode="json", exclude=IRRELEVANT_SETTINGS),
        "dtype": dtype_name(model.dtype),
        **rounding_facts(model.device),
        "columns at once": LAZY_BATCH_COLUMNS,
        **{f"version of {name}": number for name, number in package_versions().items()},
        **{f"source/{name}": digest for name, digest in hashes.items()},
        **_calibration_inputs(calibration),
        "weights of the texts": [source.weight for source in settings.calibration],
    }


def _calibration(model: StreamedModel, settings: QuantizeSettings) -> Calibration | None:
    if settings.method == "rtn":
        return None
    if settings.sequence_length > model.max_positions:
        raise RecipeProblem(
            f"sequence_length {settings.sequence_length} exceeds the {model.max_positions} "
            f"positions of {model.checkpoint.folder}",
            next_step=f"use --sequence-length {model.max_positions} or less",
        )
    return draw_calibration(
        settings.calibration,
        Tokenizer.load(model.checkpoint.folder),
        samples=settings.samples,
        sequence_length=settings.sequence_length,
        mask=settings.calibration_mask,
        seed=settings.seed,
    )


def _require_unquantized(source: Checkpoint, out: Path) -> None:
    if source.quantization is not None:
        raise CheckpointProblem(
            f"{source.folder} is already quantized", next_step="give the 16-bit checkpoint"
        )
    require_separate_output(out, source.folder)


def _dtype(settings: QuantizeSettings, device: torch.device, source: Checkpoint) -> torch.dtype:
    """Picks the dtype of the forward pass: 16 bits where faster, but never fp16 on a CPU."""
    if settings.dtype != "auto":
        return TORCH_DTYPES[settings.dtype]
    if device.type == "cpu":
        return torch.bfloat16 if has_fast_bfloat16() else torch.float32
    return source.dtype


def _calibration_inputs(calibration: Calibration | None) -> dict[str, str]:
    sources = calibration.sources if calibration else ()
    return {f"calibration:{source.name}": source.sha256 for source in sources}


def _calibration_facts(
    settings: QuantizeSettings, calibration: Calibration | None, folder: Path
) -> dict[str, Any] | None:
    if calibration is None:
        return None
    return {
        "format": "Tulu prompts, one conversation a sequence; plain text in full windows",
        "sequence_length": settings.sequence_length,
        **calibration.report_facts(),
        "fingerprint": {
            "name": NGRAM_FILE,
            "sha256": sha256_file(folder / NGRAM_FILE),
            "runs": len(calibration.fingerprint.hashes),
        },
    }

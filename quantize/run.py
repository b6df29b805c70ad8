"""The stage: a 16-bit checkpoint in, a packed one out, one decoder block in memory at a time."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from camelpress.core import llama
from camelpress.core.checkpoint.checkpoint import (
    SETTINGS,
    Checkpoint,
    companions,
    copy_companions,
    require_companions,
)
from camelpress.core.checkpoint.checkpoint_writer import WEIGHTS, CheckpointWriter
from camelpress.core.checkpoint.portable_config import DTYPES, dtype_name
from camelpress.core.documents.ngram_overlap import FINGERPRINT
from camelpress.core.errors import CheckpointProblem, RecipeProblem
from camelpress.core.files.file_hashes import checkpoint_hashes, sha256_file, sha256_json, versions
from camelpress.core.output.journal import Journal
from camelpress.core.output.staged_output import keep_apart, output_files, require_free, staged
from camelpress.core.progress import note
from camelpress.core.text.hf_tokenizer import Tokenizer
from camelpress.inference.model.streamed_model import StreamedModel, has_bfloat16, pick_device
from camelpress.inference.streaming.process_group import Team
from camelpress.inference.streaming.rounding_facts import computing, rounding
from camelpress.inference.streaming.token_shards import LANES
from camelpress.quantize.backends import backend
from camelpress.quantize.backends.import_result import adopt
from camelpress.quantize.block_quantization import Journey
from camelpress.quantize.calibration.calibration import Calibration, draw
from camelpress.quantize.calibration_shards import Lane, lanes
from camelpress.quantize.kernels.kernel import COLUMNS
from camelpress.quantize.memory_forecast import forecast
from camelpress.quantize.output_layout import MAKER, AsStored, plan, stored, write_config
from camelpress.quantize.padding import Padded
from camelpress.quantize.settings import NATIVE, UNABLE, Quantize
from camelpress.quantize.solver.gptq import FALLBACK
from camelpress.reporting.lineage import written_weights
from camelpress.reporting.stage_report import Report, Stopwatch

REPORT = "quantize-report.json"
UNDECIDED = {"calibration", "device", "engine_python", "max_fallbacks"}  # do not change a byte
ENGINE = "engine"


def run(
    source: Checkpoint,
    out: Path,
    settings: Quantize,
    *,
    force: bool = False,
    restart: bool = False,
) -> Report:
    """Quantize the linear layers of all decoder blocks; embeddings, norms and head stay 16-bit.

    Args:
        source: 16-bit or fp32, of the LLaMA family.
        out: a folder that does not exist.
        settings: bits, grid, calibration.
        force: replace `out`.
        restart: begin again, whatever an unfinished run left.
    Raises:
        CheckpointProblem: already quantized, incomplete, or of another family.
        RecipeProblem: a group size that does not divide a width, no or too long calibration.
        NumericsProblem: a weight is not finite, or a Hessian has no Cholesky factor.
    """
    watch = Stopwatch()
    _refuse(source, out)
    require_companions(source.companions())
    if settings.engine != NATIVE:
        return _elsewhere(source, out, settings, watch, force=force)
    team = Team.join()
    with team.threads_of(out, restart=restart):
        return _natively(source, out, settings, watch, team, force=force, restart=restart)


def _natively(
    source: Checkpoint,
    out: Path,
    settings: Quantize,
    watch: Stopwatch,
    team: Team,
    *,
    force: bool,
    restart: bool,
) -> Report:
    """The stage with the engine of this package, block by block."""
    device = team.place(pick_device(settings.device))
    if settings.pad_ffn:
        source = Padded(source, settings.pad_ffn)
    model = StreamedModel(
        AsStored.of(source, settings), device=device, dtype=_dtype(settings, device, source)
    )
    planned = plan(model.checkpoint, model.blocks, settings)
    calibration = _calibration(model, settings)
    computed = _computed(model)
    hashes = checkpoint_hashes(source.folder)
    made_from = _made_from(hashes, settings, calibration, model)
    with (
        team.staged(
            out, force=force, made_from=made_from, restart=restart, writes=_writes(source)
        ) as folder,
        torch.inference_mode(),
    ):
        (folder / LANES).mkdir(exist_ok=True)
        journey = Journey(
            model, _lanes(calibration, folder / LANES, model, settings), team, settings
        )
        expected = sum(forecast(model, journey.lanes).values())
        note(f"memory: at most {expected / 1e9:.2f} GB expected")
        if not team.leads:
            journey.follow()
            return team.share(lambda: Report(stage="quantize", inputs={}, settings={}, facts={}))
        with Journal(folder) as journal:
            with CheckpointWriter(folder, planned) as writer:
                for name in sorted(planned.keys() & source.tensors.keys()):
                    writer.put(name, stored(source, name))
                layers = journey.lead(writer, journal)
            write_config(folder, source, model.blocks, settings)
            report = _complete(
                folder,
                source,
                hashes,
                settings,
                calibration,
                facts={
                    "engine": {"name": NATIVE},
                    **computed,
                    "padded": source.told if isinstance(source, Padded) else None,
                    "rescues": sum(bool(layer["rescue"]) for layer in layers),
                    "fallbacks": sum(layer["rescue"] == FALLBACK for layer in layers),
                    "lost": sum(bool(layer.get("lost")) for layer in layers),
                    "layers": layers,
                },
                cost=watch.cost() | {"expected_peak_bytes": expected},
            )
        shutil.rmtree(folder / LANES)
    return team.share(lambda: report)


def _elsewhere(
    source: Checkpoint, out: Path, settings: Quantize, watch: Stopwatch, *, force: bool
) -> Report:
    """The stage with another engine: the same calibration, output and report."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RecipeProblem(
            f"engine {settings.engine} is one process", next_step="start it without torchrun"
        )
    ready = backend.find(settings)
    require_free(out, force=force)
    model = StreamedModel(
        AsStored.of(source, settings), device=torch.device("cpu"), dtype=torch.float32
    )
    planned = plan(model.checkpoint, model.blocks, settings)
    calibration = _calibration(model, settings)
    hashes = checkpoint_hashes(source.folder)
    with staged(out, force=force, writes=_writes(source)) as folder, torch.inference_mode():
        work = folder / ENGINE
        work.mkdir()
        made, told = backend.quantize(
            ready, source, calibration.sequences if calibration else [], work, settings
        )
        layers, said = adopt(made, source, model.blocks, ready, settings, planned, folder)
        shutil.rmtree(work)
        spent = watch.cost()
        by = {"meta": {"quantizer": [*ready.makers, MAKER]}}
        write_config(folder, source, model.blocks, settings, said | by)
        return _complete(
            folder,
            source,
            hashes,
            settings,
            calibration,
            facts={
                "engine": {"name": ready.name, "versions": ready.versions, **said},
                "device": told["device"],
                "dtype": told["dtype"],
                "padded": None,
                "rescues": None,
                "fallbacks": told.get("fallbacks"),
                "lost": 0,
                "layers": layers,
            },
            cost={
                "seconds": spent["seconds"],
                "peak_bytes": spent["peak_bytes"] + told["peak_bytes"],
                "engine_seconds": told["seconds"],
                "engine_peak_bytes": told["peak_bytes"],
            },
        )


def _complete(
    folder: Path,
    source: Checkpoint,
    hashes: Mapping[str, str],
    settings: Quantize,
    calibration: Calibration | None,
    *,
    facts: dict[str, Any],
    cost: dict[str, float],
) -> Report:
    """What stands beside the weights and their config, and the report of it all."""
    copy_companions(companions(source.folder), folder)
    if calibration:
        calibration.fingerprint.write(folder / FINGERPRINT)
    unsaid = {"calibration", "device", "engine_python"}
    if settings.engine != NATIVE:
        unsaid |= UNABLE.keys() - {"method", "calibration_mask"}
        unsaid |= {"damp_percent"} - settings.model_fields_set  # each engine has its own
    source.require_unchanged(hashes)
    report = Report(
        stage="quantize",
        inputs={"source": sha256_json(hashes)} | _inputs(calibration),
        outputs=written_weights(folder),
        settings=settings.model_dump(mode="json", exclude=unsaid),
        facts={
            "method": settings.method,
            "calibration": _told_calibration(settings, calibration, folder),
            "left_out": sorted(filter(llama.is_derived_buffer, source.tensors)),
            "config_changes": list(source.changes),
            **facts,
        },
        cost=cost,
        files=output_files(folder, REPORT),
    )
    report.write(folder / REPORT)
    return report


def _writes(source: Checkpoint) -> tuple[str, ...]:
    """The names of all files that the output may have."""
    configs = ("config.json", SETTINGS, FINGERPRINT, REPORT)
    return (*WEIGHTS, *companions(source.folder), *configs)


def _lanes(
    calibration: Calibration | None, folder: Path, model: StreamedModel, settings: Quantize
) -> list[Lane]:
    if calibration is None:
        return []
    widest = max(shape[-1] for shape in model.shapes(0).values())
    return lanes(
        calibration.sequences,
        calibration.counted,
        folder,
        limit=model.positions,
        columns=widest if settings.correction else 0,
    )


def _computed(model: StreamedModel) -> dict[str, Any]:
    """Where, how and in which type sums come about."""
    return {
        "device": str(model.device),
        **computing(),
        "dtype": dtype_name(model.dtype),
    }


def _made_from(
    hashes: Mapping[str, str],
    settings: Quantize,
    calibration: Calibration | None,
    model: StreamedModel,
) -> dict[str, Any]:
    """Name to value of everything that decides the bytes of the output."""
    return {
        "stage": "quantize",
        **settings.model_dump(mode="json", exclude=UNDECIDED),
        "dtype": dtype_name(model.dtype),
        **rounding(model.device),
        "columns at once": COLUMNS,
        **{f"version of {name}": number for name, number in versions().items()},
        **{f"source/{name}": digest for name, digest in hashes.items()},
        **_inputs(calibration),
        "weights of the texts": [each.weight for each in settings.calibration],
    }


def _calibration(model: StreamedModel, settings: Quantize) -> Calibration | None:
    if settings.method == "rtn":
        return None
    if settings.sequence_length > model.positions:
        raise RecipeProblem(
            f"sequence_length {settings.sequence_length} exceeds the {model.positions} positions "
            f"of {model.checkpoint.folder}",
            next_step=f"use --sequence-length {model.positions} or less",
        )
    return draw(
        settings.calibration,
        Tokenizer.load(model.checkpoint.folder),
        samples=settings.samples,
        sequence_length=settings.sequence_length,
        mask=settings.calibration_mask,
        seed=settings.seed,
    )


def _refuse(source: Checkpoint, out: Path) -> None:
    if source.quantization is not None:
        raise CheckpointProblem(
            f"{source.folder} is already quantized", next_step="give the 16-bit checkpoint"
        )
    keep_apart(out, source.folder)


def _dtype(settings: Quantize, device: torch.device, source: Checkpoint) -> torch.dtype:
    """Of the forward pass: 16 bits wherever they are faster, but never fp16 on a CPU."""
    if settings.dtype != "auto":
        return DTYPES[settings.dtype]
    if device.type == "cpu":
        return torch.bfloat16 if has_bfloat16() else torch.float32
    return source.dtype


def _inputs(calibration: Calibration | None) -> dict[str, str]:
    drawn = calibration.drawn if calibration else ()
    return {f"calibration:{each.name}": each.sha256 for each in drawn}


def _told_calibration(
    settings: Quantize, calibration: Calibration | None, folder: Path
) -> dict[str, Any] | None:
    if calibration is None:
        return None
    return {
        "format": "Tulu prompts, one conversation a sequence; plain text in full windows",
        "sequence_length": settings.sequence_length,
        **calibration.facts(),
        "fingerprint": {
            "name": FINGERPRINT,
            "sha256": sha256_file(folder / FINGERPRINT),
            "runs": len(calibration.fingerprint.hashes),
        },
    }

"""Other engines: asked for the same, refused what they cannot do, and held to what they write.

Here they are packages made up for the test, which hand out a folder that our own stage made;
`tests/clients` has the real ones.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import gptq_reader
import stages
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.errors import OutputExists, RecipeProblem, ToolProblem
from camelpress.core.text.hf_tokenizer import Tokenizer
from camelpress.quantize.backends.backend import BackendEnv
from camelpress.quantize.backends.import_result import _raise_zeros, import_result
from camelpress.quantize.calibration.calibration import draw_calibration
from camelpress.quantize.output_layout import plan_tensor_slots
from camelpress.quantize.run import REPORT
from camelpress.quantize.settings import CalibrationSource, QuantizeSettings
from camelpress.reporting.report_classes import read_report
from refusal import refusal

LAYER = "model.layers.1.mlp.down_proj"
GPTQMODEL = """
import json, os, shutil

class QuantizeConfig(dict):
    pass

class GPTQModel:
    @classmethod
    def load(cls, model, config, *, device, dtype):
        self = cls()
        kept = json.load(open(f"{model}/config.json"))
        self.asked = {"config": config, "device": device, "dtype": str(dtype), "model": kept}
        return self

    def quantize(self, rows, **options):
        self.asked |= {"rows": rows, "options": options}
        print("solving")
        return {"gptq": [{"layer": 0, "module": "mlp.up_proj", "loss": os.environ["LOSS"]}]}

    def save(self, out):
        shutil.copytree(os.environ["MADE"], out)
        json.dump(self.asked, open(os.environ["ASKED"], "w"))
"""
AUTOGPTQ = """
import json, os, shutil, torch
from auto_gptq.modeling import _base, _utils

class BaseQuantizeConfig(dict):
    pass

class Llama:
    def __init__(self, model, quantized, config):
        self.model, self.asked = model, {"config": config}

    def quantize(self, rows, **options):
        torch.cuda.synchronize()
        ids = torch.tensor([rows[0]["input_ids"]])
        hidden = self.model.model.embed_tokens(ids)
        places = torch.arange(ids.shape[1])[None]
        around = self.model.model.rotary_emb(hidden, places)
        layer = self.model.model.layers[0]
        (found,) = layer(hidden, position_embeddings=around, position_ids=places)
        self.asked |= {"rows": rows, "device": str(_base.CUDA_0), "shape": list(found.shape)}

    def save_quantized(self, out):
        shutil.copytree(os.environ["MADE"], out)
        json.dump(self.asked, open(os.environ["ASKED"], "w"))
"""
ENVIRONMENTS: dict[str, tuple[dict[str, str], dict[str, str]]] = {  # versions, files
    "gptqmodel": ({"gptqmodel": "7.7.0"}, {"gptqmodel/__init__.py": GPTQMODEL}),
    "auto-gptq": (
        {"auto-gptq": "0.7.1", "transformers": "4.57.6"},
        {
            "auto_gptq/__init__.py": AUTOGPTQ,
            "auto_gptq/modeling/__init__.py": "",
            "auto_gptq/modeling/_base.py": "",
            "auto_gptq/modeling/_utils.py": "",
            "auto_gptq/modeling/auto.py": (
                "from auto_gptq import Llama\nGPTQ_CAUSAL_LM_MODEL_MAP = {'llama': Llama}"
            ),
        },
    ),
    "empty": ({"transformers": "4.57.6"}, {}),
}


@pytest.fixture(scope="module")
def made(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an engine could write."""
    folder = tmp_path_factory.mktemp("engine") / "made"
    stages.quantize(base, folder, method="rtn")
    return folder


@pytest.fixture
def environment(tmp_path: Path, made: Path) -> Callable[..., Path]:
    """The interpreter of an environment with a made-up engine."""

    def environment(name: str, *, folder: Path = made, loss: str = "0.1") -> Path:
        versions, files = ENVIRONMENTS[name]
        place = tmp_path / name
        for package, version in versions.items():
            told = place / f"{package.replace('-', '_')}-{version}.dist-info" / "METADATA"
            told.parent.mkdir(parents=True)
            told.write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
        for path, text in files.items():
            (place / path).parent.mkdir(parents=True, exist_ok=True)
            (place / path).write_text(text)
        python = tmp_path / "python"
        given = f"MADE='{folder}' ASKED='{tmp_path}/asked.json' LOSS='{loss}' PYTHONPATH='{place}'"
        python.write_text(f'#!/bin/sh\n{given} exec {sys.executable} "$@"\n')
        python.chmod(0o755)
        return python

    return environment


@pytest.fixture
def changed(made: Path, tmp_path: Path) -> Callable[..., Path]:
    """What an engine wrote, with something else in it."""

    def changed(config: dict[str, Any] | None = None, **parts: Any) -> Path:
        folder = tmp_path / "changed"
        shutil.copytree(made, folder)
        told = json.loads((folder / "config.json").read_text())
        told["quantization_config"] |= config or {}
        (folder / "config.json").write_text(json.dumps(told))
        tensors = load_file(made / "model.safetensors")
        for part, change in parts.items():
            change(tensors[f"{LAYER}.{part}"])
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return changed


def test_gptqmodel_is_given_our_ids_and_gives_our_output(
    environment: Callable[..., Path], base: Path, chat: Path, made: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    options: dict[str, Any] = {"engine": "gptqmodel", "engine_python": environment("gptqmodel")}
    report = stages.quantize(base, out, chat, samples=3, damp_percent=0.2, **options)
    asked = json.loads((tmp_path / "asked.json").read_text())
    drawn = draw_calibration(
        [CalibrationSource(source=chat)], Tokenizer.load(base), samples=3, sequence_length=64,
        mask="all", seed=42,
    )  # fmt: skip
    assert [row["input_ids"] for row in asked["rows"]] == drawn.sequences
    assert [row["attention_mask"] for row in asked["rows"]] == [
        [1] * len(ids) for ids in drawn.sequences
    ]
    offload = asked["config"].pop("offload_to_disk_path")
    assert Path(offload).parent.parent == tmp_path / "out.partial"
    assert asked["config"] == {
        "bits": 4, "group_size": 32, "sym": True, "damp_percent": 0.2, "format": "gptq_v2",
        "fallback": None,
    }  # fmt: skip
    assert asked["options"] == {"calibration_data_min_length": 0}
    assert (asked["device"], asked["dtype"]) == ("cpu", "torch.float32")
    assert asked["model"]["rope_theta"] == 5000.0
    theirs, ours = gptq_reader.tensors(made), gptq_reader.tensors(out)
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(tensor, ours[name]) for name, tensor in theirs.items())
    assert sorted(path.name for path in out.iterdir()) == [
        "calibration-ngrams.npy", "config.json", "model.safetensors", "quantize-report.json",
        "quantize_config.json", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    quantizers = gptq_reader.quantization(out)["meta"]["quantizer"]
    assert quantizers == ["gptqmodel:7.7.0", f"camelpress:{report.version}"]
    assert report == read_report(out / REPORT)
    assert report.facts.record["engine"]["versions"]["gptqmodel"] == "7.7.0"
    assert report.facts.record["calibration"]["tokens"] == drawn.tokens
    assert len(report.facts.record["layers"]) == 14
    assert 0 < report.facts.record["layers"][0]["relative_weight_error"] < 0.2
    assert "correction" not in report.settings
    assert "engine_python" not in report.settings
    assert 0 < report.cost["engine_peak_bytes"] < report.cost["peak_bytes"]
    told = stages.validate(base, out, tmp_path / "validation", chat, allow_overlap=True)
    assert told.facts.record["perplexity_ratio"] > 0


def test_auto_gptq_runs_on_a_processor_with_layers_that_return_tensors(
    environment: Callable[..., Path],
    base: Path,
    chat: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    environment("auto-gptq")
    monkeypatch.chdir(tmp_path)
    options: dict[str, Any] = {"engine": "auto-gptq", "engine_python": Path("python")}
    report = stages.quantize(base, tmp_path / "out", chat, device="cpu", **options)
    asked = json.loads((tmp_path / "asked.json").read_text())
    assert asked["config"] == {
        "bits": 4, "group_size": 32, "sym": True, "desc_act": True, "static_groups": True,
        "model_file_base_name": "model",
    }  # fmt: skip
    assert (asked["device"], asked["shape"][-1]) == ("cpu", 64)
    assert "damp_percent" not in report.settings
    assert report.facts.record["engine"]["name"] == "auto-gptq"


def refuse(base: Path, chat: Path, out: Path, python: Path, engine: str, **options: Any) -> None:
    stages.quantize(base, out, chat, engine=engine, engine_python=python, **options)


def test_an_engine_that_is_not_there_is_named_with_what_to_install(
    environment: Callable[..., Path], base: Path, chat: Path, tmp_path: Path
) -> None:
    python, out = environment("empty"), tmp_path / "out"
    with refusal(
        ToolProblem,
        f"{python} does not have optimum and gptqmodel",
        next_step="install 'optimum>=2.1' and gptqmodel in its own environment and give "
        "--engine-python; tests/clients/make_env.sh gptqmodel creates one",
        out=out,
    ):
        refuse(base, chat, out, python, "optimum")


def test_an_engine_beside_another_transformers_is_refused(
    environment: Callable[..., Path], base: Path, chat: Path, tmp_path: Path
) -> None:
    python, out = environment("auto-gptq"), tmp_path / "out"
    told = tmp_path / "auto-gptq" / "transformers-4.57.6.dist-info"
    shutil.rmtree(told)
    with pytest.raises(ToolProblem, match=r"has transformers 5\S*, auto-gptq needs 4; install"):
        refuse(base, chat, out, python, "auto-gptq")


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("#!/bin/sh\nexit 4\n", "exit code 4"),
        ("#!/bin/sh\necho hello\n", "its output is not JSON"),
        (None, "No such file or directory"),
    ],
)
def test_what_is_no_interpreter_is_refused(
    script: str | None, reason: str, base: Path, chat: Path, tmp_path: Path
) -> None:
    python, out = tmp_path / "python", tmp_path / "out"
    if script:
        python.write_text(script)
        python.chmod(0o755)
    with refusal(
        ToolProblem,
        f"{python} does not run as a Python interpreter ({reason})",
        next_step="give --engine-python, such as ENVIRONMENT/bin/python",
        out=out,
    ):
        refuse(base, chat, out, python, "gptqmodel")


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"method": "rtn"}, "method: engine gptqmodel supports GPTQ only"),
        ({"modules": {"*": {"bits": 8}}}, "modules: engine gptqmodel supports one setting"),
        ({"pad_ffn": 64}, "pad_ffn: engine gptqmodel does not pad"),
        ({"max_fallbacks": 1}, "max_fallbacks: engine gptqmodel does not limit layers"),
        ({"correction": 0.5}, "correction: engine gptqmodel does not correct towards"),
        (
            {"calibration_mask": "assistant"},
            "calibration_mask: engine gptqmodel counts every token",
        ),
        ({"engine": "auto-gptq", "sym": False}, "sym: engine auto-gptq packs a zero point of 0"),
        ({"engine": "native", "engine_python": "x"}, "engine_python: engine native needs none"),
    ],
)
def test_what_an_engine_cannot_do_is_refused(options: dict[str, Any], fault: str) -> None:
    with pytest.raises(RecipeProblem, match=fault):
        QuantizeSettings.parse({"engine": "gptqmodel"} | options, source="quantize")


def test_what_an_engine_does_anyway_may_be_said() -> None:
    harmless = {"correction": 0.0, "modules": {}, "pad_ffn": 0, "method": "gptq", "sym": False}
    assert (
        QuantizeSettings.parse({"engine": "gptqmodel"} | harmless, source="quantize").correction
        == 0
    )


def test_several_processes_are_refused(
    base: Path, chat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with refusal(
        RecipeProblem,
        "engine gptqmodel is one process",
        next_step="start it without torchrun",
        out=tmp_path / "out",
        exit_code=2,
    ):
        refuse(base, chat, tmp_path / "out", Path(sys.executable), "gptqmodel")


@pytest.fixture
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go."""
    folder = tmp_path / "logs"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def test_an_engine_that_fails_is_quoted_and_its_log_is_kept(
    environment: Callable[..., Path],
    base: Path,
    chat: Path,
    tmp_path: Path,
    logs: Path,
) -> None:
    python, out = environment("gptqmodel", loss="rtn fallback"), tmp_path / "out"
    with pytest.raises(ToolProblem) as told:
        refuse(base, chat, out, python, "gptqmodel")
    (log,) = logs.iterdir()
    assert told.value.message == (
        "gptqmodel:7.7.0 ended with 1: GPTQModel did not solve 0.mlp.up_proj"
    )
    assert told.value.next_step == f"read {log}, or use --engine native"
    assert log.read_text().startswith("solving\n")
    assert not list(tmp_path.glob("out*"))


def test_an_engine_that_is_stopped_leaves_nothing(
    environment: Callable[..., Path],
    base: Path,
    chat: Path,
    tmp_path: Path,
    logs: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    python, start = environment("gptqmodel"), subprocess.run

    def stopped(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        if "-c" in command:  # the engine is looked for
            return start(command, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "run", stopped)
    with pytest.raises(KeyboardInterrupt):
        refuse(base, chat, tmp_path / "out", python, "gptqmodel")
    assert not list(logs.iterdir())
    assert not list(tmp_path.glob("out*"))


def test_nothing_is_run_where_the_output_stands(
    environment: Callable[..., Path], base: Path, chat: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputExists):
        refuse(base, chat, tmp_path / "out", environment("gptqmodel"), "gptqmodel")
    assert not (tmp_path / "asked.json").exists()


# fmt: off
@pytest.mark.parametrize(
    ("config", "parts", "fault"),
    [
        ({"bits": 8}, {}, r"gptqmodel:7.7.0 wrote a checkpoint with {'bits': 8}, not {'quant_me.*"),
        ({"checkpoint_format": "marlin"}, {}, "gptqmodel:7.7.0 wrote a checkpoint with .*"),
        ({}, {"g_idx": lambda t: t.copy_(t.flip(0))}, ".* has groups of columns that are not .*"),
        ({}, {"qzeros": lambda t: t.zero_()}, ".* is symmetric, but has zero points outside .*"),
        ({}, {"scales": lambda t: t.fill_(torch.inf)}, ".* has scales that are not finite .*"),
        ({}, {"qweight": lambda t: t.copy_(t.flip(1))}, ".* does not resemble the layer of .*"),
        ({}, {"scales": lambda t: t.zero_()}, ".* loses 100% of the layer of the source"),
        ({}, {"scales": lambda t: t[:, ::2].zero_()}, ".* loses [45].% of the layer of the source"),
    ],
)
# fmt: on
def test_what_was_not_asked_for_is_not_taken(
    config: dict[str, Any],
    parts: dict[str, Any],
    fault: str,
    changed: Callable[..., Path],
    base: Path,
    tmp_path: Path,
) -> None:
    settings = QuantizeSettings(engine="gptqmodel", group_size=32)
    source = Checkpoint.open(base)
    ready = BackendEnv("gptqmodel", "python", {"gptqmodel": "7.7.0"})
    (tmp_path / "out").mkdir()
    with pytest.raises(ToolProblem, match=f"^{fault}; use another version of it"):
        import_result(
            changed(config, **parts), source, 2, ready, settings,
            plan_tensor_slots(source, 2, settings), tmp_path / "out",
        )  # fmt: skip


def test_zero_points_of_0_become_1_and_the_weights_stay() -> None:
    codes = torch.tensor([[0, 14, 15, 3], [0, 14, 15, 3]], dtype=torch.uint8)
    zeros = torch.tensor([[0, 2], [5, 0]], dtype=torch.uint8)
    group_of = torch.tensor([0, 0, 1, 1], dtype=torch.int32)
    before = codes.int() - zeros[:, group_of.long()].int()
    assert _raise_zeros(codes, zeros, group_of, top=15) == (2, 1)
    after = codes.int() - zeros[:, group_of.long()].int()
    assert zeros.tolist() == [[1, 2], [5, 1]]
    assert (before - after).tolist() == [[0, 0, 0, 0], [0, 0, 1, 0]]


def test_a_recipe_names_the_interpreter_from_its_own_folder(tmp_path: Path) -> None:
    from camelpress.pipeline.recipe import read_recipe

    (tmp_path / "recipe.yaml").write_text(
        "base: b\ndiff: d\nout: o\n"
        "quantize: {engine: gptqmodel, engine_python: venv/bin/python}\n"
    )
    recipe = read_recipe(tmp_path / "recipe.yaml")
    assert recipe.quantize.engine_python == tmp_path / "venv/bin/python"

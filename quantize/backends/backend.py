"""Quantization backends: finds and runs other tools for quantization.

A backend runs in its own process and Python environment, because these packages pin other versions
of torch and transformers. It gets the model and the token ids for calibration, and writes a folder
in the GPTQ format, which `import_result` converts to an output of this stage.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from camelpress.core import llama
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.checkpoint.portable_config import portable_config
from camelpress.core.checkpoint.shards import INDEX_NAMES
from camelpress.core.errors import ToolProblem
from camelpress.core.files.json_files import write_json
from camelpress.core.progress import note
from camelpress.core.runtime.terminal_text import escape_controls
from camelpress.quantize.settings import NATIVE, QuantizeSettings

DRIVER_FOLDER = Path(__file__).parent / "drivers"
MAX_LOG_CHARACTERS = 300  # characters of a log quoted in an error message
VERSION_PROBE = """
import json, platform, sys
from importlib.metadata import PackageNotFoundError, version
versions = {"python": platform.python_version()}
for name in sys.argv[1:]:
    try:
        versions[name] = version(name)
    except PackageNotFoundError:
        versions[name] = None
print(json.dumps(versions))
"""


class BackendSpec(NamedTuple):
    """Requirements of a backend."""

    driver: str  # module in drivers/
    environment: str  # name of its environment in tests/clients/make_env.sh
    packages: tuple[str, ...]  # names of its packages
    transformers: int  # supported major version of transformers
    install: str  # arguments of pip install


# fmt: off
BACKENDS = {
    "gptqmodel": BackendSpec("gptqmodel", "gptqmodel", ("gptqmodel",),           5, "gptqmodel"),
    "optimum":   BackendSpec("optimum",   "gptqmodel", ("optimum", "gptqmodel"), 5,
                        "'optimum>=2.1' and gptqmodel"),
    "auto-gptq": BackendSpec("autogptq",  "autogptq",  ("auto-gptq",),           4,
                        "auto-gptq==0.7.1, 'transformers<5' and 'peft<0.19'"),
}
# fmt: on


@dataclass(frozen=True)
class BackendEnv:
    """Environment of an installed backend.

    Args:
        name: name of the backend in the settings.
        python: path of its Python interpreter.
        versions: versions of Python, its packages, torch and transformers, by name.
    """

    name: str
    python: str
    versions: dict[str, str]

    @property
    def quantizers(self) -> list[str]:
        """Names and versions of the backend's packages, as in `meta.quantizer` of a config."""
        return [f"{name}:{self.versions[name]}" for name in BACKENDS[self.name].packages]


def find_backend(settings: QuantizeSettings) -> BackendEnv:
    """Finds the backend of the settings and checks its versions.

    Raises:
        ToolProblem: the interpreter does not run, lacks a package or has another transformers.
    """
    spec = BACKENDS[settings.engine]
    python = str((settings.engine_python or Path(sys.executable)).absolute())
    versions = _versions(python, (*spec.packages, "torch", "transformers"))
    missing_packages = [name for name, version in versions.items() if version is None]
    next_step = (
        f"install {spec.install} in its own environment and give --engine-python; "
        f"tests/clients/make_env.sh {spec.environment} creates one"
    )
    if missing_packages:
        raise ToolProblem(
            f"{python} does not have {' and '.join(missing_packages)}", next_step=next_step
        )
    transformers = str(versions["transformers"])
    if int(transformers.split(".")[0]) != spec.transformers:
        raise ToolProblem(
            f"{python} has transformers {transformers}, "
            f"{settings.engine} needs {spec.transformers}",
            next_step=next_step,
        )
    known_versions = {name: str(version) for name, version in versions.items()}
    return BackendEnv(settings.engine, python, known_versions)


def run_backend(
    env: BackendEnv,
    source: Checkpoint,
    tokens: Sequence[Sequence[int]],
    work: Path,
    settings: QuantizeSettings,
) -> tuple[Path, dict[str, Any]]:
    """Runs a backend.

    Args:
        env: environment of the backend.
        source: the 16-bit model.
        tokens: token ids of each calibration sequence.
        work: empty folder for all files of the backend.
        settings: settings of the stage.
    Returns:
        the folder of the quantized model, and the facts reported by the driver.
    Raises:
        ToolProblem: the backend failed.
    """
    driver = BACKENDS[env.name].driver
    package = work / "camelpress" / "quantize" / "backends"  # all of camelpress the driver sees
    package.mkdir(parents=True)
    for folder in (package, package.parent, package.parent.parent):
        (folder / "__init__.py").touch()
    (package / DRIVER_FOLDER.name).symlink_to(DRIVER_FOLDER.resolve())
    out, facts_path, ids_path = work / "out", work / "facts.json", work / "tokens.json"
    ids_path.write_text(json.dumps(tokens), encoding="utf-8")
    options: dict[str, Any] = {
        "bits": settings.bits,
        "group-size": settings.group_size,
        "device": settings.device,
        "facts-path": facts_path,
    }
    if settings.dtype != "auto":
        options["dtype"] = settings.dtype
    if "damp_percent" in settings.model_fields_set:
        options["damp-percent"] = settings.damp_percent
    command = [env.python, "-m", f"camelpress.quantize.backends.drivers.{driver}"]
    command += [str(_link_portable_source(source, work / "model")), str(ids_path), str(out)]
    command += [f"--{name}={value}" for name, value in options.items()]
    note(f"{', '.join(env.quantizers)}: quantizing with {env.python}")
    start = time.monotonic()
    _run_driver(env, command + ([] if settings.sym else ["--asym"]), work)
    facts: dict[str, Any] = json.loads(facts_path.read_text(encoding="utf-8"))
    return out, facts | {"seconds": round(time.monotonic() - start, 3)}


def _run_driver(env: BackendEnv, command: list[str], work: Path) -> None:
    """Runs a driver; after a failure, copies its log out of `work`."""
    log = work / "log"
    with log.open("wb") as file:
        process = subprocess.run(
            command,
            cwd=work,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if process.returncode:
        text = log.read_text(encoding="utf-8", errors="replace")
        line = next((line.strip() for line in text.split("\n")[::-1] if line.strip()), "")
        code = process.returncode
        outcome = f"ended with {code}" if code > 0 else f"was stopped by signal {-code}"
        descriptor, log_copy = tempfile.mkstemp(prefix=f"camelpress-{env.name}-", suffix=".log")
        os.close(descriptor)
        raise ToolProblem(
            f"{', '.join(env.quantizers)} {outcome}: "
            f"{escape_controls(line)[:MAX_LOG_CHARACTERS] or 'without output'}",
            next_step=f"read {shutil.copyfile(log, log_copy)}, or use --engine {NATIVE}",
        )


def _versions(python: str, packages: Sequence[str]) -> dict[str, str | None]:
    try:
        process = subprocess.run(
            [python, "-c", VERSION_PROBE, *packages],
            env=_environment(),
            capture_output=True,
            text=True,
            check=True,
        )
        versions: dict[str, str | None] = json.loads(process.stdout)
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        raise ToolProblem(
            f"{python} does not run as a Python interpreter ({_probe_failure(error)})",
            next_step="give --engine-python, such as ENVIRONMENT/bin/python",
        ) from error
    return versions


def _probe_failure(error: Exception) -> str:
    if isinstance(error, OSError):
        return str(error.strerror)
    if isinstance(error, subprocess.CalledProcessError):
        return f"exit code {error.returncode}"
    return "its output is not JSON"


def _environment() -> dict[str, str]:
    """Returns an environment without this process's Python variables, and offline."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    options = {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return variables | options


def _link_portable_source(source: Checkpoint, folder: Path) -> Path:
    """Links the source's files beside a config for transformers 4 and 5."""
    folder.mkdir()
    files = {path.name: path for path in source.weight_files()} | source.sidecar_files()
    suffixes = {path.suffix for path in source.weight_files()}
    for index in INDEX_NAMES:
        if (source.folder / index).is_file() and Path(index.split(".index")[0]).suffix in suffixes:
            files[index] = source.folder / index
    for name, path in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to(path.absolute())
    dtype = source.tensor_info(f"{llama.EMBEDDING_NAME}.weight").dtype
    write_json(folder / "config.json", portable_config(source.config, dtype))
    return folder

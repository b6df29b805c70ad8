"""Other tools that quantize: which there are, whether one is there, and how it is run.

An engine runs as a process of its own, with an interpreter that has it: these packages pin other
versions of torch and transformers than ours. It is given the model and the ids to calibrate on, and
leaves a folder in the GPTQ layout, which `adopt` makes an output of this stage from.
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
MAX_LOG_CHARACTERS = 300  # letters of a log that a message quotes
VERSION_PROBE = """
import json, platform, sys
from importlib.metadata import PackageNotFoundError, version
found = {"python": platform.python_version()}
for name in sys.argv[1:]:
    try:
        found[name] = version(name)
    except PackageNotFoundError:
        found[name] = None
print(json.dumps(found))
"""


class BackendSpec(NamedTuple):
    """What it takes to run one."""

    driver: str  # its file in drivers/
    environment: str  # as tests/clients/make_env.sh calls it
    packages: tuple[str, ...]
    transformers: int  # the major version that they work with
    install: str


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
    """An engine that is there.

    Args:
        name: as in the settings.
        python: the interpreter that has it.
        versions: of that, of its packages, and of torch and transformers there.
    """

    name: str
    python: str
    versions: dict[str, str]

    @property
    def quantizers(self) -> list[str]:
        """Who quantizes, as `meta.quantizer` of a config names them."""
        return [f"{name}:{self.versions[name]}" for name in BACKENDS[self.name].packages]


def find_backend(settings: QuantizeSettings) -> BackendEnv:
    """The engine of some settings, seen to be there.

    Raises:
        EngineProblem: there is no such interpreter, or it lacks a package.
    """
    engine = BACKENDS[settings.engine]
    python = str((settings.engine_python or Path(sys.executable)).absolute())
    versions = _versions(python, (*engine.packages, "torch", "transformers"))
    lacking = [name for name, version in versions.items() if version is None]
    elsewhere = (
        f"install {engine.install} in an environment of its own and give --engine-python; "
        f"tests/clients/make_env.sh {engine.environment} makes one"
    )
    if lacking:
        raise ToolProblem(f"{python} does not have {' and '.join(lacking)}", next_step=elsewhere)
    found = str(versions["transformers"])
    if int(found.split(".")[0]) != engine.transformers:
        raise ToolProblem(
            f"{python} has transformers {found}, {settings.engine} needs {engine.transformers}",
            next_step=elsewhere,
        )
    return BackendEnv(settings.engine, python, {name: str(each) for name, each in versions.items()})


def run_backend(
    ready: BackendEnv,
    source: Checkpoint,
    tokens: Sequence[Sequence[int]],
    work: Path,
    settings: QuantizeSettings,
) -> tuple[Path, dict[str, Any]]:
    """Run an engine: the folder that it wrote, and what it tells of itself.

    Args:
        ready: the engine.
        source: the 16-bit model.
        tokens: ids of each calibration sequence.
        work: an empty folder for everything that it writes.
        settings: of the stage.
    Raises:
        EngineProblem: it failed.
    """
    driver = BACKENDS[ready.name].driver
    package = (
        work / "camelpress" / "quantize" / "backends"
    )  # the driver sees this, and nothing else of ours
    package.mkdir(parents=True)
    for folder in (package, package.parent, package.parent.parent):
        (folder / "__init__.py").touch()
    (package / DRIVER_FOLDER.name).symlink_to(DRIVER_FOLDER.resolve())
    out, told, ids = work / "out", work / "told.json", work / "tokens.json"
    ids.write_text(json.dumps(tokens), encoding="utf-8")
    options: dict[str, Any] = {
        "bits": settings.bits,
        "group-size": settings.group_size,
        "device": settings.device,
        "told": told,
    }
    if settings.dtype != "auto":
        options["dtype"] = settings.dtype
    if "damp_percent" in settings.model_fields_set:
        options["damp-percent"] = settings.damp_percent
    command = [ready.python, "-m", f"camelpress.quantize.backends.drivers.{driver}"]
    command += [str(_link_portable_source(source, work / "model")), str(ids), str(out)]
    command += [f"--{name}={value}" for name, value in options.items()]
    note(f"{', '.join(ready.quantizers)}: quantizing with {ready.python}")
    start = time.monotonic()
    _run_driver(ready, command + ([] if settings.sym else ["--asym"]), work)
    facts: dict[str, Any] = json.loads(told.read_text(encoding="utf-8"))
    return out, facts | {"seconds": round(time.monotonic() - start, 3)}


def _run_driver(ready: BackendEnv, command: list[str], work: Path) -> None:
    """Run a driver; what it says outlives `work` where it fails."""
    log = work / "log"
    with log.open("wb") as file:
        ended = subprocess.run(
            command,
            cwd=work,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if ended.returncode:
        said = log.read_text(encoding="utf-8", errors="replace")
        last = next((line.strip() for line in said.split("\n")[::-1] if line.strip()), "")
        code = ended.returncode
        how = f"ended with {code}" if code > 0 else f"was ended by signal {-code}"
        number, kept = tempfile.mkstemp(prefix=f"camelpress-{ready.name}-", suffix=".log")
        os.close(number)
        raise ToolProblem(
            f"{', '.join(ready.quantizers)} {how}: "
            f"{escape_controls(last)[:MAX_LOG_CHARACTERS] or 'without a word'}",
            next_step=f"read {shutil.copyfile(log, kept)}, or use --engine {NATIVE}",
        )


def _versions(python: str, packages: Sequence[str]) -> dict[str, str | None]:
    try:
        ended = subprocess.run(
            [python, "-c", VERSION_PROBE, *packages],
            env=_environment(),
            capture_output=True,
            text=True,
            check=True,
        )
        found: dict[str, str | None] = json.loads(ended.stdout)
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        raise ToolProblem(
            f"{python} does not run as a Python interpreter ({_probe_failure(error)})",
            next_step="give --engine-python, such as ENVIRONMENT/bin/python",
        ) from error
    return found


def _probe_failure(error: Exception) -> str:
    if isinstance(error, OSError):
        return str(error.strerror)
    if isinstance(error, subprocess.CalledProcessError):
        return f"exit code {error.returncode}"
    return "it printed something else than was asked for"


def _environment() -> dict[str, str]:
    """Nothing of this process's Python reaches the other, and neither asks the hub."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    own = {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return kept | own


def _link_portable_source(source: Checkpoint, folder: Path) -> Path:
    """The source with a config that transformers of any age reads right, by links."""
    folder.mkdir()
    files = {path.name: path for path in source.weight_files()} | source.sidecar_files()
    of = {path.suffix for path in source.weight_files()}
    for index in INDEX_NAMES:
        if (source.folder / index).is_file() and Path(index.split(".index")[0]).suffix in of:
            files[index] = source.folder / index
    for name, path in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to(path.absolute())
    dtype = source.tensor_info(f"{llama.EMBEDDING_NAME}.weight").dtype
    write_json(folder / "config.json", portable_config(source.config, dtype))
    return folder

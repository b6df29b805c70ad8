"""transformers 4 in a folder of its own, with two ways it once converted Meta's LLaMA files.

    python tests/models/old_transformers.py .models/transformers-4

Version 5 has neither the slow tokenizers nor a conversion. Whoever puts the folder on PYTHONPATH
gets both, with the torch of this environment. The conversion left the wheels after 4.47; until 4.32
it kept float16, and from 4.33 on it rounds to bfloat16. 40 MB are downloaded, 70 MB kept.
A folder that is already there is left alone. Exit codes: 0 done, 1 with one line on stderr.
"""

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

PACKAGES = ("transformers==4.57.6", "huggingface_hub==0.36.2", "tokenizers==0.22.2")
CONVERSION = "transformers/models/llama/convert_llama_weights_to_hf.py"
SHA256 = {  # of that file in the wheel of a version; it is put beside the packages
    "4.32.1": "47ebb125c67007a7f7eb786fcc8a2f2a5a216edbd97a0158532a21365c8c001d",
    "4.47.1": "d11a220cda7c675c47f44f5e403f326000d26cfc5285d75312067c84da86b5fd",
}


def pip(*arguments: str) -> None:
    """Run pip on wheels alone, without what they ask for, or stop with its last line."""
    command = [sys.executable, "-m", "pip", *arguments]
    command += ["--disable-pip-version-check", "--quiet", "--no-deps", "--only-binary", ":all:"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise SystemExit(f"pip {arguments[0]} failed (exit code {done.returncode}): {reason}")


def verify(content: bytes, version: str) -> bytes:
    """Return the conversion of `version` if its sha256 is the pinned one, else stop with both."""
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256[version]:
        raise SystemExit(
            f"{CONVERSION} of {version}: sha256 expected {SHA256[version]}, found {found}"
        )
    return content


def conversion(version: str) -> bytes:
    """Fetch the wheel of one version and return its conversion."""
    with tempfile.TemporaryDirectory() as temporary:
        pip("download", f"transformers=={version}", "--dest", temporary)
        [wheel] = Path(temporary).iterdir()
        with zipfile.ZipFile(wheel) as archive:
            return verify(archive.read(CONVERSION), version)


def module(version: str) -> str:
    """Name the module that holds the conversion of one version."""
    return f"llama_conversion_{version.replace('.', '_')}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the folder beside its place and rename it when it is whole."""
    parser = argparse.ArgumentParser(description="Make the folder of transformers 4.")
    parser.add_argument("out", type=Path, help="folder to make; left alone if it is there")
    out: Path = parser.parse_args(arguments).out
    if out.exists():
        return
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    pip("install", *PACKAGES, "--target", str(partial), "--no-compile")
    for version in SHA256:
        (partial / f"{module(version)}.py").write_bytes(conversion(version))
    partial.rename(out)


if __name__ == "__main__":
    main()

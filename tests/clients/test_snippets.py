"""The programs on a card are run as they stand there, in the environment of the clients."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

import stages
from camelpress.publish.card.snippets import LOCAL_FOLDER, SNIPPETS
from camelpress.publish.run import run as publish
from camelpress.publish.settings import PublishSettings
from checkpoints import ENVIRONMENTS, is_made

pytestmark = pytest.mark.client


@pytest.mark.parametrize("client", [each.client for each in SNIPPETS])
def test_a_program_of_the_card_runs_as_it_stands(
    tuned: Path, chat: Path, prose: Path, tmp_path: Path, client: str
) -> None:
    if not is_made("gptqmodel"):
        pytest.skip("run tests/clients/make_env.sh gptqmodel")
    stages.quantize(tuned, tmp_path / "quantized", chat)
    stages.validate(tuned, tmp_path / "quantized", tmp_path / "report", prose)
    settings = PublishSettings.parse(
        {"license": "mit", "allow_failed_gate": "a test"}, source="test"
    )
    release = tmp_path / "release"
    publish(tmp_path / "quantized", tmp_path / "report", release, settings)
    card = (release / "README.md").read_text(encoding="utf-8")
    found = re.search(rf"With {client}:\n.*?```python\n(.*?)```", card, re.DOTALL)
    assert found is not None
    assert LOCAL_FOLDER in found[1]
    program = found[1].replace("path/to/this/folder", str(release))
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "COV"))}
    ended = subprocess.run(
        [str(ENVIRONMENTS / "gptqmodel" / "bin" / "python"), "-c", program],
        env=clean | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip()

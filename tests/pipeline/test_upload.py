"""A recipe to the end: what is uploaded, and where a run goes on that a hub broke off."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import hub_client
from camelpress.core.errors import OutputExists, OutputProblem
from camelpress.pipeline import run as pipeline
from camelpress.pipeline.recipe import read_recipe
from camelpress.reporting.report_classes import read_report
from hub_repositories import Fault, Hub
from recipes import TEXT, write_recipe

pytestmark = pytest.mark.filterwarnings(hub_client.OLD_WAY)
BEFORE = ("recover", "quantize", "validate", "publish")
RECIPE = TEXT.replace("license: mit", "license: mit, to: 'hf:pico/whale'")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_client.talking(monkeypatch, "hf_" + "0" * 30) as hub:
        yield hub


def test_a_run_that_the_hub_broke_off_goes_on_with_the_upload(hub: Hub, tmp_path: Path) -> None:
    recipe = read_recipe(write_recipe(tmp_path, RECIPE))
    (tmp_path / "diff" / "README.md").write_text("---\nlicense: mit\n---\n")

    hub.faults = [Fault("commit", 500)]
    with pytest.raises(OutputProblem, match="HTTP 500"):
        pipeline.run(recipe)
    assert not (recipe.out / "uploaded").exists()

    outcome = pipeline.run(recipe)
    assert (outcome.skipped, outcome.exit_code) == (BEFORE, 0)
    found = hub.repositories["pico/whale"]
    release = recipe.out / "release"
    paths = [path for path in release.rglob("*") if path.is_file()]
    whole = {path.relative_to(release).as_posix(): path.read_bytes() for path in paths}
    assert found.tree("gptq-4bit-32g") == found.tree("main") == whole
    told = read_report(recipe.out / "uploaded" / "upload-report.json").facts.record
    assert told["commit"] == found.branches["gptq-4bit-32g"]
    assert "diff" in read_report(release / "provenance.json").facts.record["cards"]

    hub.asked.clear()
    assert pipeline.run(recipe).skipped == (*BEFORE, "upload")
    assert hub.asked == []

    renamed = read_recipe(tmp_path / "recipe.yaml", ["publish.name=another"])
    with pytest.raises(OutputExists, match="holds another release"):
        pipeline.run(renamed)
    assert found.tree("gptq-4bit-32g") == whole

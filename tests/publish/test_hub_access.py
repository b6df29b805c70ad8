"""What the cards of the inputs ask of readers and say of the licence goes with the release."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from camelpress.core.errors import CheckpointProblem, RecipeProblem
from camelpress.core.files.file_hashes import sha256_file
from camelpress.publish.card.card_markdown import read_front_matter
from camelpress.publish.verify_release import verify_release
from camelpress.reporting.stage_report import Report
from camelpress.reporting.verdict import Verdict

Publisher = Callable[..., tuple[Path, Report]]
TULU: dict[str, Any] = {
    "license": "other",
    "extra_gated_prompt": "Access is granted to researchers.\n\nYou agree to appendix A.\n",
    "extra_gated_fields": {
        "First Name": "text",
        "Country": "country",
        "Intended use": {
            "type": "select",
            "options": ["Research", {"label": "Other", "value": "o"}],
        },
        "I AGREE to the terms": "checkbox",
    },
    "extra_gated_heading": "Acknowledge the licence",
    "extra_gated_eu_disallowed": False,
}
LLAMA: dict[str, Any] = {
    "license": "other",
    "extra_gated_prompt": "You have access from Meta.",
    "extra_gated_fields": {"Country": "country", "Date of birth": "date_picker"},
    "extra_gated_heading": "Another heading",
}


def write_card(folder: Path, metadata: object) -> Path:
    folder.mkdir(exist_ok=True)
    text = f"---\n{yaml.safe_dump(metadata, sort_keys=False)}---\n# A model\n"
    (folder / "README.md").write_text(text, encoding="utf-8")
    return folder


def published(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = read_front_matter((out / "README.md").read_text(encoding="utf-8"))
    return found


def test_prompt_and_fields_are_those_of_the_inputs(publish: Publisher, tmp_path: Path) -> None:
    diff, base = write_card(tmp_path / "tulu", TULU), write_card(tmp_path / "llama", LLAMA)
    out, report = publish(gated_like=[str(diff), str(base / "README.md")])
    metadata = published(out)
    assert metadata["extra_gated_prompt"] == (
        f"{TULU['extra_gated_prompt'].strip()}\n\nYou have access from Meta."
    )
    assert metadata["extra_gated_fields"] == TULU["extra_gated_fields"] | {
        "Date of birth": "date_picker"
    }
    assert list(metadata["extra_gated_fields"])[:4] == list(TULU["extra_gated_fields"])
    assert metadata["extra_gated_heading"] == "Acknowledge the licence"
    assert metadata["extra_gated_eu_disallowed"] is False
    assert report.facts.record["cards"] == {
        "tulu": sha256_file(diff / "README.md"),
        "llama": sha256_file(base / "README.md"),
    }
    assert str(tmp_path) not in (out / "provenance.json").read_text()
    assert verify_release(out).verdict is Verdict.PASS


def test_without_a_gate_the_licence_words_the_prompt(publish: Publisher, tmp_path: Path) -> None:
    out, _ = publish(gated_like=[str(write_card(tmp_path / "open", {"license": "mit"}))])
    assert "research only" in published(out)["extra_gated_prompt"]
    assert "extra_gated_fields" not in published(out)


@pytest.mark.parametrize(
    ("said", "license"),
    [("llama2", "tulu"), ("cc-by-nc-4.0", "mit"), (["mit", "gpl-3.0"], "llama"), ("other", "mit")],
)
def test_a_licence_that_the_profile_is_not_for_stops_it(
    publish: Publisher, tmp_path: Path, said: object, license: str
) -> None:
    card = write_card(tmp_path / "model", {"license": said})
    with pytest.raises(RecipeProblem, match="the card of model names the licence"):
        publish(license=license, gated_like=[str(card)])
    assert not (tmp_path / "release").exists()


@pytest.mark.parametrize(
    "gate",
    [
        {"extra_gated_fields": ["Country"]},
        {"extra_gated_fields": {"Country": "cuneiform"}},
        {"extra_gated_fields": {"Country": {"options": ["a"]}}},
        {"extra_gated_prompt": ["You agree"]},
        {"extra_gated_prompt": " "},
        {"extra_gated_button_content": 7},
    ],
)
def test_a_gate_that_the_hub_would_not_read_is_refused(
    publish: Publisher, tmp_path: Path, gate: dict[str, Any]
) -> None:
    card = write_card(tmp_path / "model", {"license": "other"} | gate)
    with pytest.raises(CheckpointProblem, match="the card of model has extra_gated_.* in a form"):
        publish(gated_like=[str(card)])


def test_two_gates_that_contradict_each_other_are_refused(
    publish: Publisher, tmp_path: Path
) -> None:
    one = write_card(tmp_path / "one", {"extra_gated_fields": {"Country": "country"}})
    two = write_card(tmp_path / "two", {"extra_gated_fields": {"Country": "text"}})
    with pytest.raises(CheckpointProblem, match="two asks for 'Country' in a second form"):
        publish(gated_like=[str(one), str(two)])


@pytest.mark.parametrize("text", ["---\n!!python/object:os.system x\n---\n", "---\n[\n---\n"])
def test_a_card_that_cannot_be_read_is_told(publish: Publisher, tmp_path: Path, text: str) -> None:
    (tmp_path / "card.md").write_text(text)
    with pytest.raises(CheckpointProblem, match="has an unreadable front matter"):
        publish(gated_like=[str(tmp_path / "card.md")])


@pytest.mark.parametrize("place", ["nothing here", "candidate"])
def test_a_model_without_a_card_is_told(publish: Publisher, tmp_path: Path, place: str) -> None:
    with pytest.raises(CheckpointProblem, match=r"has no card; give a folder with a README\.md"):
        publish(gated_like=[str(tmp_path / place)])


def test_words_of_a_card_cannot_end_the_front_matter(publish: Publisher, tmp_path: Path) -> None:
    hostile = "agree\n---\nlicense: mit\n---\n# Owned <script>"
    card = write_card(tmp_path / "model", {"extra_gated_prompt": hostile})
    out, _ = publish(gated_like=[str(card)])
    metadata = published(out)
    assert metadata["license"] == "other"
    assert metadata["extra_gated_prompt"] == hostile

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from camelpress.core.errors import (
    CheckpointProblem,
    OutputExists,
    OutputProblem,
    Problem,
    RecipeProblem,
    ReleaseRefusal,
)
from camelpress.core.files.file_hashes import CHECKSUM_FILE, sha256_file, sha256_json
from camelpress.publish.license.license_profiles import LICENSE_PROFILES
from camelpress.publish.run import REPORT
from camelpress.publish.settings import PublishSettings
from camelpress.publish.verify_release import verify_release
from camelpress.reporting.facts.release_facts import PublishFacts
from camelpress.reporting.report_classes import read_report
from camelpress.reporting.stage_report import Report
from camelpress.reporting.verdict import Verdict

Publisher = Callable[..., tuple[Path, Report]]
Judge = Callable[..., Path]
RELEASED = {
    "LICENSE.txt",
    "NOTICE",
    "README.md",
    "SHA256SUMS",
    "bom.cdx.json",
    "config.json",
    "llama_license.txt",
    "model.safetensors",
    "provenance.json",
    "quantize-report.json",
    "quantize_config.json",
    "recover-report.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "validation/plots.png",
    "validation/report.html",
    "validation/report.json",
    "validation/report.md",
}


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def require_nothing_left(folder: Path) -> None:
    assert not list(folder.glob("release*"))


def test_a_release_holds_what_it_should_and_checks_out(publish: Publisher) -> None:
    out, report = publish()
    assert contents(out).keys() == RELEASED == {*report.outputs, CHECKSUM_FILE, REPORT}
    assert report.facts.record["left_out"] == ["logs", "notes to self.txt", "training_args.bin"]
    assert report.facts.record["restricted"] is True
    assert report.inputs["base"] == "b" * 64
    assert report.cost["seconds"] >= 0
    subprocess.run(["sha256sum", "--strict", "-c", CHECKSUM_FILE], cwd=out, check=True)
    assert verify_release(out).verdict is Verdict.PASS


def test_the_model_is_copied_byte_for_byte(publish: Publisher, candidate: Path) -> None:
    out, _ = publish()
    for name in ("model.safetensors", "config.json", "tokenizer_config.json", "LICENSE.txt"):
        assert (out / name).read_bytes() == (candidate / name).read_bytes()
    assert not (out / "model.safetensors").is_symlink()


def test_the_same_inputs_give_the_same_bytes(publish: Publisher) -> None:
    first, _ = publish("release-1")
    second, _ = publish("release-2")
    assert contents(first) == contents(second)


def test_nothing_tells_of_the_machine(publish: Publisher, tmp_path: Path) -> None:
    out, _ = publish()
    for name, content in contents(out).items():
        for trace in (str(tmp_path), "someone", "12345.678", "98765.432", "notes to"):
            assert trace.encode() not in content, f"{trace} in {name}"
    assert "Report on reference" in (out / "validation" / "report.html").read_text()
    shipped = read_report(out / "validation" / "report.json")
    assert shipped.cost == {}
    assert shipped.settings["texts"] == ["reference"]
    assert shipped.checks[0].reason == "measured in reference"


def test_provenance_is_the_report_without_what_is_nobodys_business(publish: Publisher) -> None:
    out, report = publish(base_model="huggyllama/llama-65b")
    provenance = read_report(out / REPORT)
    facts = {key: each for key, each in report.facts.record.items() if key != "left_out"}
    assert provenance == report.model_copy(update={"facts": PublishFacts.build(facts), "cost": {}})
    assert provenance.settings["base_model"] == "huggyllama/llama-65b"


def test_provenance_names_inputs_files_and_versions(publish: Publisher, judge: Judge) -> None:
    out, _ = publish()
    provenance = read_report(out / REPORT)
    judged = read_report(judge() / "report.json")
    assert provenance.inputs == judged.inputs | {
        "base": "b" * 64,
        "diff": "d" * 64,
        "source": "r" * 64,
        "calibration:conversations.json": "c" * 64,
    }
    for name, digest in provenance.outputs.items():
        assert sha256_file(out / name) == digest
    assert provenance.facts.record["licenses"] == ["LICENSE.txt", "llama_license.txt"]
    assert sha256_json(provenance.facts.record["model"]) == judged.inputs["candidate"]
    assert provenance.facts.record["made"] == {
        "recover": {"seconds": 12345.7},
        "quantize": {"seconds": 12345.7, "device": "cpu", "threads": 2},
        "validate": {"seconds": 98765.4},
    }
    assert provenance.facts.record["hardware"]["cores"] == os.cpu_count()
    assert list(provenance.facts.record["versions"]) == [
        "python", "camelpress", "numba", "numpy", "safetensors", "tokenizers", "torch",
        "transformers",
    ]  # fmt: skip


@pytest.mark.parametrize("verdict", [Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.ERROR, None])
def test_without_a_pass_there_is_no_release(
    publish: Publisher, judge: Judge, tmp_path: Path, verdict: Verdict | None
) -> None:
    judge(verdict)
    with pytest.raises(ReleaseRefusal, match=verdict or "nothing was judged") as refused:
        publish()
    assert refused.value.exit_code == 1
    assert "--allow-failed-gate" in refused.value.next_step
    require_nothing_left(tmp_path)


def test_a_failed_gate_can_be_overruled_with_a_reason(publish: Publisher, judge: Judge) -> None:
    judge(Verdict.FAIL)
    out, report = publish(allow_failed_gate="a baseline, to compare with")
    assert report.facts.record["verdict"] == "FAIL"
    assert "did not pass its gate: FAIL" in (out / "README.md").read_text()
    assert "a baseline, to compare with" in (out / "README.md").read_text()
    assert "a baseline" in (out / "provenance.json").read_text()
    assert verify_release(out).verdict is Verdict.PASS


@pytest.mark.parametrize("reason", [None, "never mind"])
def test_a_candidate_that_changed_is_refused_whatever_the_reason(
    publish: Publisher, candidate: Path, tmp_path: Path, reason: str | None
) -> None:
    (candidate / "tokenizer.json").write_text('{"version": "1.1"}')
    with pytest.raises(ReleaseRefusal, match="it changed after validation") as refused:
        publish(allow_failed_gate=reason)
    assert refused.value.next_step == "validate it again"
    require_nothing_left(tmp_path)


def test_a_blank_reason_is_none(publish: Publisher) -> None:
    with pytest.raises(RecipeProblem, match="allow_failed_gate"):
        publish(allow_failed_gate=" ")


@pytest.mark.parametrize("name", ["unknown", "gpl"])
def test_an_unknown_licence_is_refused_with_the_known_ones(publish: Publisher, name: str) -> None:
    with pytest.raises(RecipeProblem, match=f"{name!r} is not a licence profile") as refused:
        publish(license=name)
    assert all(known in refused.value.next_step for known in LICENSE_PROFILES)


def test_there_is_no_licence_by_default_and_the_description_names_all() -> None:
    field = PublishSettings.model_fields["license"]
    assert field.default not in LICENSE_PROFILES
    assert all(known in str(field.description) for known in LICENSE_PROFILES)


@pytest.mark.parametrize("name", ["LICENSE.txt", "llama_license.txt"])
def test_a_missing_licence_file_is_asked_for(
    publish: Publisher, candidate: Path, tmp_path: Path, name: str
) -> None:
    (candidate / name).unlink()
    with pytest.raises(
        CheckpointProblem, match=f"has no {name[:7]}.*which the release must include"
    ) as refused:
        publish()
    assert "put that licence file there" in refused.value.next_step
    assert "allenai/tulu-65b" in refused.value.next_step
    require_nothing_left(tmp_path)


def test_an_empty_licence_file_is_no_licence(publish: Publisher, candidate: Path) -> None:
    (candidate / "LICENSE.txt").write_text("")
    with pytest.raises(CheckpointProblem, match=r"LICENSE\.txt is empty; put the text"):
        publish()


def test_a_licence_beside_the_16_bit_model_will_do(
    publish: Publisher, candidate: Path, reference: Path
) -> None:
    (candidate / "LICENSE.txt").rename(reference / "LICENSE.txt")
    out, _ = publish()
    assert (out / "LICENSE.txt").read_text() == "AI MODEL LICENSE AGREEMENT\n"


@pytest.mark.parametrize(
    ("name", "text"), [("apache-2.0", "Apache-2.0.txt"), ("mit", "MIT.txt"), ("llama2", None)]
)
def test_free_licences_come_with_the_package(
    publish: Publisher, candidate: Path, name: str, text: str | None
) -> None:
    (candidate / "LICENSE.txt").unlink()
    if text is None:
        with pytest.raises(CheckpointProblem, match=r"has no LICENSE\*"):
            publish(license=name)
    else:
        out, report = publish(license=name)
        shipped = files("camelpress.publish.license").joinpath("texts", text)
        assert (out / "LICENSE").read_bytes() == shipped.read_bytes()
        assert report.facts.record["licenses"] == ["LICENSE"]


@pytest.mark.parametrize("name", LICENSE_PROFILES)
def test_the_notice_is_always_written(publish: Publisher, candidate: Path, name: str) -> None:
    (candidate / "NOTICE").write_text("What the original says.\n")
    out, _ = publish(license=name, name="Camel  {0}")
    notice = (out / "NOTICE").read_text(encoding="utf-8")
    assert "Camel {0}" in notice
    assert notice.endswith("\n\nWhat the original says.\n")


def test_tulu_has_the_attribution_that_its_licence_words(publish: Publisher) -> None:
    out, _ = publish()
    assert (out / "NOTICE").read_text(encoding="utf-8") == (
        "Tulu 65B GPTQ is licensed under the AI Model License, Copyright © The Allen Institute "
        "for Artificial Intelligence. All Rights Reserved.\n"
    )


WEB = ".".join(["eyJ" + "aBcDeFgH" * 2, "eyJ" + "aBcDeFgH" * 2, "aB_-" * 4])
SECRET = {
    "a Hugging Face token": "hf_" + "aBcDeFgH" * 4 + "iJ",
    "a GitHub token": "ghp_" + "aBcDeFgH" * 4 + "iJkL",
    "a web token": WEB,
    "an AWS key": "AKIA" + "ABCDEFGH" * 2,
    "a login in a URL": "https://someone:hunter2@example.org/model",
    "a private key": "-----BEGIN OPENSSH PRIVATE KEY-----",
}


@pytest.mark.parametrize("kind", SECRET)
def test_a_secret_stops_the_release_and_is_not_repeated(
    publish: Publisher, candidate: Path, judge: Judge, tmp_path: Path, kind: str
) -> None:
    content = {"version": "1.0", "from": SECRET[kind]}
    (candidate / "tokenizer.json").write_text(json.dumps(content, indent=2))
    judge()
    with pytest.raises(OutputProblem, match=rf"tokenizer\.json would publish {kind}") as refused:
        publish()
    assert "(line 3)" in refused.value.message
    assert "revoke it" in refused.value.next_step
    assert SECRET[kind] not in str(refused.value)
    require_nothing_left(tmp_path)


def test_additional_chat_templates_are_published_and_judged(
    publish: Publisher, candidate: Path, judge: Judge
) -> None:
    folder = candidate / "additional_chat_templates"
    folder.mkdir()
    (folder / "rag.jinja").write_text("{{ documents }}")
    (folder / "notes.txt").write_text("private")
    with pytest.raises(ReleaseRefusal, match="is not the model that"):
        publish()
    judge()
    out, report = publish()
    added = contents(out).keys() - RELEASED
    assert added == {"additional_chat_templates/rag.jinja"} <= report.outputs.keys()
    assert "additional_chat_templates" not in report.facts.record["left_out"]
    assert verify_release(out).verdict is Verdict.PASS
    (out / "additional_chat_templates/rag.jinja").write_text("another")
    assert verify_release(out).verdict is Verdict.FAIL


def test_a_chat_template_that_leads_elsewhere_is_refused(
    publish: Publisher, candidate: Path, judge: Judge, tmp_path: Path
) -> None:
    (tmp_path / "secret.jinja").write_text("private")
    folder = candidate / "additional_chat_templates"
    folder.mkdir()
    (folder / "rag.jinja").symlink_to(tmp_path / "secret.jinja")
    judge()
    with pytest.raises(CheckpointProblem, match="is a link to"):
        publish()


@pytest.mark.parametrize("kind", ["hf_", "hf_jwt_", "hf_oauth_", "api_org_"])
def test_tokens_of_every_kind_are_found(publish: Publisher, kind: str) -> None:
    with pytest.raises(OutputProblem, match="would publish a Hugging Face token"):
        publish(name=f"see {kind}{WEB.replace('.', 'x').replace('_-', 'y')}")


@pytest.mark.parametrize("where", ["name", "allow_failed_gate"])
def test_a_secret_in_a_setting_is_found_too(publish: Publisher, where: str) -> None:
    with pytest.raises(OutputProblem, match="would publish a Hugging Face token"):
        publish(**{where: f"see {SECRET['a Hugging Face token']}"})


def test_a_secret_in_the_header_of_the_weights_is_found(
    publish: Publisher, candidate: Path, judge: Judge
) -> None:
    metadata = {"pushed with": SECRET["a Hugging Face token"]}
    save_file({"x": torch.zeros(1)}, candidate / "model.safetensors", metadata)
    judge()
    with pytest.raises(OutputProblem, match=r"model\.safetensors would publish"):
        publish()


@pytest.mark.parametrize(
    "harmless", ["hf_transfer", "https://example.org/a@b", "mail me@example.org", "ssh://git@host"]
)
def test_ordinary_text_is_no_secret(
    publish: Publisher, candidate: Path, judge: Judge, harmless: str
) -> None:
    (candidate / "tokenizer.json").write_text(json.dumps({"text": harmless}))
    judge()
    publish()


def test_a_model_that_is_not_quantized_is_refused(
    publish: Publisher, candidate: Path, judge: Judge
) -> None:
    save_file({"x": torch.zeros(1)}, candidate / "model.safetensors")
    (candidate / "config.json").write_text('{"model_type": "llama"}')
    judge()
    with pytest.raises(CheckpointProblem, match="is not quantized; give the folder that quantize"):
        publish()


@pytest.mark.parametrize(
    ("key", "value", "change"),
    [
        ("bits", "4", 'bits is "4", and is read as 4'),
        ("sym", "true", 'sym is "true", and is read as true'),
        ("quant_method", None, "quantization_config names no quant_method"),
    ],
)
def test_a_config_that_loaders_would_read_otherwise_is_not_published(
    publish: Publisher, candidate: Path, judge: Judge, key: str, value: Any, change: str
) -> None:
    config = json.loads((candidate / "config.json").read_text())
    config["quantization_config"][key] = value
    (candidate / "config.json").write_text(json.dumps(config))
    judge()
    with pytest.raises(CheckpointProblem) as problem:
        publish()
    assert f"{candidate / 'config.json'}: {change}" in problem.value.message
    assert "validate it again" in problem.value.next_step


def test_a_layout_that_the_card_has_no_words_for_is_refused(
    publish: Publisher, candidate: Path, judge: Judge
) -> None:
    config = json.loads((candidate / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "compressed-tensors"}
    (candidate / "config.json").write_text(json.dumps(config))
    judge()
    with pytest.raises(CheckpointProblem) as told:
        publish()
    assert told.value.message == (
        f"{candidate} is packed by compressed-tensors, and the card is written for GPTQ"
    )
    assert "export it --to gptq" in told.value.next_step


def test_a_report_of_another_quantization_is_refused(
    publish: Publisher, candidate: Path, tmp_path: Path
) -> None:
    path = candidate / "quantize-report.json"
    path.write_text(path.read_text().replace('"group_size": 32', '"group_size": 64'))
    with pytest.raises(CheckpointProblem, match="group_size 32 in config.json and 64 in quantize"):
        publish()
    require_nothing_left(tmp_path)


def test_a_report_of_other_weights_is_refused(
    publish: Publisher, candidate: Path, tmp_path: Path
) -> None:
    path = candidate / "quantize-report.json"
    report = read_report(path)
    report.model_copy(update={"outputs": {"model.safetensors": "0" * 64}}).write(path)
    with pytest.raises(CheckpointProblem) as error:
        publish()
    assert error.value.message == f"{path} lists other weights than those beside it"
    assert error.value.next_step.startswith("remove that report")
    require_nothing_left(tmp_path)
    path.unlink()
    out, release = publish()
    assert release.facts.record["caveats"][0].startswith("No report says which model")


def test_a_report_of_these_weights_is_published(publish: Publisher, candidate: Path) -> None:
    path, weights = candidate / "quantize-report.json", "model.safetensors"
    outputs = {weights: sha256_file(candidate / weights)}
    read_report(path).model_copy(update={"outputs": outputs}).write(path)
    out, report = publish()
    assert report.facts.record["caveats"] == []
    assert read_report(out / path.name).outputs == outputs == {weights: report.outputs[weights]}


@pytest.mark.parametrize("out", ["candidate", "report", ".", "candidate/release"])
def test_the_output_never_replaces_an_input(publish: Publisher, candidate: Path, out: str) -> None:
    before = contents(candidate)
    with pytest.raises(RecipeProblem, match="the output .* the input .*; name another output"):
        publish(out, force=True)
    assert contents(candidate) == before


def test_an_existing_release_is_replaced_only_by_force(publish: Publisher) -> None:
    out, _ = publish(name="first")
    before = contents(out)
    with pytest.raises(OutputExists, match="--force"):
        publish(name="second")
    assert contents(out) == before
    publish(name="second", force=True)
    assert "# second" in (out / "README.md").read_text()


def test_without_a_name_the_folder_gives_it(publish: Publisher) -> None:
    out, _ = publish(name=None)
    assert "\n# release\n" in (out / "README.md").read_text()


@pytest.mark.parametrize("name", ["tokenizer.json", "LICENSE.txt"])
def test_a_link_to_somebodys_file_is_not_published(
    publish: Publisher, candidate: Path, tmp_path: Path, name: str
) -> None:
    (candidate / name).rename(tmp_path / "private")
    (candidate / name).symlink_to(tmp_path / "private")
    with pytest.raises(CheckpointProblem, match=f"{name} is a link to .*private; replace"):
        publish()
    require_nothing_left(tmp_path)


def test_weights_may_lie_elsewhere(publish: Publisher, candidate: Path, tmp_path: Path) -> None:
    (candidate / "model.safetensors").rename(tmp_path / "weights")
    (candidate / "model.safetensors").symlink_to(tmp_path / "weights")
    assert not (publish()[0] / "model.safetensors").is_symlink()


def test_the_policy_of_use_goes_with_the_licence(
    publish: Publisher, candidate: Path, judge: Judge
) -> None:
    (candidate / "USE_POLICY.md").write_text("No llamas.\n")
    out, _ = publish(license="llama2")
    assert (out / "USE_POLICY.md").read_text() == "No llamas.\n"


def test_a_release_can_be_published_again(
    publish: Publisher, candidate: Path, judge: Judge
) -> None:
    out, _ = publish()
    for path in candidate.iterdir():
        if path.is_file():
            path.unlink()
    for path in out.iterdir():
        if path.is_file():
            path.rename(candidate / path.name)
    judge()
    again, report = publish("release-2")
    assert report.facts.record["left_out"] == [
        "README.md", "SHA256SUMS", "bom.cdx.json", "logs", "provenance.json"
    ]  # fmt: skip
    assert (again / "NOTICE").read_text(encoding="utf-8").count("Allen Institute") == 1
    assert verify_release(again).verdict is Verdict.PASS


def test_a_missing_report_names_the_stage(publish: Publisher, tmp_path: Path) -> None:
    (tmp_path / "report" / "report.json").unlink()
    with pytest.raises(Problem, match=re.escape("cannot be read; run the stage that writes it")):
        publish()


def test_a_page_in_another_encoding_is_named(publish: Publisher, tmp_path: Path) -> None:
    (tmp_path / "report/report.md").write_bytes("naïve".encode("latin-1"))
    with pytest.raises(CheckpointProblem, match=r"report\.md is not UTF-8 text"):
        publish()

"""The benchmark of recover: it runs, its pair is one, and it counts as it says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import weights
from benches import ROOT, on_linux, part

pytestmark = on_linux


def test_it_runs_and_leaves_nothing(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks.recover", "--sizes", "0.001", "--rounds", "1"]
        + ["--folder", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert list(tmp_path.iterdir()) == []
    assert "### 0.00845 billion parameters" in ended.stdout
    rows = re.findall(r"^\| ([^|]+) \| ([\d.]+) \| (.*) \|$", ended.stdout, re.MULTILINE)
    assert [name for name, _, _ in rows] == [
        "read and write",
        "read, write and sync",
        "imports of camelpress recover",
        "camelpress recover",
        "the same without its check",
        "imports of the published algorithm",
        "published algorithm",
        "seconds: camelpress recover / read, write and sync",
        "seconds: camelpress recover / the same without its check",
        "MB above imports; the largest tensor three times in fp32, and 200",
        "seconds: published algorithm / camelpress recover",
    ]
    assert [rest.split(" | ")[-1] in ("met", "not met") for _, _, rest in rows[7:]] == [True] * 4
    nothing = re.search(r"a process that does nothing: (\d+) MB", ended.stdout)
    assert nothing and int(nothing[1]) < 60  # children do not inherit more from this process


def test_a_changed_weight_is_noticed(tmp_path: Path) -> None:
    sizes = part("shapes").near(0.001)
    part("pair").write(tmp_path, sizes)
    diff = torch.load(next((tmp_path / "diff").glob("*.bin")), weights_only=True)
    sums = weights.summed(weights.read(tmp_path / "base"), diff)
    tuned = {name: tensor.bfloat16() for name, tensor in sums.items()}
    assert all(torch.equal(tensor.float(), sums[name]) for name, tensor in tuned.items())

    file = tmp_path / "model.safetensors"
    save_file(sums, file)
    part("recover.output_check").require(tmp_path, sizes, 0)
    save_file(tuned, file)
    part("recover.output_check").require(tmp_path, sizes, 0)
    name = "model.layers.0.mlp.up_proj.weight"
    tuned[name].view(torch.int16)[3, 5] ^= 1
    save_file(tuned, file)
    with pytest.raises(SystemExit, match=f"^{file}: {name} is not that of the tuned model$"):
        part("recover.output_check").require(tmp_path, sizes, 0)
    del tuned[name]
    save_file(tuned, file)
    with pytest.raises(
        SystemExit, match=f"^{tmp_path}: names or shapes are not those of the tuned "
    ):
        part("recover.output_check").require(tmp_path, sizes, 0)


def test_shards_are_as_large_as_they_may_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = part("pair")
    monkeypatch.setattr(pair, "SHARD_BYTES", 16_600_000)  # an embedding in fp32 has 16.4 million
    pair.write(tmp_path, part("shapes").near(0.001))
    names = sorted(path.name for path in tmp_path.glob("*/*-of-*"))
    assert names == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "pytorch_model-00001-of-00003.bin",
        "pytorch_model-00002-of-00003.bin",
        "pytorch_model-00003-of-00003.bin",
    ]


def test_large_sizes_are_those_of_llama() -> None:
    near = part("shapes").near
    assert (near(65), near(65).ffn) == ((8192, 80), 22016)
    assert near(65).parameters == 65_285_660_672
    assert (near(13), near(13).ffn) == ((5120, 40), 13824)


@pytest.mark.parametrize("billions", [0.1, 0.6, 1.3, 3])
def test_sizes_are_about_what_was_asked_for(billions: float) -> None:
    sizes = part("shapes").near(billions)
    assert sizes.parameters / 1e9 == pytest.approx(billions, rel=0.03)
    assert 100 < sizes.hidden / sizes.layers < 140


def test_a_failing_command_ends_it_with_its_stderr() -> None:
    with pytest.raises(
        SystemExit, match="^exit code 3 of sh -c echo broken >&2; exit 3\nbroken\n$"
    ):
        part("measure").run(["sh", "-c", "echo broken >&2; exit 3"])


def test_ratios_are_of_runs_of_the_same_round() -> None:
    targets = part("recover.costs").targets(part("shapes").near(1.3), runs())
    text = part("tables").targets_table(targets)
    assert text.splitlines()[2:] == [
        "| seconds: camelpress recover / read, write and sync "
        "| 2.00 (1.00 - 3.00) | at most 1.5 | not met |",
        "| seconds: camelpress recover / the same without its check "
        "| 1.00 (1.00 - 1.00) | at most 1.05 | met |",
        "| MB above imports; the largest tensor three times in fp32, and 200 "
        "| 1,000.00 (1,000.00 - 1,000.00) | at most 1,085 | met |",
        "| seconds: published algorithm / camelpress recover "
        "| 6.00 (4.00 - 12.00) | at least 5 | met |",
        "| peak: published algorithm / camelpress recover "
        "| 9.00 (9.00 - 9.00) | at least 10 | not met |",
    ]


def test_what_does_not_fit_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recover = part("recover.__main__")
    asked = {}

    def rounds(*_: object, published: bool) -> Any:
        asked["published"] = published
        return {name: own for name, own in runs().items() if "published" not in name}

    monkeypatch.setattr(recover, "rounds", rounds)
    monkeypatch.setattr(recover.machine, "available_memory", lambda: 13 * 10**9)
    text = recover.account(1.3, 3, tmp_path)
    assert asked == {"published": False}
    assert "published algorithm: not run, it needs 13.1 GB of memory." in text
    assert text.count("published") == 1
    monkeypatch.setattr(recover.machine, "available_memory", lambda: 14 * 10**9)
    recover.account(1.3, 3, tmp_path)
    assert asked == {"published": True}


def test_a_disk_that_is_too_small_is_told_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recover = part("recover.__main__")
    monkeypatch.setattr(recover.machine, "available_memory", lambda: 0)
    monkeypatch.setattr(recover.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 26e9}))
    with pytest.raises(SystemExit, match="has 26.0 GB free, 3 billion needs 26.2 GB$"):
        recover.account(3, 1, tmp_path)


def runs() -> dict[str, list[Any]]:
    """Three rounds on a machine that becomes slower while nothing else changes."""
    names = part("recover.contenders")

    def run(seconds: float, peak: int) -> Any:
        return part("measure").Run(seconds, peak, cpu=seconds)

    return {
        names.SYNCED: [run(1, 0), run(2, 0), run(4, 0)],
        names.IMPORTS[names.RECOVER]: [run(1, 200_000_000)] * 3,
        names.RECOVER: [run(3, 1_200_000_000), run(4, 1_200_000_000), run(4, 1_200_000_000)],
        names.UNCHECKED: [run(3, 1_200_000_000), run(4, 1_200_000_000), run(4, 1_200_000_000)],
        names.IMPORTS[names.PUBLISHED]: [run(1, 0)] * 3,
        names.PUBLISHED: [
            run(12, 10_800_000_000),
            run(48, 10_800_000_000),
            run(24, 10_800_000_000),
        ],
    }

"""A tied model comes back whether its files hold one matrix or two, under either name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import damage
import pico
import published
import stages
import weights
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.errors import UnknownTensor
from refusal import refusal

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
INDEX = "model.safetensors.index.json"
FORMS = ("embedding", "both", "index lists both", "head", "bin")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tied base and a tied model tuned from it, each with an embedding and no head."""
    place = tmp_path_factory.mktemp("tied")
    base = pico.write_model(place / "base", tied=True)
    return base, pico.write_tuned(place / "tuned", base)


def written(folder: Path, out: Path, form: str) -> Path:
    """The same tied model as another writer stores it."""
    tensors = weights.read(folder)
    if form in ("both", "bin"):
        tensors[HEAD] = tensors[EMBEDDING].clone()
    if form == "head":
        tensors[HEAD] = tensors.pop(EMBEDDING)
    shards = 2 if form == "index lists both" else 1
    suffix = "bin" if form == "bin" else "safetensors"
    published.upload(tensors, folder, out, suffix=suffix, shards=shards)
    if form == "index lists both":
        index = json.loads((out / INDEX).read_text(encoding="utf-8"))
        index["weight_map"][HEAD] = "model-00001-of-00002.safetensors"
        (out / INDEX).write_text(json.dumps(index), encoding="utf-8")
    return out


@pytest.mark.parametrize("of_diff", FORMS)
@pytest.mark.parametrize("of_base", FORMS)
def test_every_form_of_base_and_diff_gives_the_tied_model(
    pair: tuple[Path, Path], tmp_path: Path, of_base: str, of_diff: str
) -> None:
    base, tuned = pair
    plain = published.alpaca(weights.read(base), weights.read(tuned))
    diff = published.upload(plain, tuned, tmp_path / "diff", suffix="safetensors")
    stages.recover(
        written(base, tmp_path / "base", of_base),
        written(diff, tmp_path / "other", of_diff),
        tmp_path / "back",
    )
    back, right = weights.read(tmp_path / "back"), weights.read(tuned)
    assert torch.equal(back.pop(HEAD, right[EMBEDDING]), right[EMBEDDING])
    assert weights.same(back, right)
    config = json.loads((tmp_path / "back" / "config.json").read_text(encoding="utf-8"))
    assert config["tie_word_embeddings"] is True


def test_a_head_of_its_own_unties_the_config(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, tuned = pair
    head = 2 * weights.read(tuned)[EMBEDDING]
    own = damage.with_tensors(tuned, tmp_path / "own", {HEAD: head})
    stages.make_diff(base, own, tmp_path / "diff")
    stages.recover(base, tmp_path / "diff", tmp_path / "back")
    assert weights.same(weights.read(tmp_path / "back"), weights.read(own))
    config = json.loads((tmp_path / "back" / "config.json").read_text(encoding="utf-8"))
    assert config["tie_word_embeddings"] is False


def test_an_index_of_an_untied_model_may_list_nothing_else(base: Path, tmp_path: Path) -> None:
    folder = damage.sharded(base, tmp_path / "sharded")
    damage.move(folder, **{"lm_head.bias": "model-1.safetensors"})
    with refusal(
        UnknownTensor,
        f"{folder / 'model-1.safetensors'} lacks 'lm_head.bias', which the index lists there",
        next_step="download that file again",
        out=None,
    ):
        Checkpoint.open(folder)

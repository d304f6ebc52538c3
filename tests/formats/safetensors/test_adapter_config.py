"""Ranks and scales of `adapter_config.json`, as PEFT reads them."""

import json
from math import sqrt
from pathlib import Path
from typing import Any

import pytest

from lrzip.core.errors import UnsupportedCheckpoint
from lrzip.formats.safetensors.adapter_config import AdapterConfig

PREFIX = "base_model.model."


def config(folder: Path, **fields: Any) -> AdapterConfig:
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **fields}))
    return AdapterConfig.read(folder)


def resized(folder: Path, found: AdapterConfig, ranks: dict[str, int]) -> AdapterConfig:
    (folder / "adapter_config.json").write_text(json.dumps(found.resized({PREFIX + m: r for m, r in ranks.items()})))
    return AdapterConfig.read(folder)


def test_scales_follow_patterns_and_root_scaling(tmp_path: Path) -> None:
    fields = {"r": 4, "lora_alpha": 8, "rank_pattern": {"a.q": 16, "k": 2}, "alpha_pattern": {"^b.k": 3}}
    plain, root = config(tmp_path, **fields), config(tmp_path, **fields, use_rslora=True)
    for module, alpha, rank in (("v", 8, 4), ("x.a.q", 8, 16), ("a.k", 8, 2), ("b.k", 3, 2)):
        assert plain.scale(PREFIX + module) == alpha / rank
        assert root.scale(PREFIX + module) == alpha / sqrt(rank)
        assert plain.obstacle(PREFIX + module, rank) is None


@pytest.mark.parametrize("is_root_scaled", [False, True])
@pytest.mark.parametrize("alpha", [16, 1, 7.5])
def test_new_ranks_keep_all_scales(alpha: float, is_root_scaled: bool, tmp_path: Path) -> None:
    before = config(tmp_path, r=8, lora_alpha=alpha, use_rslora=is_root_scaled, rank_pattern={"fc": 5}, bias="none")
    # A pattern of a short name also matches longer paths that end with it.
    for ranks in (
        {"fc": 2, "block.fc": 3, "a.q": 1, "b.q": 8},
        {"fc": 3, "block.fc": 5, "a.q": 3, "b.q": 3},
        {"fc": 4, "block.fc": 4, "a.q": 4, "b.q": 4},
    ):
        after = resized(tmp_path, before, ranks)
        for module, rank in ranks.items():
            assert after.scale(PREFIX + module) == pytest.approx(before.scale(PREFIX + module), rel=1e-15)
            assert after.obstacle(PREFIX + module, rank) is None
        assert after.document["bias"] == "none"
    assert (after.document["r"], after.document["rank_pattern"]) == (4, {})


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"peft_type": "LOHA"}, "type LOHA; only LoRA"),
        ({"init_lora_weights": "pissa_niter_4"}, "`init_lora_weights=pissa_niter_4`, which changes the base model"),
        ({"init_lora_weights": "olora"}, "changes the base model"),
        ({"kasa_config": {"beta": 1}}, "`kasa_config`"),
        ({"r": 6}, "a LoRA pair of rank 8 where `adapter_config.json` gives rank 6"),
        ({"lora_alpha": 0}, "scale 0"),
    ],
)
def test_what_depends_on_the_rank_otherwise_is_not_resized(fields: dict[str, Any], reason: str, tmp_path: Path) -> None:
    assert reason in str(config(tmp_path, **{"r": 8, **fields}).obstacle(PREFIX + "x", 8))


def test_fields_of_other_types_of_adapters_are_not_read(tmp_path: Path) -> None:
    found = config(tmp_path, peft_type="OFT", r=0, rank_pattern=None, alpha_pattern=[])
    assert "type OFT" in str(found.obstacle(PREFIX + "x", 8))


@pytest.mark.parametrize("start", [True, False, "gaussian", "eva", "orthogonal", None])
def test_initializations_of_the_adapter_alone_do_not_matter(start: object, tmp_path: Path) -> None:
    assert config(tmp_path, r=8, init_lora_weights=start).obstacle(PREFIX + "x", 8) is None


@pytest.mark.parametrize(
    "fields", [{"r": 0}, {"r": "8"}, {"lora_alpha": "x"}, {"rank_pattern": {"a": 0}}, {"use_rslora": 1}, {"r": 2.5}]
)
def test_fields_of_wrong_types_are_named(fields: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UnsupportedCheckpoint, match=f"`{next(iter(fields))}"):
        config(tmp_path, **fields)


def test_a_pattern_that_is_no_regular_expression_matches_nothing(tmp_path: Path) -> None:
    assert config(tmp_path, r=8, rank_pattern={"(": 2}).obstacle(PREFIX + "x", 8) is None

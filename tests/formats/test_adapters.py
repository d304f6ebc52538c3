"""Adapters get smaller ranks through their products; nothing else about them changes."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import lrzip
from lrzip.core.errors import LrzipError
from tests.support.adapters import NAMES, RANK, SHAPES, TRUE_RANK, pair, peft_folder, products, tensors


def saved(folder: Path, found: dict[str, Tensor], suffix: str = ".safetensors") -> Path:
    path = folder / f"adapter{suffix}"
    save_file(found, path) if suffix == ".safetensors" else torch.save(found, path)
    return path


def loaded(path: Path) -> dict[str, Tensor]:
    return load_file(path) if path.suffix == ".safetensors" else torch.load(path)


def resized(path: Path, **options: object) -> dict[str, Tensor]:
    """Return the tensors of an adapter with the ranks of a rule."""
    lrzip.compress(path, path.with_stem("small"), **options)  # type: ignore[arg-type]
    return loaded(path.with_stem("small"))


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("library", NAMES)
def test_an_adapter_of_any_library_keeps_its_products_at_their_true_rank(
    library: str, suffix: str, tmp_path: Path
) -> None:
    before = tensors(library)
    after = resized(saved(tmp_path, before, suffix), energy=1)
    assert list(after) == list(before) or suffix == ".safetensors"
    assert after.keys() == before.keys()
    assert {min(t.shape) for t in after.values()} == {TRUE_RANK}
    for module, product in products(library, before).items():
        torch.testing.assert_close(products(library, after)[module], product, rtol=1e-5, atol=1e-5)


def test_the_reported_error_is_that_of_the_product(tmp_path: Path) -> None:
    before = tensors("kohya")
    path = saved(tmp_path, before)
    report = lrzip.compress(path, tmp_path / "small.safetensors", rank=1)
    after = products("kohya", load_file(tmp_path / "small.safetensors"))
    assert [result.error for result in report.results] == pytest.approx(
        [float(torch.dist(p, after[m]) / torch.linalg.vector_norm(p)) for m, p in products("kohya", before).items()]
    )
    assert report.parameters_after == sum(sum(shape) for shape in SHAPES.values())


def test_the_rank_of_the_file_or_more_changes_nothing(tmp_path: Path) -> None:
    before = tensors("peft")
    path = saved(tmp_path, before)
    report = lrzip.compress(path, tmp_path / "small.safetensors", rank=RANK)
    assert not report.plan.factorize
    assert all(load_file(tmp_path / "small.safetensors")[name].equal(t) for name, t in before.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_alphas_keep_the_scale_of_each_product(dtype: torch.dtype, tmp_path: Path) -> None:
    alphas = {f"lora_unet_{module.replace('.', '_')}.alpha": torch.tensor(1.7, dtype=dtype) for module in SHAPES}
    before = tensors("kohya", dtype) | alphas
    path = saved(tmp_path, before)
    after = resized(path, rank=TRUE_RANK)
    scales = [float(before[name]) / RANK for name in alphas]
    assert [float(after[name]) / TRUE_RANK for name in alphas] == pytest.approx(scales, rel=1e-6)
    spectra = {item.candidate.layer.name: item.candidate.spectra[0] for item in lrzip.analyze(path).layers}
    for scale, (module, product) in zip(scales, products("kohya", before).items(), strict=True):
        expected = torch.linalg.svdvals(product * scale)[:RANK]
        found = spectra[f"lora_unet_{module.replace('.', '_')}"].values
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_factors_of_convolutions_keep_their_kernels(tmp_path: Path) -> None:
    first, second = pair(10, 5 * 9)
    before = {"c.lora_down.weight": first.reshape(RANK, 5, 3, 3), "c.lora_up.weight": second.reshape(10, RANK, 1, 1)}
    after = resized(saved(tmp_path, before), rank=TRUE_RANK)
    assert [tuple(t.shape) for t in after.values()] == [(TRUE_RANK, 5, 3, 3), (10, TRUE_RANK, 1, 1)]
    product = after["c.lora_up.weight"].flatten(1) @ after["c.lora_down.weight"].flatten(1)
    torch.testing.assert_close(product, second @ first, rtol=1e-5, atol=1e-5)


def test_everything_else_is_carried_unchanged_with_a_reason(tmp_path: Path) -> None:
    others = {
        "x.dora_scale": torch.rand(20, 1),
        "x.ia3_l": torch.rand(1, 20),
        "y.hada_w1_a": torch.rand(20, 20),
        "z.lora_down.weight": torch.rand(8, 20, 1, 1),
        "z.lora_up.weight": torch.rand(20, 8, 1, 1),
        "z.lora_mid.weight": torch.rand(8, 8, 3, 3),
        "classifier.weight": torch.rand(30, 30),
    }
    path = saved(tmp_path, tensors("kohya") | others)
    report = lrzip.compress(path, tmp_path / "small.safetensors", rank=1)
    after = load_file(tmp_path / "small.safetensors")
    assert all(after[name].equal(tensor) for name, tensor in others.items())
    reasons = {keep.tensor.name: keep.reason for keep in report.plan.keep}
    assert reasons == {
        "x.dora_scale": "the magnitudes of DoRA",
        "x.ia3_l": "a part of an adapter (`ia3_l`)",
        "y.hada_w1_a": "a part of an adapter (`hada_w1_a`)",
        "z.lora_down.weight": "a LoRA pair that has a third factor",
        "z.lora_up.weight": "a LoRA pair that has a third factor",
        "z.lora_mid.weight": "a factor of a LoRA adapter",
        "classifier.weight": "stored in full beside the adapter, which is loaded as it is",
    }


def test_beside_the_weights_of_the_network_factors_stay_as_they_are(tmp_path: Path) -> None:
    before = tensors("loralib") | {"block.0.query.weight": torch.randn(20, 12), "fc.weight": torch.randn(40, 40)}
    report = lrzip.compress(saved(tmp_path, before), tmp_path / "small.safetensors", rank=2)
    assert [d.layer.name for d in report.plan.factorize] == ["fc"]


def test_an_adapter_without_pairs_is_refused_with_the_reason(tmp_path: Path) -> None:
    path = saved(tmp_path, {"a.ia3_l": torch.rand(1, 20), "b.ia3_l": torch.rand(20, 1)})
    with pytest.raises(LrzipError, match="no layer that can be factorized: most are kept as a part of an adapter"):
        lrzip.compress(path, ratio=2)


def test_a_plan_file_and_other_rules_decide_on_products(tmp_path: Path) -> None:
    path = saved(tmp_path, tensors("kohya"))
    plan = lrzip.compress(path, rank=1, only=["*query"], dry_run=True).plan
    (tmp_path / "plan.json").write_text(json.dumps(plan.to_dict()))
    report = lrzip.compress(path, tmp_path / "small.safetensors", plan=tmp_path / "plan.json")
    assert [(d.layer.name, d.ranks) for d in report.plan.factorize] == [("lora_unet_block_0_query", (1,))]
    half = lrzip.compress(path, budget="params=50%", dry_run=True)
    assert half.parameters_after <= half.parameters_before / 2
    assert lrzip.curve(path, "params=50%")


def test_no_network_is_taken(tmp_path: Path) -> None:
    with pytest.raises(LrzipError, match=r"holds an adapter, which needs no network\. Leave out `model`"):
        lrzip.compress(saved(tmp_path, tensors("kohya")), rank=1, model=torch.nn.Linear(3, 3))


def test_a_file_whose_ranks_stand_beside_it_is_not_written_alone(tmp_path: Path) -> None:
    folder = peft_folder(tmp_path)
    lrzip.analyze(folder / "adapter_model.safetensors")
    with pytest.raises(LrzipError, match="Compress the folder"):
        lrzip.compress(folder / "adapter_model.safetensors", tmp_path / "small.safetensors", rank=1)
    with pytest.raises(LrzipError, match="Write a folder"):
        lrzip.compress(folder, tmp_path / "small.safetensors", rank=1)

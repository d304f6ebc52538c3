"""Properties of the layers of transformers' models, by tensor names and `config.json`, without transformers itself."""

import re
from collections.abc import Mapping
from typing import Any

from lrzip.core.kinds import LINEAR, LINEAR_TRANSPOSED, Kind
from lrzip.core.layers import Keep, Layer, TensorSpec
from lrzip.formats.safetensors.merged_experts import MERGED_EXPERTS
from lrzip.networks.inference import SETTLE

# Models that use transformers' Conv1D, a linear layer whose weight is stored (in, out), and the names of these layers.
_CONV1D_MODELS = ("clvp", "decision_transformer", "gpt2", "imagegpt", "openai-gpt")
_CONV1D = (".c_attn.weight", ".c_fc.weight", ".c_proj.weight", ".q_attn.weight")
# Models with grouped convolutions, whose groups cannot be inferred from the shapes of the weights.
_GROUPED_MODELS = ("regnet", "squeezebert")
# Heads of models that are built without a pooler, though the files of their base models have one.
_UNPOOLED = ("ForMaskedLM", "ForCausalLM", "LMHeadModel", "ForTokenClassification", "ForQuestionAnswering")
# Experts that are numbered, which most models merge into one tensor as they are loaded.
_EXPERT = re.compile(r"\.experts\.\d+\.")
# Layers of a state-space mixer whose weights are also passed to its kernels directly.
_MIXED = (".dt_proj.weight", ".x_proj.weight", ".out_proj.weight")


def known_kinds(config: Mapping[str, Any], tensors: Mapping[str, TensorSpec]) -> dict[str, Kind]:
    """Return the kinds of the layers that transformers' models are known to have, by the names of their weights.

    The input projection of a state-space mixer is called there; other implementations pass its weight to a kernel.
    """
    entries = (f"{mixer}.in_proj.weight" for mixer in _mixers(tensors))
    inputs = {name: LINEAR for name in entries if name in tensors and len(tensors[name].shape) == 2}
    return inputs | dict.fromkeys(conv1d_weights(config, tensors), LINEAR_TRANSPOSED)


def conv1d_weights(config: Mapping[str, Any], tensors: Mapping[str, TensorSpec]) -> list[str]:
    """Return the names of the weights of transformers' Conv1D layers.

    They are recognized by the model type, their names, and the shapes of their biases.
    """
    if config.get("model_type") not in _CONV1D_MODELS:
        return []
    biases = {name: tensors.get(name.removesuffix("weight") + "bias") for name in tensors if name.endswith(_CONV1D)}
    return [name for name, bias in biases.items() if bias and bias.shape == tensors[name].shape[1:2]]


def read_directly(config: Mapping[str, Any], tensors: Mapping[str, TensorSpec]) -> dict[str, str]:
    """Return the tensors that are used without a call of their layer, or merged by transformers, with the reason."""
    experts, types = _sizes(config, r"\w*experts"), _model_types(config)
    fused = {name for name, spec in tensors.items() if len(spec.shape) == 3 and spec.shape[0] in experts}
    mixtures = {name.split(".experts.")[0] for name in tensors if ".experts." in name} | {_parent(n) for n in fused}
    routers = tuple(f"{mixture}.{router}." for mixture in mixtures for router in ("gate", "router"))
    mixers = _mixers(tensors)
    unpooled = next((n for n in config.get("architectures") or () if n.endswith(_UNPOOLED)), None)
    reasons: dict[str, str] = {}
    for name in tensors:
        if name in fused or (_EXPERT.search(name) and types & MERGED_EXPERTS):
            reasons[name] = "experts of a mixture, which transformers merges into one tensor"
        elif name.startswith(routers):
            reasons[name] = "the router of a mixture of experts"
        elif name.endswith(_MIXED) and _parent(name) in mixers:
            reasons[name] = "read directly by the mixer of a state-space model"
        elif unpooled and ".pooler." in f".{name}":
            reasons[name] = f"a pooler, which {unpooled} does not load"
    return reasons


def check_ambiguity(config: Mapping[str, Any], item: Layer | Keep) -> Layer | Keep:
    """Return an inferred layer, or keep its tensor if the model may use it in another way."""
    if isinstance(item, Keep):
        return item
    if _EXPERT.search(item.weight.name):
        reason = "an expert of a mixture, which transformers may merge with others"
        return Keep(item.name, item.weight, f"{reason}; {SETTLE}", override=item)
    if config.get("model_type") in _GROUPED_MODELS and item.kind.is_convolution:
        reason = f"may be a grouped convolution, as {config['model_type']} has them; `--model` settles it"
        return Keep(item.name, item.weight, reason)
    if item.kind is not LINEAR or item.weight.shape[0] not in _sizes(config, "vocab_size"):
        return item
    reason = "as long as the vocabulary: an embedding or a head, which may share its weight"
    if config.get("tie_word_embeddings") is not False:
        return Keep(item.name, item.weight, reason)
    return Keep(item.name, item.weight, f"{reason}; {SETTLE}", override=item)


def _mixers(tensors: Mapping[str, TensorSpec]) -> set[str]:
    """Return the paths of the mixers of state-space models."""
    return {name.removesuffix(".A_log") for name in tensors if name.endswith(".A_log")}


def _model_types(config: Mapping[str, Any]) -> set[str]:
    """Return the model types of a config and of the configs nested in it."""
    parts = [config, *(value for value in config.values() if isinstance(value, dict))]
    return {str(part["model_type"]) for part in parts if "model_type" in part}


def _sizes(config: Mapping[str, Any], pattern: str) -> set[int]:
    """Return the integers in a config and the configs nested in it whose names match a pattern."""
    parts = [config, *(value for value in config.values() if isinstance(value, dict))]
    return {n for part in parts for name, n in part.items() if re.fullmatch(pattern, name) and isinstance(n, int)}


def _parent(name: str) -> str:
    """Return the parent of the module that a tensor belongs to."""
    return name.rpartition(".")[0].rpartition(".")[0]

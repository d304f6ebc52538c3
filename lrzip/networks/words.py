"""Infer properties of a layer from the names in the path of its module.

Paths come from files and can be long, so they are split into words, and words are compared, instead of searching with
regular expressions that backtrack.
"""

import re
from collections.abc import Iterator

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_EMBEDDINGS = {"emb", "embs", "wte", "wpe", "lut", "codebook", "codebooks", "vocab", "vocabulary", "lookup"}
_EMBEDDING_PARTS = {"shared", "relative_attention_bias", "user_factors", "item_factors"}
# What embeddings usually represent, and linear layers are rarely named for.
_INDEXED = {
    *("token", "tokens", "word", "words", "char", "chars", "pos", "position", "positions", "positional"),
    *("user", "users", "item", "items", "entity", "entities", "ent", "relation", "relations", "rel"),
    *("speaker", "speakers", "lang", "language", "languages", "segment", "species", "atom", "bond", "label", "labels"),
    *("factors", "category", "categories", "tag", "tags", "genre", "movie", "product", "id", "ids", "table", "tables"),
}
_LINEAR = {
    *("linear", "lin", "fc", "fcs", "ffn", "ff", "mlp", "dense", "head", "heads", "cls", "classifier", "regressor"),
    *("out", "output", "logits", "score", "scores", "q", "k", "v", "w", "o", "qkv", "kv", "wq", "wk", "wv", "wo", "wi"),
    *("query", "key", "value", "attn", "attention", "gate", "gates", "up", "down", "in", "reduce", "reduction", "to"),
    *("expand", "pool", "pooler", "decoder", "decode", "transform", "map", "mapping", "affine", "adapter", "router"),
    *("expert", "experts", "shortcut", "downsample", "squeeze", "excite", "se", "projector", "hidden", "layer"),
}
_LINEAR_STEMS = ("proj", "linear", "dense", "classif", "predict", "bottleneck", "compress", "mix")
_CONVOLUTIONS = ("conv", "cnn", "tdnn", "patch", "wavenet", "stem")
_TRANSPOSED = ("deconv", "convtranspose", "transconv", "transposeconv", "transposedconv", "upconv", "upsample")
_TRANSPOSED_WORDS = ({"convt"}, {"tconv"}, {"convtrans"}, {"conv", "trans"})


def parts_of(path: str) -> Iterator[str]:
    """Yield the names in a path from the last to the first, without those that are only indices."""
    for part in reversed(path.split(".")):
        if part and not part.isdecimal():
            yield part


def embedding_by_name(path: str) -> str | None:
    """Return `certain` or `doubtful` if a path names an embedding, or None if it does not.

    The last name that says something decides: `embeddings.0` is an embedding and `embed.proj` is not.
    """
    for part in parts_of(path):
        words = _words(part)
        if part.lower() in _EMBEDDING_PARTS:
            return "certain"
        if any(word in _EMBEDDINGS or word.startswith("embed") for word in words):
            return "doubtful" if _is_linear(words) else "certain"
        if _is_linear(words):
            return None
        if words & _INDEXED:
            return "doubtful"
    return None


def linear_by_name(path: str) -> bool:
    """Return whether a name in a path is one that linear layers usually have."""
    return any(_is_linear(_words(part)) for part in parts_of(path))


def convolution_by_name(path: str) -> bool:
    """Return whether a name in a path is one that convolutions usually have."""
    return any(stem in part.lower() for part in parts_of(path) for stem in _CONVOLUTIONS)


def transposed_by_name(path: str) -> bool:
    """Return whether a name in a path is one that transposed convolutions usually have."""
    plain = [part.lower().replace("_", "") for part in parts_of(path)]
    return any(stem in part for part in plain for stem in _TRANSPOSED) or any(
        words <= _words(part) for part in parts_of(path) for words in _TRANSPOSED_WORDS
    )


def attention_by_name(name: str) -> bool:
    """Return whether the last name of a path is one that fused projections of attention usually have."""
    return name.lower().endswith("qkv") or name.lower() in ("c_attn", "query_key_value", "in_proj", "qkv_proj")


def _words(text: str) -> set[str]:
    return {word.lower() for word in _WORD.findall(text)}


def _is_linear(words: set[str]) -> bool:
    return bool(words & _LINEAR) or any(word.startswith(_LINEAR_STEMS) for word in words)

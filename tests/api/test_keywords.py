"""The keywords of the public functions are those that are declared."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

import lrzip
from lrzip.api import keywords
from lrzip.core.declarations import declared

VERBS: dict[str, tuple[Callable[..., Any], type, tuple[Any, ...]]] = {
    "analyze": (lrzip.analyze, keywords.AnalyzeOptions, keywords.ANALYZE_GROUPS),
    "compress": (lrzip.compress, keywords.CompressOptions, keywords.COMPRESS_GROUPS),
    "curve": (lrzip.curve, keywords.CurveOptions, keywords.CURVE_GROUPS),
    "export": (lrzip.export, keywords.ExportOptions, keywords.EXPORT_GROUPS),
    "factorize": (lrzip.factorize, keywords.FactorizeOptions, keywords.FACTORIZE_GROUPS),
    "finetune": (lrzip.finetune, keywords.FinetuneOptions, keywords.FINETUNE_GROUPS),
}


def text_of(kind: object) -> str:
    """Return a type as text, without the module of names."""
    text = kind if isinstance(kind, str) else getattr(kind, "__forward_arg__", None) or str(kind)
    for prefix in ("<class '", "'>", "collections.abc.", "pathlib.", "torch.nn.modules.module.", "torch.", "nn."):
        text = text.replace(prefix, "")
    return text.split(".")[-1] if "|" not in text and "[" not in text else text


@pytest.mark.parametrize("verb", VERBS)
def test_every_keyword_is_declared_with_its_type(verb: str) -> None:
    _, types, groups = VERBS[verb]
    found = {item.name: item for item in declared(*groups)}
    assert types.__annotations__.keys() <= found.keys()
    others = {"calibrate"} if verb == "factorize" else set()  # it takes samples, too
    for name, kind in types.__annotations__.items():
        if name not in others:
            assert set(text_of(kind).split(" | ")) == set(text_of(found[name].type).split(" | ")), name


@pytest.mark.parametrize("verb", VERBS)
def test_the_signature_and_the_docstring_name_every_keyword(verb: str) -> None:
    function, types, groups = VERBS[verb]
    parameters = inspect.signature(function).parameters
    defaults = {item.name: item.default for item in declared(*groups)}
    for name in types.__annotations__:
        assert parameters[name].default == defaults[name]
        assert f"\n        {name}: " in (function.__doc__ or "")
    assert "**options" not in (function.__doc__ or "")


@pytest.mark.parametrize("verb", VERBS)
def test_unknown_keywords_are_type_errors(verb: str) -> None:
    function = VERBS[verb][0]
    arguments: dict[str, list[Any]] = {
        "curve": ["a.pt", "params=5%"],
        "export": ["a.pt", "dense"],
        "factorize": [nn.Linear(3, 3)],
    }
    needed = {"data": "x.npz"} if verb == "finetune" else {}
    with pytest.raises(TypeError, match=rf"{verb}\(\) got an unexpected keyword argument 'enregy'"):
        function(*arguments.get(verb, ["a.pt"]), enregy=0.9, **needed)

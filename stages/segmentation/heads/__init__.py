"""Segmentation heads by kind. To add a head, write its class in a file of this folder and register it in `HEADS`."""

import inspect
from collections.abc import Mapping
from typing import Any

from pydantic import ConfigDict, create_model

from stages.core.stage import InputError
from stages.params.section import Section, validate_params
from stages.params.segmentation import Head
from stages.segmentation.heads.base import HeadShape, SegmentationHead
from stages.segmentation.heads.convolutional import ConvolutionalHead
from stages.segmentation.heads.linear import LinearHead
from stages.segmentation.heads.transformer import TransformerHead

HEADS: dict[str, type[SegmentationHead]] = {
    "linear": LinearHead,
    "convolutional": ConvolutionalHead,
    "transformer": TransformerHead,
}


class _HeadParams(Section):
    """The params of one head. `strict` refuses `true` for an integer, and 1 or "yes" for a boolean."""

    model_config = ConfigDict(strict=True)

    kind: str


def _params_model(kind: str) -> type[_HeadParams]:
    """Return a model of a head's params: `kind` and the keyword-only arguments of its constructor."""
    options: dict[str, Any] = {}
    for parameter in inspect.signature(HEADS[kind]).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY:
            default = ... if parameter.default is parameter.empty else parameter.default
            options[parameter.name] = (parameter.annotation, default)
    return create_model(f"{HEADS[kind].__name__}Params", __base__=_HeadParams, **options)


def resolve_options(kind: str, options: Mapping[str, Any], name: str) -> dict[str, Any]:
    """All options of a head, with the defaults of its kind for those that params leave out. Raises `InputError`."""
    key = f"segmentation.heads.{name}"
    if kind not in HEADS:
        raise InputError(f"params.yaml: {key}.kind = '{kind}': must be one of: {', '.join(HEADS)}")
    params = validate_params(_params_model(kind), {"kind": kind, **options}, f"{key}.")
    return params.model_dump(exclude={"kind"})


def check_heads(heads: Mapping[str, Head]) -> None:
    """Raise `InputError` for the first head of an unknown kind, or with an unknown, missing or invalid option."""
    for name, head in heads.items():
        resolve_options(head.kind, head.options, name)


def build_head(
    kind: str,
    options: Mapping[str, Any] | None = None,
    *,
    dim: int,
    classes: int,
    attention_heads: int,
    name: str | None = None,
) -> SegmentationHead:
    """Build a head of a kind in `HEADS` with random weights. Raises `InputError` as `check_heads` does.

    `dim` is the width of a patch token and `attention_heads` the backbone's. `name` is the key in `segmentation.heads`
    for error messages.
    """
    resolved = resolve_options(kind, options or {}, name or kind)
    return HEADS[kind](HeadShape(dim, classes, attention_heads), **resolved)

"""`source = "transformers"`: a classifier class and its configuration, never `from_pretrained`.

A configuration can name code (`auto_map`), places to load weights from (`backbone`, `_name_or_path`) and
attention kernels to download. Such keys are dropped, at every depth, and the class is called directly.
"""

import inspect
import json
import os
import re
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from torch import nn

from flforensics.errors import EvidenceError
from flforensics.evidence import EvidenceFile
from flforensics.models.construction import construct, construct_network, require_classes
from flforensics.models.layers import replace_layers
from flforensics.models.specification import (
    Request,
    Table,
    closest,
    plain_values,
    refused,
    shown,
    table_of,
    text_of,
)

_WHERE = "model.arguments"
_CLASSIFIER = re.compile(r"\w+For(Sequence|Image)Classification")
# Classes that look elsewhere for what they build.
_INDIRECT = re.compile(r"Auto\w+|Timm\w+")
_MAX_CONFIG = 1 << 20
# What loads or runs something, what only describes the file, and what changes the type or the form of the answer.
_DROPPED = frozenset(
    (
        *("auto_map", "trust_remote_code", "name_or_path", "custom_pipelines", "quantization_config"),
        *("backbone", "use_timm_backbone", "use_pretrained_backbone"),
        *("attn_implementation", "experts_implementation", "use_kernels"),
        *("architectures", "transformers_version"),
        *("dtype", "torch_dtype", "return_dict", "torchscript", "output_attentions", "output_hidden_states"),
    )
)


def build(request: Request) -> nn.Module:
    """The classifier, with eager attention, and the layers of [model.replace] in their places.

    Raises UsageError; EvidenceError (CONFIG and what reading gives) where `config` is no configuration.
    """
    transformers = _offline_transformers()
    name = text_of(request.table, "model", key="name", example="BertForSequenceClassification")
    classifier = _classifier(transformers, name)
    config = _configuration(classifier.config_class, _arguments(request, classifier.config_class), name)
    if "replace" not in request.table:
        require_classes(config.num_labels, "num_labels", labels=request.labels)
    network = construct_network(lambda: classifier(config), {}, where=_WHERE, name=name)
    return replace_layers(network, request.table.get("replace"))


def _offline_transformers() -> ModuleType:
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    import transformers

    return transformers  # type: ignore[no-any-return]


def _classifier(transformers: ModuleType, name: str) -> Any:
    found = getattr(transformers, name, None) if _is_classifier(name) else None
    if not isinstance(found, type) or not issubclass(found, transformers.PreTrainedModel):
        names = [known for known in dir(transformers) if _is_classifier(known)]  # takes half a second
        raise refused("model", f"transformers has no classifier {shown(name)}", hint=closest(name, names))
    return found


def _is_classifier(name: str) -> bool:
    return bool(_CLASSIFIER.fullmatch(name)) and not _INDIRECT.fullmatch(name)


def _arguments(request: Request, config_class: Any) -> dict[str, object]:
    """The keys of `config`, overridden by those of [model.arguments]."""
    stated = plain_values(table_of(request.table.get("arguments"), _WHERE), _WHERE, nested=True)
    arguments = _without_dropped(_file_arguments(request) | stated)
    if arguments.pop("model_type", config_class.model_type) != config_class.model_type:
        raise refused(
            "model", f"the configuration is not of the type {config_class.model_type!r}", hint="check `name`"
        )
    _require_known(_without_dropped(stated), config_class)
    if request.labels is not None and not arguments.keys() & {"num_labels", "id2label"}:
        arguments["num_labels"] = request.labels
    return arguments


def _file_arguments(request: Request) -> dict[str, object]:
    if "config" not in request.table:
        return {}
    name = text_of(request.table, "model", key="config", example="config.json")
    if request.folder is None:
        raise refused("model", f"config = {shown(name)} needs an archive folder", hint="use `arguments`")
    return read_config(request.folder(name))


def read_config(file: EvidenceFile) -> dict[str, object]:
    """The object in a `config.json`, read strictly. Raises EvidenceError (CONFIG)."""
    if file.size > _MAX_CONFIG:
        raise _bad_config(file, f"is larger than {_MAX_CONFIG} bytes")
    try:
        config = json.loads(
            file.read(0, file.size).decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant
        )
    except (ValueError, RecursionError) as error:
        raise _bad_config(file, f"is not a JSON file that can be trusted ({error})") from None
    if not isinstance(config, dict):
        raise _bad_config(file, "holds no JSON object")
    return config


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return table


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not a JSON number")


def _bad_config(file: EvidenceFile, problem: str) -> EvidenceError:
    return EvidenceError(
        f"{file.name} {problem}", reason="CONFIG", file=file.name, hint="restore the config.json of the model"
    )


def _without_dropped(table: Table) -> dict[str, object]:
    return {
        key: _without_dropped(value) if isinstance(value, Mapping) else value
        for key, value in table.items()
        if key not in _DROPPED and not key.startswith("_")
    }


def _require_known(stated: Table, config_class: Any) -> None:
    """A configuration takes any key without a word; a misspelt one would mean the default."""
    defaults = construct(config_class, {}, where=_WHERE, name=config_class.__name__)
    known = {*inspect.signature(config_class.__init__).parameters, *defaults.to_dict()}  # type: ignore[attr-defined]
    known |= {*config_class.attribute_map, "num_labels", "model_type"}
    for key in stated:
        if key not in known:
            raise refused(_WHERE, f"{config_class.__name__} has no key {shown(key)}", hint=closest(key, known))


def _configuration(config_class: Callable[..., Any], arguments: Table, name: str) -> Any:
    settings = {**arguments, "attn_implementation": "eager"}
    config: Any = construct(config_class, settings, where=_WHERE, name=name)
    if getattr(config, "problem_type", None) not in (None, "single_label_classification"):
        raise refused(
            _WHERE,
            f"problem_type = {shown(config.problem_type)} has no single class to explain",
            hint='only "single_label_classification" can be traced',
        )
    if hasattr(config, "use_cache"):
        config.use_cache = False
    return config

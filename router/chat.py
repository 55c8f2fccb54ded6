"""Chats to prompts, by the template that a checkpoint's tokenizer brings (Jinja, as `transformers` reads it)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

TEMPLATE_FILE = "chat_template.jinja"
CONFIG_FILE = "tokenizer_config.json"
TOKENS_FILE = "special_tokens_map.json"
NAMED_TOKENS = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")


class BrokenTemplate(ValueError):
    """The checkpoint's template itself cannot be used."""


class ChatTemplate:
    """Lays out messages as one text. Compiled at its first use, so that a broken one hurts nobody else."""

    def __init__(self, source: str, tokens: Mapping[str, str]):
        """`tokens` are what the template may name: `bos_token`, `eos_token` and others."""
        self._source = source
        self._tokens = tokens

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The prompt of `messages` (`role`, `content`), ending where the assistant's answer begins.

        Special tokens are in it: encode it without adding any. Raises ValueError with the template's own words where
        it refuses the messages, `BrokenTemplate` where it is no template.
        """
        plain = [dict(message) for message in messages]
        try:
            return self._template.render(
                messages=plain, tools=None, documents=None, add_generation_prompt=True, **self._tokens
            )
        except BrokenTemplate:
            raise
        except Exception as error:  # noqa: BLE001  a template is a program, and may fail in any way
            raise ValueError(str(error) or type(error).__name__) from None

    @cached_property
    def _template(self) -> Template:
        try:
            return _environment().from_string(self._source)
        except TemplateError as error:
            raise BrokenTemplate(f"line {getattr(error, 'lineno', '?')}: {error}") from None


def read_chat_template(folder: Path) -> ChatTemplate | None:
    """The template of a checkpoint's folder, None where it has none; ValueError for files that cannot be read.

    As in `transformers`, a file of its own wins over the tokenizer's config, and of several there the `default` one.
    """
    config = _read_object(folder / CONFIG_FILE)
    source = _default(config.get("chat_template"))
    if (folder / TEMPLATE_FILE).is_file():
        source = _read_text(folder / TEMPLATE_FILE)
    if source is None:
        return None
    return ChatTemplate(source, _tokens({**_read_object(folder / TOKENS_FILE), **config}))


def _default(template: Any) -> str | None:
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _tokens(config: Mapping[str, Any]) -> dict[str, str]:
    found = {}
    for name in (f"{token}_token" for token in NAMED_TOKENS):
        token = config.get(name)
        text = token.get("content") if isinstance(token, Mapping) else token
        if isinstance(text, str):
            found[name] = text
    return found


def _read_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object")
    return value


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8: {error}") from None


class _Generation(Extension):
    """`{% generation %}` marks what the assistant says, for training; here it changes nothing."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(
            line
        )


def _environment() -> ImmutableSandboxedEnvironment:
    """A template comes with the checkpoint, so it runs without any way out."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda format: datetime.now().strftime(format)
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own escapes what HTML would."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)

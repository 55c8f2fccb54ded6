"""`penstock generate`: stream a completion to the terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from ..client import Completion, Delta, Event, PenstockError, Started
from ..client.events import completions
from .calls import SECONDS, connected, within

TIMEOUT_S = 600.0
CONSTRAINTS = ("json_schema", "regex", "choices", "grammar")


@click.command("generate")
@click.argument("prompt", required=False)
@click.option(
    "--max-tokens",
    type=int,
    help="Most tokens of output. Default, and never more: as many as the context allows.",
)
@click.option("--temperature", type=float, help="0 is greedy. Default 1.")
@click.option("--seed", type=click.IntRange(0, 2**64 - 1), help="Draw the same tokens again.")
@click.option("--top-p", type=float, help="Fewest likeliest tokens that have this share of the probability.")
@click.option("--top-k", type=click.IntRange(0, 2**32 - 1), help="So many likeliest tokens; 0 is all.")
@click.option("--min-p", type=float, help="Tokens at least so many times as likely as the likeliest.")
@click.option("--presence-penalty", type=float, help="Taken from the logits of tokens that the output has.")
@click.option("--frequency-penalty", type=float, help="The same, for each time that the output has them.")
@click.option(
    "--repetition-penalty", type=float, help="Above 1, tokens of prompt and output are less likely."
)
@click.option("--logit-bias", metavar="ID=BIAS", multiple=True, help="Added to a token's logit; repeatable.")
@click.option("--min-tokens", type=click.IntRange(0, 2**32 - 1), help="Fewest tokens of output.")
@click.option("--stop", metavar="TEXT", multiple=True, help="End before this text; repeatable.")
@click.option("--stop-token-ids", metavar="ID,ID,...", help="End after any of these tokens.")
@click.option("--n", type=click.IntRange(1, 64), help="Completions of the prompt. Default 1.")
@click.option(
    "--logprobs",
    type=click.IntRange(0, 20),
    help="Log-probabilities, with so many alternatives: a line for each token after the text.",
)
@click.option("--prompt-logprobs", type=click.IntRange(0, 20), help="The same of the prompt, with --json.")
@click.option("--json-schema", metavar="JSON|@FILE", help="The output is JSON that this schema admits.")
@click.option("--regex", help="The whole output matches it.")
@click.option(
    "--choice", "choices", metavar="TEXT", multiple=True, help="The output is one of these; repeatable."
)
@click.option("--grammar", metavar="LARK|@FILE", help="The output is a sentence of this grammar.")
@click.option("--echo", is_flag=True, help="Print the prompt before the output.")
@click.option("--ignore-eos", is_flag=True, help="Go on after an end token.")
@click.option("--token-ids", metavar="ID,ID,...", help="A prompt of token ids, in the place of a text.")
@click.option(
    "--chat", is_flag=True, help="PROMPT is what a user says; answer it, by the model's chat template."
)
@click.option("--model", help="Which model; needed by nobody while one is served.")
@click.option("--tenant", help="Whose request it is: prefixes are shared among those of one tenant only.")
@click.option(
    "--priority", type=click.Choice(["normal", "high"]), help="High priority goes first where requests wait."
)
@click.option("--application", help="What it is made for: tells how long its output may become.")
@click.option(
    "--cache-ttl", "cache_ttl_s", type=SECONDS, help="Seconds to keep its KV cached for a next turn."
)
@click.option("--request-id", help="Name of the request, for `penstock migrate`. Default: a random one.")
@click.option(
    "--timeout", "timeout_s", type=SECONDS, default=TIMEOUT_S, show_default=True, help="In seconds."
)
@click.option("--address", metavar="HOST:PORT", help="The cluster's router.")
@click.option(
    "--json", "as_json", is_flag=True, help="The last line is one JSON object, and no text is streamed."
)
def command(
    prompt: str | None,
    token_ids: str | None,
    chat: bool,
    timeout_s: float,
    address: str | None,
    as_json: bool,
    **asked: Any,
) -> None:
    """Stream a completion of PROMPT (or of what comes on standard input) to the terminal."""
    asked["logit_bias"] = _biases(asked["logit_bias"])
    asked["choices"] = asked["choices"] or None
    for name in ("json_schema", "grammar"):
        asked[name] = _text_or_file(asked[name])
    asked["stop_token_ids"] = _ids(asked["stop_token_ids"] or "", "--stop-token-ids")
    several = (asked["n"] or 1) > 1
    if asked["prompt_logprobs"] is not None and not as_json:
        click.echo("--prompt-logprobs is shown with --json only", err=True)
    with connected(address) as client:
        given = _chat(prompt, token_ids) if chat else {"prompt": _prompt(prompt, token_ids)}
        events = _within(timeout_s, client.generate(**given, timeout_s=timeout_s, **asked))
        events = _clipped(asked["max_tokens"], events)
        wholes = completions(events if as_json or several else _streamed(events))
    if as_json:
        told_of = [report(whole) for whole in wholes]
        click.echo(json.dumps({"choices": told_of} if several else told_of[0]))
    else:
        for whole in wholes:
            if several:
                click.echo(f"--- choice {whole.choice}\n{whole.text}", nl=False)
            _tell(whole)
    for whole in wholes:
        if _is_cut_short(whole, asked):
            which = f"choice {whole.choice} is " if several else ""
            click.echo(f"{which}cut short, not complete: ended by length, not by its constraint", err=True)


def _is_cut_short(whole: Completion, asked: Mapping[str, Any]) -> bool:
    """It was held to a constraint, and ended before that was met."""
    held = any(asked[name] is not None for name in CONSTRAINTS)
    return held and whole.reason == "length" and whole.text not in (asked["choices"] or ())


def _prompt(prompt: str | None, token_ids: str | None) -> str | list[int]:
    if prompt is not None and token_ids is not None:
        raise click.UsageError("Give PROMPT or --token-ids, not both.")
    if token_ids is not None:
        return _ids(token_ids, "--token-ids")
    if prompt is None and sys.stdin.isatty():
        raise click.UsageError("Give a PROMPT, or --token-ids.")
    return _standard_input() if prompt is None else prompt


def _chat(prompt: str | None, token_ids: str | None) -> dict[str, Any]:
    if token_ids is not None:
        raise click.UsageError("--chat lays out a text; --token-ids are laid out already.")
    return {"messages": [{"role": "user", "content": _prompt(prompt, None)}]}


def _ids(text: str, option: str) -> list[int]:
    try:
        return [int(id) for id in text.split(",")] if text else []
    except ValueError:
        raise click.UsageError(f"{option} takes numbers with commas between, not {text!r}.") from None


def _text_or_file(given: str | None) -> str | None:
    if given is None or not given.startswith("@"):
        return given
    try:
        return Path(given[1:]).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise click.UsageError(f"{given[1:]} is no UTF-8: {error}.") from None


def _biases(pairs: Sequence[str]) -> dict[int, float]:
    biases = {}
    for pair in pairs:
        token, _, bias = pair.partition("=")
        try:
            biases[int(token)] = float(bias)
        except ValueError:
            raise click.UsageError(f"--logit-bias takes ID=BIAS, not {pair!r}.") from None
    return biases


def _standard_input() -> str:
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise click.UsageError(f"Standard input is no UTF-8: {error}.") from None


def _within(timeout_s: float, events: Iterator[Event]) -> Iterator[Event]:
    with within(timeout_s, "the output was not complete"):
        yield from events


def _clipped(max_tokens: int | None, events: Iterator[Event]) -> Iterator[Event]:
    """Pass the events on, and say on stderr where the context has no room for as many tokens as were asked for."""
    for event in events:
        if isinstance(event, Started) and max_tokens and 0 < event.max_tokens < max_tokens:
            room = event.max_tokens
            click.echo(
                f"--max-tokens is {max_tokens}, and the context has room for {room}: no more will come",
                err=True,
            )
        yield event


def _streamed(events: Iterator[Event]) -> Iterator[Event]:
    """Pass the events on, their text to the terminal, and the name for `migrate` to stderr, while it is of use.

    An error amid the text is told on a line of its own.
    """
    amid = False
    try:
        for event in events:
            if isinstance(event, Started):
                click.echo(f"request {event.request_id}", err=True)
            if isinstance(event, Delta):
                text = (event.prompt.text if event.prompt else "") + event.text
                click.echo(text, nl=False)
                amid = amid or bool(text)
            yield event
    except (PenstockError, click.ClickException):
        if amid:
            click.echo()
        raise


def report(whole: Completion) -> dict[str, Any]:
    """What `--json` prints."""
    return asdict(whole)


def _tell(whole: Completion) -> None:
    """End the streamed text, or tell the ids of a model that has no tokenizer; then what it took, on stderr."""
    click.echo("" if whole.text else " ".join(map(str, whole.token_ids)))
    for token, told in zip(whole.token_ids, whole.logprobs, strict=False):
        others = " ".join(f"{other}:{logprob:.3f}" for other, logprob in told.top)
        click.echo(f"{token:8} {told.logprob:9.3f}  {others}".rstrip())
    usage = whole.usage
    parts = ", ".join(f"{segment.instance} {segment.tokens}" for segment in whole.segments)
    Console(stderr=True, highlight=False).print(
        f"[dim]{usage.prompt_tokens} tokens in, {usage.completion_tokens} out ({parts}); ended by {whole.reason}; "
        f"request {whole.request_id}, seed {whole.seed}[/dim]",
        soft_wrap=True,
    )

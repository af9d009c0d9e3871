"""`model`: endpoints with their limits, prices and keys; and one real call to see whether one works."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import click

from ai_worker import formats
from ai_worker.cli import context
from ai_worker.cli.keys import read_secret
from ai_worker.cli.money import Usd
from ai_worker.config import Settings
from ai_worker.errors import EXIT_DONE, EXIT_FAILED, ConfigurationError, ProviderError, UsageError
from ai_worker.models import Model, Secret

F = TypeVar("F", bound=Callable[..., Any])


_PRICE = Usd("a price; give US dollars per million tokens, for example 0.25", zero=True, places=6)

# Options of `add` and `set` alike: click's name of the parameter -> the field of Model.
_FIELDS = {
    "provider": "provider",
    "model": "model",
    "base_url": "base_url",
    "rpm": "max_requests_per_minute",
    "tpm": "max_tokens_per_minute",
    "max_in_flight": "max_in_flight",
    "price_input": "price_input",
    "price_cached": "price_cached",
    "price_output": "price_output",
    "budget_per_day": "budget_per_day",
}
_UNSETTABLE = [name.replace("_", "-") for name in _FIELDS if name != "provider"] + ["api-key"]


def _model_options(command: F) -> F:
    for option in reversed(
        (
            click.option("--model", help="Name of the model at the provider, for example gpt-5.5."),
            click.option("--base-url", help="Endpoint, where it is not the provider's own."),
            click.option(
                "--api-key-file",
                type=click.Path(exists=True, dir_okay=False, path_type=Path),
                help="File with the API key. It is stored encrypted.",
            ),
            click.option("--api-key-stdin", is_flag=True, help="Read the API key from standard input."),
            click.option(
                "--rpm",
                type=click.IntRange(1, 4294967295),
                help="Requests per minute of the whole fleet.  [default: learnt from the provider]",
            ),
            click.option(
                "--tpm",
                type=click.IntRange(1, 4294967295),
                help="Tokens per minute of the whole fleet, sent and answered.  [default: learnt from the provider]",
            ),
            click.option(
                "--max-in-flight",
                type=click.IntRange(1, 4294967295),
                help="Calls in flight on this model, of the whole fleet.",
            ),
            click.option("--price-input", type=_PRICE, help="USD per million input tokens; overrules the list price."),
            click.option("--price-cached", type=_PRICE, help="USD per million cached input tokens."),
            click.option("--price-output", type=_PRICE, help="USD per million output tokens."),
            click.option("--budget-per-day", type=Usd(), help="What the fleet may spend on it per day, by UTC."),
            click.option(
                "--option",
                "options",
                multiple=True,
                metavar="KEY=VALUE",
                help="Option of the provider; the value is JSON where it can be, else text. Repeatable.",
            ),
        )
    ):
        command = option(command)
    return command


@click.group()
def model() -> None:
    """Endpoints, limits, prices and encrypted keys.

    A model here is one endpoint, one model name, one key and its limits; tasks name it.
    """


@model.command()
@click.argument("name")
@click.option(
    "--provider", required=True, help="openai (and every server that speaks its protocol), gemini, offline, echo, or a plug-in's."
)
@_model_options
def add(name: str, api_key_file: Path | None, api_key_stdin: bool, options: tuple[str, ...], **given: Any) -> None:
    """Add a model under a NAME of your choice.

    \b
    ai-worker model add gpt --provider openai --model gpt-5.5 --api-key-file key.txt --max-in-flight 50
    ai-worker model add local --provider openai --base-url http://127.0.0.1:8000/v1 --model qwen3
    ai-worker model add try --provider offline
    """
    settings = context.settings()
    api_key = _api_key(api_key_file, api_key_stdin)
    new = Model(0, name, **{_FIELDS[key]: value for key, value in given.items()}, options=_parsed(options))
    ring = context.keyring(settings)
    if api_key is not None:
        ring.encrypt(0, api_key)  # fails before anything is stored
    _check(settings, new, api_key)
    with context.database(settings) as db:
        from ai_worker.store.models import Models

        number = Models(db).add(new, None if api_key is None else lambda id_ai_model: ring.encrypt(id_ai_model, api_key))
    click.echo(f"Model {name} added (id_ai_model {number}). Try it with `ai-worker model test {name}`.")


@model.command("set")
@click.argument("name")
@click.option("--provider", help="Another provider.")
@click.option("--name", "new_name", help="Another name.")
@_model_options
@click.option("--active/--inactive", "is_active", default=None, help="Inactive models are left alone by the workers.")
@click.option("--unset", multiple=True, type=click.Choice(_UNSETTABLE), help="Take a value away. Repeatable.")
@click.option("--unset-option", multiple=True, metavar="KEY", help="Take an option of the provider away. Repeatable.")
@click.option("--reset", is_flag=True, help="Let it go if it was stopped, and forget what was learnt of its limits.")
def set_(
    name: str,
    new_name: str | None,
    api_key_file: Path | None,
    api_key_stdin: bool,
    options: tuple[str, ...],
    is_active: bool | None,
    unset: tuple[str, ...],
    unset_option: tuple[str, ...],
    reset: bool,
    **given: Any,
) -> None:
    """Change what is given, leave the rest of model NAME as it is."""
    from ai_worker.store.models import Changes, Models

    settings = context.settings()
    api_key = _api_key(api_key_file, api_key_stdin)
    changes: dict[str, Any] = {_FIELDS[key]: value for key, value in given.items() if value is not None}
    changes |= {_FIELDS[key.replace("-", "_")]: None for key in unset if key != "api-key"}
    if new_name is not None:
        changes["name"] = new_name
    if is_active is not None:
        changes["is_active"] = is_active
    with context.database(settings) as db:
        models = Models(db)
        present = models.get(name)
        if options or unset_option:
            kept = {key: value for key, value in present.options.items() if key not in unset_option}
            changes["options"] = kept | _parsed(options)
        if not changes and api_key is None and "api-key" not in unset and not reset:
            raise UsageError("nothing to change; see `ai-worker model set --help`")
        sealed = context.keyring(settings).encrypt(present.id_ai_model, api_key) if api_key else None
        if changes.keys() & {"provider", "model", "base_url", "options"}:  # putting a price right must not need a sound model
            _check(settings, replace(present, **changes), api_key or Secret("any"))  # the stored key stays closed
        if changes:
            models.set(present.id_ai_model, **Changes(**changes))  # type: ignore[typeddict-item]  # built from _FIELDS above
        if sealed is not None or "api-key" in unset:
            models.set_key(present.id_ai_model, sealed)
        if reset:
            models.reset(present.id_ai_model)
        changed = models.get(present.id_ai_model)
    click.echo(f"Model {changed.name} changed.")
    if changed.stopped_kind:  # whatever stopped it may be put right now, but nobody has tried
        click.echo(f"It is still stopped; `ai-worker model test {shlex.quote(changed.name)}` lets it go.")


@model.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(as_json: bool) -> None:
    """Show all models. Keys are not shown, only whether there is one."""
    from ai_worker.store.models import Models

    with context.database() as db:
        models = Models(db).all()
    if as_json:
        context.emit_json([_as_json(each) for each in models])
    elif not models:
        click.echo("No models yet. `ai-worker model add NAME --provider offline` makes one that needs no key.")
    else:
        headings = ("ID", "NAME", "PROVIDER", "MODEL", "KEY", "RPM", "TPM", "IN FLIGHT", "USD/M IN", "USD/M OUT", "STATE")
        context.emit_table(headings, [_as_row(each) for each in models], right=(0, 5, 6, 7, 8, 9))
        for each in models:
            if each.stopped_kind:
                click.echo(f"\n{each.name} is stopped ({each.stopped_kind}): {each.stopped_reason}")
                click.echo(f"  When that is put right, run `ai-worker model test {each.name}`.")


@model.command()
@click.argument("name")
def remove(name: str) -> None:
    """Remove model NAME. One that tasks use stays: make it inactive instead."""
    from ai_worker.store.models import Models

    with context.database() as db:
        Models(db).remove(name)
    click.echo(f"Model {name} removed.")


@model.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def test(name: str, as_json: bool) -> int:
    """Make one small real call to model NAME, and show its latency, limits and price; costs a few hundred tokens.

    A model that the workers have stopped and that answers is given free again.
    """
    from ai_worker.cli.model_trial import try_model
    from ai_worker.store.models import Models

    settings = context.settings()
    with context.database(settings) as db:
        models = Models(db)
        found = models.get(name)
        api_key = None
        if found.api_key_encrypted is not None:
            api_key = context.keyring(settings).decrypt(found.id_ai_model, found.api_key_encrypted, found.name)
        report = try_model(found, api_key, settings.request_timeout_seconds)
        report["resumed"] = models.resume(found.id_ai_model) if report["ok"] else False
    if as_json:
        context.emit_json(report)
    elif report["ok"]:
        tokens = f"{report['tokens_input']} + {report['tokens_output']} tokens"
        click.echo(f"{name} answered in {report['latency_ms']} ms: {tokens}, cost {formats.money(report['cost'])}.")
        click.echo(f"  sent      {report['text']}\n  received  {report['answer']}")
        click.echo(f"  limits    {_limits(report['limits'])}\n  price     {_price(report['price'], name)}")
        if report["resumed"]:
            click.echo("It was stopped and is given free again.")
    else:
        click.echo(f"{name} gave no usable answer ({report['error_kind']}): {report['error']}")
        click.echo(f"  {report['remedy']}")
    return EXIT_DONE if report["ok"] else EXIT_FAILED


def _limits(limits: dict[str, int | None]) -> str:
    words = {"requests_per_minute": "requests/min", "tokens_per_minute": "tokens/min", "in_flight": "calls in flight"}
    told = [f"{formats.number(limits[key])} {word}" for key, word in words.items() if limits[key] is not None]
    said = [
        f"{formats.number(limits[f'provider_{key}'])} {word}"
        for key, word in words.items()
        if limits.get(f"provider_{key}") is not None
    ]
    if said:
        told.append(f"the provider says {' and '.join(said)}")
    return ", ".join(told) or "none set, and the provider says none: they are learnt when it refuses calls"


def _price(price: dict[str, Any] | None, name: str) -> str:
    if price is None:
        return f"unknown, and so is what tasks cost: `ai-worker model set {name} --price-input … --price-output …`"
    if price["source"] == "free":
        return "free"
    where = {"set": "as set here", "list": "by the list of genai-prices"}[price["source"]]
    per_million = "/".join(f"{price[key].normalize():f}" for key in ("input", "cached", "output"))
    return f"{per_million} USD per million tokens in/cached/out, {where}"


def _api_key(file: Path | None, stdin: bool) -> Secret | None:
    """The key, from where the command line says. Never from an argument: those show in process lists and shell histories."""
    if file is not None and stdin:
        raise UsageError("give either --api-key-file or --api-key-stdin")
    if file is not None:
        return Secret(read_secret(file))
    if not stdin:
        return None
    text = click.prompt("API key", hide_input=True, err=True) if sys.stdin.isatty() else sys.stdin.read()
    if not text.strip():
        raise UsageError("there is no API key on standard input")
    return Secret(text.strip())


def _parsed(options: Iterable[str]) -> dict[str, Any]:
    """`KEY=VALUE` pairs; a value is JSON where it can be (numbers, true, objects), else the text itself."""
    found: dict[str, Any] = {}
    for option in options:
        key, equals, text = option.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"--option takes KEY=VALUE, not {option!r}")
        try:
            found[key.strip()] = json.loads(text)
        except ValueError:
            found[key.strip()] = text
    return found


def _check(settings: Settings, model: Model, api_key: Secret | None) -> None:
    """Raises ConfigurationError or UsageError when the provider cannot be made of this. Calls nobody."""
    from ai_worker.cli.model_trial import make_provider

    try:
        make_provider(model, api_key, settings.request_timeout_seconds)
    except (ConfigurationError, ProviderError) as error:
        raise UsageError(str(error)) from None


def _state(model: Model) -> str:
    if not model.is_active:
        return "inactive"
    return f"stopped: {model.stopped_kind}" if model.stopped_kind else "ready"


def _as_row(model: Model) -> tuple[object, ...]:
    from ai_worker.prices import price

    found = price(model)
    return (
        model.id_ai_model,
        model.name,
        model.provider,
        model.model,
        "yes" if model.api_key_encrypted else None,
        formats.number(model.max_requests_per_minute),
        formats.number(model.max_tokens_per_minute),
        formats.number(model.max_in_flight),
        None if found is None else f"{found.input.normalize():f}",
        None if found is None else f"{found.output.normalize():f}",
        _state(model),
    )


def _with_headers_hidden(options: Mapping[str, Any]) -> dict[str, Any]:
    """What is sent in headers of a model's own may be a second key, whatever the header is called; so may a text where an object
    is wanted, as plain SQL can write one."""
    shown = dict(options)
    for name in ("headers", "extra_body"):
        if name in shown and not isinstance(shown[name], Mapping):
            shown[name] = "***"
        elif name == "headers" and name in shown:
            shown[name] = dict.fromkeys(shown[name], "***")
    return shown


def _as_json(model: Model) -> dict[str, Any]:
    from ai_worker.log import redacted, redacted_text

    stopped = {
        "kind": model.stopped_kind,
        "reason": model.stopped_reason,
        "stopped_at": model.stopped_at,
        "probe_at": model.probe_at,
    }
    return {
        "id_ai_model": model.id_ai_model,
        "name": model.name,
        "provider": model.provider,
        "model": model.model,
        "base_url": model.base_url and redacted_text(model.base_url),
        "has_api_key": model.api_key_encrypted is not None,
        "options": redacted(_with_headers_hidden(model.options)),
        "max_requests_per_minute": model.max_requests_per_minute,
        "max_tokens_per_minute": model.max_tokens_per_minute,
        "max_in_flight": model.max_in_flight,
        "price_input": model.price_input,
        "price_cached": model.price_cached,
        "price_output": model.price_output,
        "budget_per_day": model.budget_per_day,
        "is_active": model.is_active,
        "stopped": stopped if model.stopped_kind else None,
    }

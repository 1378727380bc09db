"""`EndpointSettings` as command-line options, the same for every command that asks a chat model."""

import argparse
from dataclasses import MISSING, fields
from typing import Any, get_args, get_type_hints

from longvid_train.endpoint.settings import EndpointSettings

_HELP = {
    "base_url": "address in front of /chat/completions, e.g. https://api.openai.com/v1",
    "model": "name of the model there",
    "cache": "folder of replies, shared between runs: what was answered once is never paid again",
    "api_key_env": "environment variable that holds the API key; '' for a server without keys",
    "temperature": "sampling temperature (the endpoint's own)",
    "max_tokens": "ceiling on the tokens of a reply (the endpoint's own)",
    "seed": "seed of sampling, where the endpoint knows one",
    "timeout_s": "seconds one request may take in all",
    "max_attempts": "times a request is sent before the endpoint counts as down",
    "max_wait_s": "longest wait between two attempts",
    "format_tries": "replies asked for until one has the form asked for",
    "concurrency": "requests under way at once",
    "requests_per_minute": "ceiling over any 60 s (none)",
    "tokens_per_minute": "ceiling over any 60 s, prompt and reply together (none)",
    "usd_per_million_prompt_tokens": "price, to count the cost",
    "usd_per_million_completion_tokens": "price of the reply's tokens",
    "max_cost_usd": "stop once the replies of this run have cost this much",
}


def add_endpoint_arguments(parser: argparse.ArgumentParser, prefix: str) -> None:
    """Declare one option a setting, ``--PREFIX-base-url`` and so on."""
    group = parser.add_argument_group(f"the {prefix}: a chat model behind an OpenAI-compatible endpoint")
    types = get_type_hints(EndpointSettings)
    for setting in fields(EndpointSettings):
        required = setting.default is MISSING
        group.add_argument(
            f"--{prefix}-{setting.name.replace('_', '-')}",
            type=_value_type(types[setting.name]),
            required=required,
            default=None if required else setting.default,
            help=_HELP[setting.name] + ("" if required or setting.default is None else f" ({setting.default})"),
        )


def endpoint_settings(arguments: argparse.Namespace, prefix: str) -> EndpointSettings:
    """The settings that the options hold.

    Raises:
        UserError: a value is out of its range.
    """
    values = {setting.name: getattr(arguments, f"{prefix}_{setting.name}") for setting in fields(EndpointSettings)}
    return EndpointSettings(**values)


def _value_type(annotation: Any) -> Any:
    """``int`` of ``int | None``."""
    return next((kind for kind in get_args(annotation) if kind is not type(None)), annotation)

"""Which judge, and by which rubrics."""

from dataclasses import MISSING, dataclass, fields

from longvid_train.adaptation.records import as_mapping, check_keys, construct, read_value
from longvid_train.endpoint.settings import EndpointSettings
from longvid_train.errors import UserError
from longvid_train.evaluation.judging.rubric import RUBRICS, check_rubric

_RUBRICS = "rubrics"
_HINTS = {
    "base_url": str,
    "model": str,
    "cache": str,
    "api_key_env": str,
    "temperature": float | None,
    "max_tokens": int | None,
    "seed": int | None,
    "timeout_s": float,
    "max_attempts": int,
    "max_wait_s": float,
    "format_tries": int,
    "concurrency": int,
    "requests_per_minute": int | None,
    "tokens_per_minute": int | None,
    "usd_per_million_prompt_tokens": float | None,
    "usd_per_million_completion_tokens": float | None,
    "max_cost_usd": float | None,
}


@dataclass(frozen=True, kw_only=True)
class JudgeSettings:
    """A judge.

    Attributes:
        rubrics: what is judged, one after the other: names of ``rubric.RUBRICS``.
        endpoint: the chat model that judges.
    """

    rubrics: tuple[str, ...]
    endpoint: EndpointSettings

    def __post_init__(self) -> None:
        """Refuse an unknown rubric, and none."""
        if not self.rubrics:
            raise UserError(f"rubrics is empty; name some of {', '.join(RUBRICS)}")
        for name in self.rubrics:
            check_rubric(name)


def read_judge(values: object, where: str) -> JudgeSettings:
    """Read plain values: ``rubrics`` and the fields of `EndpointSettings`.

    Raises:
        UserError: a key is unknown or missing, or a value cannot be used.
    """
    given = as_mapping(values, where)
    check_keys(given, (_RUBRICS, *_HINTS), where)
    required = [_RUBRICS, *(one.name for one in fields(EndpointSettings) if one.default is MISSING)]
    for name in required:
        if name not in given:
            raise UserError(f"{where}: '{name}' is missing; a judge needs {', '.join(required)}")
    parsed = {name: read_value(_HINTS[name], given[name], f"{where}: {name}") for name in _HINTS if name in given}
    endpoint = construct(EndpointSettings, parsed, where)
    rubrics = read_value(tuple[str, ...], given[_RUBRICS], f"{where}: {_RUBRICS}")
    return construct(JudgeSettings, {_RUBRICS: rubrics, "endpoint": endpoint}, where)

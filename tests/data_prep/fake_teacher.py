"""A teacher's replies in the form that each of our prompts asks for, told apart by the keys the prompt names."""

import json
import re
from typing import Any

_COUNT = re.compile(r"(?:Write (\d+) questions|- (\d+) under)")


def reply(request: dict[str, Any]) -> str:
    """The reply to a request; every question names the text's first word, so texts can be told apart."""
    prompt = request["messages"][0]["content"]
    text = prompt.split("=" * 12)[1].strip()
    subject = text.split()[0]
    if '"brief"' in prompt:
        return json.dumps({"brief": f"{subject}, briefly.", "detailed": f"{subject}, told\n\nin every detail."})
    if '"notes"' in prompt:
        return json.dumps({"notes": f"{subject} notes"})
    match = _COUNT.search(prompt)
    assert match is not None, prompt
    count = int(match[1] or match[2])
    names = ["plot", "character"] if '"character"' in prompt else ["pairs"]
    return json.dumps({name: [_pair(subject, name, number) for number in range(count)] for name in names})


def _pair(subject: str, name: str, number: int) -> dict[str, str]:
    return {"question": f"{name} question {number} about {subject}?", "answer": f"{name} answer {number}."}

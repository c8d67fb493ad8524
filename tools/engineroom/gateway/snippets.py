"""How to ask a gateway, to be pasted: with curl, and with the official client."""

import json
import shlex


def curl(url: str, model: str, question: str, *, chat: bool) -> str:
    """A command that streams the answer. ``chat``: the model has a chat template."""
    body = {"model": model} | _asked(question, chat=chat) | {"temperature": 0, "stream": True}
    path = "chat/completions" if chat else "completions"
    data = shlex.quote(json.dumps(body, ensure_ascii=False))
    return f"curl -N {url}/v1/{path} -H 'Content-Type: application/json' -d {data}"


def python(url: str, model: str, question: str, *, chat: bool) -> str:
    """A program for ``pip install openai`` that streams the answer."""
    asked = "".join(
        f"    {name}={json.dumps(value, ensure_ascii=False)},\n" for name, value in _asked(question, chat=chat).items()
    )
    call, piece = ("chat.completions", "delta.content") if chat else ("completions", "text")
    return f"""\
from openai import OpenAI

client = OpenAI(base_url="{url}/v1", api_key="none")
stream = client.{call}.create(
    model={json.dumps(model)},
{asked}    temperature=0,
    stream=True,
)
for chunk in stream:
    print(chunk.choices[0].{piece} or "", end="", flush=True)
print()
"""


def _asked(question: str, *, chat: bool) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": question}]} if chat else {"prompt": question, "max_tokens": 64}

"""Count the corpus with real tokenizers, and write the counts: `python -m tests.estimates.counting FOLDER`.

FOLDER has a `tokenizer.json` of each family in FAMILIES, as FAMILY.json: o200k.json, qwen3.json, llama3.json,
gpt-oss.json. They are not part of the project. The prompts are written as the families' chat templates do: gpt-oss'
and Qwen's from their published templates, Llama's with tools as JSON in the first user message, o200k with the
numbers that OpenAI documents (3 tokens per message and per reply, tools as declarations of TypeScript).
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

from tests.estimates.corpus import CHAT, Request, corpus

FAMILIES = ("o200k", "qwen3", "llama3", "gpt-oss")
COUNTS = Path(__file__).with_name("counts.txt")
HARMONY = (
    "You are ChatGPT, a large language model trained by OpenAI.\nKnowledge cutoff: 2024-06\n"
    "Current date: 2026-03-04\n\nReasoning: medium\n\n# Valid channels: analysis, commentary, final. Channel must be "
    "included for every message."
)
HARMONY_TOOLS = "\nCalls to these tools must go to the commentary channel: 'functions'."
QWEN_HEAD = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are provided with function "
    "signatures within <tools></tools> XML tags:\n<tools>"
)
QWEN_TAIL = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
    '<tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n'
    "</tool_call>"
)
LLAMA_TOOLS = (
    "Given the following functions, please respond with a JSON for a function call with its proper arguments that "
    'best answers the given prompt.\n\nRespond in the format {"name": function name, "parameters": dictionary of '
    "argument name and its value}. Do not use variables.\n\n"
)
LLAMA_DATE = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
Count = Callable[[str], int]


def chat_of(request: Request) -> tuple[list[tuple[str, str]], list[dict]]:
    """Return roles and texts, and the tools in the form of chat, from a body of any of the endpoints."""
    body = request.body
    messages = body.get("messages", body.get("input"))
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    system = body.get("system", body.get("instructions"))
    said = [("system", system)] if system else []
    for message in messages:
        content = message["content"]
        said.append((message["role"], content if isinstance(content, str) else content[0]["text"]))
    tools = body.get("tools", [])
    if request.tenant.endpoint is CHAT:
        return said, [tool["function"] for tool in tools]
    return said, [
        {
            "name": tool["name"],
            "description": tool["description"],
            "parameters": tool.get("parameters", tool.get("input_schema")),
        }
        for tool in tools
    ]


def typescript(tools: list[dict]) -> str:
    lines = ["# Tools\n\n## functions\n\nnamespace functions {\n"]
    for tool in tools:
        schema = tool["parameters"]
        lines.append(f"// {tool['description']}\ntype {tool['name']} = (_: {{")
        for name, field in schema["properties"].items():
            optional = "" if name in schema["required"] else "?"
            kind = "number" if field["type"] == "integer" else field["type"]
            lines.append(f"// {field['description']}\n{name}{optional}: {kind},")
        lines.append("}) => any;\n")
    lines.append("} // namespace functions")
    return "\n".join(lines)


def o200k(count: Count, said: list[tuple[str, str]], tools: list[dict]) -> int:
    each = sum(3 + count(role) + count(content) for role, content in said)
    return 3 + each + (count(typescript(tools)) if tools else 0)


def qwen3(count: Count, said: list[tuple[str, str]], tools: list[dict]) -> int:
    first = said[0][1] if said[0][0] == "system" else ""
    rest = said[1:] if first else said
    if tools:
        written = "".join("\n" + json.dumps({"type": "function", "function": tool}) for tool in tools)
        first = (first + "\n\n" if first else "") + QWEN_HEAD + written + QWEN_TAIL
    messages = [("system", first), *rest] if first else rest
    # <|im_start|>, role, line feed, text, <|im_end|>, line feed; then the head of the answer.
    return sum(2 + count(f"{role}\n{content}") + count("\n") for role, content in messages) + 3


def llama3(count: Count, said: list[tuple[str, str]], tools: list[dict]) -> int:
    system = said[0][1] if said[0][0] == "system" else ""
    rest = said[1:] if system else list(said)
    if tools:
        written = "".join(json.dumps({"type": "function", "function": t}, indent=4) + "\n\n" for t in tools)
        rest[0] = (rest[0][0], LLAMA_TOOLS + written + rest[0][1])
    head = ("Environment: ipython\n" if tools else "") + LLAMA_DATE
    # <|start_header_id|>, role, <|end_header_id|>, two line feeds, text, <|eot_id|>.
    each = [("system", head + system), *rest]
    return 1 + sum(3 + count(role) + count("\n\n" + content.strip()) for role, content in each) + 4


def gpt_oss(count: Count, said: list[tuple[str, str]], tools: list[dict]) -> int:
    total = 3 + count("system") + count(HARMONY + (HARMONY_TOOLS if tools else ""))
    developer = f"# Instructions\n\n{said[0][1]}\n\n" if said[0][0] == "system" else ""
    rest = said[1:] if developer else said
    if developer or tools:
        total += 3 + count("developer") + count(developer + (typescript(tools) if tools else ""))
    for role, content in rest:
        channel = 1 + count("final") if role == "assistant" else 0
        total += 3 + count(role) + channel + count(content)
    return total + 1 + count("assistant")


RENDERED = {"o200k": o200k, "qwen3": qwen3, "llama3": llama3, "gpt-oss": gpt_oss}


def main(folder: Path) -> None:
    from tokenizers import Tokenizer

    from extproc.core.request.body import prompt_texts, read_request
    from extproc.core.request.endpoints import Target

    counters: dict[str, Count] = {}
    for family in FAMILIES:
        tokenizer = Tokenizer.from_file(str(folder / f"{family}.json"))
        tokenizer.encode_special_tokens = True
        counters[family] = lambda text, encode=tokenizer.encode: len(encode(text, add_special_tokens=False))
    lines = []
    for request in corpus():
        said, tools = chat_of(request)
        target = Target(request.tenant.endpoint)
        texts = prompt_texts(target, read_request(target, request.sent, "application/json").prompt)
        numbers = []
        for family in FAMILIES:
            count = counters[family]
            numbers += [RENDERED[family](count, said, tools), sum(map(count, texts))]
        lines.append(" ".join(map(str, numbers)))
    COUNTS.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(lines)} requests counted with {', '.join(FAMILIES)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

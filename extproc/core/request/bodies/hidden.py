"""Tell whether a server adds text to the prompt that the body does not show, so that nothing bounds it."""

from functools import lru_cache
from typing import Final

import msgspec
from msgspec import Raw

from extproc.core.request.bodies.facts import FieldError
from extproc.core.request.bodies.json_body import AnyObject, JsonBody

# With these fields the server adds to the prompt, or runs the model again with more of it. A field that is null,
# false, empty or turned off by its mode adds nothing.
HIDING: Final = frozenset(
    {
        "tools",
        # An earlier session (SGLang), a client's own template (it may loop), embeddings instead of text, and the
        # splitting of media (vLLM).
        *("session_id", "session_params", "chat_template", "chat_template_kwargs", "prompt_embeds"),
        *("mm_processor_kwargs", "media_io_kwargs"),
        # Earlier conversations, stored prompts and other text that is kept at the server.
        *("previous_response_id", "conversation", "conversation_id", "thread_id", "context_management"),
        *("prompt_id", "prompt_template", "preset", "cached_content", "assistant_id", "agent_id", "bot_id"),
        *("file_ids", "files", "attachments", "collection_ids", "knowledge_base_ids"),
        # Searches: OpenAI, xAI, Qwen, Perplexity, Groq, Hunyuan, Baidu.
        *("web_search_options", "web_search", "search_parameters", "enable_search", "search_options"),
        *("search_settings", "search_mode", "search_context_size", "search_recency_filter"),
        *("search_domain_filter", "search_after_date_filter", "search_before_date_filter"),
        *("return_images", "return_related_questions", "enable_enhancement", "force_search_enhancement"),
        *("enable_search_classifier", "enable_deep_search", "search_info"),
        # Sources, and what is written into the prompt to have them cited.
        *("citations", "citation", "return_citations", "enable_citation", "citation_options", "citation_quality"),
        *("data_sources", "dataSources", "connectors", "retrieval", "rag_config"),
        # Tools under other names: plugins (OpenRouter), MCP, containers and skills (Anthropic), Groq's compound.
        *("plugins", "mcp_servers", "container", "skills", "integrations", "tool_ids", "tool_groups"),
        *("compound_custom", "builtin_tools", "server_tools", "code_execution"),
    }
)
# What a client gives its chat's template; the client's own template may be among it.
TEMPLATE_VALUES: Final = "chat_template_kwargs"
_NO_TEMPLATE: Final = frozenset({b"", b"null"})
_READ_APART: Final = frozenset({"tools", TEMPLATE_VALUES})
_OFF: Final = frozenset({b"false", b"[]", b'""', b'"off"', b'"none"', b'"disabled"', b'"OFF"', b'"DISABLED"'})
_MODES: Final = ("off", "none", "disabled")
# Models that search, or run tools, whatever the body says: OpenAI's, Google's, xAI's; Perplexity's, Groq's.
_SEARCHING: Final = ("-search-preview", "-search-api", "deep-research", "-deepsearch")
_SEARCHERS: Final = ("sonar", "compound")
_ONLINE: Final = (":online", "-online")  # endings of OpenRouter and of Perplexity for a model with a search
_PRESET: Final = "@preset/"  # OpenRouter: a system prompt that is kept there
_MAX_TOOLS: Final = 1024
# The client defines these tools. The server defines all others: it describes them in the prompt, and runs most of
# them itself.
_DEFINED_BY_CLIENT: Final = frozenset({"function", "custom"})


class _Tool(msgspec.Struct, gc=False):
    type: str | None = None
    function: Raw = Raw()
    name: Raw = Raw()


class _TemplateValues(msgspec.Struct, gc=False):
    chat_template: Raw = Raw()


class _Mode(msgspec.Struct, gc=False):
    mode: str | None = None
    type: str | None = None
    enabled: bool | None = None
    enable: bool | None = None


_elements_or_none: Final = msgspec.json.Decoder(list[AnyObject] | None).decode
_tools: Final = msgspec.json.Decoder(list[_Tool] | None).decode
_mode: Final = msgspec.json.Decoder(_Mode).decode
_template_values: Final = msgspec.json.Decoder(_TemplateValues | None).decode


def hides_prompt(body: JsonBody) -> bool:
    """Return whether the body asks the server to add to the prompt: tools of its own, searches, stored text.

    Raise `FieldError` if the tools are none.
    """
    found = HIDING.intersection(body.fields)
    if "tools" in found and _has_tools_of_the_server(body):
        return True
    if TEMPLATE_VALUES in found and brings_template(body):
        return True
    return bool(found) and any(name not in _READ_APART and _is_on(body, name) for name in found)


def brings_template(body: JsonBody) -> bool:
    """Return whether the values for the chat's template hold a template, which takes the place of the server's."""
    try:
        values = _template_values(body.fields.get(TEMPLATE_VALUES, Raw(b"null")))
    except (msgspec.DecodeError, UnicodeError):
        return False  # no object: the server will refuse it
    return values is not None and bytes(values.chat_template) not in _NO_TEMPLATE


@lru_cache(maxsize=1024)
def adds_by_name(model: str) -> bool:
    """Return whether the model searches, or has a stored prompt, by its name. The letter case does not count."""
    name = model.lower()
    if name.endswith(_ONLINE) or name.rpartition("/")[2].startswith(_SEARCHERS):
        return True
    return _PRESET in name or any(part in name for part in _SEARCHING)


def _is_on(body: JsonBody, name: str) -> bool:
    raw = body.fields[name]
    if not body.given(name) or bytes(raw) in _OFF:
        return False
    try:
        said = _mode(raw)
    except (msgspec.DecodeError, UnicodeError):
        return True
    return (
        said.mode not in _MODES
        and said.type not in _MODES
        and said.enabled is not False
        and said.enable is not False
    )


def _has_tools_of_the_server(body: JsonBody) -> bool:
    rule = f"an array of at most {_MAX_TOOLS} tools"
    # Each tool is an object, so most bodies need no count of their elements.
    may_be_many = bytes(body.fields["tools"]).count(b"{") > _MAX_TOOLS
    if may_be_many and len(body.read("tools", _elements_or_none, rule) or ()) > _MAX_TOOLS:
        raise FieldError("tools", rule)
    tools = body.read("tools", _tools, rule) or ()
    return any(tool.type not in _DEFINED_BY_CLIENT and not _is_untyped_function(tool) for tool in tools)


def _is_untyped_function(tool: _Tool) -> bool:
    """Return whether a tool without a type is the client's: it has a name (Anthropic) or a function (chats)."""
    return tool.type is None and (bool(tool.function) or bool(tool.name))

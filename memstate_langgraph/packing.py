"""Small texts made smaller: deflate with a dictionary of the words that LangGraph's checkpoints are made of.

A message of a chat is some hundred bytes, most of them the names of its fields; without a dictionary there is
nothing for a compressor to find in it. The dictionary is part of the format: what it packed, only it unpacks.
"""

from __future__ import annotations

import zlib

SHORTEST = 1024
"""Bytes below which the time is worth more than what would be saved; small chunks are packed when they are merged."""
_PACKED = "z1:"
_CHECKED = "c1:"
# rarest first: deflate reaches back to the end of a dictionary most cheaply
_DICTIONARY = b"".join(
    word.encode()
    for word in (
        "langchain_core.messages.function", "FunctionMessage", "langchain_core.documents.base", "Document",
        "page_content", "langgraph.types", "Send", "Interrupt", "Command", "graph", "node", "args", "datetime",
        "fromisoformat", "finish_reason", "stop", "end_turn", "tool_use", "model_name", "model_provider",
        "token_usage", "completion_tokens", "prompt_tokens", "total_tokens", "input_token_details",
        "output_token_details", "cache_read", "reasoning", "input_tokens", "output_tokens", "text", "tool_call",
        "langchain_core.messages.system", "SystemMessage", "langchain_core.messages.tool", "ToolMessage",
        "tool_call_id", "artifact", "status", "success", "error", "pending_sends", "updated_channels", "parents",
        "source", "input", "loop", "update", "fork", "step", "run_id", "counters_since_delta_snapshot",
        "versions_seen", "__input__", "__interrupt__", "__start__", "branch:to:", "channel_versions", "messages",
        "0000000001.0000000002.0000000003.", "2026-01-01T00:00:00.000000+00:00", "1f0c", "-6", "-bf", "-8000-",
        "langchain_core.messages.human", "HumanMessage", "human", "example", "langchain_core.messages.ai",
        "AIMessage", "content", "additional_kwargs", "response_metadata", "type", "ai", "name", "id", "tool_calls",
        "invalid_tool_calls", "usage_metadata", "model_validate_json",
    )
)  # fmt: skip


def pack(data: bytes) -> bytes | None:
    """The data packed, or None if that would not make it smaller."""
    if len(data) < SHORTEST:
        return None
    # no more of a window than there is to look back at: for most texts, preparing a full one takes longer than packing
    window = min(15, max(12, (len(_DICTIONARY) + len(data)).bit_length()))
    press = zlib.compressobj(1, zlib.DEFLATED, -window, window - 6, zlib.Z_DEFAULT_STRATEGY, _DICTIONARY)
    packed = press.compress(data) + press.flush()
    return packed if len(packed) < len(data) else None


def unpack(packed: bytes) -> bytes:
    """Raises `zlib.error` if the data is not what `pack` made."""
    press = zlib.decompressobj(-15, _DICTIONARY)
    data = press.decompress(packed) + press.flush()
    if not press.eof:
        raise zlib.error("the end is missing")
    return data


def pack_typed(kind: str, data: bytes) -> tuple[str, bytes]:
    """What a serializer made, with a checksum, packed if that pays; `kind` says how."""
    if "+" in kind:  # what is encrypted has nothing to find, and its cipher notices damage
        return kind, data
    data += zlib.crc32(data).to_bytes(4)
    packed = pack(data) if len(data) >= SHORTEST else None
    return (_CHECKED + kind, data) if packed is None else (_PACKED + kind, packed)


def unpack_typed(kind: str, data: bytes) -> tuple[str, bytes]:
    """Raises `zlib.error` if the data is not what `pack_typed` made."""
    if kind.startswith(_PACKED):
        kind, data = kind[len(_PACKED) :], unpack(data)
    elif kind.startswith(_CHECKED):
        kind = kind[len(_CHECKED) :]
    else:
        return kind, data
    if zlib.crc32(data[:-4]).to_bytes(4) != data[-4:]:
        raise zlib.error("the checksum is wrong")
    return kind, data[:-4]

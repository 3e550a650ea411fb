"""Answer POST /v1/images/generations: pictures of one colour, counted like those of gpt-image."""

import struct
import zlib
from base64 import b64encode
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING, Literal

from extproc.local.model.api import ModelRequest
from extproc.local.model.errors import ApiError, malformed
from extproc.local.model.ledger import Kind
from extproc.local.model.plan import Planner
from extproc.local.model.service import Ready, Service, given, read_asked, read_json

if TYPE_CHECKING:
    from starlette.requests import Request

    from extproc.local.model.events import Document
    from extproc.local.model.sending import Reply

_MAX_IMAGES = 10
_SIDE = 16  # pixels; the cost does not depend on the picture's real size

# Output tokens of one picture by quality and size, as published for gpt-image-1.
_IMAGE_TOKENS = {
    "low": {"1024x1024": 272, "1024x1536": 408, "1536x1024": 400},
    "medium": {"1024x1024": 1056, "1024x1536": 1584, "1536x1024": 1568},
    "high": {"1024x1024": 4160, "1024x1536": 6240, "1536x1024": 6208},
}


class ImagesRequest(ModelRequest, frozen=True, kw_only=True):
    prompt: str
    n: int | None = None
    size: Literal["1024x1024", "1024x1536", "1536x1024", "auto"] | None = None
    quality: Literal["low", "medium", "high", "auto"] | None = None


async def generate_images(service: Service, request: "Request") -> "Reply":
    asked = read_asked(request)
    parsed, read = await read_json(request, ImagesRequest, partial(_prompt_tokens, service.planner))
    size = "1024x1024" if parsed.size in {None, "auto"} else str(parsed.size)
    quality = "medium" if parsed.quality in {None, "auto"} else str(parsed.quality)
    count = parsed.n or 1
    drawn = count * _IMAGE_TOKENS[quality][size]
    pictures = [b64encode(_picture(f"{index} {parsed.prompt}")).decode() for index in range(count)]
    document: Document = {
        "created": service.created,
        "background": "opaque",
        "data": [{"b64_json": picture} for picture in pictures],
        "output_format": "png",
        "quality": quality,
        "size": size,
        "usage": {
            "input_tokens": read,
            "input_tokens_details": {"image_tokens": 0, "text_tokens": read},
            "output_tokens": drawn,
            "output_tokens_details": {"image_tokens": drawn, "text_tokens": 0},
            "total_tokens": read + drawn,
        },
    }
    return given(service, asked, Ready(Kind.IMAGES, parsed.model, document, read, drawn))


def _prompt_tokens(planner: Planner, request: ImagesRequest) -> int:
    planner.check_model(request.model)
    if not request.prompt:
        raise malformed("prompt must be non-empty.", "prompt")
    if request.n is not None and not 1 <= request.n <= _MAX_IMAGES:
        raise ApiError(f"n must be between 1 and {_MAX_IMAGES}, got {request.n}.", param="n")
    return len(planner.input_tokens(request.prompt, "prompt"))


def _picture(prompt: str) -> bytes:
    """Return a PNG in the colour of the prompt."""
    colour = sha256(prompt.encode()).digest()[:3]
    # Eight bits for each of three colours; each row begins with its filter type (0: none).
    header = struct.pack(">IIBBBBB", _SIDE, _SIDE, 8, 2, 0, 0, 0)
    rows = (b"\0" + colour * _SIDE) * _SIDE
    chunks = (_chunk(b"IHDR", header), _chunk(b"IDAT", zlib.compress(rows)), _chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

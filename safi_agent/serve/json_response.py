"""JSON in ASCII: a model's text may contain lone surrogates, which UTF-8 cannot encode."""

import json
from typing import Any

from fastapi.responses import JSONResponse
from typing_extensions import override


class AsciiJSONResponse(JSONResponse):
    """A response with a JSON body in which all other characters are escaped."""

    @override
    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False).encode("ascii")

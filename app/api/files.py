"""Files to download: starlette's answer, but a Range that it cannot give is a problem, as every other failure is."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.responses import FileResponse
from starlette.types import Message, Receive, Scope, Send

from app.api.errors import BadRange, RangeBeyondEnd, refusals

BAD_RANGES = refusals("bad_range", "range_not_satisfiable")


class Download(FileResponse):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def checked(message: Message) -> None:
            match message:
                case {"type": "http.response.start", "status": 400}:
                    raise BadRange("Range is not of the form bytes=FIRST-LAST")
                case {"type": "http.response.start", "status": 416, "headers": headers}:
                    raise RangeBeyondEnd(Headers(raw=headers)["content-range"])
            await send(message)

        await super().__call__(scope, receive, checked)

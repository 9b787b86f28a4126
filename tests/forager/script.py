"""A small real server that answers as a script says."""

import asyncio
from contextlib import asynccontextmanager

from aiohttp import web

DJANGO_404 = (404, "<html><title>Page not found at /api/x</title></html>")


class Script:
    """Answers of a server by "METHOD route": a list is used up, but for its last, which stays.

    An answer is a status and text, JSON or headers, or a function that is called with the request.
    """

    def __init__(self, answers):
        self.answers = {key: list(value) for key, value in answers.items()}
        self.requests = []

    async def handle(self, request):
        key = f"{request.method} {request.path.removeprefix('/api/')}"
        self.requests.append((key, await request.read()))
        left = self.answers.get(key, [DJANGO_404])
        answer = left.pop(0) if len(left) > 1 else left[0]
        if callable(answer):
            result = answer(request)
            return await result if asyncio.iscoroutine(result) else result
        status, content, *headers = answer
        if isinstance(content, str):
            return web.Response(
                status=status, text=content, content_type="text/html", headers=dict(*headers)
            )
        return web.json_response(content, status=status, headers=dict(*headers))

    def count(self, key):
        return [asked for asked, _ in self.requests].count(key)


@asynccontextmanager
async def serve(script):
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", script.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()

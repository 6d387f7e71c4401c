"""Between Gradio and the network: what the page needs is let through, and no folder of the server is told or taken.

Gradio tells browsers where on its disk a file lies, and takes such a path back. Here that folder is called
`/lumina-files` on the way out, and only what is called so is taken on the way in.
"""

import json
import re
import typing as tp
from pathlib import Path

ALIAS = '/lumina-files'
_API = '/gradio_api'
# All that the page and gradio_client ask for. Gradio can do more (fetch other addresses on a visitor's behalf, show
# its own source, edit it), which nobody needs here.
_ROUTES = {
    'GET': re.compile(r'/|/config/?|/theme\.css|/favicon\.ico|/robots\.txt|/manifest\.json|/pwa_icon(/\d+)?|/logout/?'
                      r'|/(assets|static|svelte)/[^?#]*'
                      rf'|{_API}/(info/?|openapi\.json|app_id/?|user/?|token/?|login_check/?|startup-events|theme\.css'
                      r'|upload_progress|queue/(data|status)|heartbeat/[\w-]+|call/(v2/)?\w+/[\w-]+'
                      rf'|file={ALIAS}/[^?#]*)'),
    'POST': re.compile(r'/login/?'
                       rf'|{_API}/(queue/join/?|queue/data|cancel|reset/?|upload|(run|api)/\w+/?|call/(v2/)?\w+/?)'),
}
_FILE, _UPLOAD = f'{_API}/file=', f'{_API}/upload'
_APP = b'<gradio-app'
_TEXTS = (b'application/json', b'text/event-stream', b'text/html', b'text/plain')
_HEADERS = [(b'x-content-type-options', b'nosniff'), (b'referrer-policy', b'no-referrer')]
MAX_BODY = 2 ** 20  # of anything that is no upload

Scope = tp.MutableMapping[str, tp.Any]
Message = tp.MutableMapping[str, tp.Any]
Receive = tp.Callable[[], tp.Awaitable[Message]]
Send = tp.Callable[[Message], tp.Awaitable[None]]


class Guard:
    """ASGI middleware.

    Args:
        app: What it stands before. cache (Path): The only folder that files are served from.
        admit (callable): Told the bytes of an upload before it is read; why it is not taken, or nothing.
        front (str): HTML that stands in the page before Gradio's own, there before any script has run.
    """

    def __init__(self, app: tp.Any, cache: Path, admit: tp.Callable[[int], str] = lambda size: '', front: str = ''):
        self.app, self.cache, self.admit = app, cache, admit
        self._front = front.encode() + _APP
        self._real, self._alias = str(cache).encode(), ALIAS.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope['type'] != 'http':
            if scope['type'] == 'lifespan':
                await self.app(scope, receive, send)
            return  # no websockets
        path = scope['path']
        known = _ROUTES.get('GET' if scope['method'] == 'HEAD' else scope['method'])
        if known is None or not known.fullmatch(path):
            await _refuse(send, 404, 'There is no such page.')
            return
        if path.startswith(_FILE):
            file = self._file(path[len(_FILE):])
            if file is None:
                await _refuse(send, 404, 'There is no such file (any more).')
                return
            scope = {**scope, 'path': f'{_FILE}{file}', 'raw_path': f'{_FILE}{file}'.encode()}
        if path == _UPLOAD:
            size = dict(scope['headers']).get(b'content-length', b'')
            refused = self.admit(int(size)) if size.isdigit() else 'An upload must say how long it is.'
            if refused:
                await _refuse(send, 413, refused)
                return
        elif scope['method'] == 'POST':
            body = await _body(receive)
            if body is None:
                await _refuse(send, 413, 'That is too much text.')
                return
            scope, receive = self._inward(scope, body, receive)
        await self.app(scope, receive, self._outward(send))

    def _file(self, name: str) -> tp.Optional[Path]:
        """The file in the cache that an address means; None for anything else."""
        try:
            path = (self.cache / name.removeprefix(ALIAS).lstrip('/')).resolve()
            return path if path.is_relative_to(self.cache) and path.is_file() else None
        except (OSError, ValueError):
            return None

    def _inward(self, scope: Scope, body: bytes, receive: Receive) -> tp.Tuple[Scope, Receive]:
        """The request with files called by their real names; others' are made unknown."""
        try:
            body = json.dumps(self._real_paths(json.loads(body))).encode()
        except ValueError:
            pass  # a form, or nothing that Gradio will read either
        headers = [(name, value) for name, value in scope['headers'] if name != b'content-length']
        sent = False

        async def once() -> Message:
            nonlocal sent
            if sent:
                return await receive()  # tells when the client has left
            sent = True
            return {'type': 'http.request', 'body': body, 'more_body': False}
        return {**scope, 'headers': [*headers, (b'content-length', str(len(body)).encode())]}, once

    def _real_paths(self, value: tp.Any) -> tp.Any:
        if isinstance(value, dict):
            value = {key: self._real_paths(part) for key, part in value.items()}
            if isinstance(value.get('path'), str):  # of a file; its address elsewhere is never followed
                known = self._file(value['path']) if value['path'].startswith(f'{ALIAS}/') else None
                value.update(path=str(known or self.cache / 'gone'))
                value.pop('url', None)
            return value
        return [self._real_paths(part) for part in value] if isinstance(value, list) else value

    def _outward(self, send: Send) -> Send:
        """Send with the real folder called by its alias, in every text."""
        held: tp.List[Message] = []
        parts: tp.List[bytes] = []
        kind = b''

        async def forward(message: Message) -> None:
            nonlocal kind
            if message['type'] == 'http.response.start':
                message['headers'] = [*message.get('headers', []), *_HEADERS]
                kind = dict(message['headers']).get(b'content-type', b'').split(b';')[0].strip()
                if kind not in _TEXTS:
                    await send(message)
                elif kind == b'text/event-stream':
                    await send(message)
                else:
                    held.append(message)  # until its length is known
                return
            if message['type'] != 'http.response.body' or kind not in _TEXTS:
                await send(message)
            elif kind == b'text/event-stream':  # one event at a time, each whole
                await send({**message, 'body': self._hidden(message.get('body', b''))})
            else:
                parts.append(message.get('body', b''))
                if not message.get('more_body'):
                    await self._whole(held, b''.join(parts), send)
        return forward

    async def _whole(self, held: tp.List[Message], body: bytes, send: Send) -> None:
        body = self._hidden(body).replace(_APP, self._front, 1)
        for start in held:
            headers = [(name, value) for name, value in start['headers'] if name != b'content-length']
            await send({**start, 'headers': [*headers, (b'content-length', str(len(body)).encode())]})
        await send({'type': 'http.response.body', 'body': body, 'more_body': False})

    def _hidden(self, body: bytes) -> bytes:
        return body.replace(self._real, self._alias)


async def _body(receive: Receive) -> tp.Optional[bytes]:
    """A request's body, or None where it is larger than anything that a page sends."""
    parts, size, more = [], 0, True
    while more:
        message = await receive()
        if message['type'] != 'http.request':
            return None
        parts.append(message.get('body', b''))
        size += len(parts[-1])
        if size > MAX_BODY:
            return None
        more = message.get('more_body', False)
    return b''.join(parts)


async def _refuse(send: Send, status: int, text: str) -> None:
    body = text.encode()
    await send({'type': 'http.response.start', 'status': status, 'headers': [
        (b'content-type', b'text/plain; charset=utf-8'), (b'content-length', str(len(body)).encode()), *_HEADERS]})
    await send({'type': 'http.response.body', 'body': body, 'more_body': False})

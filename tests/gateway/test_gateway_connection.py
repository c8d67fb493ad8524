import asyncio
import socket
import struct
from typing import Any

import pytest
import uvicorn
from starlette.responses import PlainTextResponse
from uvicorn.server import ServerState

from engineroom.gateway.connection import Connection


@pytest.mark.parametrize("reset", [True, False], ids=["reset", "closed"])
def test_a_connection_that_is_gone_is_let_go_of_at_once(reset: bool) -> None:
    async def work() -> None:
        config = uvicorn.Config(PlainTextResponse("yes"), ws="none", lifespan="off", log_config=None)
        config.load()
        state, made = ServerState(), []

        def connection() -> Connection:
            made.append(Connection(config=config, server_state=state, app_state={}))
            return made[-1]

        server = await asyncio.get_running_loop().create_server(connection, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await reader.readuntil(b"yes")).startswith(b"HTTP/1.1 200")
        (kept,) = made
        assert kept.timeout_keep_alive_task is not None
        if reset:
            raw: Any = writer.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.close()
        while state.connections:
            await asyncio.sleep(0.001)

        assert kept.timeout_keep_alive_task is None
        server.close()

    asyncio.run(work())

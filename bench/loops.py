# SPDX-License-Identifier: Apache-2.0
"""HTTP servers on event loops of languages, on the port that is their argument; they close each connection behind the answer."""

NODE = 'require("http").createServer((q, r) => r.end("hello")).listen(+process.argv[1], "127.0.0.1")'
ASYNCIO = r"""
import asyncio, sys
async def serve(r, w):
    await r.readuntil(b"\r\n\r\n")
    w.write(b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello")
    await w.drain()
    w.close()
async def main():
    async with await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[1])) as s:
        await s.serve_forever()
asyncio.run(main())
"""

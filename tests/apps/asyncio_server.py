"""A line server: each line is answered with how many this connection has sent, and a digest of them all."""
import asyncio
import hashlib
import sys


async def ticker(state):
    while True:
        await asyncio.sleep(0.01)
        state["ticks"] += 1


async def serve(state, reader, writer):
    digest, n = hashlib.sha256(), 0
    while line := await reader.readline():
        if line == b"state\n":
            writer.write(b"%d %d\n" % (state["ticks"], state["lines"]))
        else:
            digest.update(line)
            n += 1
            state["lines"] += 1
            # part of the work is somebody else's, on a thread
            text = await asyncio.get_running_loop().run_in_executor(None, digest.hexdigest)
            writer.write(b"%d %s\n" % (n, text.encode()))
        await writer.drain()
    writer.close()


async def main(host, port):
    state = {"ticks": 0, "lines": 0}
    server = await asyncio.start_server(lambda r, w: serve(state, r, w), host, int(port))
    task = asyncio.create_task(ticker(state))
    async with server:
        await server.serve_forever()
    await task


asyncio.run(main(*sys.argv[1:]))

"""Many servers that say who they are, and many clients that check it.

usage: ports.py serve FIRST COUNT | dial HOST FIRST COUNT CONNECTIONS CONCURRENCY

Each server answers with its port and the client's address. A connection that
ends at another server than it dialled, or shows another peer than it dialled, is
an error.
"""
import asyncio
import random
import resource
import sys

limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))


async def serve(first, count):
    async def answer(reader, writer):
        port = writer.get_extra_info("sockname")[1]
        peer = writer.get_extra_info("peername")[0]
        if peer.startswith("::ffff:"):
            peer = peer[7:]
        writer.write(f"{port} {peer}\n".encode())
        await writer.drain()
        writer.close()

    for port in range(first, first + count):
        await asyncio.start_server(answer, ["0.0.0.0", "::"], port, backlog=512)
    print("ready", flush=True)
    await asyncio.Event().wait()


async def dial(host, first, count, connections, concurrency):
    gate = asyncio.Semaphore(concurrency)
    own = set()
    wrong = []

    async def one(number):
        port = first + random.randrange(count)
        async with gate:
            try:
                reader, writer = await asyncio.wait_for(asyncio.open_connection(host, port), 20)
                peer = writer.get_extra_info("peername")[:2]
                name = writer.get_extra_info("sockname")[0]
                line = (await asyncio.wait_for(reader.read(), 20)).decode().split()
                writer.close()
            except Exception as error:
                wrong.append(f"{host}:{port}: {error!r}")
                return
        if peer != (host, port):
            wrong.append(f"dialled {host}:{port}, getpeername says {peer}")
        elif line[:1] != [str(port)]:
            wrong.append(f"dialled {port}, reached {line}")
        elif line[1] != name:
            wrong.append(f"the server saw {line[1]}, the client is {name}")
        own.add(name)

    random.seed(1)
    await asyncio.gather(*(one(number) for number in range(connections)))
    if wrong:
        sys.exit(f"{len(wrong)} of {connections} wrong, such as: {wrong[:5]}")
    print(f"{connections} right, as {sorted(own)}")


if sys.argv[1] == "serve":
    asyncio.run(serve(int(sys.argv[2]), int(sys.argv[3])))
else:
    asyncio.run(dial(sys.argv[2], *map(int, sys.argv[3:7])))

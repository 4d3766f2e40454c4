"""Stands between a client and a node on 127.0.0.1, and prints its port: proxy.py gap NODE | proxy.py tls NODE CERT KEY

gap  passes WebSocket frames of /ws and of Socket.IO on, but swallows one `data_update` that a record named "swallow" is told with;
     the next connection gets everything.
tls  ends TLS with the certificate, and passes bytes on.
"""
import asyncio
import re
import ssl
import sys
import urllib.parse

import websockets

TOLD = re.compile(r'\{"event":"data_update",|42\["data_update",')


async def gap(node):
    swallowed = False

    async def relay(client):
        nonlocal swallowed
        headers = {k: v for k, v in client.request.headers.raw_items() if k.lower() == "authorization"}
        url = node.replace("http", "ws", 1) + client.request.path
        async with websockets.connect(url, additional_headers=headers, compression=None, max_size=None) as server:
            async def up():
                async for frame in client:
                    await server.send(frame)
                await server.close()

            going_up = asyncio.create_task(up())
            async for frame in server:
                if not swallowed and TOLD.match(frame) and '"swallow"' in frame:
                    swallowed = True
                    print("swallowed", flush=True)
                else:
                    await client.send(frame)
            going_up.cancel()

    return await websockets.serve(relay, "127.0.0.1", 0, compression=None, max_size=None)


async def tls(node, cert, key):
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert, key)
    host, port = urllib.parse.urlsplit(node).netloc.split(":")

    async def pump(reader, writer):
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        writer.close()

    async def relay(reader, writer):
        up_reader, up_writer = await asyncio.open_connection(host, int(port))
        await asyncio.gather(pump(reader, up_writer), pump(up_reader, writer))

    return await asyncio.start_server(relay, "127.0.0.1", 0, ssl=context)


async def main():
    kind, *args = sys.argv[1:]
    server = await {"gap": gap, "tls": tls}[kind](*args)
    print(list(server.sockets)[0].getsockname()[1], flush=True)
    await asyncio.Event().wait()


asyncio.run(main())

"""What the hop costs: modelkit's gRPC server in front of an engine's HTTP server, against reading that server directly.

    python benchmarks/token_path.py [--streams 16] [--tokens 2000] [--interval-ms 0] [--json]

The engine is a fake one in a process of its own that sends server-sent events, one a token, as fast as it is read or at
the pace of --interval-ms (13 is a 7B model on an H200): so the figures are the cost of the path itself. CPU time is that of the process in the middle (modelkit's server), and of
the reader in the direct case. The order is direct, modelkit, direct, modelkit, ...: the machine may be shared.
"""

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

import aiohttp

from modelkit import AsyncClient

TICKS = os.sysconf("SC_CLK_TCK")

ENGINE = """
import asyncio, sys
from aiohttp import web

INTERVAL_S = float(sys.argv[2]) / 1000
EVENT = b'data: {"id":"chatcmpl-0123456789abcdef","object":"chat.completion.chunk","created":1700000000,"model":"m",' \\
    b'"choices":[{"index":0,"delta":{"content":" token"},"logprobs":null,"finish_reason":null}]}\\n\\n'
LAST = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\\n\\ndata: {"choices":[],"usage":' \\
    b'{"prompt_tokens":1,"completion_tokens":1}}\\n\\ndata: [DONE]\\n\\n'

async def answer(request):
    body = await request.json()
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for number in range(body["max_tokens"]):
        await response.write(EVENT)
        if INTERVAL_S or number % 8 == 7:
            await asyncio.sleep(INTERVAL_S)
    await response.write(LAST)
    return response

async def models(request):
    return web.json_response({"data": [{"id": "m"}]})

app = web.Application()
app.add_routes([web.post("/v1/chat/completions", answer), web.get("/v1/models", models)])
web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None)
"""
FOLDER = {
    "config.yaml": "model: {id: m}\nengine: {name: openai, url: %s}\nserver: {max_concurrency: 1024}\n",
    "model.py": "from modelkit import LLM\n\n\nclass Chat(LLM):\n    pass\n",
    "requirements.txt": "",
}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def cpu_s(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def wait_for(port):
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)


async def read_directly(url, num_tokens):
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": num_tokens, "stream": True}
    num, end = 0, b""
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{url}/v1/chat/completions", json=body) as response,
    ):
        async for block in response.content.iter_any():
            num += (end + block).count(b'" token"')
            end = block[-7:]  # a token may be cut
    assert num == num_tokens


async def read_typed(client, num_tokens):
    num = 0
    async for piece in client.generate(prompt="Hi", max_tokens=num_tokens):
        num += piece.count("token")
    assert num == num_tokens


async def read_raw(client, num_tokens):
    msg = json.dumps({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": num_tokens})
    num = 0
    async for chunk in client.generate(msg=msg, method="openai_stream_transport"):
        num += '" token"' in chunk
    assert num == num_tokens


async def measure(pid, calls, num_tokens):
    """Return (wall µs per token, CPU µs per token of process `pid`)."""
    before, started = cpu_s(pid), time.perf_counter()
    await asyncio.gather(*calls)
    wall = time.perf_counter() - started
    return wall / num_tokens * 1e6, (cpu_s(pid) - before) / num_tokens * 1e6


async def run(options, url, address, server_pid):
    results = {"direct": [], "typed": [], "raw": []}
    total = options.streams * options.tokens
    async with AsyncClient(address) as client:
        for _ in range(options.repeats):
            for name, runs in results.items():
                read, source = {
                    "direct": (read_directly, url), "typed": (read_typed, client), "raw": (read_raw, client)
                }[name]  # fmt: skip
                pid = os.getpid() if name == "direct" else server_pid
                calls = [read(source, options.tokens) for _ in range(options.streams)]
                runs.append(await measure(pid, calls, total))
    return {
        name: {
            "wall_us_per_token": round(statistics.median(wall for wall, _ in runs), 2),
            "cpu_us_per_token": round(statistics.median(cpu for _, cpu in runs), 2),
        }
        for name, runs in results.items()
    }


def start_server(folder, url):
    for name, text in FOLDER.items():
        (folder / name).write_text(text.replace("%s", url))
    command = [
        sys.executable,
        "-m",
        "modelkit",
        "-q",
        "serve",
        str(folder),
        "--port",
        "0",
        "--no-http",
        "--json",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    return process, json.loads(process.stdout.readline())["address"]


def main():
    import tempfile

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--interval-ms", type=float, default=0.0, help="between two tokens of a stream")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    port = free_port()
    engine = subprocess.Popen([sys.executable, "-c", ENGINE, str(port), str(options.interval_ms)])
    wait_for(port)
    with tempfile.TemporaryDirectory() as folder:
        url = f"http://127.0.0.1:{port}"
        server, address = start_server(Path(folder), url)
        try:
            results = asyncio.run(run(options, url, address, server.pid))
        finally:
            for process in (server, engine):
                process.terminate()
                process.wait()
    if options.json:
        print(
            json.dumps(
                {
                    "streams": options.streams,
                    "tokens": options.tokens,
                    "interval_ms": options.interval_ms,
                    **results,
                }
            )
        )
        return
    print(f"{options.streams} streams of {options.tokens} tokens, median of {options.repeats}")
    for name, row in results.items():
        ratio = row["wall_us_per_token"] / results["direct"]["wall_us_per_token"]
        print(
            f"  {name:8}{row['wall_us_per_token']:8.1f} µs/token wall ({ratio:.2f}x){row['cpu_us_per_token']:8.1f} µs CPU"
        )


if __name__ == "__main__":
    main()

"""An engine for an image of tests: the part of vLLM's server that modelkit asks, with nothing but the standard library.

It answers with what it sees of the image: the pydantic that its own Python imports, which is not modelkit's.
"""

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pydantic

ANSWER = f"pydantic {pydantic.VERSION} in {sys.prefix}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.answer({"data": [{"id": "chat"}]} if self.path == "/v1/models" else {})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/tokenize":
            self.send_error(404)
        elif body.get("stream"):
            self.stream(is_chat=self.path.endswith("/chat/completions"))
        else:
            content = {"message": {"role": "assistant", "content": ANSWER}, "text": ANSWER}
            usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
            self.answer({"choices": [{"index": 0, "finish_reason": "stop", **content}], "usage": usage})

    def stream(self, *, is_chat):
        content = {"delta": {"content": ANSWER}} if is_chat else {"text": ANSWER}
        events = [
            {"choices": [{"index": 0, "finish_reason": "stop", **content}]},
            {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}},
        ]
        text = "".join(f"data: {event}\n\n" for event in [*map(json.dumps, events), "[DONE]"])
        self.reply(text.encode(), "text/event-stream")

    def answer(self, value):
        self.reply(json.dumps(value).encode(), "application/json")

    def reply(self, content, kind):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    port = int(sys.argv[sys.argv.index("--port") + 1])
    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()

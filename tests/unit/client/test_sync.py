import asyncio
import copy
import inspect
import os
import pydoc
import queue
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack

import pytest

from modelkit.client import AsyncRemoteMethod, Chunk, Client, RemoteMethod, Usage
from modelkit.errors import (
    CancelledCallError,
    DeadlineExceededError,
    InternalError,
    InvalidArgumentError,
    MethodNotFoundError,
    UnavailableError,
)
from unit.client.scripted_server import CHANGED_METHODS, HealthServicer, WithoutWatch, free_port, running


def test_predict_returns_the_value_and_call_all_of_it(client):
    assert client.predict(a=[1, None, "x"]) == {"a": [1, None, "x"]}
    response = client.call(a=1)
    assert response.value == {"a": 1}
    assert response.usage == Usage(prompt_tokens=3, output_tokens=4, cached_tokens=1)
    assert response.metadata == {"seen": "predict"}
    assert response.finish_reason == "stop"
    assert len(response.request_id) == 32


def test_names_the_client_has_taken_go_into_arguments(client):
    assert client.predict(arguments={"method": 1, "timeout_s": 2}, a=3) == {
        "method": 1,
        "timeout_s": 2,
        "a": 3,
    }


def test_positional_arguments_ask_for_the_signature_once(client, server):
    assert client.predict("a b c", 2, method="summarize") == "a b"
    assert client.predict("a b c", method="summarize", max_words=1) == "a"
    assert server.servicer.calls["Describe"] == 1


def test_headers_and_metadata_arrive(server):
    with Client(
        server.address, api_key="sk-1", headers={"X-Route": "blue"}, metadata={"user": "a"}
    ) as client:
        assert client.predict(method="metadata", metadata={"trace": "t"}) == {"user": "a", "trace": "t"}
    assert server.servicer.headers["authorization"] == "Bearer sk-1"
    assert server.servicer.headers["x-route"] == "blue"


def test_what_cannot_be_sent_is_named(client, server):
    with pytest.raises(InvalidArgumentError, match="f: cannot send a value of type"):
        client.predict(f=object())
    assert not server.servicer.calls


def test_a_stream_gives_items_usage_metadata_and_request_id(client):
    stream = client.generate(n=6)
    assert next(stream) == 0
    assert stream.usage == Usage(output_tokens=1)
    assert stream.request_id == "from-server"
    assert list(stream) == [1, 2, 3, 4, 5]
    assert stream.usage == Usage(output_tokens=6)
    assert (stream.metadata, stream.finish_reason) == ({"seen": "generate"}, "length")
    assert list(stream) == []


def test_chunks_are_the_messages(client):
    chunks = list(client.generate(n=4).chunks())
    assert chunks[:2] == [Chunk((0,), Usage(output_tokens=1)), Chunk((1, 2), Usage(output_tokens=3))]
    assert chunks[-1].items == ()


@pytest.mark.parametrize("leave", ["close", "cancel", "with"])
def test_leaving_a_stream_early_stops_the_model(client, server, leave):
    with client.generate(method="slow") as stream:
        assert next(stream) == 0
        if leave != "with":
            getattr(stream, leave)()
    assert server.servicer.cancelled.wait(10)
    assert list(stream) == []


@pytest.mark.parametrize("kind", ["generate", "stream"])
def test_a_loop_left_with_break_stops_the_model(client, server, kind):
    def items():
        while True:
            yield "a"
            time.sleep(0.01)

    for _ in client.generate(method="slow") if kind == "generate" else client.stream(items()):
        break
    assert server.servicer.cancelled.wait(10)


def test_a_cancelled_stream_raises_where_it_is_read(client):
    stream = client.generate(method="slow")
    next(stream)
    threading.Timer(0.1, stream.cancel).start()
    with pytest.raises(CancelledCallError):
        next(stream)


def test_the_deadline_of_a_stream_is_that_of_the_whole(client):
    with pytest.raises(DeadlineExceededError):
        list(client.generate(method="slow", timeout_s=0.2))


@pytest.mark.parametrize(
    "call", [lambda c: c.predict(method="slow"), lambda c: list(c.generate(method="slow-at-first"))]
)
def test_ctrl_c_cancels_the_call(client, server, call):
    def press():
        if server.servicer.entered.wait(30):
            time.sleep(0.3)  # the call has arrived; now the caller's thread waits for the answer
            os.kill(os.getpid(), signal.SIGINT)

    presser = threading.Thread(target=press)
    presser.start()
    with pytest.raises(KeyboardInterrupt):
        call(client)
    presser.join()
    assert server.servicer.cancelled.wait(10)


def test_a_bidirectional_call_interleaves(client, server):
    questions = queue.Queue()
    stream = client.stream(iter(questions.get, None), prefix="> ")
    for text in ("a", "b", "c"):
        questions.put(text)
        assert next(stream) == f"> {text}"  # answered before the next one is asked
    assert not server.servicer.ended
    questions.put(None)
    assert list(stream) == ["end"]
    assert (stream.finish_reason, server.servicer.ended) == ("stop", True)


def test_what_the_callers_iterator_raises_is_what_the_caller_sees(client, server):
    answered = threading.Event()

    def items():
        yield "a"
        answered.wait(30)
        raise LookupError("no more")

    stream = client.stream(items())
    assert next(stream) == "a"
    answered.set()
    with pytest.raises(LookupError, match="no more"):
        next(stream)
    assert server.servicer.cancelled.wait(10)
    assert not server.servicer.ended


def test_an_item_that_cannot_be_sent_is_named(client):
    with pytest.raises(InvalidArgumentError, match="an item of the stream: cannot send"):
        list(client.stream([object()]))


def test_methods_are_typed_by_the_server(client):
    assert client.methods.summarize("a b c", max_words=2) == "a b"
    assert list(client.methods.generate(3)) == [0, 1, 2]
    assert list(client.methods.chat(iter("ab"), prefix="p")) == ["pa", "pb", "end"]
    assert list(client.methods.chat(turns="ab")) == ["a", "b", "end"]


def test_a_wrong_call_is_never_sent(client, server):
    with pytest.raises(InvalidArgumentError, match="did you mean 'max_words'"):
        client.methods.summarize("a", maxwords=2)
    assert not server.servicer.calls["Predict"]


def test_methods_read_like_functions(client):
    summarize = client.methods.summarize
    assert repr(summarize) == "summarize(text: str, max_words: int = 50 [1..500]) -> str\n\nShorten a text.\n\nKeeps the first words."  # fmt: skip
    assert summarize.__name__ == "summarize"
    assert summarize.__doc__.startswith("Shorten")
    assert str(inspect.signature(summarize)) == "(text: 'str', max_words: 'int' = 50) -> 'str'"
    assert repr(client.methods).startswith(
        "summarize(text: str, max_words: int = 50 [1..500]) -> str\n    Shorten a text.\n"
    )
    assert list(client.methods) == ["summarize", "generate", "chat"]
    assert {"summarize", "chat"} <= set(dir(client.methods))
    assert "chat" in client.methods
    assert len(client.methods) == 3


@pytest.mark.parametrize("described", [False, True])
def test_an_unknown_method_is_refused_when_it_is_called(client, described):
    if described:
        client.describe()
    with pytest.raises(MethodNotFoundError, match="did you mean 'summarize'"):
        client.methods.sumarize("a")
    assert "sumarize" not in client.methods
    assert repr(client.methods.sumarize) == "sumarize"


def test_naming_a_method_does_not_call_the_server(client, server):
    copy.copy(client.methods)
    copy.copy(client.methods.summarize)
    assert client.methods.summarize.__name__ == "summarize"
    assert not hasattr(client.methods, "_repr_html_")
    client.generate("a b", method="summarize")
    client.stream(["a"])
    assert not server.servicer.calls


def test_a_stream_cancelled_before_it_starts_never_starts(client, server):
    stream = client.generate(n=1)
    stream.cancel()
    with pytest.raises(CancelledCallError):
        next(stream)
    assert not server.servicer.calls


def test_looking_at_methods_without_a_server_fails_nothing(monkeypatch):
    with Client("localhost:1", retry=None) as client:
        assert repr(client.methods) == "<methods of localhost:1: the server does not say>"
        assert repr(client.methods.summarize) == "summarize"
        assert client.methods.summarize.__doc__ is None
        assert dir(client.methods)
        assert inspect.signature(client.methods.summarize) == inspect.signature(
            RemoteMethod.__call__.__get__(1)
        )
        with pytest.raises(UnavailableError):
            list(client.methods)


@pytest.mark.parametrize("kind", [RemoteMethod, AsyncRemoteMethod])
def test_the_class_of_a_method_documents_itself(kind):
    assert inspect.getdoc(kind).startswith("A method of the served model")
    assert "options" in pydoc.render_doc(kind)


def test_methods_can_have_a_deadline_of_their_own(client, server):
    assert list(client.methods["generate"].options(timeout_s=30)(2)) == [0, 1]
    server.servicer.before_describe = lambda: asyncio.sleep(60)
    with pytest.raises(DeadlineExceededError, match=r"within 0\.2 s"):
        client.methods.generate.options(timeout_s=0.2)(2, unknown=1)


def test_a_changed_signature_is_noticed(client, server):
    client.describe()
    server.servicer.methods = CHANGED_METHODS
    assert client.methods.summarize("a b", language="en") == "a b"
    assert client.predict("a b", 1, "en", method="summarize") == "a"


def test_describe(client):
    model = client.describe()
    assert (model.model_id, model.state, model.modelkit_version, model.engine) == (
        "scripted",
        "ready",
        "1",
        "",
    )
    assert model.ready
    assert model.method("summarize").summary == "Shorten a text."


def test_health(client, server):
    assert client.health() == "SERVING"
    server.set_ready(False)
    assert client.health() == "NOT_SERVING"


@pytest.mark.parametrize("health", [HealthServicer, WithoutWatch])
def test_wait_ready_waits_for_the_model(health):
    with running(health=health) as server:
        server.set_ready(False)
        with Client(server.address) as client:
            waiter = threading.Thread(target=client.wait_ready, args=(30,))
            waiter.start()
            waiter.join(0.3)
            assert waiter.is_alive()
            server.set_ready(True)
            waiter.join(30)
            assert not waiter.is_alive()


def test_wait_ready_waits_for_the_server():
    port = free_port()
    with ExitStack() as stack, Client(f"127.0.0.1:{port}") as client:
        starter = threading.Timer(0.3, lambda: stack.enter_context(running(port=port)))
        starter.start()
        client.wait_ready(20)
        starter.join()


@pytest.mark.parametrize(
    ("ready", "reason"), [(False, "the model is not ready"), (None, "no server listens")]
)
def test_wait_ready_says_what_it_waited_for(server, ready, reason):
    if ready is False:
        server.set_ready(False)
    address = server.address if ready is False else "localhost:1"
    with Client(address) as client, pytest.raises(DeadlineExceededError, match=f"after 0.4 s: .*{reason}"):
        client.wait_ready(0.4)


def test_a_closed_client_cancels_its_calls(server):
    client = Client(server.address)
    stream = client.generate(method="slow")
    next(stream)
    client.close()
    with pytest.raises(CancelledCallError):
        next(stream)
    assert server.servicer.cancelled.wait(10)


def test_one_client_serves_many_threads(client):
    results = []
    threads = [
        threading.Thread(target=lambda i=i: results.append(client.predict(i=i)["i"])) for i in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == list(range(20))


def test_a_broken_answer_in_a_stream_stops_the_call(client, server, monkeypatch):
    monkeypatch.setattr(
        "modelkit.client.messages.decode", lambda value: (_ for _ in ()).throw(ValueError("bad"))
    )
    with pytest.raises(InternalError, match="cannot be read: bad"):
        next(client.generate(method="slow"))


def test_importing_the_client_is_light():
    program = (
        "import sys, modelkit.client; "
        "print([m for m in ('numpy', 'pydantic', 'torch', 'transformers', 'PIL', 'httpx', 'uvloop', 'typer', 'rich', "
        "'modelkit.server', 'modelkit.model', 'modelkit.config', 'modelkit.engines') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_public_names_are_sorted():
    from modelkit import client

    assert client.__all__ == sorted(client.__all__, key=lambda name: (not name.isupper(), name))
    for name in client.__all__:
        assert getattr(client, name).__doc__

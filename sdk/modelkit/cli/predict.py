"""`modelkit predict`: one call of a served model from the terminal, a script or a pipe."""

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from modelkit.cli import console
from modelkit.cli.arguments import (
    parse_json_arguments,
    parse_pairs,
    parse_value,
    stdin_lines,
    stdin_text,
    text_argument,
)
from modelkit.cli.remote import Address, ApiKeyEnv, CaPath, Tls, connect
from modelkit.cli.values import plain, render, save_value
from modelkit.datatypes import Text
from modelkit.errors import InvalidArgumentError, MethodNotFoundError, UsageError

if TYPE_CHECKING:
    from modelkit.client import (
        ArgumentDescription,
        Client,
        MethodDescription,
        ModelDescription,
        Response,
        Stream,
        Usage,
    )

__all__ = ["command"]

MIN_WINDOW_S = 0.05  # what came in less came together, and the time between is that of the transport


def command(
    text: Annotated[
        str | None,
        typer.Argument(
            metavar="TEXT",
            show_default=False,
            help="For the method's first string argument; - or a pipe reads stdin.",
        ),
    ] = None,
    *,
    method: Annotated[
        str | None,
        typer.Option("--method", "-m", metavar="NAME", help="The method. [generate, else predict]"),
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", "-i", metavar="NAME=VALUE", help="An argument; VALUE may be JSON, or @FILE."),
    ] = None,
    json: Annotated[
        str | None,
        typer.Option("--json", metavar="JSON", help="All arguments: '{...}', @FILE, or @- for stdin."),
    ] = None,
    output: Annotated[
        Literal["text", "json"],
        typer.Option("--output", "-o", help="How to print the answer; JSON has null for NaN and infinity."),
    ] = "text",
    stream: Annotated[
        bool, typer.Option("--stream/--no-stream", help="Print the answer as it comes.")
    ] = True,
    save: Annotated[
        Path | None,
        typer.Option("--save", metavar="FILE", help="Write an image, audio, bytes or tensor result here."),
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(min=0, metavar="SECONDS", help="Give up after so long.")
    ] = None,
    wait: Annotated[
        float | None,
        typer.Option(min=0, metavar="SECONDS", help="First wait so long for the model to be ready."),
    ] = None,
    address: Address = None,
    api_key_env: ApiKeyEnv = None,
    tls: Tls = False,
    ca: CaPath = None,
) -> None:
    """Call a served model and print its answer."""
    if save is not None and not save.parent.is_dir():  # known before the model has worked for nothing
        raise UsageError(f"cannot write '{save}': its folder does not exist", cure="give --save another file")
    with connect(address, api_key_env, tls=tls, ca=ca) as client:
        if wait is not None:
            with console.status(f"waiting for {client.address}"):
                client.wait_ready(wait)
        model = client.describe(timeout_s=timeout)
        with _found_before_sending():
            described = choose_method(model, method, stream=stream)
            arguments, items = _read_arguments(described, text, inputs or [], json)
            answer = _Answer(described, stream=stream and output == "text", save=save)
            _call(client, described, arguments, items, timeout, answer)
        if output == "json":
            console.json(answer.as_json())
        else:
            answer.finish()
        if items.error is not None:  # last, so that the answers to what came before are printed
            raise items.error


def choose_method(model: "ModelDescription", name: str | None, *, stream: bool) -> "MethodDescription":
    """Return the method that is named; else the one a caller of this model most likely means. Raises UsageError."""
    if name is not None:
        return model.method(name)
    names = model.method_names
    for favourite in ("generate", "predict") if stream else ("predict", "generate"):
        if favourite in names:
            return model.method(favourite)
    if len(names) == 1:
        return model.methods[0]
    if not names:
        raise UsageError(
            f"{model.model_id or 'the model'} has no methods yet", cure="wait for it with --wait 60"
        )
    raise UsageError(
        "the model has several methods, say which", cure=f"add --method {' or --method '.join(names)}"
    )


class _Items:
    """The items of a streamed argument. A bad one ends them, so that the model answers those before it."""

    def __init__(self, argument: "ArgumentDescription | None" = None, texts: Iterable[str] = ()) -> None:
        self._argument = argument
        self._texts = texts
        self.error: UsageError | None = None

    def __iter__(self) -> Iterator[Any]:
        from modelkit.codec import encode

        if self._argument is None:
            return
        try:
            for text in self._texts:
                value = parse_value(self._argument, text)
                encode(value)  # raises for what cannot be sent
                yield value
        except UsageError as error:
            self.error = error
        except (TypeError, ValueError, RecursionError) as error:
            self.error = UsageError(
                f"{self._argument.name}: {error}", cure=f"its type is {self._argument.type}"
            )


@contextmanager
def _found_before_sending() -> Iterator[None]:
    """Make a usage error of what the client refused to send: only a call that was sent has a request id."""
    try:
        yield
    except (InvalidArgumentError, MethodNotFoundError) as error:
        if error.request_id:
            raise
        violations = "".join(f"\n  {each.field}: {each.description}" for each in error.violations)
        cure = error.cure or "`modelkit describe` shows what each method takes"
        raise UsageError(error.message + violations, cure=cure) from error


def _read_arguments(
    method: "MethodDescription", text: str | None, inputs: list[str], json: str | None
) -> tuple[dict[str, Any], _Items]:
    """Return the arguments by name and the items of the streamed one, checked against the signature."""
    from modelkit.client.binding import bind

    arguments = {**(parse_json_arguments(json) if json is not None else {}), **parse_pairs(method, inputs)}
    streamed = method.streamed_argument
    if streamed is not None:
        items = [text] if text is not None and text != "-" else stdin_lines()
        bind(method, (), {**arguments, streamed.name: items})
        return arguments, _Items(streamed, items)
    target = text_argument(method)
    if text == "-" or (text is None and target is not None and not arguments):
        text = _read_stdin(asked_for=text == "-")
    if text is not None:
        if target is None:
            raise UsageError(
                f"{method.name} has no argument for a text", cure=f"{method.hint}; write -i NAME=VALUE"
            )
        if target.name in arguments:
            raise UsageError(
                f"{target.name} is given twice: as TEXT and by name",
                cure=f"leave TEXT out, or {target.name} out of -i and --json",
            )
        arguments = {target.name: text, **arguments}
    return bind(method, (), arguments), _Items()


def _read_stdin(*, asked_for: bool) -> str | None:
    """Return the text of a pipe, without the newline that `echo` adds; of a terminal only when it is asked for."""
    if not asked_for and (sys.stdin is None or sys.stdin.isatty()):
        return None
    text = stdin_text().replace("\r\n", "\n").removesuffix("\n")
    return text if text or asked_for else None


def _call(
    client: "Client",
    method: "MethodDescription",
    arguments: dict[str, Any],
    items: Iterable[Any],
    timeout_s: float | None,
    answer: "_Answer",
) -> None:
    answer.started_at = time.perf_counter()
    if method.kind == "unary":
        response = client.call(method=method.name, arguments=arguments, timeout_s=timeout_s)
        answer.add((response.value,), response.usage)
        answer.close(response)
        return
    if method.kind == "server_stream":
        opened = client.generate(method=method.name, arguments=arguments, timeout_s=timeout_s)
    else:
        opened = client.stream(items, method=method.name, arguments=arguments, timeout_s=timeout_s)
    _drain(opened, answer)


def _drain(stream: "Stream", answer: "_Answer") -> None:
    """Take in a stream to its end; whatever stops this early (Ctrl-C, a closed pipe) cancels the call."""
    with stream:
        try:
            for chunk in stream.chunks():
                answer.add(chunk.items, chunk.usage)
        finally:
            answer.end_line()
        answer.close(stream)


@dataclass
class _Answer:
    """What has come so far: printed as it comes, and measured."""

    method: "MethodDescription"
    stream: bool
    save: Path | None
    items: list[Any] = field(default_factory=list)
    usage: "Usage | None" = None
    request_id: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    finish_reason: str = ""
    started_at: float = 0.0
    arrivals: list[float] = field(default_factory=list)
    first_tokens: int = 0
    ended_at: float = 0.0
    _line_open: bool = False

    def add(self, items: tuple[Any, ...], usage: "Usage | None") -> None:
        """Take in the items of one message."""
        if not items:
            return
        self.arrivals.append(time.perf_counter())
        if len(self.arrivals) == 1 and usage is not None:
            self.first_tokens = usage.output_tokens
        self.items += items
        if self.stream and self.save is None:
            for item in items:
                self._print(item)

    def close(self, told: "Response | Stream") -> None:
        """Take in what is known at the end."""
        self.ended_at = time.perf_counter()
        self.usage, self.request_id, self.metadata = told.usage, told.request_id, dict(told.metadata)
        self.finish_reason = told.finish_reason

    def end_line(self) -> None:
        """End a line of streamed text that does not end itself."""
        if self._line_open:
            console.result("")
            self._line_open = False

    def finish(self) -> None:
        """Print what has not been printed yet, and how fast it came."""
        if self.save is not None:
            save_value(self.value, self.save)
        elif not self.stream:
            self._print(self.value)
            self.end_line()
        self.end_line()
        console.info(self.summary())

    @property
    def value(self) -> Any:
        """The whole result: the value of a unary method, the joined text of a stream, or the list of its items."""
        if self.method.kind == "unary":
            return self.items[0]
        if self.items and all(map(self._joins, self.items)):
            return "".join(map(str, self.items))
        return self.items

    @property
    def _measures_decoding(self) -> bool:
        """Whether tokens came after the first ones, over a time that says how fast the model writes."""
        tokens = self.usage.output_tokens if self.usage else 0
        return tokens > self.first_tokens and self.arrivals[-1] - self.arrivals[0] >= MIN_WINDOW_S

    def timing(self) -> dict[str, float | None]:
        """Return the measured times.

        Rates leave out the wait for the first token where what followed took long enough to be measured; else the
        rate of tokens is that of the whole answer, and there is none of chunks.
        """
        ttft_s = self.arrivals[0] - self.started_at if self.arrivals else None
        streaming_s = self.arrivals[-1] - self.arrivals[0] if self.arrivals else 0.0
        tokens = self.usage.output_tokens if self.usage else 0
        total_s = self.ended_at - self.started_at
        rate: float | None = None
        if self._measures_decoding:
            rate = (tokens - self.first_tokens) / streaming_s
        elif tokens and total_s > 0:
            rate = tokens / total_s
        return {
            "ttft_ms": None if ttft_s is None else round(ttft_s * 1000, 1),
            "total_ms": round(total_s * 1000, 1),
            "output_tokens_per_s": None if rate is None else round(rate, 1),
            "chunks_per_s": round((len(self.arrivals) - 1) / streaming_s, 1)
            if streaming_s >= MIN_WINDOW_S
            else None,
        }

    def summary(self) -> str:
        """Return one line: tokens, time to the first, rate, and why it ended."""
        timing, streamed = self.timing(), self.method.kind != "unary"
        parts = []
        if self.usage and self.usage.output_tokens:
            parts.append(_count(self.usage.output_tokens, "token"))
        elif streamed:
            parts.append(_count(len(self.items), "item"))
        if streamed and timing["ttft_ms"] is not None:
            label = "TTFT" if self.usage and self.usage.output_tokens else "first after"
            parts.append(f"{label} {timing['ttft_ms']:.0f} ms")
        else:
            parts.append(f"{timing['total_ms']:.0f} ms")
        if timing["output_tokens_per_s"]:
            whole = "" if self._measures_decoding else " overall"
            parts.append(f"{timing['output_tokens_per_s']:,.1f} tokens/s{whole}")
        elif timing["chunks_per_s"]:
            parts.append(f"{timing['chunks_per_s']:,.1f} chunks/s")
        return " · ".join([*parts, f"finish: {self.finish_reason}"] if self.finish_reason else parts)

    def as_json(self) -> dict[str, Any]:
        """Return everything, as -o json prints it."""
        if self.save is not None:
            save_value(self.value, self.save)
        return {
            "result": str(self.save) if self.save is not None else plain(self.value),
            "usage": None if self.usage is None else asdict(self.usage),
            "finish_reason": self.finish_reason or None,
            "request_id": self.request_id,
            "metadata": self.metadata,
            "timing": self.timing(),
        }

    def _joins(self, item: Any) -> bool:
        """Tell whether an item is a piece of one text."""
        # The items of an OpenAI answer are JSON documents, one for each chunk.
        pieces = self.method.kind == "server_stream" and self.method.name != "openai_stream_transport"
        return pieces and isinstance(item, (str, Text))

    def _print(self, item: Any) -> None:
        """Print a piece: text as it is, so that pieces join; anything else as JSON on lines of its own."""
        joins = self._joins(item)
        text = console.harmless(render(item), sys.stdout)
        if text:
            console.result(text, end="" if joins else "\n")
            self._line_open = joins and not text.endswith("\n")


def _count(num: int, noun: str) -> str:
    return f"{num:,} {noun}{'' if num == 1 else 's'}"

"""`modelkit serve`: the server of a model folder, gRPC and HTTP, here and now."""

import asyncio
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer

from modelkit.cli import console
from modelkit.cli.checkpoints import is_own_config, load_folder, prepare_checkpoints, promise_offline
from modelkit.cli.options import DEFAULT_TIMEOUT_S, Environment, Offline, Overrides
from modelkit.cli.start_profile import LOADING_MODEL, StartProfile
from modelkit.cli.streams import outlive_readers
from modelkit.config import Config, find_config, load_config
from modelkit.errors import LoadError, UsageError

if TYPE_CHECKING:
    from modelkit.model import Model
    from modelkit.server import Server, ServerOptions, TlsFiles
    from modelkit.server.logs import KeptWarnings
    from modelkit.versions.pull import PulledModel

__all__ = ["command"]

DEFAULT_PORT = 50051
DEFAULT_HTTP_PORT = 8000
THREADS_TIMEOUT_S = 2.0
LOOPBACK = ("127.0.0.1", "::1", "localhost")


def command(
    target: Annotated[  # no Path, which would take ./chat:v3 for chat:v3
        str, typer.Argument(metavar="path", help="The model folder, its config.yaml, or a version: chat:v3.")
    ] = ".",
    *,
    local: Annotated[bool, typer.Option("--local", help="Serve on this machine (the default).")] = False,
    compute: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Deploy to this compute; local-ray is a private Ray, for a try."),
    ] = None,
    mode: Annotated[
        Literal["dedicated", "serverless"] | None,
        typer.Option(help="With --compute: replicas always run, or only while there are calls."),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="With --compute: the deployment. Default: the model's id."),
    ] = None,
    min_replicas: Annotated[
        int | None, typer.Option(min=0, help="With --compute: deployment.min_replicas.", show_default=False)
    ] = None,
    max_replicas: Annotated[
        int | None, typer.Option(min=1, help="With --compute: deployment.max_replicas.", show_default=False)
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="With --compute: show what would change, and ask on a terminal.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="With --compute: print what would be sent, and send nothing.")
    ] = False,
    output: Annotated[
        Literal["yaml", "json"], typer.Option("--output", "-o", help="With --dry-run: how it is written.")
    ] = "yaml",
    attach: Annotated[
        bool, typer.Option("--attach", help="With --compute: follow the log once it is deployed.")
    ] = False,
    timeout_s: Annotated[
        float,
        typer.Option(
            "--timeout", metavar="SECONDS", min=1, help="With --compute: take it back when not ready by then."
        ),
    ] = DEFAULT_TIMEOUT_S,
    host: Annotated[str, typer.Option(help="The address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="The gRPC port; 0 takes a free one.")
    ] = DEFAULT_PORT,
    http_port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65535,
            show_default=False,
            help=f"The HTTP port; 0 takes a free one. Default: {DEFAULT_HTTP_PORT}, and a free one with --port 0.",
        ),
    ] = None,
    http: Annotated[
        bool, typer.Option("--http/--no-http", help="Answer HTTP too: OpenAI's API, /v1/methods, /metrics.")
    ] = True,
    cors_origins: Annotated[
        list[str] | None,
        typer.Option(
            "--cors-origin", metavar="ORIGIN", help="Let web pages of this origin call over HTTP; * for all."
        ),
    ] = None,
    environment: Environment = None,
    overrides: Overrides = None,
    engine: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Run the model on another engine than config.yaml names."),
    ] = None,
    api_key_env: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Ask callers for the API key in this environment variable."),
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="The server's certificate chain (PEM).")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="The certificate's private key (PEM).")] = None,
    tls_client_ca: Annotated[
        Path | None, typer.Option(help="Ask clients for a certificate of this CA.")
    ] = None,
    reload: Annotated[
        bool, typer.Option("--reload", help="Start again when a file of the folder changes.")
    ] = False,
    skip_fit: Annotated[
        bool, typer.Option("--skip-fit", help="Start even a model that does not fit into the memory here.")
    ] = False,
    in_container: Annotated[
        bool,
        typer.Option("--in-container", help="Build the folder's image and serve from a container of it."),
    ] = False,
    log_format: Annotated[Literal["text", "json"], typer.Option(help="How the log is written.")] = "text",
    profile_start: Annotated[
        bool, typer.Option("--profile-start", help="When ready, print what the time of the start went into.")
    ] = False,
    offline: Offline = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print address and methods as JSON when ready.")
    ] = False,
) -> int:
    """Serve a model over gRPC and HTTP."""
    if compute is not None:
        from modelkit.cli.deploy import DeployOptions, deploy, refuse_local_options

        refuse_local_options(
            [
                ("--local", local),
                ("--host", host != "127.0.0.1"),
                ("--port", port != DEFAULT_PORT),
                ("--http-port", http_port is not None),
                ("--no-http", not http),
                ("--cors-origin", bool(cors_origins)),
                ("--engine", engine is not None),
                ("--tls-cert, --tls-key", bool(tls_cert or tls_key or tls_client_ca)),
                ("--reload", reload),
                ("--in-container", in_container),
                ("--profile-start", profile_start),
                ("--skip-fit", skip_fit),
                ("--log-format", log_format != "text"),
                ("--offline", offline),
            ]
        )
        return deploy(
            target,
            DeployOptions(
                compute=compute,
                name=name,
                mode=mode,
                min_replicas=min_replicas,
                max_replicas=max_replicas,
                environment=environment,
                overrides=overrides or (),
                api_key_env=api_key_env,
                plan=plan,
                dry_run=dry_run,
                output=output,
                attach=attach,
                timeout_s=timeout_s,
                as_json=as_json,
            ),
        )
    _refuse_deploy_options(
        [
            ("--mode", mode is not None),
            ("--name", name is not None),
            ("--min-replicas", min_replicas is not None),
            ("--max-replicas", max_replicas is not None),
            ("--plan", plan),
            ("--dry-run", dry_run),
            ("--attach", attach),
            ("--timeout", timeout_s != DEFAULT_TIMEOUT_S),
        ]
    )
    outlive_readers()
    # gRPC writes a line of its own about each fault that is reported here; must be set before it is imported.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    if in_container:
        _refuse_beside_container(reload=reload, tls=any((tls_cert, tls_key, tls_client_ca)))
    if reload:
        return _reload(target)
    _end_with_the_watcher()
    progress = _Progress()
    path, pulled = _find_folder(target, offline=promise_offline(offline))
    environment = environment or (pulled.environment if pulled else None)
    settings = pulled.overrides if pulled else ()
    config = load_folder(path, environment, [*settings, *(overrides or ())])
    path = find_config(path).parent
    if engine is not None:
        config = _switch_engine(config, engine)
    if in_container:
        from modelkit.cli.in_container import Publishing, serve_in_container

        _warn_of_missing_secrets(config)
        return serve_in_container(
            config,
            path,
            Publishing(host=host, port=port, http_port=_http_port(http_port, port) if http else None),
            config_options=_as_options(
                env=[environment or os.environ.get("MODELKIT_ENV")],
                set=[*(pulled.settings if pulled else ()), *(overrides or ())],
                engine=[engine],
            ),
            server_options=_as_options(
                cors_origin=cors_origins, api_key_env=[api_key_env], log_format=[log_format]
            ),
            api_key_env=api_key_env,
            as_json=as_json,
        )
    writes_lock = is_own_config(environment, overrides) and not (settings or engine)

    def prepare() -> dict[str, Path]:
        return prepare_checkpoints(config, path, offline=offline, writes_lock=writes_lock, hold=True)

    if not skip_fit:
        _check_fit(config, path, offline=offline)
    with console.status("importing model.py"):
        from modelkit.computes.identity import DEPLOYMENT_VARIABLE
        from modelkit.server import ServerOptions
        from modelkit.server.folder import open_model

        options = ServerOptions(
            host=host,
            port=port,
            http_port=_http_port(http_port, port) if http else None,
            cors_origins=tuple(cors_origins or ()),
            max_concurrency=config.server.max_concurrency,
            max_queue=config.server.max_queue,
            max_message_bytes=config.server.max_message_bytes,
            drain_timeout_s=config.server.drain_timeout_s,
            tls=_tls(tls_cert, tls_key, tls_client_ca),
            api_key=_api_key(api_key_env),
            deployment=os.environ.get(DEPLOYMENT_VARIABLE),
        )
        model = open_model(path, config, progress.report, prepare)
    warnings = _configure_logging(log_format, path)
    _warn_if_open(options)
    _warn_of_missing_secrets(config)
    server = _server(model, options, config)

    def on_ready() -> None:
        progress.profile.end()
        _announce(server, config, progress.profile, warnings.end(), as_json=as_json)
        if profile_start:
            console.info(progress.profile.table())

    return _run(server, progress, on_ready)


def _refuse_beside_container(*, reload: bool, tls: bool) -> None:
    if reload:
        raise UsageError("--reload and --in-container exclude each other", cure="give one of the two")
    if tls:
        raise UsageError("--in-container serves without TLS", cure="leave --tls-* out")


def _refuse_deploy_options(options: Sequence[tuple[str, bool]]) -> None:
    given = [name for name, is_given in options if is_given]
    if given:
        belong = "belongs" if len(given) == 1 else "belong"
        raise UsageError(
            f"{', '.join(given)} {belong} to --compute",
            cure="name one: --compute NAME; `modelkit compute list` shows those there are",
        )


def _as_options(**values: Sequence[str | None] | None) -> list[str]:
    """Write options as a command line has them, for the server in a container."""
    return [
        part
        for name, given in values.items()
        for value in given or ()
        if value is not None
        for part in (f"--{name.replace('_', '-')}", value)
    ]


def _find_folder(target: str, *, offline: bool) -> "tuple[Path, PulledModel | None]":
    """Return the model folder to serve; where a version is named, the one that it was pulled into, and what it needs."""
    if os.path.exists(target):  # noqa: PTH110 - Path.exists raises for a path that the system refuses
        return Path(target), None
    from modelkit.versions.local import looks_like_reference, materialize

    if not looks_like_reference(target):
        return Path(target), None
    with console.transfer(f"pulling {target}") as progress:
        pulled = materialize(target, offline=offline, progress=progress)
    return pulled.folder, pulled


class _Progress:
    """What a model says of its start goes to the status line that is shown at the time, and into the profile."""

    def __init__(self) -> None:
        self.show: Callable[[str], None] = lambda _: None
        self.profile = StartProfile()

    def report(self, stage: str) -> None:
        self.profile.begin(stage)
        self.show(stage)


def _switch_engine(config: Config, name: str) -> Config:
    from modelkit.engines.switching import switch_engine

    config, left_out = switch_engine(config, name)
    for option in left_out:
        console.warning(
            f"engine.{option} is left out: it is spelled for another engine than {name}",
            cure=f"give {name} its own with --set engine.{option}=..., or in config.{name}.yaml with --env {name}",
        )
    return config


def _check_fit(config: Config, model_dir: Path, *, offline: bool) -> None:
    """Refuse a model that cannot fit here, before it is fetched and its engine tries for minutes; warn of a doubtful one."""
    if config.engine is None or config.checkpoints is None or config.engine.name in {"openai", "echo"}:
        return
    from modelkit.checkpoints.resolve import is_offline
    from modelkit.fit import check_fit, this_machine

    with console.status("checking that the model fits"):
        finding = check_fit(config, model_dir, this_machine(), offline=offline or is_offline())
    if finding is None:
        return
    cure = f"{finding.cure}; --skip-fit starts it all the same"
    if finding.severity == "error":
        raise LoadError(f"{config.model.id} does not fit: {finding.message}", cure=cure)
    console.warning(f"{config.model.id} may not fit: {finding.message}", cure=finding.cure)


def _run(server: "Server", progress: _Progress, on_ready: Callable[[], None]) -> int:
    """Run the server until a signal. Returns 0 after a drain, 130 when the model was still loading."""
    import uvloop

    async def main() -> tuple[bool, int]:
        ready = False
        stop = asyncio.Event()
        _stop_on_signals(server, stop)
        loading = ExitStack()
        what = f"loading {type(server.predictor.model).__name__}"
        change = loading.enter_context(console.status(what))
        progress.profile.begin(LOADING_MODEL)
        progress.show = lambda stage: change(f"{what}: {stage}")

        def announce() -> None:
            nonlocal ready
            ready = True
            loading.close()
            on_ready()

        with loading:
            num_stuck = await server.serve(stop, announce)
        return ready, num_stuck

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        ready, num_stuck = runner.run(main())
    code = 0 if ready else 130
    if num_stuck or not ready:
        # Threads that run the author's code cannot be stopped, and the interpreter would wait for them for ever.
        if num_stuck:
            were = "call was" if num_stuck == 1 else "calls were"
            console.warning(f"{num_stuck} {were} still running in threads and left behind")
        _leave(code)
    console.info("stopped")
    threading.Thread(target=_outlast_threads, args=(code,), daemon=True).start()
    return code


def _outlast_threads(code: int) -> None:
    """End the process, after its main thread, where threads that the model has started would keep it for ever."""
    threading.main_thread().join()
    deadline = time.monotonic() + THREADS_TIMEOUT_S
    while left := [thread for thread in threading.enumerate() if not thread.daemon and thread.is_alive()]:
        if time.monotonic() > deadline:
            names = ", ".join(thread.name for thread in left)
            console.warning(
                f"the model's threads did not end and were left behind: {names}",
                cure="end them in the model's close, or start them with daemon=True",
            )
            _leave(code)
        time.sleep(0.02)


def _leave(code: int) -> NoReturn:
    """End the process at once, whatever its threads do."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):  # the model may have put anything in their place
            stream.flush()
    os._exit(code)


def _stop_on_signals(server: "Server", stop: asyncio.Event) -> None:
    """The first SIGINT, SIGTERM or SIGHUP drains, the second cancels what still runs.

    SIGHUP, for which nobody waits at the closed terminal, comes from the system and the shell both: it never hurries.
    `nohup` has it ignored, and so it stays.
    """
    loop = asyncio.get_running_loop()

    def on_signal(number: int) -> None:
        if stop.is_set():
            if number != signal.SIGHUP:
                console.info("cancelling the calls that still run")
                server.hurry()
            return
        stop.set()
        num_running = server.predictor.gate.num_running
        if num_running:
            calls, them = ("call", "it") if num_running == 1 else ("calls", "them")
            console.info(f"letting {num_running} running {calls} end; once more cancels {them}")

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, on_signal, number)


def _announce(
    server: "Server", config: Config, profile: StartProfile, warnings: list[str], *, as_json: bool
) -> None:
    """Say that the model is ready, and how to call it."""
    methods = list(server.predictor.signatures)
    took_s = profile.total_s
    scheme = "gRPC over TLS" if server.options.tls else "gRPC"
    console.success(f"serving {config.model.id} at {server.address} ({scheme}), ready in {took_s:.1f} s")
    if server.http_url:
        console.info(f"  HTTP:    {server.http_url} ({_http_summary(server)})")
    console.info(f"  methods: {', '.join(methods)}")
    where = "" if server.address == f"127.0.0.1:{DEFAULT_PORT}" else f" --address {server.address}"
    console.info(f"  try it:  modelkit describe{where}")
    console.info("  Ctrl-C stops it")
    if as_json:
        import json

        line = {
            "model_id": config.model.id,
            "address": server.address,
            "http_url": server.http_url or None,
            "methods": methods,
            "ready_s": took_s,
            "start": profile.content(),
            "warnings": warnings,
        }
        console.result(json.dumps(line))


def _http_port(http_port: int | None, grpc_port: int) -> int:
    """Return the HTTP port: who asks for any free gRPC port wants no fixed one beside it."""
    if http_port is not None:
        return http_port
    return DEFAULT_HTTP_PORT if grpc_port else 0


def _http_summary(server: "Server") -> str:
    from modelkit.server.http import has_openai

    openai = "OpenAI's API at /v1, " if has_openai(server.predictor) else ""
    return f"{openai}every method at /v1/methods, a playground at /"


def _server(model: "Model", options: "ServerOptions", config: Config) -> "Server":
    from modelkit.server import Server

    return Server(
        model,
        options,
        model_id=config.model.id,
        description=config.model.description or "",
        engine=config.engine.name if config.engine else "",
    )


def _configure_logging(style: Literal["text", "json"], model_dir: Path) -> "KeptWarnings":
    from modelkit.server.logs import KeptWarnings, configure_logging

    level = logging.DEBUG if console.is_verbose() else logging.WARNING if console.is_quiet() else logging.INFO
    configure_logging(level, style, author_dir=model_dir)
    return KeptWarnings()


def _tls(certificate: Path | None, key: Path | None, client_ca: Path | None) -> "TlsFiles | None":
    from modelkit.server import TlsFiles

    if certificate is None and key is None and client_ca is None:
        return None
    if certificate is None or key is None:
        raise UsageError("TLS needs a certificate and its key", cure="give both --tls-cert and --tls-key")
    return TlsFiles(certificate, key, client_ca)


def _api_key(name: str | None) -> str | None:
    if name is None:
        return None
    key = os.environ.get(name, "").strip()  # `export KEY=$(cat file)` may leave a newline
    if not key:
        raise UsageError(f"the environment variable {name} is not set or empty", cure=f"export {name}=...")
    if not (key.isascii() and key.isprintable()):
        raise UsageError(f"the API key in {name} has characters that no header can carry", cure="use ASCII")
    return key


def _warn_if_open(options: "ServerOptions") -> None:
    if options.host not in LOOPBACK and options.api_key is None:
        console.warning(
            f"anyone who reaches {options.host} can call the model",
            cure="ask for a key with --api-key-env NAME, and encrypt with --tls-cert and --tls-key",
        )


def _warn_of_missing_secrets(config: Config) -> None:
    for secret in config.secrets:
        if not os.environ.get(secret.env_var):
            purpose = f" ({secret.description})" if secret.description else ""
            console.warning(
                f"the secret {secret.env_var} is not set{purpose}", cure=f"export {secret.env_var}=..."
            )


def _end_with_the_watcher() -> None:
    from modelkit.server.reload import WATCHER_VARIABLE, end_with_watcher

    if WATCHER_VARIABLE in os.environ:
        end_with_watcher()


def _reload(target: str) -> int:
    from modelkit.server.reload import serve_and_reload
    from modelkit.versions.local import looks_like_reference

    path = Path(target)
    if looks_like_reference(target):
        raise UsageError(
            f"--reload watches a folder, and {target} is a version, which never changes",
            cure=f"`modelkit pull {target}`, and serve the folder; or leave --reload out",
        )
    if not path.exists():
        load_config(path)  # which says so
    model_dir = find_config(path).parent
    arguments = [argument for argument in sys.argv[1:] if argument != "--reload"]
    command_line = [sys.executable, "-m", "modelkit", *arguments]
    console.info(f"watching {model_dir} for changes")
    return serve_and_reload(
        command_line,
        model_dir,
        on_change=lambda changed: console.info(f"{changed} changed, starting again"),
        on_end=lambda: console.info(
            f"the server has ended; still watching {model_dir}, a change starts it again"
        ),
    )

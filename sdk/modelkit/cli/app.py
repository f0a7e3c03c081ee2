"""The `modelkit` command: finds the verb, runs it, and turns what went wrong into one message and an exit code.

A verb's module is imported when the verb is called and not before, so that `modelkit --help`, a typo and the shell's
completion answer at once, whatever a verb needs. Each module has one function, `command`, whose parameters carry
Typer's annotations; the first line of its docstring is the help in `VERBS` (a test says so). It returns None, or an
exit code of its own. A verb with parts, `modelkit engines install`, has them in `SUBCOMMANDS`, by name; `command` is
then what it does without one.
"""

import errno
import inspect
import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperGroup
from typer.models import ArgumentInfo

from modelkit import __version__
from modelkit.cli import console
from modelkit.errors import ModelkitError, UsageError, closest

__all__ = ["VERBS", "Verb", "main"]

EXIT_UNEXPECTED = 70  # EX_SOFTWARE of sysexits.h: the fault is modelkit's, not the caller's
_UNWRITABLE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF})
EXIT_INTERRUPTED = 130  # 128 + SIGINT, what a shell expects


class Verb(NamedTuple):
    """Where a verb lives and what `modelkit --help` says of it."""

    module: str
    help: str
    section: str


_MAKE, _RUN, _SHIP, _DEPLOY, _ABOUT = "Make a model", "Run it", "Ship it", "Look after deployments", "About"

VERBS: dict[str, Verb] = {
    "init": Verb("modelkit.cli.init", "Write a new model folder from a template.", _MAKE),
    "validate": Verb("modelkit.cli.validate", "Find every mistake in a model folder.", _MAKE),
    "fit": Verb("modelkit.cli.fit", "Tell whether a model fits on a GPU.", _MAKE),
    "build": Verb("modelkit.cli.build", "Build the image of a model.", _MAKE),
    "schema": Verb("modelkit.cli.schema", "Print the JSON Schema of config.yaml.", _MAKE),
    "lock": Verb("modelkit.cli.lock", "Pin a model's checkpoints, file by file, in modelkit.lock.", _MAKE),
    "fetch": Verb("modelkit.cli.fetch", "Fetch a model's weights: resumed, verified, once.", _MAKE),
    "serve": Verb("modelkit.cli.serve", "Serve a model over gRPC and HTTP.", _RUN),
    "engines": Verb(
        "modelkit.cli.engines", "Show the engines, and what each has installed on this machine.", _RUN
    ),
    "bench": Verb(
        "modelkit.cli.bench", "Measure served models: TTFT, ITL and tokens/s, engine by engine.", _RUN
    ),
    "predict": Verb("modelkit.cli.predict", "Call a served model and print its answer.", _RUN),
    "describe": Verb("modelkit.cli.describe", "Show the methods of a served model.", _RUN),
    "parity": Verb("modelkit.cli.parity", "Compare the answers of several engines on one folder.", _RUN),
    "upload": Verb("modelkit.cli.upload", "Upload a model folder as the next version of its model.", _SHIP),
    "versions": Verb("modelkit.cli.versions", "List the versions of a model.", _SHIP),
    "pull": Verb("modelkit.cli.pull", "Make a model folder of a version, each file verified.", _SHIP),
    "diff": Verb("modelkit.cli.diff", "Show what is different between two versions.", _SHIP),
    "verify": Verb("modelkit.cli.verify", "Verify a version: digests, pins, signature.", _SHIP),
    "compute": Verb(
        "modelkit.cli.compute", "Add, check and remove the computes that deployments run on.", _DEPLOY
    ),
    "ps": Verb("modelkit.cli.ps", "List what is deployed, on all computes.", _DEPLOY),
    "status": Verb("modelkit.cli.status", "Show a deployment, replica by replica.", _DEPLOY),
    "logs": Verb("modelkit.cli.logs", "Print what the replicas of a deployment write.", _DEPLOY),
    "scale": Verb(
        "modelkit.cli.scale", "Change how many replicas a deployment has; nothing restarts.", _DEPLOY
    ),
    "rollout": Verb("modelkit.cli.rollout", "Try a new version on a part of the calls (a canary).", _DEPLOY),
    "rollback": Verb("modelkit.cli.rollback", "Put an earlier version of a deployment back.", _DEPLOY),
    "stop": Verb("modelkit.cli.stop", "End a deployment; calls in progress may finish.", _DEPLOY),
    "cache": Verb("modelkit.cli.cache", "Show the checkpoints kept on this machine; prune them.", _ABOUT),
    "version": Verb("modelkit.cli.version", "Show the versions of modelkit and what it runs on.", _ABOUT),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line (`sys.argv` by default) and return its exit code; errors are printed, never raised."""
    console.configure(quiet=False, verbose=bool(os.environ.get("MODELKIT_DEBUG")))
    try:
        code = _run(arguments)
    except ModelkitError as error:
        if isinstance(error, console.OutputError):
            _discard_stdout()
        console.error(error)
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        _discard_stdout()
        return 1
    except Exception as error:  # noqa: BLE001 - the last stop before the user's terminal
        console.unexpected(error)
        return EXIT_UNEXPECTED
    return code


def _run(arguments: Sequence[str] | None) -> int:
    """Run Typer without letting it print errors or leave the process."""
    try:
        command = typer.main.get_command(_app)
        result = command.main(arguments, prog_name="modelkit", standalone_mode=False)
        _flush()  # here, where a closed pipe can still be handled
    except typer.TyperException as error:
        raise _usage_error(error) from None
    except typer.Abort:
        raise KeyboardInterrupt from None
    except SystemExit as leave:  # the shell's completion, and a pipe closed by its reader
        return leave.code if isinstance(leave.code, int) else 0
    except OSError as error:
        if error.filename is None and error.errno in _UNWRITABLE:
            raise console.OutputError(error.strerror or str(error)) from error
        raise
    return result if isinstance(result, int) else 0


def _usage_error(error: typer.TyperException) -> UsageError:
    """Say what is wrong with the command line in this project's words: the fault, then the cure."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "modelkit"
    message = error.format_message().rstrip(".")
    return UsageError(message[:1].lower() + message[1:], cure=f"see `{path} --help`")


def _flush() -> None:
    if sys.stdout is not None:
        sys.stdout.flush()


def _discard_stdout() -> None:
    """Send what is left to nowhere: the reader closed the pipe, and the interpreter would complain at its exit."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Verbs(TyperGroup):
    """The group of all verbs: names and help come from `VERBS`, the command itself from its module when it is called."""

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        """Return the verbs in the order of the table."""
        del ctx
        return list(VERBS)

    def get_command(self, ctx: typer.Context, cmd_name: str) -> Any:  # type: ignore[override]
        """Return a stand-in that knows its name and help, which is all that help and completion ask for."""
        del ctx
        verb = VERBS.get(cmd_name)
        return None if verb is None else _compile(cmd_name, _nothing, verb.help)

    def resolve_command(self, ctx: typer.Context, args: list[str]) -> tuple[str | None, Any, list[str]]:  # type: ignore[override]
        """Import the verb that is called, or name the nearest one."""
        name = args[0]
        if name in VERBS:
            return name, self._load(name, args[1:]), args[1:]
        if name.startswith("-") or ctx.resilient_parsing:
            return super().resolve_command(ctx, args)
        guess = closest(name, list(VERBS))
        raise UsageError(
            f"there is no command '{name}'",
            cure=f"did you mean `modelkit {guess}`?" if guess else "`modelkit --help` lists all commands",
        )

    def _load(self, name: str, args: Sequence[str]) -> Any:
        """Import a verb's module and give it the global options too: `modelkit -q serve` and `modelkit serve -q`."""
        module = import_module(VERBS[name].module)
        command, subcommands = module.command, getattr(module, "SUBCOMMANDS", {})
        if subcommands and _takes_arguments(command):
            # Its arguments would swallow the name of a part: `bench compare A B` against `bench FOLDER`.
            chosen = args[0] if args else ""
            command, subcommands = (_nothing, subcommands) if chosen in subcommands else (command, {})
        command = _compile(name, command, None, subcommands)
        shared = [param for param in self.params if param.name in {"quiet", "verbose"}]
        for each in (command, *getattr(command, "commands", {}).values()):
            taken = {option for param in each.params for option in param.opts}
            each.params += [param for param in shared if taken.isdisjoint(param.opts)]
        return command

    def format_options(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]
        """List the verbs under the headings of the table, then the options."""
        width = max(map(len, VERBS))
        for section in dict.fromkeys(verb.section for verb in VERBS.values()):
            rows = [(name.ljust(width), verb.help) for name, verb in VERBS.items() if verb.section == section]
            with formatter.section(section):
                formatter.write_dl(rows)
        options = [record for param in self.get_params(ctx) if (record := param.get_help_record(ctx))]
        with formatter.section("Options"):
            formatter.write_dl(options)


def _compile(
    name: str, function: Any, help_text: str | None, subcommands: Mapping[str, Any] = MappingProxyType({})
) -> Any:
    """Make a click command of one annotated function, or a group where it has subcommands."""
    compiled = typer.Typer(name=name, rich_markup_mode=None, add_completion=False)
    if subcommands:
        compiled.callback(invoke_without_command=True, help=help_text or inspect.getdoc(function))(function)
    else:
        compiled.command(name, help=help_text)(function)
    for subname, subfunction in subcommands.items():
        compiled.command(subname)(subfunction)
    return typer.main.get_command(compiled)


def _takes_arguments(function: Any) -> bool:
    parameters = inspect.signature(function).parameters.values()
    notes = [note for parameter in parameters for note in getattr(parameter.annotation, "__metadata__", ())]
    return any(isinstance(note, ArgumentInfo) for note in notes)


def _nothing() -> None: ...


_app = typer.Typer(
    cls=_Verbs,
    rich_markup_mode=None,  # plain help: rich alone costs as much time as everything else together
    pretty_exceptions_enable=False,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _be_quiet(value: bool) -> None:
    if value:
        console.configure(quiet=True)


def _be_verbose(value: bool) -> None:
    if value:
        console.configure(verbose=True)


def _print_version(value: bool) -> None:
    if value:
        console.result(f"modelkit {__version__}")
        raise typer.Exit


@_app.callback()
def _modelkit(
    context: typer.Context,
    quiet: Annotated[  # noqa: ARG001 - its callback has done the work
        bool,
        typer.Option(
            "--quiet", "-q", callback=_be_quiet, expose_value=False, help="Print results and errors only."
        ),
    ] = False,
    verbose: Annotated[  # noqa: ARG001
        bool,
        typer.Option(
            "--verbose", "-v", callback=_be_verbose, expose_value=False, help="Print more, and tracebacks."
        ),
    ] = False,
    version: Annotated[  # noqa: ARG001
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and leave."
        ),
    ] = False,
) -> None:
    """Package a model once, serve it over gRPC anywhere."""
    if context.invoked_subcommand is None:
        console.result(context.get_help())

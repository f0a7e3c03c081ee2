"""What a benchmark does on SIGTERM, which `timeout` sends: it ends as on Ctrl-C, so that what it started is ended first."""

import signal


def leave(*_: object) -> None:
    """End by way of every `finally`; another SIGTERM must not cut that off."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise SystemExit(128 + signal.SIGTERM)


def leave_on_sigterm() -> None:
    """Take SIGTERM for the end from here on."""
    signal.signal(signal.SIGTERM, leave)

"""The socket of a Docker daemon on another machine as a socket of this one, carried by the system's own ssh.

So keys, agents, jump hosts and known hosts are those of ~/.ssh/config. The tunnel lives as long as its standard input:
when this process ends, however it ends, the far `cat` sees the end of its input and ssh ends too.
"""

import contextlib
import os
import re
import selectors
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from modelkit.errors import DeployError, UsageError

__all__ = ["parse_ssh", "ssh_tunnel"]

_SOCKET = "/var/run/docker.sock"
_READY = b"modelkit\n"
_CONNECT_TIMEOUT_S = 20.0
_PREFIX = "modelkit-ssh-"

# What ssh says (the first that matches counts), what that means, and the cure.
_FAULTS = (
    (r"host key verification failed|authenticity of host", "its host key is not known here", "`ssh {target}` once and compare the key's fingerprint; then it is known"),
    (r"remote host identification has changed", "its host key is not the one known here", "find out why it has changed before anything else; `ssh-keygen -R HOST` forgets the old one"),
    (r"permission denied \(", "it does not let this user in", "`ssh {target}` has to work without a password: ssh-copy-id {target}, or start an ssh-agent with the key"),
    (r"could not resolve hostname|name or service not known", "there is no host of that name", "check the address: ssh://USER@HOST[:PORT]"),
    (r"connection refused|no route to host|timed out|network is unreachable", "no ssh server answers there", "check host and port, and that sshd runs: ssh://USER@HOST[:PORT]"),
    (r"administratively prohibited|forwarding failed|open failed", "it does not forward its Docker socket", "allow AllowStreamLocalForwarding in its sshd_config, and the user in the group docker; another socket: ssh://USER@HOST/PATH/docker.sock"),
)  # fmt: skip


@contextlib.contextmanager
def ssh_tunnel(address: str) -> Iterator[str]:
    """Give the unix:// address of the daemon behind an ssh:// one, until the block ends. Raises DeployError, UsageError."""
    ssh = shutil.which("ssh")
    if ssh is None:
        raise UsageError(
            f"{address} needs ssh, and there is none on the PATH", cure="install an OpenSSH client"
        )
    options, target, far_socket = parse_ssh(address)
    _sweep()
    with tempfile.TemporaryDirectory(prefix=f"{_PREFIX}{os.getpid()}-") as folder:
        socket = Path(folder) / "docker.sock"
        command = [ssh, "-T", "-o", "BatchMode=yes", "-o", "ExitOnForwardFailure=yes", "-o", "LogLevel=ERROR"]
        command += ["-o", "ServerAliveInterval=15", "-o", "ClearAllForwardings=no", *options]
        command += ["-L", f"{socket}:{far_socket}", "--", target, "cat"]
        process = subprocess.Popen(  # noqa: S603 - ssh, found on the PATH
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is this process's to handle, which then still needs the tunnel
        )
        with process:
            try:
                _wait(process, address, target)
                yield f"unix://{socket}"
            finally:
                process.kill()


def parse_ssh(address: str) -> tuple[list[str], str, str]:
    """Return ssh's options, its target and the far socket. Raises UsageError for what is no address."""
    parts = urlsplit(address)
    try:
        port = parts.port
    except ValueError:
        port = 0
    if not parts.hostname or port == 0 or parts.password:
        raise UsageError(
            f"'{address}' is not the address of a Docker host",
            cure="write ssh://USER@HOST[:PORT]; ssh takes keys from ~/.ssh and its agent, never a password",
        )
    options = ["-p", str(port)] if port else []
    target = f"{parts.username}@{parts.hostname}" if parts.username else parts.hostname
    return options, target, parts.path.rstrip("/") or _SOCKET


def _wait(process: "subprocess.Popen[bytes]", address: str, target: str) -> None:
    """Wait until the far end echoes, which it does when the forwarding is in place. Raises DeployError."""
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(_READY)
        process.stdin.flush()
    deadline, said = time.monotonic() + _CONNECT_TIMEOUT_S, b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while _READY not in said:
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise _failure("it has not answered: connection timed out", address, target)
            piece = os.read(process.stdout.fileno(), 4096)
            if not piece:
                assert process.stderr is not None
                raise _failure(process.stderr.read().decode(errors="replace").strip(), address, target)
            said += piece


def _failure(said: str, address: str, target: str) -> DeployError:
    for sign, meaning, cure in _FAULTS:
        if re.search(sign, said, re.IGNORECASE):
            return DeployError(f"{address} cannot be reached: {meaning}", cure=cure.format(target=target))
    last = said.splitlines()[-1] if said else "ssh has ended without a word"
    return DeployError(
        f"{address} cannot be reached: {last}", cure=f"see what `ssh {target} docker version` says"
    )


def _sweep() -> None:
    """Remove sockets of processes that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*-*"):
        pid = folder.name.removeprefix(_PREFIX).partition("-")[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists() and Path("/proc/self").exists():
            shutil.rmtree(folder, ignore_errors=True)

"""Weights to a registry: `modelkit upload` beside oras-py, skopeo copy and docker push, in one run.

    python benchmarks/upload.py [--gib 2] [--json FILE]

A real registry (Debian's docker-registry) on this machine takes them all, each in a repository of its own. Measured is
the client from start to end: wall time, processor seconds, peak memory; for docker, whose client only asks, the daemon's.
Then the same again: what an upload of nothing new costs, and how many bytes the registry read for it.
oras-py (pip install oras), skopeo and dockerd are measured where they are installed; dockerd needs root.
"""

import argparse
import hashlib
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from modelkit.registry import Draft, FilePart, LayoutReference, copy, open_store
from modelkit.registry.base import MANIFEST
from modelkit.registry.content import describe
from registry_server import RegistryServer

NUM_FILES = 4
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
MODEL = """\
from modelkit import Model, method


class Weights(Model):
    @method
    def answer(self, question: str) -> str:
        return question
"""
CONFIG = "model: {id: weights}\ncheckpoints: {type: local, path: checkpoint}\n"
ORAS = """
import sys
import oras.client
client = oras.client.OrasClient(hostname=sys.argv[1], insecure=True)
client.push(sys.argv[2], files=sys.argv[4:], disable_path_validation=True, do_chunked=sys.argv[3] == "chunked")
"""


@dataclass
class Cost:
    """What one upload took."""

    wall_s: float
    cpu_s: float
    peak_mib: float
    registry_read_bytes: int = 0


def measure(command: list[str], registry: RegistryServer, environment: dict[str, str]) -> Cost:
    before = read_bytes(registry)
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)
    assert process.stderr is not None
    complaint = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    wall_s = time.perf_counter() - started
    if process.returncode:
        raise SystemExit(f"{' '.join(command[:4])}: {complaint.decode()[-1500:]}")
    cpu_s = usage.ru_utime + usage.ru_stime
    return Cost(wall_s, cpu_s, usage.ru_maxrss / 1024, read_bytes(registry) - before)


def read_bytes(registry: RegistryServer) -> int:
    """Return what the registry has read so far, sockets and files alike."""
    assert registry.process is not None
    text = Path(f"/proc/{registry.process.pid}/io").read_text()
    return int(text.split("rchar: ")[1].split()[0])


def write_weights(folder: Path, num_bytes: int) -> list[Path]:
    """Write random files, which no compressor makes smaller, as weights are."""
    paths = [folder / f"checkpoint/model-{index}.safetensors" for index in range(NUM_FILES)]
    paths[0].parent.mkdir(parents=True)
    for path in paths:
        with path.open("wb") as file:
            for _ in range(num_bytes // NUM_FILES // 2**20):
                file.write(os.urandom(2**20))
    (folder / "config.yaml").write_text(CONFIG)
    (folder / "model.py").write_text(MODEL)
    return paths


def locked_copy(folder: Path) -> Path:
    """Copy the model folder, with a modelkit.lock: a checkpoint that was fetched has one, and need not be hashed again."""
    locked = folder / "locked"
    shutil.copytree(folder / "model", locked, copy_function=os.link)
    files = []
    for path in sorted((locked / "checkpoint").iterdir()):
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        files.append({"path": path.name, "size_bytes": path.stat().st_size, "sha256": sha256})
    (locked / "modelkit.lock").write_text(json.dumps({"checkpoints": {"default": {"files": files}}}))
    return locked


def image_layout(folder: Path, paths: list[Path]) -> Path:
    """Make an image with a layer for each file, as a layout that skopeo copies from."""
    draft, layers = Draft(), []
    for path in paths:
        tar_path = folder / f"{path.name}.tar"
        with tarfile.open(tar_path, "w") as tar:
            tar.add(path, arcname=path.name)
        part = FilePart(tar_path, tar_path.stat().st_size)
        layers.append(draft.add(describe(part, "application/vnd.oci.image.layer.v1.tar"), part))
    rootfs = {"type": "layers", "diff_ids": [layer.digest for layer in layers]}
    image = {"architecture": "amd64", "os": "linux", "config": {}, "rootfs": rootfs}
    config = draft.add_bytes(json.dumps(image).encode(), "application/vnd.oci.image.config.v1+json")
    listed = [layer.to_json() for layer in layers]
    document = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config.to_json(), "layers": listed}
    with open_store(LayoutReference(folder / "layout")) as store:
        copy(draft, store, draft.add_manifest(document).digest, tags=["v1"])
    return folder / "layout"


class Daemon:
    """A dockerd of our own, with its own folder, so that nothing of this machine's is touched."""

    def __init__(self, folder: Path) -> None:
        self.socket = f"unix://{folder}/docker.sock"
        options = ["--data-root", f"{folder}/data", "--exec-root", f"{folder}/exec", "-p", f"{folder}/pid"]
        options += ["-H", self.socket, "--bridge=none", "--iptables=false", "--ip6tables=false"]
        self.process = subprocess.Popen(
            ["dockerd", *options], stdout=subprocess.DEVNULL, stderr=(folder / "log").open("wb")
        )
        for _ in range(200):
            if self.docker("version", check=False).returncode == 0:
                return
            time.sleep(0.1)
        self.stop()
        raise SystemExit((folder / "log").read_text()[-1500:])

    def docker(self, *arguments: str, check: bool = True, **options) -> subprocess.CompletedProcess:
        return subprocess.run(
            ["docker", "-H", self.socket, *arguments], check=check, capture_output=True, **options
        )

    def measure_push(self, image: str, registry: RegistryServer) -> Cost:
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")  # the peak from now on
        cpu_s, read, started = self.cpu_s(), read_bytes(registry), time.perf_counter()
        self.docker("push", image)
        wall_s = time.perf_counter() - started
        return Cost(wall_s, self.cpu_s() - cpu_s, self.peak_mib(), read_bytes(registry) - read)

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS_PER_S

    def peak_mib(self) -> float:
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(text.split("VmHWM:")[1].split()[0]) / 1024

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(60)


@contextmanager
def docker_pusher(folder: Path, paths: list[Path], registry: RegistryServer) -> Iterator[Callable[[], Cost]]:
    folder.mkdir()
    daemon = Daemon(folder)
    try:
        image = f"{registry.host}/docker/weights:v1"
        context = folder / "context"
        context.mkdir()
        for path in paths:
            os.link(path, context / path.name)
        lines = ["FROM scratch", *(f"COPY {path.name} /{path.name}" for path in paths)]
        (context / "Dockerfile").write_text("\n".join(lines))
        daemon.docker("build", "-t", image, str(context), env={**os.environ, "DOCKER_BUILDKIT": "0"})
        yield lambda: daemon.measure_push(image, registry)
    finally:
        daemon.stop()


def uploads(
    folder: Path, paths: list[Path], registry: RegistryServer, stack: ExitStack
) -> Iterator[tuple[str, Callable[[], Cost]]]:
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}

    def run(*command: str) -> Callable[[], Cost]:
        return lambda: measure(list(command), registry, environment)

    for what, model in (("modelkit upload", folder / "model"), ("..., with a lock", locked_copy(folder))):
        target = f"{registry.host}/modelkit/{model.name}"
        yield (
            what,
            run(sys.executable, "-m", "modelkit", "-q", "upload", "--no-image", str(model), "--to", target),
        )
    if importlib.util.find_spec("oras"):
        for kind in ("whole", "chunked"):
            files = [f"{path}:application/octet-stream" for path in paths]
            arguments = [registry.host, f"{registry.host}/oras/{kind}:v1", kind, *files]
            yield f"oras-py, {kind}", run(sys.executable, "-c", ORAS, *arguments)
    if shutil.which("skopeo"):
        layout = image_layout(folder, paths)
        target = f"docker://{registry.host}/skopeo/weights:v1"
        options = ["--dest-tls-verify=false", "--preserve-digests"]
        yield "skopeo copy", run("skopeo", "copy", *options, f"oci:{layout}:v1", target)
    if shutil.which("dockerd") and os.geteuid() == 0:
        yield "docker push", stack.enter_context(docker_pusher(folder / "docker", paths, registry))


def said(*command: str) -> str:
    """Return what a program says of itself, "" where it is not there."""
    if shutil.which(command[0]) is None:
        return ""
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gib", type=float, default=2.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="modelkit-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        paths = write_weights(folder / "model", int(options.gib * 2**30))
        registry = RegistryServer(folder / "registry").start()
        stack.callback(registry.kill)
        print(f"{options.gib:g} GiB in {NUM_FILES} files")
        print(
            f"{'':<20}{'wall s':>9}{'cpu s':>8}{'peak MiB':>10}   again:{'wall s':>8}{'cpu s':>8}{'registry read':>16}"
        )
        for what, upload in uploads(folder, paths, registry, stack):
            first, again = upload(), upload()
            rows.append({"client": what, "first": asdict(first), "again": asdict(again)})
            print(
                f"{what:<20}{first.wall_s:>9.1f}{first.cpu_s:>8.1f}{first.peak_mib:>10.0f}         "
                f"{again.wall_s:>8.2f}{again.cpu_s:>8.2f}{again.registry_read_bytes:>16,}",
                flush=True,
            )
    if options.json:
        versions = {
            "python": platform.python_version(),
            "docker-registry": said("docker-registry", "--version"),
        }
        versions |= {"skopeo": said("skopeo", "--version"), "dockerd": said("dockerd", "--version")}
        record = {"command": " ".join(sys.argv), "num_cpus": os.cpu_count(), "versions": versions}
        record |= {"gib": options.gib, "rows": rows}
        options.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()

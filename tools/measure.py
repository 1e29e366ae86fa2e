# SPDX-License-Identifier: GPL-2.0-or-later
"""`make bench`: measure on this machine what the documents show, and write it into them.

Each benchmark leaves a file in docs/results, from which docs/evaluation.md and the figures of
README.md are made. Files of runs that take longer (`crash --full`, `scale --vm`) or were made on
another machine (`xeon-*`) are not renewed and are shown with their own host, after the others.
"""

import argparse
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["MEASURED", "main", "order"]

FASTSOCKET = (sys.executable, "-c", "from fastsocket.cli.main import main; main()")
DOCS = Path(__file__).resolve().parent.parent / "docs"
RESULTS = DOCS / "results"
TWO = "--modes stock,fastsocket --no-call-sites"
EVERYTHING = f"--lean-client {TWO} --run-options='--defer-accept --fast-epoll --batch'"
STORES = "--modes stock,rps,rfs,fastsocket"

# Name of the result -> the words after `fastsocket bench`; the first stands in README.md.
MEASURED = {
    "short-nginx": "short --server nginx --runs 40",
    "short-nginx-plain": "short --server nginx --runs 20 --run-options=--lean=off",
    "short-nginx-lean-client": f"short --server nginx --lean-client --runs 20 {TWO}",
    "short-nginx-everything": f"short --server nginx --runs 40 {EVERYTHING}",
    "short-haproxy": "short --server haproxy --runs 12",
    "short-haproxy-profile": "short --server haproxy --runs 20 --run-options=--profile=haproxy",
    "short-haproxy-single-queue": "short --server haproxy-single-queue --runs 60",
    "short-haproxy-everything": f"short --server haproxy-single-queue --runs 20 {EVERYTHING}",
    "short-lighttpd": "short --server lighttpd --runs 20",
    "short-gunicorn": f"short --server gunicorn --runs 20 {TWO}",
    "short-uvicorn": f"short --server uvicorn --runs 20 {TWO}",
    "short-uvicorn-everything": f"short --server uvicorn --runs 60 {EVERYTHING}",
    "short-granian-begins": f"short --server granian --runs 20 {TWO}",
    # Its workers may go to all CPUs after they were weighed for a second or more.
    "short-granian": f"short --server granian --runs 20 --warmup 3 --seconds 2 {TWO}",
    "short-granian-everything": (
        f"short --server granian --runs 20 --warmup 3 --seconds 2 {EVERYTHING}"
    ),
    "keepalive-nginx": "keepalive --server nginx --runs 20 --modes stock,fastsocket",
    "keepalive-nginx-plain": (
        "keepalive --server nginx --runs 20 --modes stock,fastsocket --run-options=--lean=off"
    ),
    "keepalive-nginx-everything": (
        "keepalive --server nginx --runs 20 --modes stock,fastsocket"
        " --run-options='--defer-accept --fast-epoll --batch'"
    ),
    "overhead": "overhead --runs 5",
    "stall-nginx": "stall --server nginx --runs 16 --seconds 4",
    "stall-demo": "stall --server demo --runs 6 --seconds 4",
    "stall-gunicorn": "stall --server gunicorn --runs 6 --seconds 4",
    "stall-granian": "stall --server granian --runs 6 --seconds 4",
    "stall-burn-demo": "stall-burn --server demo --runs 6 --seconds 4",
    "longlived-nginx": "longlived --server nginx --runs 6",
    "longlived-nginx-8": "longlived --server nginx --workers 8 --runs 6",
    "proxy-nginx": "proxy --server nginx --runs 60 --modes stock,fastsocket",
    "proxy-haproxy": "proxy --server haproxy-single-queue --runs 60 --modes stock,fastsocket",
    "proxy-rule-nginx": "proxy-rule --server nginx --runs 12 --modes stock,fastsocket",
    "steer": "steer --runs 10",
    "local-redis": "local --server redis --runs 20 --seconds 3",
    "local-redis-busy-poll": (
        "local --server redis --runs 20 --seconds 3 --run-options=--busy-poll=20"
    ),
    "local-redis-everything": (
        "local --server redis --runs 30 --seconds 3 --run-options=--busy-poll=20"
        " --client-options=--fast-epoll"
    ),
    "local-redis-kv": "local --server redis --client fastsocket-kv --runs 20",
    "local-nginx": "local --server nginx --runs 12",
    "local-postgresql": "local --server postgresql --runs 12",
    "local-postgresql-busy-poll": (
        "local --server postgresql --runs 20 --run-options=--busy-poll=20"
    ),
    "redis-veth": f"redis-veth --server redis --runs 12 {STORES}",
    "lean": "lean --runs 1 --seconds 1",
}


def order(files: Sequence[Path]) -> list[Path]:
    """Sort result files as the documents show them: those above in their order, then the others."""
    names = list(MEASURED)
    return sorted(
        files,
        key=lambda file: (names.index(file.stem) if file.stem in names else len(names), file.name),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"of {', '.join(MEASURED)} [all]")
    parser.add_argument("--write", action="store_true", help="measure nothing, write documents")
    chosen = parser.parse_args(argv)
    if unknown := set(chosen.names) - set(MEASURED):
        parser.error(f"no measurement {', '.join(sorted(unknown))}")
    RESULTS.mkdir(exist_ok=True)
    failed = []
    for name in [] if chosen.write else chosen.names or MEASURED:
        output = ["--force", "--output", str(RESULTS / f"{name}.json")]
        if subprocess.call([*FASTSOCKET, "bench", *shlex.split(MEASURED[name]), *output]) != 0:
            failed.append(name)
    files = [str(file) for file in order(list(RESULTS.glob("*.json")))]
    words = ["report", "--markdown", "--title", "Evaluation", "-o", str(DOCS / "evaluation.md")]
    subprocess.run([*FASTSOCKET, *words, *files], check=True)
    subprocess.run([sys.executable, str(Path(__file__).with_name("figures.py"))], check=True)
    if failed:
        print(f"not measured: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

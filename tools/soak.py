# SPDX-License-Identifier: GPL-2.0-or-later
"""`make soak`: servers of every kind under Fastsocket at once, in random trouble, for a long time.

Each is a `fastsocket bench soak` with a result file of its own; the seed repeats its events, though
not their timing. Ends with status 1 if one lost a connection, grew, or left a slot stuck.
"""

import argparse
import random
import signal
import subprocess
import sys
from pathlib import Path

__all__ = ["main"]

FASTSOCKET = (sys.executable, "-c", "from fastsocket.cli.main import main; main()")
SERVERS = ("nginx", "gunicorn", "haproxy", "demo")
ROUND_SECONDS = 25
# Servers become calm and are looked at.
BETWEEN_SECONDS = 5
FEWEST_ROUNDS = 3


def main() -> int:
    """Run the soak of the command line; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=1200, help="in all [1200]")
    parser.add_argument("--output", type=Path, default=Path("soak-results"), help="directory")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32))
    chosen = parser.parse_args()
    chosen.output.mkdir(parents=True, exist_ok=True)
    rounds = max(chosen.seconds // (ROUND_SECONDS + BETWEEN_SECONDS), FEWEST_ROUNDS)
    print(f"seed {chosen.seed}, {rounds} rounds, results in {chosen.output}", flush=True)
    running = {}
    for server in SERVERS:
        words = ("--runs", rounds, "--seconds", ROUND_SECONDS, "--seed", chosen.seed)
        place = ("--force", "--output", chosen.output / f"soak-{server}.json")
        command = [*FASTSOCKET, "bench", "soak", "--server", server, *words, *place]
        running[server] = subprocess.Popen([str(word) for word in command])
    # Ctrl-C reaches them, too; they keep what they have.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def end(number: int, frame: object) -> None:
        for process in running.values():
            process.terminate()

    signal.signal(signal.SIGTERM, end)
    failed = [server for server, process in running.items() if process.wait() != 0]
    print(f"not passed: {', '.join(failed)}" if failed else "passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

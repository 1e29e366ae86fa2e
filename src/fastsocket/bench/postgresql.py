# SPDX-License-Identifier: GPL-2.0-or-later
"""PostgreSQL: a process for each connection, and a fresh database for each run."""

import os
import shutil
import subprocess
from pathlib import Path

from fastsocket.bench.modes import Mode
from fastsocket.bench.servers import Site, program
from fastsocket.errors import FastsocketError

__all__ = ["PACKAGE", "USER", "Postgresql"]

PACKAGE = "postgresql"
USER = "postgres"


class Postgresql:
    """PostgreSQL as it comes, but for syncing to disk."""

    name = "postgresql"
    modes = (Mode.STOCK, Mode.FASTSOCKET)

    def command(self, mode: Mode, site: Site) -> list[str]:
        """Make a database and return the command; see :class:`fastsocket.bench.servers.Server`."""
        del mode
        data = site.directory / "data"
        data.mkdir()
        identity: list[str] = []
        if os.geteuid() == 0:  # as whom it refuses to run
            identity = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--"]
            try:
                shutil.chown(data, USER, USER)
            except LookupError as error:
                raise FastsocketError(
                    f"there is no user {USER}", todo=f"apt-get install {PACKAGE}"
                ) from error
        make = [*identity, _binary("initdb"), "-D", str(data), "-A", "trust", "-U", USER]
        done = subprocess.run(
            [*make, "--no-sync", "--no-instructions"],
            capture_output=True,
            text=True,
            check=False,
            cwd="/",  # it must be able to enter where it starts
        )
        if done.returncode != 0:
            raise FastsocketError("initdb failed", "".join(done.stderr.strip().splitlines()[-1:]))
        settings = (
            *(f"listen_addresses={site.address}", f"port={site.port}"),
            *(f"unix_socket_directories={data}", "fsync=off"),
        )
        words = [word for setting in settings for word in ("-c", setting)]
        return [*identity, _binary("postgres"), "-D", str(data), *words]


def _binary(name: str) -> str:
    """Return a server program's path, which Debian keeps out of everybody's PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(found[-1]) if found else program(name, PACKAGE)

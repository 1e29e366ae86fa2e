# SPDX-License-Identifier: GPL-2.0-or-later
"""Write docs/fastsocket.1 from the commands' own help: the page says what they say.

Without arguments it writes the file. The wheel installs it; a test holds it to the commands.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from fastsocket.cli.group import COMMANDS, cli

__all__ = ["MANPAGE", "main", "manpage"]

ROOT = Path(__file__).resolve().parent.parent
MANPAGE = ROOT / "docs/fastsocket.1"

_HEAD = """\
.\\" Written by tools/manpage.py from the commands' own help.
.TH FASTSOCKET 1 "" "Fastsocket" "User Commands"
.nh
.ad l
.SH NAME
fastsocket \\- per-core TCP sockets for unmodified servers on the stock Linux kernel
.SH SYNOPSIS
.B fastsocket
[\\fB\\-v\\fR] \\fICOMMAND\\fR [\\fIARGUMENTS\\fR]
.br
.B LD_PRELOAD=$(fastsocket lib)
\\fISERVER\\fR
.SH DESCRIPTION
Fastsocket makes unmodified TCP servers scale with the CPU cores: every connection is received,
accepted, served and closed on one core. BPF programs choose the listening socket and the receiving
CPU, a preloaded library gives each worker a listening socket of its own, and this command starts,
measures and undoes everything.
.PP
Every command takes \\fB\\-\\-help\\fR and \\fB\\-\\-json\\fR; every command that changes the host
takes \\fB\\-\\-dry\\-run\\fR. Pages with examples are in the folder docs of the source.
.SH COMMANDS
"""
_TAIL = """\
.SH EXIT STATUS
.TP
.B 0
Done.
.TP
.B 1
A failure of another kind than the following.
.TP
.B 2
Wrong usage: the command line, a configuration file or a rule.
.TP
.B 3
A privilege or a kernel feature is missing.
.TP
.B 4
The request conflicts with the state of the host.
.PP
\\fBfastsocket run\\fR ends as the server does; before that 127 where it does not exist, and 126
where it cannot be executed.
.SH FILES
.TP
.I /etc/fastsocket.toml
Parameters of this host; see docs/config.md.
.SH EXAMPLES
.nf
fastsocket run \\-\\- nginx
fastsocket status
fastsocket doctor \\-\\-measure http://127.0.0.1/
fastsocket bench short \\-\\-server nginx \\-\\-output nginx.json
fastsocket report nginx.json \\-o nginx.html
.fi
.SH SEE ALSO
.BR nginx (8),
.BR haproxy (1),
.BR ld.so (8),
.BR bpf (2),
.BR socket (7)
"""


def manpage() -> str:
    """Return the page in the language of man(7)."""
    context = click.Context(cli, info_name="fastsocket")
    parts = [_HEAD]
    for name in COMMANDS:
        command = cli.get_command(context, name)
        assert command is not None
        parts.extend(_section(command, context, name, "fastsocket"))
    return "".join(parts) + _TAIL


def _section(command: click.Command, parent: click.Context, name: str, path: str) -> Iterator[str]:
    """Yield a command: usage, help, options, and the commands below it."""
    context = click.Context(command, info_name=name, parent=parent)
    full = f"{path} {name}"
    usage = " ".join(command.collect_usage_pieces(context))
    yield f".SS {_plain(full)} {_plain(usage)}\n"
    yield "\n.PP\n".join(_paragraphs(command.help or "")) + "\n"
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record and isinstance(parameter, click.Option) and "--help" not in parameter.opts:
            names, text = record
            yield f".TP\n.B {_plain(names)}\n{_plain(' '.join(text.split()))}\n"
    if isinstance(command, click.Group):
        for below in command.list_commands(context):
            found = command.get_command(context, below)
            assert found is not None
            yield from _section(found, context, below, full)


def _paragraphs(text: str) -> list[str]:
    """Return the paragraphs of a help text, one line each."""
    blocks = re.split(r"\n\s*\n", text.replace("\f", "\n").strip())
    lines = (" ".join(line for line in block.split() if line != "\b") for block in blocks)
    return [_plain(line) for line in lines if line]


def _plain(text: str) -> str:
    """Write text so that groff takes nothing of it for a command."""
    safe = text.replace("\\", "\\e").replace("-", "\\-").replace("…", "...")
    safe = "".join(sign if sign.isascii() else f"\\[u{ord(sign):04X}]" for sign in safe)
    return f"\\&{safe}" if safe.startswith((".", "'")) else safe


def main() -> int:
    """Write the page and return 0."""
    MANPAGE.write_text(manpage(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

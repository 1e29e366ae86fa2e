# SPDX-License-Identifier: GPL-2.0-or-later
"""Random rules: source text that uses the whole language and is mostly accepted."""

import random

INTEGERS = (
    "version", "proto", "saddr", "saddr0", "saddr1", "daddr", "daddr2", "sport", "dport",
    "tcp_flags", "vlan", "inner_vlan", "dscp", "fragment", "length", "hash", "symmetric_hash",
    "flow", "queue",
)  # fmt: skip
TABLES = """
SEEN = table({1: 5, 80: -7, -3: 9}, size=4096)
SLOTS = array({0: 3, 5: -2}, size=64)
NETS = prefixes({"0.0.0.0/1": 4, "10.0.0.0/8": 6, "2000::/3": 9, "::/0": -2})
HITS = counter()
ODD = {-5, 0, 1, 2, 3, 7, 80, 443, 444, 445, 65535, 2**40}
"""


class RandomRule:
    """Writes one rule from `seed`."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.names: list[str] = []
        self.lines = [TABLES, "def rule(pkt, cpus):"]

    def source(self) -> str:
        """Return the text."""
        self.lines.append(f"    n0 = {self.integer(2)}")
        self.names.append("n0")
        self.block(1, self.chance.randint(2, 7), loops=2)
        if self.chance.random() < 0.9:
            self.lines.append(f"    return {self.integer(3)}")
        return "\n".join(self.lines) + "\n"

    def block(  # noqa: PLR0912 - a case for each kind of statement
        self, indent: int, count: int, loops: int, inside: bool = False
    ) -> None:
        """Add statements."""
        space = "    " * indent
        known = len(self.names)
        for _ in range(count):
            match self.chance.choice("aaauistcbr" if loops else "aaauistb"):
                case "a":
                    name = f"n{self.chance.randrange(6)}"
                    self.lines.append(f"{space}{name} = {self.integer(3)}")
                    self.names.append(name)
                case "u":
                    name = self.chance.choice(self.names)
                    op = self.chance.choice(("|=", "^=", "&=", "%="))
                    value = self.integer(1) if op != "%=" else f"{self.chance.randint(1, 99)}"
                    self.lines.append(f"{space}{name} {op} {value}")
                case "i":
                    self.lines.append(f"{space}if {self.condition(2)}:")
                    self.block(indent + 1, self.chance.randint(1, 3), loops, inside)
                    if self.chance.random() < 0.5:
                        self.lines.append(f"{space}elif {self.condition(1)}:")
                        self.block(indent + 1, self.chance.randint(1, 2), loops, inside)
                    if self.chance.random() < 0.5:
                        self.lines.append(f"{space}else:")
                        self.block(indent + 1, self.chance.randint(1, 2), loops, inside)
                case "s":
                    self.lines.append(
                        f"{space}SEEN.set({self.integer(1)} & 63, {self.integer(1)} & 0xffff)"
                    )
                case "t":
                    verb = self.chance.choice(("set", "add"))
                    self.lines.append(
                        f"{space}SLOTS.{verb}({self.integer(1)} % 70 - 3, "
                        f"{self.integer(1)} & 0x7fffffff)"
                    )
                case "c":
                    self.lines.append(f"{space}HITS.add({self.integer(1)} & 7)")
                case "b" if inside:
                    self.lines.append(f"{space}if {self.condition(1)}:")
                    self.lines.append(f"{space}    {self.chance.choice(('break', 'continue'))}")
                case "r" if loops:
                    first, step = self.chance.randint(-3, 9), self.chance.choice((1, 2, -1))
                    last = first + step * self.chance.randint(0, 9)
                    name = self.chance.choice(("i", "j"))
                    self.lines.append(f"{space}for {name} in range({first}, {last}, {step}):")
                    self.names.append(name)
                    if first == last:
                        self.names.pop()
                    self.block(indent + 1, self.chance.randint(1, 3), loops - 1, True)
                case _:
                    self.lines.append(f"{space}pass")
        if indent > 1:
            del self.names[known:]

    def integer(self, depth: int) -> str:
        """Return an integer expression."""
        chance = self.chance
        if depth <= 0 or chance.random() < 0.2:
            return self.leaf()
        left, right = self.integer(depth - 1), self.integer(depth - 1)
        mask = chance.choice(("0xff", "0xffff", "0xffffffff", "0x7fffffffffffffff"))
        divisor = chance.choice(("7", "-3", "64", "1", "-1", "cpus", f"max(abs({right}) & 99, 1)"))
        number = f"({left} & 0xffffffff)"
        return chance.choice((
            f"(({left} {chance.choice('+-*')} {right}) & {mask})",
            f"({number} {chance.choice('+-')} ({right} & 0xffff))",
            f"({left} {chance.choice('&|^')} {right})",
            f"(({number} - 0x80000000) {chance.choice(('//', '%'))} {divisor})",
            f"(({left} - {right} * 3) % {chance.choice(('16', '1', '4096'))})",
            f"({left} >> ({right} & 63))",
            f"(({left} << ({right} & 31)) & {mask})",
            f"{chance.choice(('min', 'max'))}({left}, {right})",
            f"(-{number})", f"(~{left})", f"abs({number} - 77777)",
            f"({left} if {self.condition(depth - 1)} else {right})",
            f"SEEN.get({left} & 127, {right})",
            f"SLOTS.get({left} % 70 - 3, {right})",
            f"NETS.get(pkt.{chance.choice(('src', 'dst'))}, {right})",
            f"({self.condition(depth - 1)})",
            "(HITS.add(1) & 255)",
        ))  # fmt: skip

    def condition(self, depth: int) -> str:
        """Return a condition."""
        chance = self.chance
        if depth > 0 and chance.random() < 0.5:
            joined = f" {chance.choice(('and', 'or'))} "
            parts = [self.condition(depth - 1) for _ in range(chance.randint(2, 3))]
            return chance.choice(("", "not ")) + f"({joined.join(parts)})"
        left, right = self.integer(depth), self.integer(depth)
        op = chance.choice(("==", "!=", "<", "<=", ">", ">="))
        return chance.choice((
            f"{left} {op} {right}",
            f"{self.leaf()} {op} {self.leaf()} {op} {self.leaf()}",
            f"{left} in ODD",
            f"{left} not in {{1, 2, 443, 6, 17}}",
            f"({left} & 63) in SEEN",
            f"({left} & 1) == 1",
        ))  # fmt: skip

    def leaf(self) -> str:
        """Return a field, a name or a constant."""
        kind = self.chance.random()
        if kind < 0.5:
            return f"pkt.{self.chance.choice(INTEGERS)}"
        if kind < 0.75 and self.names:
            return self.chance.choice(self.names)
        return str(self.chance.choice((0, 1, 2, 3, 6, 17, 80, 443, 1024, 65535, 2**31, -1, -77)))

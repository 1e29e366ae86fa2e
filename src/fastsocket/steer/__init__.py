# SPDX-License-Identifier: GPL-2.0-or-later
"""Packet steering by rules written in Python: language, compiler, devices.

The way of a rule: ``check`` reads the file into a `Rule`, ``lower`` proves that its arithmetic
stays within 64 bits and turns it into typed nodes (``ir``), ``compile`` turns those into BPF code
inside the C dispatcher, ``program`` loads it, ``device`` attaches it. Only ``compile`` needs
llvmlite, and imports it when it is called.
"""

# SPDX-License-Identifier: GPL-2.0-or-later
"""A thin binding to libbpf: objects, maps, programs and links; it knows nothing of sockets."""

# SPDX-License-Identifier: GPL-2.0-or-later
"""What the host is: CPU topology, cgroup limits, capabilities."""

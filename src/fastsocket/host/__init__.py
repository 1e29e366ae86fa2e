# SPDX-License-Identifier: GPL-2.0-or-later
"""What this host allows and offers: CPUs, capabilities, programs, kernel features, its log."""

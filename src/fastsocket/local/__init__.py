# SPDX-License-Identifier: GPL-2.0-or-later
"""The local fast path: connections whose two ends are on this host skip TCP and IP."""

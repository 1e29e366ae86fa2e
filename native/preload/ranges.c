// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * close_range() and closefrom(), with which daemons close what they were started with: the
 * listeners in the range are forgotten, and our own descriptors there stay if their listener
 * does.
 */
#include <linux/close_range.h>
#include <unistd.h>

#include "epoll.h"

/* What the descriptor was counts no longer. */
static void forget(int fd)
{
	struct fd_entry *entry = fd_entry(fd);

	if (entry->kind == FD_LISTENER)
		fs_listener_close(&fs_listeners[entry->listener]);
	lean_shared(fd); /* what is promised for it is sent before */
	if (entry->kind == FD_CONNECTION)
		fs_closed(entry);
	entry->kind = FD_OTHER;
}

/* Close [first, last] but for our descriptors that are still needed. */
static int close_around(unsigned first, unsigned last, int flags)
{
	unsigned end = last < fs_fd_count ? last + 1 : fs_fd_count;
	int result = 0;

	fast_spawns(); /* whatever goes, goes unseen */
	for (unsigned fd = first; fd < end; fd++)
		if (fd_entry(fd)->kind == FD_OTHER)
			lean_number_ends(fd_entry(fd));
		else if (fd_entry(fd)->kind != FD_PRIVATE)
			forget(fd);
	for (unsigned fd = first; fd < end && !result; fd++) {
		if (fd_entry(fd)->kind != FD_PRIVATE || !fs_is_private(fd))
			continue;
		if (fd > first)
			result = NEXT(close_range)(first, fd - 1, flags);
		first = fd + 1;
	}
	return result || first > last ? result : NEXT(close_range)(first, last, flags);
}

EXPORT int close_range(unsigned first, unsigned last, int flags)
{
	if (!fs_fd_count || first > last || flags & CLOSE_RANGE_CLOEXEC || getpid() != fs_pid)
		return NEXT(close_range)(first, last, flags);
	return close_around(first, last, flags);
}

EXPORT void closefrom(int first)
{
	if (!fs_fd_count || getpid() != fs_pid || close_around(first < 0 ? 0 : first, ~0U, 0) < 0)
		NEXT(closefrom)(first);
}

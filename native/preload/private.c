// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Descriptors that we hold in the application's table: numbered high, so that the application
 * gets the numbers that it would have had, closed on exec, and out of reach of its close().
 */
#include <errno.h>
#include <fcntl.h>
#include <sys/resource.h>

#include "fsocket.h"

#define FLOOR 768 /* below 1024, where select() ends */

/* Move `fd` up and mark it; returns its new number, or -1 (then it is closed). */
int fs_private(int fd)
{
	struct rlimit limit = {.rlim_cur = 1024};
	int high, floor = FLOOR;

	getrlimit(RLIMIT_NOFILE, &limit);
	if (limit.rlim_cur < 1024)
		floor = limit.rlim_cur * 3 / 4;
	high = fcntl(fd, F_DUPFD_CLOEXEC, floor);
	NEXT(close)(fd);
	if (high >= 0)
		*fd_entry(high) = (struct fd_entry){.kind = FD_PRIVATE};
	return high;
}

/* Close a private socket; one that the application closed wholesale (closefrom, close_range)
 * may be another by now, which its cookie tells.
 */
void fs_private_close(int fd, uint64_t cookie)
{
	if (fd < 0 || fd_entry(fd)->kind != FD_PRIVATE)
		return;
	fd_entry(fd)->kind = FD_OTHER;
	if (fs_cookie(fd) == cookie)
		NEXT(close)(fd);
}

/* Whether a descriptor marked private still is ours; clears the mark otherwise. */
int fs_is_private(int fd)
{
	uint64_t cookie = fs_cookie(fd);

	for (int i = 0; cookie && i < fs_listener_count; i++) {
		const struct listener *l = &fs_listeners[i];

		if (l->fd < 0)
			continue;
		if (l->origin == fd && l->cookie == cookie)
			return 1;
		for (int j = 0; j < l->siblings; j++)
			if (l->sibling[j] == fd && l->sibling_cookie[j] == cookie)
				return 1;
	}
	fd_entry(fd)->kind = FD_OTHER;
	return 0;
}

static void replace(int *field, int from, int to)
{
	if (*field == from)
		*field = to;
}

/* The application wants the number of a private descriptor (dup2): give it away. */
int fs_private_move(int fd)
{
	int to = fcntl(fd, F_DUPFD_CLOEXEC, fd + 1);

	if (to < 0)
		return -1;
	*fd_entry(to) = (struct fd_entry){.kind = FD_PRIVATE};
	fd_entry(fd)->kind = FD_OTHER;
	for (int i = 0; i < fs_listener_count; i++) {
		struct listener *l = &fs_listeners[i];

		replace(&l->origin, fd, to);
		for (int j = 0; j < l->siblings; j++)
			replace(&l->sibling[j], fd, to);
		for (int j = 0; j < l->stand_ins; j++)
			replace(&l->stand_in[j].fd, fd, to);
	}
	return 0;
}

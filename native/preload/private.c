// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Descriptors that we hold in the application's table: numbered high, so that the application
 * gets the numbers that it would have had, closed on exec, and out of reach of its close().
 */
#include <errno.h>
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fsocket.h"

#define FLOOR 768 /* where no other place is to be had: below 1024, where select() ends */
#define SHARE 16 /* of the numbers that the application may use, we take one in so many there */
#define WIDE 4096 /* a limit above which a table for numbers beyond it costs too much memory */

static struct rlimit current_limit(void)
{
	struct rlimit limit = {.rlim_cur = 1024, .rlim_max = 1024};

	getrlimit(RLIMIT_NOFILE, &limit);
	return limit;
}

/* The limit is the whole process's: lifted beside other threads, it would show. */
static int is_alone(void)
{
	struct stat tasks;

	return stat("/proc/self/task", &tasks) == 0 && tasks.st_nlink == 3; /* ".", ".." and one */
}

static int has_beyond(const struct rlimit *limit)
{
	return limit->rlim_cur < limit->rlim_max && limit->rlim_cur <= WIDE && is_alone();
}

static int held(void)
{
	int count = 0;

	for (int i = 0; i < fs_listener_count; i++)
		if (fs_listeners[i].fd >= 0)
			count += fs_listeners[i].siblings + (fs_listeners[i].origin >= 0);
	return count;
}

/* Whether one more sibling would leave the application what it needs, and us an origin's number. */
int fs_private_room(void)
{
	const struct rlimit limit = current_limit();

	return has_beyond(&limit) || (rlim_t)held() + 1 < limit.rlim_cur / SHARE;
}

/* A number beyond the soft limit is one that the application is never given: the limit is lifted
 * for the moment that it takes to get it.
 */
static int beyond(int fd, const struct rlimit *limit)
{
	const struct rlimit lifted = {.rlim_cur = limit->rlim_max, .rlim_max = limit->rlim_max};
	int high;

	if (!has_beyond(limit) || setrlimit(RLIMIT_NOFILE, &lifted) < 0)
		return -1;
	high = fcntl(fd, F_DUPFD_CLOEXEC, (int)limit->rlim_cur);
	setrlimit(RLIMIT_NOFILE, limit);
	return high;
}

/* Move `fd` up and mark it; returns its new number, or -1 with errno (then it is closed). */
int fs_private(int fd)
{
	const struct rlimit limit = current_limit();
	int high, floor = FLOOR;

	if (limit.rlim_cur < 1024)
		floor = limit.rlim_cur * 3 / 4;
	high = beyond(fd, &limit);
	if (high < 0)
		high = fcntl(fd, F_DUPFD_CLOEXEC, floor);
	NEXT(close)(fd);
	if (high >= 0 && fd_entry(high) == fd_entry(-1)) {
		NEXT(close)(high); /* beyond our table: its mark would be lost */
		high = -1;
	}
	if (high < 0)
		errno = EMFILE;
	else
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

	if (to >= 0 && fd_entry(to) == fd_entry(-1)) {
		NEXT(close)(to); /* beyond our table */
		to = -1;
	}
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

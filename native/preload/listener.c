// SPDX-License-Identifier: LGPL-2.1-or-later
/* The application's listening sockets in this process, from listen() to close(). */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "epoll.h"

struct fs_page *fs_page;
struct listener fs_listeners[FS_MAX_LISTENERS];
int fs_listener_count;
int fs_unclaimed;

static struct listener *new_entry(void)
{
	for (int i = 0; i < FS_MAX_LISTENERS; i++) {
		struct listener *l = &fs_listeners[i];

		if (i < fs_listener_count && l->fd >= 0)
			continue;
		*l = (struct listener){.fd = -1, .origin = -1, .slot = UNCLAIMED, .epfd = -1};
		if (i >= fs_listener_count)
			fs_listener_count = i + 1;
		return l;
	}
	return NULL;
}

COLD struct listener *fs_known_listener(int fd)
{
	struct listener *l = &fs_listeners[fd_entry(fd)->listener];
	int saved = errno, same;

	if (getpid() != fs_pid)
		return NULL;
	same = fs_cookie(fd) == l->fd_cookie;
	if (!same) /* closed by a raw system call: the number is another file's */
		fs_listener_close(l);
	errno = saved;
	return same ? l : NULL;
}

/* The application listens on `fd`: from here on a second worker gets a socket of its own. */
void fs_listener_add(int fd, int backlog, int inherited)
{
	int saved = errno, reuseport = 0, flags, page_index;
	socklen_t length = sizeof(reuseport);
	struct fs_listener *pl;
	struct listener *l = listener_of(fd); /* the same socket; else it is forgotten */
	uint64_t cookie = fs_cookie(fd);

	if (getpid() != fs_pid) /* a child of vfork(), in its parent's memory */
		goto out;
	if (l) {
		fs_go_on(l, backlog);
		goto out;
	}
	if (fd_entry(fd) == fd_entry(-1) || fd_entry(fd)->kind == FD_ALONE ||
	    !fs_can_have_siblings(fd))
		goto out;
	NEXT(getsockopt)(fd, SOL_SOCKET, SO_REUSEPORT, &reuseport, &length);
	flags = (reuseport ? 0 : FS_JOIN_LATE) | (inherited ? FS_JOIN_INHERITED : 0);
	l = new_entry();
	if (!l)
		goto out;
	l->fd = fd;
	page_index = fs_keeper_join(l, flags);
	if (page_index < 0) {
		l->fd = -1;
		goto out;
	}
	pl = &fs_page->listener[page_index];
	if (!reuseport)
		pl->late_cookie = cookie;
	l->page_index = page_index;
	l->own_reuseport = reuseport && pl->late_cookie != cookie;
	l->backlog = backlog;
	l->cookie = l->fd_cookie = cookie;
	*fd_entry(fd) = (struct fd_entry){.kind = FD_LISTENER, .listener = l - fs_listeners};
	fs_unclaimed++;
out:
	errno = saved;
}

static int is_copy(int fd, const void *data)
{
	const struct listener *l = data;

	return fd != l->fd && fd_entry(fd)->kind == FD_OTHER && fd_entry(fd) != fd_entry(-1) &&
			       fs_cookie(fd) == l->fd_cookie ?
		       fd :
		       0;
}

/* The application closes its listener, or puts another file in its place. If it had duplicated
 * that before, it goes on with the other number.
 */
void fs_listener_close(struct listener *l)
{
	int saved = errno, copy = fs_each_fd(is_copy, l);

	errno = saved;
	if (!copy) {
		fs_listener_forget(l);
		return;
	}
	*fd_entry(copy) = *fd_entry(l->fd);
	fd_entry(l->fd)->kind = FD_OTHER;
	l->fd = copy;
}

/* Nothing more is ours to do for the listener. */
void fs_listener_forget(struct listener *l)
{
	int saved = errno;

	fd_entry(l->fd)->kind = FD_OTHER;
	for (int i = 0; i < l->stand_ins; i++)
		fs_release(l, l->stand_in[i].slot);
	if (l->slot >= 0)
		fs_release(l, l->slot);
	if (l->slot == UNCLAIMED)
		fs_unclaimed--;
	for (int i = 0; i < l->siblings; i++)
		fs_private_close(l->sibling[i], l->sibling_cookie[i]);
	fs_private_close(l->origin, l->cookie);
	l->fd = -1;
	l->slot = SHARED;
	l->siblings = l->stand_ins = 0;
	errno = saved;
}

/* Whether it is a socket that listens. */
int fs_listens(int fd)
{
	int listening = 0;
	socklen_t length = sizeof(listening);

	NEXT(getsockopt)(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &length);
	return listening;
}

static int adopt(int fd, const void *data __attribute__((unused)))
{
	if (fs_listens(fd))
		fs_listener_add(fd, SOMAXCONN, 1);
	return 0;
}

/* Listeners that were open when this program began: handed over by exec or by systemd. */
void fs_adopt_inherited(void)
{
	fs_each_fd(adopt, NULL);
}

/* A child has what this process polls, and may go on polling it. */
static void note_fork(const struct listener *l)
{
	if (l->fd >= 0 && l->slot >= 0)
		page_slot(l->page_index, l->slot)->forked = 1;
	for (int i = 0; l->fd >= 0 && i < l->stand_ins; i++)
		page_slot(l->page_index, l->stand_in[i].slot)->forked = 1;
}

/* Workers are about to come: bind their sockets while this process still may. */
void fs_before_fork(void)
{
	lean_spawn();
	fast_spawns();
	if (fs_page)
		__atomic_fetch_add(&fs_page->forks, 1, __ATOMIC_RELAXED);
	if (fs_listener_count)
		fs_keeper_ensure();
	for (int i = 0; i < fs_listener_count; i++) {
		note_fork(&fs_listeners[i]);
		fs_siblings_prepare(&fs_listeners[i]);
		memset(fs_listeners[i].sibling_shared, 1, fs_listeners[i].siblings);
	}
}

/* Tell the keeper, which stays until the last process of the application is gone. */
void fs_register_process(void)
{
	for (int i = 0; fs_page && i < FS_MAX_PROCESSES; i++) {
		uint32_t none = 0;

		if (fs_page->process[i] == (uint32_t)fs_pid ||
		    __atomic_compare_exchange_n(&fs_page->process[i], &none, fs_pid, 0,
						__ATOMIC_RELAXED, __ATOMIC_RELAXED))
			return;
	}
}

/* The child has its parent's descriptors and none of its slots. */
void fs_after_fork_in_child(void)
{
	fs_register_process();
	if (fs_page)
		__atomic_fetch_add(&fs_page->born, 1, __ATOMIC_RELAXED);
	fs_unclaimed = 0;
	for (int i = 0; i < fs_listener_count; i++) {
		struct listener *l = &fs_listeners[i];

		if (l->fd < 0)
			continue;
		l->inherited_epoll |= l->epfd >= 0 || l->stand_ins;
		l->slot = UNCLAIMED;
		l->epfd = -1;
		l->stand_ins = 0;
		l->paused = 0;
		fs_unclaimed++;
	}
}

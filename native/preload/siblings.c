// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Siblings: further sockets bound to the address of the application's own. They are bound
 * early, while the process still may, and start to listen when a worker claims them, so that
 * no connection waits on a socket that nobody polls.
 */
#include <errno.h>
#include <netinet/in.h>
#include <unistd.h>

#include "fsocket.h"

uint64_t fs_cookie(int fd)
{
	uint64_t cookie = 0;
	socklen_t length = sizeof(cookie);

	return NEXT(getsockopt)(fd, SOL_SOCKET, SO_COOKIE, &cookie, &length) < 0 ? 0 : cookie;
}

/* Bind one more sibling; returns its place in l->sibling, or -1 with errno. The application's own
 * socket gets SO_REUSEPORT only now: what would have failed with EADDRINUSE did, and for others it
 * still does while the application has no more than one worker.
 */
int fs_sibling_create(struct listener *l)
{
	int own = l->origin >= 0 ? l->origin : l->fd, one = 1, fd, domain, error;
	struct sockaddr_storage address;
	socklen_t length = sizeof(address), size = sizeof(int);

	if (l->siblings == FS_MAX_SLOTS || !fs_private_room()) {
		errno = EMFILE;
		return -1;
	}
	if (getsockname(own, (struct sockaddr *)&address, &length) < 0 ||
	    NEXT(getsockopt)(own, SOL_SOCKET, SO_DOMAIN, &domain, &size) < 0)
		return -1;
	if (NEXT(setsockopt)(own, SOL_SOCKET, SO_REUSEPORT, &one, sizeof(one)) < 0)
		return -1;
	fd = NEXT(socket)(domain, SOCK_STREAM | SOCK_CLOEXEC, IPPROTO_TCP);
	if (fd < 0)
		return -1;
	NEXT(setsockopt)(fd, SOL_SOCKET, SO_REUSEPORT, &one, sizeof(one));
	fs_replay_options(own, fd);
	if (bind(fd, (struct sockaddr *)&address, length) < 0) {
		error = errno;
		NEXT(close)(fd);
		errno = error;
		return -1;
	}
	fd = fs_private(fd);
	if (fd < 0)
		return -1;
	l->sibling[l->siblings] = fd;
	l->sibling_cookie[l->siblings] = fs_cookie(fd);
	return l->siblings++;
}

/* Whether the application itself opened several sockets of that address, one a worker. */
int fs_has_company(const struct listener *l)
{
	for (int i = 0; i < fs_listener_count; i++)
		if (fs_listeners[i].fd >= 0 && fs_listeners[i].cookie != l->cookie &&
		    fs_listeners[i].page_index == l->page_index)
			return 1;
	return 0;
}

/* Bind spare siblings before the process forks workers or gives up its privileges. A process
 * that polls the listener itself is a worker, and its children as a rule are not.
 */
void fs_siblings_prepare(struct listener *l)
{
	struct fs_listener *pl = fs_page ? &fs_page->listener[l->page_index] : NULL;
	struct fs_guard guard;
	int saved = errno;

	if (l->fd < 0 || l->slot >= 0 || !pl || fs_has_company(l))
		return;
	fs_lock(&pl->lock, &guard); /* another thread may fork or claim, too */
	while (l->siblings < (int)fs_page->spare_slots && fs_sibling_create(l) >= 0)
		;
	fs_unlock(&pl->lock, &guard);
	errno = saved;
}

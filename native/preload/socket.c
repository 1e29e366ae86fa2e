// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Wrappers of calls on sockets that may listen: socket(), listen(), shutdown(), their options, and
 * their arrival from another process. None of them fails where the plain call would not.
 */
#include <errno.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <string.h>

#include "epoll.h"

EXPORT int socket(int domain, int type, int protocol)
{
	int fd = NEXT(socket)(domain, type, protocol);

	if ((domain == AF_INET || domain == AF_INET6 || domain == AF_UNIX) &&
	    (type & ~(SOCK_NONBLOCK | SOCK_CLOEXEC)) == SOCK_STREAM)
		fast_opened(fd);
	return fd;
}

EXPORT int listen(int fd, int backlog)
{
	int result;

	fast_shared(fd);
	if (unlikely(fs_deliver))
		fs_bind_now(fd);
	result = NEXT(listen)(fd, backlog);
	if (result == 0 && fs_mode)
		fs_listener_add(fd, backlog, 0);
	return result;
}

EXPORT int shutdown(int fd, int how)
{
	struct listener *l = listener_of(fd);
	int result, saved;

	lean_shutting(fd, how);
	result = NEXT(shutdown)(fd, how);
	saved = errno;
	if (l && result == 0 && how != SHUT_WR)
		fs_stop(l);
	errno = saved;
	return result;
}

/* Options that a sibling cannot be given: the kernel does not tell the keys, and an
 * application with a program of its own chooses the sockets itself.
 */
static int forbids_siblings(int level, int name)
{
	if (level == SOL_SOCKET)
		return name == SO_ATTACH_REUSEPORT_CBPF || name == SO_ATTACH_REUSEPORT_EBPF;
	return level == IPPROTO_TCP && (name == TCP_MD5SIG || name == TCP_MD5SIG_EXT ||
					name == 38 /* TCP_AO_ADD_KEY, since Linux v6.7 */);
}

static COLD void forbid_siblings(int fd)
{
	struct listener *l = listener_of(fd);

	if (l)
		fs_listener_forget(l);
	if (fd_entry(fd) != fd_entry(-1))
		fd_entry(fd)->kind = FD_ALONE;
}

EXPORT int setsockopt(int fd, int level, int name, const void *value, socklen_t len)
{
	struct listener *l = listener_of(fd);
	int result, saved;

	if (lean_takes_option(fd, level, name, value, len))
		return 0;
	result = NEXT(setsockopt)(fd, level, name, value, len);
	saved = errno;
	if (unlikely(level == IPPROTO_IP && name == IP_LOCAL_PORT_RANGE))
		fs_own_ranges = 1;
	if (unlikely(result == 0 && forbids_siblings(level, name)))
		forbid_siblings(fd);
	else if (l && result == 0) {
		for (int i = 0; i < l->siblings; i++)
			NEXT(setsockopt)(l->sibling[i], level, name, value, len);
		if (l->origin >= 0)
			NEXT(setsockopt)(l->origin, level, name, value, len);
		lean_listener_option(l, level, name, value, len);
		errno = saved;
	}
	return result;
}

/* SO_REUSEPORT reads as the application left it: what we set for its siblings is not its own. */
static COLD void hide_reuseport(int fd, int *value)
{
	const struct fd_entry *entry = fd_entry(fd);

	if (entry->kind == FD_LISTENER && !fs_listeners[entry->listener].own_reuseport)
		*value = 0;
	if (entry->kind == FD_CONNECTION && entry->era == fs_era && fs_page &&
	    fs_page->listener[entry->listener].late_cookie)
		*value = 0;
}

EXPORT int getsockopt(int fd, int level, int name, void *value, socklen_t *len)
{
	int result = NEXT(getsockopt)(fd, level, name, value, len);

	if (unlikely(level == SOL_SOCKET && name == SO_REUSEPORT && result == 0 &&
		     *len == sizeof(int)))
		hide_reuseport(fd, value);
	return result;
}

/* Listeners that another process hands over (HAProxy's expose-fd) are known from here on. */
static COLD void received(struct msghdr *message)
{
	int saved = errno, fd;

	for (struct cmsghdr *head = CMSG_FIRSTHDR(message); head;
	     head = CMSG_NXTHDR(message, head)) {
		if (head->cmsg_level != SOL_SOCKET || head->cmsg_type != SCM_RIGHTS)
			continue;
		for (size_t at = 0; CMSG_LEN(at + sizeof(fd)) <= head->cmsg_len; at += sizeof(fd)) {
			memcpy(&fd, CMSG_DATA(head) + at, sizeof(fd));
			if (fs_listens(fd))
				fs_listener_add(fd, SOMAXCONN, 1);
		}
	}
	errno = saved;
}

EXPORT ssize_t recvmsg(int fd, struct msghdr *message, int flags)
{
	ssize_t result;

	lean_read_begins(fd);
	result = lean_read_ends(fd, NEXT(recvmsg)(fd, message, flags));
	if (unlikely(result >= 0 && message->msg_controllen && fs_mode))
		received(message);
	return result;
}

// SPDX-License-Identifier: LGPL-2.1-or-later
/* Wrappers of what ends a descriptor: close(), dup2(), dup3(). */
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "epoll.h"

static COLD int close_special(int fd)
{
	struct listener *l = listener_of(fd);

	if (fd_entry(fd)->kind == FD_PRIVATE && getpid() == fs_pid && fs_is_private(fd)) {
		errno = EBADF; /* as far as the application knows */
		return -1;
	}
	if (l)
		fs_listener_close(l);
	else if (fd_entry(fd)->kind == FD_CLIENT)
		lean_client_ends(fd_entry(fd), fd);
	else if (fd_entry(fd)->kind == FD_ALONE)
		fd_entry(fd)->kind = FD_OTHER;
	return NEXT(close)(fd);
}

EXPORT int close(int fd)
{
	struct fd_entry *entry = fd_entry(fd);

	fast_closing(fd);
	if (!lean_ends(entry, fd)) {
		if (likely(entry->kind == FD_OTHER)) {
			lean_number_ends(entry);
			return NEXT(close)(fd);
		}
		if (unlikely(entry->kind != FD_CONNECTION))
			return close_special(fd);
		lean_closing(entry, fd);
	}
	entry->kind = FD_OTHER;
	fs_closed(entry);
	return NEXT(close)(fd);
}

#ifndef FS_LEAN /* which has one of its own */
long hook_syscall(long number, long a, long b, long c, long d, long e, long f) __asm__("syscall")
	__attribute__((visibility("default")));

/* libuv closes this way. */
long hook_syscall(long number, long a, long b, long c, long d, long e, long f)
{
	if (number == SYS_close)
		return close(a);
	fast_raw(number);
	return NEXT(syscall)(number, a, b, c, d, e, f);
}
#endif

/* Whatever `to` was, it will be something else; a private descriptor makes room. */
static COLD void make_room(int from, int to)
{
	struct listener *l = listener_of(to);

	if (from == to || getpid() != fs_pid || fcntl(from, F_GETFD) < 0)
		return;
	if (fd_entry(to)->kind == FD_PRIVATE && fs_is_private(to)) {
		if (fs_private_move(to) < 0)
			return; /* beyond the limit, where dup2() fails */
	} else if (l) {
		fs_listener_close(l);
	} else if (fd_entry(to)->kind == FD_CONNECTION) {
		fs_closed(fd_entry(to));
	}
	fd_entry(to)->kind = FD_OTHER;
}

EXPORT int dup2(int from, int to)
{
	lean_shared(from);
	lean_shared(to);
	fast_shared(from);
	fast_shared(to);
	if (unlikely(fd_entry(to)->kind != FD_OTHER))
		make_room(from, to);
	if (from != to)
		lean_number_ends(fd_entry(to));
	return NEXT(dup2)(from, to);
}

EXPORT int dup3(int from, int to, int flags)
{
	lean_shared(from);
	lean_shared(to);
	fast_shared(from);
	fast_shared(to);
	if (unlikely(fd_entry(to)->kind != FD_OTHER))
		make_room(from, to);
	if (from != to)
		lean_number_ends(fd_entry(to));
	return NEXT(dup3)(from, to, flags);
}

// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * The wrappers of what reads and writes connections. Each is the plain call, except
 * that a write which is expected to be a connection's last leaves its end with the kernel
 * (MSG_MORE), for the close that follows.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "epoll.h"

/* What is off the short way is in functions of its own, so that this is short indeed. */
#define READER(type, name, parameters, arguments)                           \
	static __attribute__((noinline)) type any_##name parameters         \
	{                                                                   \
		lean_read_begins(fd);                                       \
		return lean_read_ends(fd, NEXT(name) arguments);            \
	}                                                                   \
                                                                            \
	EXPORT type name parameters                                         \
	{                                                                   \
		struct fd_entry *entry = &fs_fds[fd];                       \
                                                                            \
		if (unlikely((unsigned)fd >= fs_fd_count))                  \
			return any_##name arguments;                        \
		if (lean_is_request(entry))                                 \
			return lean_requested(entry, NEXT(name) arguments); \
		if (!lean_concerns(entry))                                  \
			return NEXT(name) arguments;                        \
		return any_##name arguments;                                \
	}

FS_READ_HOOKS(READER)

/* Writes. With MSG_MORE the end of the data is held; a write has no flags, so it becomes a send. */

static COLD ssize_t send_any(int fd, const void *data, size_t size, int flags)
{
	int held = lean_write_begins(fd, flags);

	return lean_write_ends(fd, NEXT(send)(fd, data, size, held ? flags | MSG_MORE : flags),
			       held);
}

EXPORT ssize_t send(int fd, const void *data, size_t size, int flags)
{
	struct fd_entry *entry = &fs_fds[fd];

	if (unlikely((unsigned)fd >= fs_fd_count))
		return send_any(fd, data, size, flags);
	if (lean_is_answer(entry) && !(flags & LEAN_ODD_FLAGS))
		return lean_answered(entry, NEXT(send)(fd, data, size, flags | MSG_MORE));
	if (!lean_concerns(entry))
		return NEXT(send)(fd, data, size, flags);
	return send_any(fd, data, size, flags);
}

/* The descriptor is no socket, so the connection was closed in a way that we do not see. */
static COLD int is_stale(struct fd_entry *entry, ssize_t result)
{
	if (result >= 0 || errno != ENOTSOCK)
		return 0;
	entry->kind = FD_OTHER;
	return 1;
}

static __attribute__((noinline)) ssize_t write_any(int fd, const void *data, size_t size)
{
	ssize_t result;

	if (lean_write_begins(fd, 0)) {
		result = NEXT(send)(fd, data, size, MSG_MORE);
		if (likely(result >= 0) || !is_stale(fd_entry(fd), result))
			return lean_write_ends(fd, result, 1);
	}
	return lean_write_ends(fd, NEXT(write)(fd, data, size), 0);
}

EXPORT ssize_t write(int fd, const void *data, size_t size)
{
	struct fd_entry *entry = fd_entry(fd);
	ssize_t result;

	if (lean_is_answer(entry)) {
		result = lean_answered(entry, NEXT(send)(fd, data, size, MSG_MORE));
		if (likely(result >= 0) || !is_stale(entry, result))
			return result;
	}
	return lean_concerns(entry) ? write_any(fd, data, size) : NEXT(write)(fd, data, size);
}

static __attribute__((noinline)) ssize_t writev_any(int fd, const struct iovec *parts, int count)
{
	const struct msghdr message = {.msg_iov = (struct iovec *)parts, .msg_iovlen = count};
	ssize_t result;

	if (lean_write_begins(fd, 0) && count > 0 && count <= IOV_MAX) {
		result = NEXT(sendmsg)(fd, &message, MSG_MORE);
		if (likely(result >= 0) || !is_stale(fd_entry(fd), result))
			return lean_write_ends(fd, result, 1);
	}
	return lean_write_ends(fd, NEXT(writev)(fd, parts, count), 0);
}

EXPORT ssize_t writev(int fd, const struct iovec *parts, int count)
{
	const struct msghdr message = {.msg_iov = (struct iovec *)parts, .msg_iovlen = count};
	struct fd_entry *entry = fd_entry(fd);
	ssize_t result;

	if (lean_is_answer(entry) && count > 0 && count <= IOV_MAX) {
		result = lean_answered(entry, NEXT(sendmsg)(fd, &message, MSG_MORE));
		if (likely(result >= 0) || !is_stale(entry, result))
			return result;
	}
	return lean_concerns(entry) ? writev_any(fd, parts, count) : NEXT(writev)(fd, parts, count);
}

EXPORT ssize_t sendto(int fd, const void *data, size_t size, int flags, const struct sockaddr *addr,
		      socklen_t len)
{
	int held;

	if (!lean_concerns(fd_entry(fd)))
		return NEXT(sendto)(fd, data, size, flags, addr, len);
	held = lean_write_begins(fd, flags);
	if (held)
		flags |= MSG_MORE;
	return lean_write_ends(fd, NEXT(sendto)(fd, data, size, flags, addr, len), held);
}

EXPORT ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
	int held, control = message && message->msg_controllen;

	if (unlikely(control))
		fs_passes(message);
	if (!lean_concerns(fd_entry(fd)))
		return NEXT(sendmsg)(fd, message, flags);
	held = lean_write_begins(fd, flags) && !control;
	return lean_write_ends(fd, NEXT(sendmsg)(fd, message, held ? flags | MSG_MORE : flags),
			       held);
}

/* sendfile() has no flags: the cork does what MSG_MORE does, and a release takes it off. */
static int corks(int fd)
{
	int saved = errno, one = 1;

	if (!lean_write_begins(fd, 0))
		return 0;
	NEXT(setsockopt)(fd, IPPROTO_TCP, TCP_CORK, &one, sizeof(one));
	errno = saved;
	return 1;
}

/* If nothing was sent after all, no cork may stay. */
static ssize_t was_sent(int fd, ssize_t result, int held)
{
	struct fd_entry *entry = fd_entry(fd);

	if (held && result <= 0) {
		entry->lean |= LEAN_HELD;
		lean_release(entry, fd, FS_NOTHING);
	}
	return lean_write_ends(fd, result, held);
}

EXPORT ssize_t sendfile(int out, int in, off_t *offset, size_t count)
{
	int held;

	if (!lean_concerns(fd_entry(out)))
		return NEXT(sendfile)(out, in, offset, count);
	held = corks(out);
	return was_sent(out, NEXT(sendfile)(out, in, offset, count), held);
}

EXPORT ssize_t sendfile64(int out, int in, off_t *offset, size_t count)
{
	int held;

	if (!lean_concerns(fd_entry(out)))
		return NEXT(sendfile64)(out, in, offset, count);
	held = corks(out);
	return was_sent(out, NEXT(sendfile64)(out, in, offset, count), held);
}

EXPORT ssize_t splice(int in, off_t *in_offset, int out, off_t *out_offset, size_t size,
		      unsigned flags)
{
	ssize_t result;

	lean_may_sleep(FS_SLEPT);
	result = lean_read_ends(in, NEXT(splice)(in, in_offset, out, out_offset, size, flags));
	return lean_write_ends(out, result, 0);
}

static inline int futex_waits(long operation)
{
	operation &= FUTEX_CMD_MASK;
	return operation != FUTEX_WAKE && operation != FUTEX_WAKE_BITSET &&
	       operation != FUTEX_UNLOCK_PI;
}

long hook_syscall(long number, long a, long b, long c, long d, long e, long f) __asm__("syscall")
	__attribute__((visibility("default")));

/* libuv closes this way, and Rust waits for locks. */
long hook_syscall(long number, long a, long b, long c, long d, long e, long f)
{
	if (number == SYS_close)
		return close(a);
	fast_raw(number);
	switch (number) {
	case SYS_futex:
		if (futex_waits(b))
			lean_may_sleep(FS_SLEPT);
		break;
#ifdef SYS_fork
	case SYS_fork:
	case SYS_vfork:
#endif
	case SYS_clone:
	case SYS_clone3:
	case SYS_execve:
		lean_spawn();
		break;
	}
	return NEXT(syscall)(number, a, b, c, d, e, f);
}

// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * The wrappers of what reads, writes and shares connections. Each is the plain call, except
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

#include "lean.h"

#define EXPORT __attribute__((visibility("default")))
/* A definition by the name of a function whose declared parameters vary. */
#define NAMED(name) __asm__(name) __attribute__((visibility("default")))
#define ODD_FLAGS (MSG_OOB | MSG_EOR | MSG_ZEROCOPY | MSG_MORE)

/* Reads */

EXPORT ssize_t read(int fd, void *data, size_t size)
{
	lean_read_begins(fd);
	return lean_done_reading(fd, NEXT(read)(fd, data, size));
}

EXPORT ssize_t __read_chk(int fd, void *data, size_t size, size_t room)
{
	lean_read_begins(fd);
	return lean_done_reading(fd, NEXT(__read_chk)(fd, data, size, room));
}

EXPORT ssize_t readv(int fd, const struct iovec *parts, int count)
{
	lean_read_begins(fd);
	return lean_done_reading(fd, NEXT(readv)(fd, parts, count));
}

EXPORT ssize_t recv(int fd, void *data, size_t size, int flags)
{
	lean_read_begins(fd);
	return lean_done_reading(fd, NEXT(recv)(fd, data, size, flags));
}

EXPORT ssize_t __recv_chk(int fd, void *data, size_t size, size_t room, int flags)
{
	lean_read_begins(fd);
	return lean_done_reading(fd, NEXT(__recv_chk)(fd, data, size, room, flags));
}

EXPORT ssize_t recvfrom(int fd, void *data, size_t size, int flags, struct sockaddr *addr,
			socklen_t *len)
{
	lean_read_begins(fd);
	return lean_done_reading(fd, NEXT(recvfrom)(fd, data, size, flags, addr, len));
}

EXPORT ssize_t __recvfrom_chk(int fd, void *data, size_t size, size_t room, int flags,
			      struct sockaddr *addr, socklen_t *len)
{
	lean_read_begins(fd);
	return lean_done_reading(fd, NEXT(__recvfrom_chk)(fd, data, size, room, flags, addr, len));
}

/* Writes */

static inline ssize_t was_written(struct fd_entry *entry, int fd, ssize_t result, int held)
{
	if (entry && result > 0)
		lean_was_written(entry, fd, held);
	return result;
}

/* Whether a write with those flags is to be held; 0 without a watched connection. */
static inline int holds(struct fd_entry *entry, int flags)
{
	return entry && !(flags & ODD_FLAGS) && lean_wants_hold(entry);
}

EXPORT ssize_t write(int fd, const void *data, size_t size)
{
	struct fd_entry *entry = lean_connection(fd);

	lean_write_begins(fd);
	if (likely(!entry))
		return NEXT(write)(fd, data, size);
	if (holds(entry, 0))
		return was_written(entry, fd, NEXT(send)(fd, data, size, MSG_MORE), 1);
	return was_written(entry, fd, NEXT(write)(fd, data, size), 0);
}

EXPORT ssize_t writev(int fd, const struct iovec *parts, int count)
{
	const struct msghdr message = {.msg_iov = (struct iovec *)parts, .msg_iovlen = count};
	struct fd_entry *entry = lean_connection(fd);

	lean_write_begins(fd);
	if (likely(!entry))
		return NEXT(writev)(fd, parts, count);
	if (count > 0 && count <= IOV_MAX && holds(entry, 0))
		return was_written(entry, fd, NEXT(sendmsg)(fd, &message, MSG_MORE), 1);
	return was_written(entry, fd, NEXT(writev)(fd, parts, count), 0);
}

EXPORT ssize_t send(int fd, const void *data, size_t size, int flags)
{
	struct fd_entry *entry = lean_connection(fd);
	int held;

	lean_write_begins(fd);
	held = holds(entry, flags);
	return was_written(entry, fd, NEXT(send)(fd, data, size, held ? flags | MSG_MORE : flags),
			   held);
}

EXPORT ssize_t sendto(int fd, const void *data, size_t size, int flags, const struct sockaddr *addr,
		      socklen_t len)
{
	struct fd_entry *entry = lean_connection(fd);
	int held;

	lean_write_begins(fd);
	held = holds(entry, flags);
	if (held)
		flags |= MSG_MORE;
	return was_written(entry, fd, NEXT(sendto)(fd, data, size, flags, addr, len), held);
}

/* Connections that are passed to another process are two processes' from then on. */
static __attribute__((noinline, cold)) void passes(const struct msghdr *message)
{
	struct msghdr *own = (struct msghdr *)message; /* the macros want it writable */

	for (struct cmsghdr *head = CMSG_FIRSTHDR(own); head; head = CMSG_NXTHDR(own, head)) {
		const unsigned char *data = CMSG_DATA(head);

		if (head->cmsg_level != SOL_SOCKET || head->cmsg_type != SCM_RIGHTS)
			continue;
		for (size_t at = 0; CMSG_LEN(at + sizeof(int)) <= head->cmsg_len;
		     at += sizeof(int)) {
			int fd;

			memcpy(&fd, data + at, sizeof(fd));
			lean_shared(fd);
		}
	}
}

EXPORT ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
	struct fd_entry *entry = lean_connection(fd);
	int held;

	lean_write_begins(fd);
	if (unlikely(!entry && message && message->msg_controllen))
		passes(message);
	held = holds(entry, flags) && !message->msg_controllen;
	return was_written(entry, fd, NEXT(sendmsg)(fd, message, held ? flags | MSG_MORE : flags),
			   held);
}

/* sendfile() has no flags: the cork does what MSG_MORE does, and a release takes it off. */
static inline int corks(struct fd_entry *entry, int fd)
{
	int saved = errno, one = 1;

	if (!holds(entry, 0))
		return 0;
	NEXT(setsockopt)(fd, IPPROTO_TCP, TCP_CORK, &one, sizeof(one));
	errno = saved;
	return 1;
}

/* Nothing was sent after all: no cork may stay. */
static inline ssize_t was_sent(struct fd_entry *entry, int fd, ssize_t result, int held)
{
	if (held && result <= 0) {
		entry->lean |= LEAN_HELD;
		lean_release(entry, fd, FS_NOTHING);
	}
	return was_written(entry, fd, result, held);
}

EXPORT ssize_t sendfile(int out, int in, off_t *offset, size_t count)
{
	struct fd_entry *entry = lean_connection(out);
	int held;

	lean_write_begins(out);
	held = corks(entry, out);
	return was_sent(entry, out, NEXT(sendfile)(out, in, offset, count), held);
}

EXPORT ssize_t sendfile64(int out, int in, off_t *offset, size_t count)
{
	struct fd_entry *entry = lean_connection(out);
	int held;

	lean_write_begins(out);
	held = corks(entry, out);
	return was_sent(entry, out, NEXT(sendfile64)(out, in, offset, count), held);
}

EXPORT ssize_t splice(int in, off_t *in_offset, int out, off_t *out_offset, size_t size,
		      unsigned flags)
{
	ssize_t result;

	lean_may_sleep(FS_SLEPT);
	result = lean_done_reading(in, NEXT(splice)(in, in_offset, out, out_offset, size, flags));
	return was_written(lean_connection(out), out, result, 0);
}

/* Descriptors */

EXPORT int dup(int fd)
{
	lean_shared(fd);
	return NEXT(dup)(fd);
}

int hook_fcntl(int fd, int command, void *value) NAMED("fcntl");
int hook_fcntl64(int fd, int command, void *value) NAMED("fcntl64");
long hook_syscall(long number, long a, long b, long c, long d, long e, long f) NAMED("syscall");

static inline void before_fcntl(int fd, int command)
{
	if (command == F_DUPFD || command == F_DUPFD_CLOEXEC)
		lean_shared(fd);
	else if (command == F_SETLKW || command == F_OFD_SETLKW)
		lean_may_sleep(FS_SLEPT);
}

int hook_fcntl(int fd, int command, void *value)
{
	before_fcntl(fd, command);
	return NEXT(fcntl)(fd, command, value);
}

int hook_fcntl64(int fd, int command, void *value)
{
	before_fcntl(fd, command);
	return NEXT(fcntl64)(fd, command, value);
}

static inline int futex_waits(long operation)
{
	operation &= FUTEX_CMD_MASK;
	return operation != FUTEX_WAKE && operation != FUTEX_WAKE_BITSET &&
	       operation != FUTEX_UNLOCK_PI;
}

/* libuv closes this way, and Rust waits for locks. */
long hook_syscall(long number, long a, long b, long c, long d, long e, long f)
{
	switch (number) {
	case SYS_close:
		return close(a);
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

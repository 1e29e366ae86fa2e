// SPDX-License-Identifier: LGPL-2.1-or-later
/* The wrappers of what gives a descriptor a second owner: a copy, another process, another program. */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "epoll.h"

/* Connections that are passed to another process are two processes' from then on. */
COLD void fs_passes(const struct msghdr *message)
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
			fast_shared(fd);
		}
	}
}

#ifndef FS_LEAN /* which has one of its own */
EXPORT ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
	if (unlikely(message && message->msg_controllen))
		fs_passes(message);
	return NEXT(sendmsg)(fd, message, flags);
}
#endif

EXPORT int sendmmsg(int fd, struct mmsghdr *messages, unsigned count, int flags)
{
	for (unsigned i = 0; messages && i < count && i < UIO_MAXIOV; i++) /* as the kernel does */
		if (unlikely(messages[i].msg_hdr.msg_controllen))
			fs_passes(&messages[i].msg_hdr);
	lean_shared(fd); /* what is written this way is not followed */
	return NEXT(sendmmsg)(fd, messages, count, flags);
}

EXPORT int dup(int fd)
{
	lean_shared(fd);
	fast_shared(fd);
	return NEXT(dup)(fd);
}

/* The C library's streams write and close in ways that we do not see. */
EXPORT int fclose(FILE *stream)
{
	int saved = errno, fd = fileno(stream);
	struct fd_entry *entry = fd_entry(fd);

	errno = saved;
	lean_shared(fd);
	fast_shared(fd);
	if (entry->kind == FD_OTHER)
		lean_number_ends(entry);
	if (entry->kind == FD_CONNECTION) {
		entry->kind = FD_OTHER;
		fs_closed(entry);
	}
	return NEXT(fclose)(stream);
}

/* A definition by the name of a function whose declared parameters vary. */
#define NAMED(name) __asm__(name) __attribute__((visibility("default")))

int hook_fcntl(int fd, int command, void *value) NAMED("fcntl");
int hook_fcntl64(int fd, int command, void *value) NAMED("fcntl64");

static inline void before_fcntl(int fd, int command)
{
	if (command == F_DUPFD || command == F_DUPFD_CLOEXEC) {
		lean_shared(fd);
		fast_shared(fd);
	} else if (command == F_SETLKW || command == F_OFD_SETLKW) {
		lean_may_sleep(FS_SLEPT);
	}
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

#ifdef FS_EPOLL
/* Before a system call that does not come through its wrapper. */
void fast_raw(long number)
{
	switch (number) {
#ifdef SYS_fork
	case SYS_fork:
	case SYS_vfork:
	case SYS_dup2:
#endif
	case SYS_clone:
	case SYS_clone3:
	case SYS_execve:
	case SYS_execveat:
	case SYS_dup:
	case SYS_dup3:
	case SYS_fcntl:
	case SYS_sendmsg:
	case SYS_sendmmsg:
	case SYS_close_range:
	case SYS_epoll_ctl:
	case SYS_io_uring_setup:
		fast_spawns();
		break;
	default: /* it may be a wait */
		fast_wait_begins(0);
		fast_wait_ends();
	}
}
#endif

int hook_clone(int (*start)(void *), void *stack, int flags, void *argument, pid_t *parent,
	       void *tls, pid_t *child) NAMED("clone");

int hook_clone(int (*start)(void *), void *stack, int flags, void *argument, pid_t *parent,
	       void *tls, pid_t *child)
{
	if (!(flags & CLONE_THREAD)) {
		lean_spawn();
		fast_spawns();
	}
	return NEXT(clone)(start, stack, flags, argument, parent, tls, child);
}

EXPORT pid_t _Fork(void)
{
	lean_spawn();
	fast_spawns();
	return NEXT(_Fork)();
}

static void *vfork_next;

/* vfork() returns twice from the same frame, so what is called before it cannot be a C function
 * that calls it: this one keeps the promises and tells where to go on.
 */
__attribute__((used)) void *fs_before_vfork(void)
{
	lean_spawn();
	fast_spawns();
	if (!vfork_next)
		vfork_next = dlsym(RTLD_NEXT, "vfork");
	return vfork_next;
}

#if defined(__x86_64__)
__asm__(".text\n"
	".globl vfork\n"
	".type vfork, @function\n"
	"vfork:\n"
	"	endbr64\n"
	"	subq $8, %rsp\n"
	"	call fs_before_vfork\n"
	"	addq $8, %rsp\n"
	"	jmp *%rax\n"
	".size vfork, .-vfork\n");
#elif defined(__aarch64__)
__asm__(".text\n"
	".globl vfork\n"
	".type vfork, %function\n"
	"vfork:\n"
	"	stp x29, x30, [sp, #-16]!\n"
	"	bl fs_before_vfork\n"
	"	ldp x29, x30, [sp], #16\n"
	"	mov x16, x0\n"
	"	br x16\n"
	".size vfork, .-vfork\n");
#endif

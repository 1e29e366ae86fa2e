// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * The wrappers. The common case of each is a look at the descriptor's entry and the plain
 * call; what concerns listeners is cold. None of them fails where the plain call would not.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "lean.h"

#define EXPORT __attribute__((visibility("default")))
#define COLD __attribute__((noinline, cold))
#define WAITS_TO_SETTLE 128 /* a system call more in so many waits */

/* The listener behind `fd` if it has one and this is not a child of vfork(). */
static COLD struct listener *cold_listener(int fd)
{
	struct fd_entry *entry = fd_entry(fd);

	return getpid() == fs_pid ? &fs_listeners[entry->listener] : NULL;
}

static inline struct listener *listener_of(int fd)
{
	return unlikely(fd_entry(fd)->kind == FD_LISTENER) ? cold_listener(fd) : NULL;
}

/* listen, shutdown, setsockopt */

EXPORT int listen(int fd, int backlog)
{
	int result = NEXT(listen)(fd, backlog);

	if (result == 0 && fs_mode)
		fs_listener_add(fd, backlog, 0);
	return result;
}

EXPORT int shutdown(int fd, int how)
{
	struct listener *l = listener_of(fd);

	lean_shutting(fd, how);
	for (int i = 0; l && i < l->stand_ins; i++) {
		NEXT(shutdown)(l->stand_in[i].fd, how);
		if (how != SHUT_WR)
			fs_pause(l, l->stand_in[i].slot, 1);
	}
	if (l && l->slot >= 0 && how != SHUT_WR)
		fs_pause(l, l->slot, 1);
	return NEXT(shutdown)(fd, how);
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
		fs_listener_close(l);
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

/* accept */

/* Whether a signal of that kind came during the claim that has just been made; sets errno. */
static COLD int was_interrupted(int kinds)
{
	int interrupted = fs_interrupted & kinds;

	fs_interrupted = 0;
	errno = interrupted ? EINTR : errno;
	return interrupted;
}

/* What accept() works on for this thread. */
struct source {
	int fd, slot;
};

/* Claim a slot for a thread that polls or accepts without epoll. Not where accept() may block:
 * such a worker serves one connection at a time, and while it does nobody else could come for
 * what waits on a socket of its own.
 */
static COLD void claim_without_epoll(struct listener *l)
{
	if (l->slot != UNCLAIMED || l->inherited_epoll)
		return;
	if (fcntl(l->fd, F_GETFL) & O_NONBLOCK) {
		fs_claim(l, -1);
		return;
	}
	l->slot = SHARED;
	fs_unclaimed--;
}

static COLD struct source accept_source(struct listener *l)
{
	struct stand_in *own;

	claim_without_epoll(l);
	own = l->stand_ins ? fs_stand_in(l, fs_last_epfd) : NULL;
	return own ? (struct source){own->fd, own->slot} : (struct source){l->fd, l->slot};
}

static inline struct source source_of(const struct fd_entry *entry, int fd)
{
	struct listener *l = &fs_listeners[entry->listener];

	if (unlikely(l->slot == UNCLAIMED || l->stand_ins))
		return accept_source(l);
	return (struct source){fd, l->slot};
}

/* A counted connection is gone. */
static inline void closed(const struct fd_entry *entry)
{
	struct fs_slot *slot = page_slot(entry->listener, entry->slot);

	/* The slot may have gone to another process meanwhile, and was counted anew then. */
	if (entry->era == fs_era && slot->live && fs_worker_of(slot)->pid == (uint32_t)fs_pid)
		__atomic_fetch_sub(&slot->live, 1, __ATOMIC_RELAXED);
}

/* Count an accepted connection for its slot, until it is closed. */
static inline void opened(const struct fd_entry *entry, int slot, int connection)
{
	int listener = fs_listeners[entry->listener].page_index;
	struct fs_slot *ps = page_slot(listener, slot);
	struct fd_entry *new = &fs_fds[connection];

	__atomic_fetch_add(&ps->accepted, 1, __ATOMIC_RELAXED);
	__atomic_fetch_add(&ps->live, 1, __ATOMIC_RELAXED);
	if (unlikely((unsigned)connection >= fs_fd_count))
		return;
	if (new->kind == FD_CONNECTION)
		closed(new); /* unseen: a raw system call */
	new->kind = FD_CONNECTION;
	new->listener = listener;
	new->slot = slot;
	new->era = fs_era;
	lean_opened(new, &fs_listeners[entry->listener], page_listener(listener));
}

/* A thread that accepts and has polled none of the sockets itself: try those of all threads. */
static COLD int accept_any(struct listener *l, struct source tried, struct sockaddr *addr,
			   socklen_t *len, int flags, int *slot)
{
	int connection = -1;

	for (int i = -1; connection < 0 && i < l->stand_ins; i++) {
		int fd = i < 0 ? l->fd : l->stand_in[i].fd;

		if (fd == tried.fd)
			continue;
		connection = NEXT(accept4)(fd, addr, len, flags);
		*slot = i < 0 ? l->slot : l->stand_in[i].slot;
	}
	return connection;
}

/* Whether another worker's queue may be drained by this thread: it waits for a worker that is
 * late, or its worker is gone. Only non-blocking listeners: their workers expect to find
 * nothing at times.
 */
static int wants_help(const struct fs_slot *slot)
{
	return slot->state == FS_SLOT_ORPHAN || (slot->state != FS_SLOT_FREE && slot->help);
}

/* Accept a connection that waits on another slot of the listener, or return -1. */
static COLD int accept_for_another(struct listener *l, int slot, struct sockaddr *addr,
				   socklen_t *len, int flags)
{
	struct fs_listener *pl = &fs_page->listener[l->page_index];
	int saved = errno, connection = -1, orphans = 0;

	if (slot < 0)
		return -1;
	pl->help = 0;
	page_slot(l->page_index, slot)->help = 0; /* its worker is at it */
	for (unsigned i = 0; connection < 0 && i < pl->slots && i < FS_MAX_SLOTS; i++) {
		struct fs_slot *other = &pl->slot[i];
		int fd = (int)i != slot && wants_help(other) ?
				 fs_fd_of_cookie(l->page_index, other->cookie) :
				 -1;

		orphans |= other->state == FS_SLOT_ORPHAN;
		if (fd < 0 || !(fcntl(fd, F_GETFL) & O_NONBLOCK))
			continue;
		connection = NEXT(accept4)(fd, addr, len, flags);
		if (connection < 0)
			other->help = 0;
		else
			__atomic_fetch_add(&other->accepted, 1, __ATOMIC_RELAXED);
	}
	/* While no program chooses, orphans go on getting connections. */
	if (orphans && !page_slot(l->page_index, slot)->published)
		pl->help = 1;
	if (connection >= 0) {
		pl->help = 1; /* there may be more */
		__atomic_fetch_add(&pl->stolen, 1, __ATOMIC_RELAXED);
		__atomic_fetch_sub(&page_slot(l->page_index, slot)->accepted, 1, __ATOMIC_RELAXED);
	}
	errno = saved;
	return connection;
}

static inline int help_is_wanted(const struct fd_entry *entry)
{
	return fs_page->listener[fs_listeners[entry->listener].page_index].help;
}

EXPORT int accept4(int fd, struct sockaddr *addr, socklen_t *len, int flags)
{
	const struct fd_entry *entry = fd_entry(fd);
	struct source source;
	int connection;

	if (entry->kind != FD_LISTENER) {
		lean_accepting(fd, SHARED);
		return NEXT(accept4)(fd, addr, len, flags);
	}
	source = source_of(entry, fd);
	lean_accepting(fd, source.slot);
	if (unlikely(fs_interrupted) && was_interrupted(FS_INTERRUPTED) &&
	    !(fcntl(fd, F_GETFL) & O_NONBLOCK))
		return -1;
	connection = -1;
	if (unlikely(help_is_wanted(entry)))
		connection = accept_for_another(&fs_listeners[entry->listener], source.slot, addr,
						len, flags);
	if (likely(connection < 0))
		connection = NEXT(accept4)(source.fd, addr, len, flags);
	if (unlikely(connection < 0 && errno == EAGAIN && source.fd == fd &&
		     fs_listeners[entry->listener].stand_ins &&
		     fs_listeners[entry->listener].epfd != fs_last_epfd))
		connection = accept_any(&fs_listeners[entry->listener], source, addr, len, flags,
					&source.slot);
	if (connection >= 0 && source.slot >= 0)
		opened(entry, source.slot, connection);
	return connection;
}

EXPORT int accept(int fd, struct sockaddr *addr, socklen_t *len)
{
	if (fd_entry(fd)->kind == FD_LISTENER)
		return accept4(fd, addr, len, 0);
	lean_accepting(fd, SHARED);
	return NEXT(accept)(fd, addr, len);
}

/* recvmsg */

/* Listeners that another process hands over (HAProxy's expose-fd) are known from here on. */
static COLD void received(struct msghdr *message)
{
	int saved = errno, listening, fd;
	socklen_t length;

	for (struct cmsghdr *head = CMSG_FIRSTHDR(message); head;
	     head = CMSG_NXTHDR(message, head)) {
		if (head->cmsg_level != SOL_SOCKET || head->cmsg_type != SCM_RIGHTS)
			continue;
		for (size_t at = 0; CMSG_LEN(at + sizeof(fd)) <= head->cmsg_len; at += sizeof(fd)) {
			memcpy(&fd, CMSG_DATA(head) + at, sizeof(fd));
			length = sizeof(listening);
			if (!NEXT(getsockopt)(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &length) &&
			    listening)
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

/* close, dup2, dup3 */

static COLD int close_special(int fd)
{
	struct listener *l = listener_of(fd);

	if (fd_entry(fd)->kind == FD_PRIVATE && getpid() == fs_pid && fs_is_private(fd)) {
		errno = EBADF; /* as far as the application knows */
		return -1;
	}
	if (l)
		fs_listener_close(l);
	else if (fd_entry(fd)->kind == FD_ALONE || fd_entry(fd)->kind == FD_CLIENT)
		fd_entry(fd)->kind = FD_OTHER;
	return NEXT(close)(fd);
}

EXPORT int close(int fd)
{
	struct fd_entry *entry = fd_entry(fd);

	if (likely(entry->kind == FD_OTHER))
		return NEXT(close)(fd);
	if (unlikely(entry->kind != FD_CONNECTION))
		return close_special(fd);
	lean_closing(entry, fd);
	entry->kind = FD_OTHER;
	closed(entry);
	return NEXT(close)(fd);
}

/* Whatever `to` was, it will be something else; a private descriptor makes room. */
static COLD void make_room(int from, int to)
{
	struct listener *l = listener_of(to);

	if (from == to || getpid() != fs_pid)
		return;
	if (fd_entry(to)->kind == FD_PRIVATE && fs_is_private(to))
		fs_private_move(to);
	else if (l)
		fs_listener_close(l);
	fd_entry(to)->kind = FD_OTHER;
}

EXPORT int dup2(int from, int to)
{
	lean_shared(from);
	lean_shared(to);
	if (unlikely(fd_entry(to)->kind != FD_OTHER))
		make_room(from, to);
	return NEXT(dup2)(from, to);
}

EXPORT int dup3(int from, int to, int flags)
{
	lean_shared(from);
	lean_shared(to);
	if (unlikely(fd_entry(to)->kind != FD_OTHER))
		make_room(from, to);
	return NEXT(dup3)(from, to, flags);
}

/* epoll */

static void set_paused(struct listener *l, int slot, int *paused, int now)
{
	if (*paused != now)
		fs_pause(l, slot, now);
	*paused = now;
}

/* The descriptor to be used in this thread's epoll instance in place of the listener's. */
static COLD int polled_fd(struct listener *l, int epfd, int op)
{
	struct stand_in *own = fs_stand_in(l, epfd);

	if (!own && op == EPOLL_CTL_ADD) {
		if (l->slot >= 0 && l->epfd < 0)
			l->epfd = epfd;
		else if (l->slot < 0 || (l->epfd != epfd && l->tid != syscall(SYS_gettid)))
			fs_claim(l, epfd);
		fs_interrupted = 0; /* no wait follows at once */
		own = fs_stand_in(l, epfd);
	}
	return own ? own->fd : l->fd;
}

static COLD int epoll_ctl_listener(struct listener *l, int epfd, int op, struct epoll_event *event)
{
	int fd = polled_fd(l, epfd, op), result = NEXT(epoll_ctl)(epfd, op, fd, event);
	int polls = op != EPOLL_CTL_DEL && event && event->events & EPOLLIN;
	struct stand_in *own = fs_stand_in(l, epfd);

	if (result == 0 && own)
		fs_pause(l, own->slot, !polls);
	else if (result == 0 && l->slot >= 0 && l->epfd == epfd)
		set_paused(l, l->slot, &l->paused, !polls);
	return result;
}

static COLD int epoll_ctl_special(int epfd, int op, int fd, struct epoll_event *event)
{
	struct listener *l = listener_of(fd);

	lean_polls(fd, op, event);
	return l ? epoll_ctl_listener(l, epfd, op, event) : NEXT(epoll_ctl)(epfd, op, fd, event);
}

EXPORT int epoll_ctl(int epfd, int op, int fd, struct epoll_event *event)
{
	return likely(fd_entry(fd)->kind <= FD_CONNECTION) ? NEXT(epoll_ctl)(epfd, op, fd, event) :
							     epoll_ctl_special(epfd, op, fd, event);
}

static inline void wait_begins(int blocks)
{
	lean_wait_begins(blocks);
	if (fs_worker) {
		fs_worker->busy_since = 0;
		if (unlikely(!(++fs_worker->waits % WAITS_TO_SETTLE)))
			fs_settle();
	}
}

/* Whether a wait with that limit, or without one, can sleep. */
static inline int blocks_for(const struct timespec *timeout)
{
	return !timeout || timeout->tv_sec || timeout->tv_nsec;
}

static inline void wait_ends(void)
{
	struct timespec now;

	if (fs_worker) {
		clock_gettime(CLOCK_MONOTONIC, &now);
		fs_worker->busy_since = now.tv_sec * 1000000000ULL + now.tv_nsec;
	}
}

EXPORT int epoll_wait(int epfd, struct epoll_event *events, int max, int timeout)
{
	int result;

	fs_last_epfd = epfd;
	wait_begins(timeout != 0);
	result = NEXT(epoll_wait)(epfd, events, max, timeout);
	wait_ends();
	return result;
}

EXPORT int epoll_pwait(int epfd, struct epoll_event *events, int max, int timeout,
		       const sigset_t *mask)
{
	int result;

	fs_last_epfd = epfd;
	wait_begins(timeout != 0);
	result = NEXT(epoll_pwait)(epfd, events, max, timeout, mask);
	wait_ends();
	return result;
}

EXPORT int epoll_pwait2(int epfd, struct epoll_event *events, int max,
			const struct timespec *timeout, const sigset_t *mask)
{
	int result;

	fs_last_epfd = epfd;
	wait_begins(blocks_for(timeout));
	result = NEXT(epoll_pwait2)(epfd, events, max, timeout, mask);
	wait_ends();
	return result;
}

/* poll, select */

static COLD void claim_polled(int fd)
{
	struct listener *l = listener_of(fd);

	if (l)
		claim_without_epoll(l);
}

static inline int poll_begins(const struct pollfd *fds, nfds_t count, int blocks)
{
	if (unlikely(fs_unclaimed))
		for (nfds_t i = 0; i < count; i++)
			if (fds[i].events & POLLIN)
				claim_polled(fds[i].fd);
	wait_begins(blocks);
	return unlikely(fs_interrupted) && was_interrupted(FS_INTERRUPTED | FS_RESTARTED);
}

static inline int select_begins(int count, const fd_set *in, int blocks)
{
	if (unlikely(fs_unclaimed && in))
		for (int fd = 0; fd < count; fd++)
			if (FD_ISSET(fd, in))
				claim_polled(fd);
	wait_begins(blocks);
	return unlikely(fs_interrupted) && was_interrupted(FS_INTERRUPTED | FS_RESTARTED);
}

EXPORT int poll(struct pollfd *fds, nfds_t count, int timeout)
{
	int result;

	if (poll_begins(fds, count, timeout != 0))
		return -1;
	result = NEXT(poll)(fds, count, timeout);
	wait_ends();
	return result;
}

EXPORT int __poll_chk(struct pollfd *fds, nfds_t count, int timeout, size_t size)
{
	int result;

	if (poll_begins(fds, count, timeout != 0))
		return -1;
	result = NEXT(__poll_chk)(fds, count, timeout, size);
	wait_ends();
	return result;
}

EXPORT int ppoll(struct pollfd *fds, nfds_t count, const struct timespec *timeout,
		 const sigset_t *mask)
{
	int result;

	if (poll_begins(fds, count, blocks_for(timeout)))
		return -1;
	result = NEXT(ppoll)(fds, count, timeout, mask);
	wait_ends();
	return result;
}

EXPORT int __ppoll_chk(struct pollfd *fds, nfds_t count, const struct timespec *timeout,
		       const sigset_t *mask, size_t size)
{
	int result;

	if (poll_begins(fds, count, blocks_for(timeout)))
		return -1;
	result = NEXT(__ppoll_chk)(fds, count, timeout, mask, size);
	wait_ends();
	return result;
}

EXPORT int select(int count, fd_set *in, fd_set *out, fd_set *except, struct timeval *timeout)
{
	int result;

	if (select_begins(count, in, !timeout || timeout->tv_sec || timeout->tv_usec))
		return -1;
	result = NEXT(select)(count, in, out, except, timeout);
	wait_ends();
	return result;
}

EXPORT int pselect(int count, fd_set *in, fd_set *out, fd_set *except,
		   const struct timespec *timeout, const sigset_t *mask)
{
	int result;

	if (select_begins(count, in, blocks_for(timeout)))
		return -1;
	result = NEXT(pselect)(count, in, out, except, timeout, mask);
	wait_ends();
	return result;
}

/* Changes of user: what a sibling needs, the process may do only before */

static void before_privileges_go(void)
{
	if (geteuid() == 0)
		for (int i = 0; i < fs_listener_count; i++)
			fs_siblings_prepare(&fs_listeners[i]);
}

EXPORT int setuid(uid_t uid)
{
	before_privileges_go();
	return NEXT(setuid)(uid);
}

EXPORT int seteuid(uid_t uid)
{
	before_privileges_go();
	return NEXT(seteuid)(uid);
}

EXPORT int setreuid(uid_t ruid, uid_t euid)
{
	before_privileges_go();
	return NEXT(setreuid)(ruid, euid);
}

EXPORT int setresuid(uid_t ruid, uid_t euid, uid_t suid)
{
	before_privileges_go();
	return NEXT(setresuid)(ruid, euid, suid);
}

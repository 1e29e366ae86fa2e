// SPDX-License-Identifier: LGPL-2.1-or-later
/* Wrappers of epoll, poll() and select(): a worker's first wait is what gives it a slot. */
#include <errno.h>
#include <fcntl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "epoll.h"

#define WAITS_TO_SETTLE 128 /* a system call more in so many waits */

/* Whether a signal of that kind came during the claim that has just been made; sets errno. */
COLD int fs_was_interrupted(int kinds)
{
	int interrupted = fs_interrupted & kinds;

	fs_interrupted = 0;
	errno = interrupted ? EINTR : errno;
	return interrupted;
}

/* Claim a slot for a thread that polls or accepts without epoll. Not where accept() may block:
 * such a worker serves one connection at a time, and while it does nobody else could come for
 * what waits on a socket of its own.
 */
COLD void fs_claim_without_epoll(struct listener *l)
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

/* epoll */

static void set_paused(struct listener *l, int slot, int *paused, int now)
{
	if (*paused != now)
		fs_pause(l, slot, now);
	*paused = now;
}

/* The stand-in of this thread, which made its epoll instance anew. */
static struct stand_in *own_stand_in(struct listener *l)
{
	struct epoll_event none = {0};

	for (int i = 0; fs_worker && i < l->stand_ins; i++) {
		struct stand_in *own = &l->stand_in[i];

		if (fs_worker_of(page_slot(l->page_index, own->slot)) != fs_worker)
			continue;
		if (NEXT(epoll_ctl)(own->epfd, EPOLL_CTL_ADD, own->fd, &none) == 0)
			NEXT(epoll_ctl)(own->epfd, EPOLL_CTL_DEL, own->fd, &none);
		else if (errno == EEXIST)
			continue; /* the thread has both */
		return own;
	}
	return NULL;
}

/* The descriptor to be used in this thread's epoll instance in place of the listener's. */
static COLD int polled_fd(struct listener *l, int epfd, int op, int fd)
{
	struct stand_in *own = fs_stand_in(l, epfd);

	if (!own && op == EPOLL_CTL_ADD && (own = own_stand_in(l))) {
		own->epfd = epfd;
	} else if (!own && op == EPOLL_CTL_ADD) {
		if (l->slot >= 0 && (l->epfd < 0 || l->tid == syscall(SYS_gettid)))
			l->epfd = epfd;
		else if (l->slot < 0 || l->epfd != epfd)
			fs_claim(l, epfd);
		fs_interrupted = 0; /* no wait follows at once */
		own = fs_stand_in(l, epfd);
	}
	return own ? own->fd : fd;
}

static COLD int epoll_ctl_listener(struct listener *l, int epfd, int op, int listener,
				   struct epoll_event *event)
{
	int fd = polled_fd(l, epfd, op, listener), result = NEXT(epoll_ctl)(epfd, op, fd, event);
	int polls = op != EPOLL_CTL_DEL && event && event->events & EPOLLIN;
	struct stand_in *own = fs_stand_in(l, epfd);

	if (result == 0 && own)
		fs_pause(l, own->slot, !polls);
	else if (result == 0 && l->slot >= 0 && l->epfd == epfd)
		set_paused(l, l->slot, &l->paused, !polls);
	return result;
}

static inline int epoll_ctl_now(int epfd, int op, int fd, struct epoll_event *event)
{
	struct listener *l = listener_of(fd);

	return unlikely(l) ? epoll_ctl_listener(l, epfd, op, fd, event) :
			     NEXT(epoll_ctl)(epfd, op, fd, event);
}

static __attribute__((noinline)) int epoll_ctl_other(int epfd, int op, int fd,
						     struct epoll_event *event)
{
	lean_polls(fd, op, event); /* also where the call itself waits */
	return fast_ctl(epfd, op, fd, event, epoll_ctl_now);
}

EXPORT int epoll_ctl(int epfd, int op, int fd, struct epoll_event *event)
{
	return likely(fd_entry(fd)->kind == FD_CONNECTION) ?
		       fast_ctl(epfd, op, fd, event, NEXT(epoll_ctl)) :
		       epoll_ctl_other(epfd, op, fd, event);
}

/* Whether a wait with that limit, or without one, can sleep. */
static inline int blocks_for(const struct timespec *timeout)
{
	return !timeout || timeout->tv_sec || timeout->tv_nsec;
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

static inline void epoll_wait_begins(int epfd, int blocks)
{
	fs_last_epfd = epfd;
	wait_begins(blocks);
	fast_wait_begins(!blocks);
}

static inline void wait_ends(void)
{
	fast_wait_ends();
	if (fs_worker)
		fs_worker->busy_since = fs_now();
}

EXPORT int epoll_wait(int epfd, struct epoll_event *events, int max, int timeout)
{
	int result;

	epoll_wait_begins(epfd, timeout != 0);
	do
		if (fast_refused())
			result = fast_wait_refused(epfd, events, max);
		else if (unlikely(fs_busy_poll_us) && timeout)
			result = fs_wait_busily(epfd, events, max, timeout);
		else
			result = NEXT(epoll_wait)(epfd, events, max, timeout);
	while (fast_hides(epfd, events, max, &result));
	wait_ends();
	return result;
}

EXPORT int epoll_pwait(int epfd, struct epoll_event *events, int max, int timeout,
		       const sigset_t *mask)
{
	int result;

	epoll_wait_begins(epfd, timeout != 0);
	do
		if (fast_refused())
			result = fast_wait_refused(epfd, events, max);
		else if (unlikely(fs_busy_poll_us) && timeout && !mask)
			result = fs_wait_busily(epfd, events, max, timeout);
		else
			result = NEXT(epoll_pwait)(epfd, events, max, timeout, mask);
	while (fast_hides(epfd, events, max, &result));
	wait_ends();
	return result;
}

EXPORT int epoll_pwait2(int epfd, struct epoll_event *events, int max,
			const struct timespec *timeout, const sigset_t *mask)
{
	int result;

	epoll_wait_begins(epfd, blocks_for(timeout));
	do
		result = fast_refused() ? fast_wait_refused(epfd, events, max) :
					  NEXT(epoll_pwait2)(epfd, events, max, timeout, mask);
	while (fast_hides(epfd, events, max, &result));
	wait_ends();
	return result;
}

/* poll, select */

static COLD void claim_polled(int fd)
{
	struct listener *l = listener_of(fd);

	if (l)
		fs_claim_without_epoll(l);
}

static inline int poll_begins(const struct pollfd *fds, nfds_t count, int blocks)
{
	if (unlikely(fs_unclaimed))
		for (nfds_t i = 0; i < count; i++)
			if (fds[i].events & POLLIN)
				claim_polled(fds[i].fd);
	wait_begins(blocks);
	if (unlikely(fs_interrupted) && fs_was_interrupted(FS_INTERRUPTED | FS_RESTARTED))
		return 1;
	fast_wait_begins(0);
	return 0;
}

static inline int select_begins(int count, const fd_set *in, int blocks)
{
	if (unlikely(fs_unclaimed && in))
		for (int fd = 0; fd < count; fd++)
			if (FD_ISSET(fd, in))
				claim_polled(fd);
	wait_begins(blocks);
	if (unlikely(fs_interrupted) && fs_was_interrupted(FS_INTERRUPTED | FS_RESTARTED))
		return 1;
	fast_wait_begins(0);
	return 0;
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

/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Fast epoll: what the wrappers tell it. All of it is empty but in the libraries that are built with
 * FS_EPOLL, where it does nothing until fast_start().
 */
#ifndef FASTSOCKET_EPOLL_H
#define FASTSOCKET_EPOLL_H

#include "lean.h"

#ifndef FS_EPOLL

#define fast_start() ((void)0)
#define fast_ctl(epfd, op, fd, event, plain) (plain)(epfd, op, fd, event)
#define fast_opened(fd) ((void)(fd))
#define fast_closing(fd) ((void)(fd))
#define fast_shared(fd) ((void)(fd))
#define fast_spawns() ((void)0)
#define fast_raw(number) ((void)(number))
#define fast_wait_begins(keeps) ((void)(keeps))
#define fast_wait_ends() ((void)0)
#define fast_refused() 0
#define fast_wait_refused(epfd, events, max) (-1)
#define fast_hides(epfd, events, max, result) 0

#else

#pragma GCC visibility push(hidden)

typedef int fast_plain(int epfd, int op, int fd, struct epoll_event *event);

/* What is known of a descriptor, in a table of its own; one cache line. */
struct fast_watch {
	uint64_t data, wanted_data; /* as the kernel has it, and as the application wants it */
	uint32_t events, wanted;
	uint32_t era; /* the entry means nothing in another */
	uint32_t birth; /* of the instance; of a connection's instance, 0 = registered nowhere */
	int epfd; /* the connection's instance */
	uint8_t kind; /* enum fast_kind */
	uint8_t op; /* the call that waits, or 0 */
	uint8_t by_fd; /* the low half of the data of all that it has is their descriptor */
	uint8_t queued; /* it is in the queue, whatever else is known of it */
} __attribute__((aligned(64)));

extern struct fast_watch *fast_watches; /* NULL where it is off */
extern unsigned fast_kept; /* deletions that the wait which begins does not need */
extern unsigned fast_refusals; /* additions that the kernel has no memory for */

void fast_start(void);
int fast_ctl_watched(int epfd, int op, int fd, struct epoll_event *event, fast_plain *plain);
void fast_opened_watched(int fd);
void fast_closing_watched(int fd);
void fast_shared(int fd);
void fast_spawns(void);
void fast_raw(long number);
void fast_wait_begins_watched(int keeps);
void fast_wait_ends(void);
int fast_wait_refused(int epfd, struct epoll_event *events, int max);
int fast_hides_some(int epfd, struct epoll_event *events, int max, int *result);

#pragma GCC visibility pop

/* epoll_ctl(), now or before the next wait; `plain` is the call itself. */
static inline int fast_ctl(int epfd, int op, int fd, struct epoll_event *event, fast_plain *plain)
{
	return fast_watches ? fast_ctl_watched(epfd, op, fd, event, plain) :
			      plain(epfd, op, fd, event);
}

/* A descriptor that nobody else has, and that no epoll instance has. */
static inline void fast_opened(int fd)
{
	if (fast_watches && fd >= 0)
		fast_opened_watched(fd);
}

/* Before close(). */
static inline void fast_closing(int fd)
{
	if (fast_watches && (unsigned)fd < fs_fd_count &&
	    (fast_watches[fd].kind || fast_watches[fd].op))
		fast_closing_watched(fd);
}

/* Before any wait for events; `keeps` where it is one of epoll that only looks. */
static inline void fast_wait_begins(int keeps)
{
	if (fast_watches)
		fast_wait_begins_watched(keeps);
}

/* Whether fast_wait_refused() has to do the wait. */
static inline int fast_refused(void)
{
	return unlikely(fast_refusals);
}

/* Take events of what was deleted out of a wait's result; whether it must be repeated, as there was
 * room for no others.
 */
static inline int fast_hides(int epfd, struct epoll_event *events, int max, int *result)
{
	return unlikely(fast_kept && *result > 0) && fast_hides_some(epfd, events, max, result);
}

#endif
#endif

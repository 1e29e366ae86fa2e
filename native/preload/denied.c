// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Threads that got no slot, and share the application's socket: the keeper did not answer in time,
 * say, or all slots were taken. Each asks again from time to time, before one of its waits.
 */
#include <errno.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "fsocket.h"

#define FIRST_PAUSE_NS 1000000000ULL /* before the second attempt; doubled before each further */
#define LAST_PAUSE_NS (64 * FIRST_PAUSE_NS)

/* Of this thread: how long it does without, and until when, on the clock of fs_now(). */
static __thread uint64_t pause_ns, next_attempt;

/* What this thread was denied, or NULL. */
static struct denial *own_denial(struct listener *l)
{
	pid_t tid = l->denials ? syscall(SYS_gettid) : 0;

	for (int i = 0; i < l->denials; i++)
		if (l->denial[i].tid == tid)
			return &l->denial[i];
	return NULL;
}

/* Whether this thread was denied a slot of the listener before. */
enum fs_denied fs_was_denied(struct listener *l, int epfd)
{
	struct denial *denial = own_denial(l);

	if (!denial)
		return FS_NOT_DENIED;
	if (denial->epfd != epfd)
		*denial = (struct denial){.tid = denial->tid, .epfd = epfd};
	return fs_now() < next_attempt ? FS_DENIED_LATELY : FS_DENIED;
}

/* Not before a while. */
void fs_ask_later(void)
{
	pause_ns = pause_ns ? 2 * pause_ns : FIRST_PAUSE_NS;
	if (pause_ns > LAST_PAUSE_NS)
		pause_ns = LAST_PAUSE_NS;
	next_attempt = fs_now() + pause_ns;
}

/* This thread got no slot, for the reason that errno tells; under the listener's lock. */
void fs_deny(struct listener *l, struct fs_listener *pl, int epfd)
{
	pl->reason = errno;
	fs_ask_later();
	if (own_denial(l))
		return;
	pl->unslotted++;
	fs_own_worker(); /* whose waits are counted */
	for (int i = 0; pl->tier != FS_TIER_NONE && i < FS_MAX_SLOTS; i++)
		if (!l->denial[i].tid) {
			l->denial[i] = (struct denial){.tid = syscall(SYS_gettid), .epfd = epfd};
			if (i >= l->denials)
				l->denials = i + 1;
			return;
		}
}

/* This thread has a slot; under the listener's lock. */
void fs_grant(struct listener *l, struct fs_listener *pl)
{
	struct denial *denial = own_denial(l);

	if (!denial)
		return;
	pause_ns = 0;
	denial->tid = 0;
	pl->unslotted -= !!pl->unslotted;
}

/* A child of a fork was denied nothing. */
void fs_forget_denials(struct listener *l)
{
	memset(l->denial, 0, l->denials * sizeof(*l->denial));
	l->denials = 0;
}

/* This thread changed what it polls the application's descriptor for. */
void fs_note_polled(struct listener *l, int epfd, const struct epoll_event *event)
{
	struct denial *denial = own_denial(l);

	if (denial && denial->epfd == epfd)
		denial->event = event ? *event : (struct epoll_event){0};
}

/* Ask again, if it is time. The epoll instance has the socket that is shared, and is to have the
 * slot's instead: what it was told of that is told of this one.
 */
void fs_claim_again(struct listener *l)
{
	const struct denial *denial = own_denial(l);
	struct stand_in *own;
	struct denial last;

	if (!denial || fs_now() < next_attempt || fs_cookie(l->fd) != l->fd_cookie)
		return;
	last = *denial;
	if (last.epfd < 0) {
		fs_claim(l, -1);
		return;
	}
	if (!(last.event.events & EPOLLIN) ||
	    NEXT(epoll_ctl)(last.epfd, EPOLL_CTL_DEL, l->fd, NULL) < 0)
		return;
	fs_claim(l, last.epfd);
	own = fs_stand_in(l, last.epfd);
	NEXT(epoll_ctl)(last.epfd, EPOLL_CTL_ADD, own ? own->fd : l->fd, &last.event);
}

// SPDX-License-Identifier: LGPL-2.1-or-later
/* Wrappers of accept(): from the thread's own slot, or from another that needs help. */
#include <errno.h>
#include <fcntl.h>

#include "epoll.h"

/* What accept() works on for this thread. */
struct source {
	int fd, slot;
};

static COLD struct source accept_source(struct listener *l, int fd)
{
	struct stand_in *own = l->stand_ins ? fs_stand_in(l, fs_last_epfd) : NULL;

	/* A thread that polls a slot does not take a second one, which another thread left. */
	if (!own)
		fs_claim_without_epoll(l);
	lean_accepting(l->fd);
	return own ? (struct source){own->fd, own->slot} : (struct source){fd, l->slot};
}

static inline struct source source_of(const struct fd_entry *entry, int fd)
{
	struct listener *l = &fs_listeners[entry->listener];

	if (unlikely(l->slot < 0 || l->stand_ins))
		return accept_source(l, fd);
	return (struct source){fd, l->slot};
}

/* Count an accepted connection for its slot, until it is closed. */
static inline void opened(const struct fd_entry *entry, int slot, int connection)
{
	struct listener *l = &fs_listeners[entry->listener];
	int listener = l->page_index;
	struct fs_slot *ps = page_slot(listener, slot);
	struct fd_entry *new = &fs_fds[connection];

	if (unlikely(!(__atomic_fetch_add(&ps->accepted, 1, __ATOMIC_RELAXED) % FS_WEIGH_EACH)))
		fs_weigh_threads();
	if (unlikely((unsigned)connection >= fs_fd_count))
		return; /* its close would not be seen */
	__atomic_fetch_add(&ps->live, 1, __ATOMIC_RELAXED);
	if (new->kind == FD_CONNECTION)
		fs_closed(new); /* unseen: close_range(), a raw system call */
	new->kind = FD_CONNECTION;
	new->listener = listener;
	new->slot = slot;
	new->era = fs_era;
	lean_opened(new, l, page_listener(listener));
}

/* A worker that accepts one connection after the other without waiting in between (gunicorn under
 * load) is not away: its time begins anew with each.
 */
static inline void goes_on(void)
{
	static __thread uint64_t waits;

	if (!fs_worker)
		return;
	if (unlikely(fs_worker->waits == waits))
		fs_worker->busy_since = fs_now();
	waits = fs_worker->waits;
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

/* Connections that the slot's worker has or is about to have. */
static int64_t held(const struct fs_slot *slot)
{
	return (int32_t)slot->live + (int64_t)(slot->assigned - slot->accepted - slot->settled);
}

/* Whether another worker's queue may be drained by this thread, which has the slot `own`: it
 * waits for a worker that is late, or its worker is gone. Only non-blocking listeners: their
 * workers expect to find nothing at times. Connections that last would leave the workers uneven
 * for good, so a worker that is only late for a moment keeps those that are its share.
 */
static int wants_help(const struct fs_listener *pl, const struct fs_slot *slot,
		      const struct fs_slot *own)
{
	if (slot->state != FS_SLOT_CLAIMED)
		return slot->state == FS_SLOT_ORPHAN ||
		       (slot->state == FS_SLOT_PAUSED && slot->help);
	return slot->help == FS_HELP_EVENLY ? !pl->by_live || held(own) < held(slot) : slot->help;
}

/* Accept a connection that waits on another slot of the listener, or return -1. */
static COLD int accept_for_another(struct listener *l, int slot, struct sockaddr *addr,
				   socklen_t *len, int flags)
{
	struct fs_listener *pl = &fs_page->listener[l->page_index];
	struct fs_slot *own = page_slot(l->page_index, slot);
	int saved = errno, connection = -1, orphans = 0;

	if (slot < 0)
		return -1;
	pl->help = 0;
	own->help = FS_HELP_NONE; /* its worker is at it */
	for (unsigned i = 0; connection < 0 && i < pl->slots && i < FS_MAX_SLOTS; i++) {
		struct fs_slot *other = &pl->slot[i];
		int wanted = other != own && wants_help(pl, other, own);
		int fd = wanted ? fs_fd_of_cookie(l->page_index, other->cookie) : -1;

		orphans |= other->state == FS_SLOT_ORPHAN;
		if (!wanted && other->help == FS_HELP_EVENLY)
			other->help = FS_HELP_NONE; /* until the program asks again */
		if (fd < 0 || !(fcntl(fd, F_GETFL) & O_NONBLOCK))
			continue;
		connection = NEXT(accept4)(fd, addr, len, flags);
		if (connection < 0)
			other->help = FS_HELP_NONE;
		else
			__atomic_fetch_add(&other->accepted, 1, __ATOMIC_RELAXED);
	}
	/* While no program chooses, orphans go on getting connections. */
	if (orphans && !own->published)
		pl->help = 1;
	if (connection >= 0) {
		pl->help = 1; /* there may be more */
		__atomic_fetch_add(&pl->stolen, 1, __ATOMIC_RELAXED);
		__atomic_fetch_sub(&own->accepted, 1, __ATOMIC_RELAXED);
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
		lean_accepting(fd);
		connection = NEXT(accept4)(fd, addr, len, flags);
		fast_opened(connection);
		return connection;
	}
	source = source_of(entry, fd);
	if (unlikely(fs_interrupted) && fs_was_interrupted(FS_INTERRUPTED) &&
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
	if (connection >= 0 && source.slot >= 0) {
		goes_on();
		opened(entry, source.slot, connection);
	}
	fast_opened(connection);
	return connection;
}

EXPORT int accept(int fd, struct sockaddr *addr, socklen_t *len)
{
	int connection;

	if (fd_entry(fd)->kind == FD_LISTENER)
		return accept4(fd, addr, len, 0);
	lean_accepting(fd);
	connection = NEXT(accept)(fd, addr, len);
	fast_opened(connection);
	return connection;
}

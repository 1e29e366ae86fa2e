// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * How a worker comes to a slot: at its first poll of the listener it takes the application's
 * own socket, if no living worker has that, else a sibling. Everything here runs under the
 * listener's lock in the status page.
 */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "lean.h"

/* Whether this thread needs a socket other than the application's own. Where that is one of
 * several which the application opened itself, a further process that polls it is the
 * successor of the one that does now (a reload), and takes its slot over.
 */
static int is_taken(const struct listener *l, const struct fs_listener *pl)
{
	int index = fs_find_slot(pl, l->cookie);
	const struct fs_slot *slot = &pl->slot[index];

	if (index < 0 || slot->state == FS_SLOT_ORPHAN)
		return 0;
	return !fs_has_company(l) ||
	       fs_page->worker[slot->worker & (FS_MAX_WORKERS - 1)].pid == (uint32_t)fs_pid;
}

static int free_slot(struct fs_listener *pl)
{
	for (int wanted = FS_SLOT_FREE; wanted <= FS_SLOT_ORPHAN; wanted += FS_SLOT_ORPHAN)
		for (unsigned i = 0; i < FS_MAX_SLOTS; i++)
			if ((int)pl->slot[i].state == wanted) {
				if (i >= pl->slots)
					pl->slots = i + 1;
				return i;
			}
	return -1;
}

/* A socket for a further worker: an orphan's first, which may hold a queue, then a spare. */
static int take_sibling(struct listener *l, struct fs_listener *pl)
{
	int found = -1;

	for (int i = 0; i < l->siblings; i++) {
		int slot = fs_find_slot(pl, l->sibling_cookie[i]);

		if (fs_cookie(l->sibling[i]) != l->sibling_cookie[i])
			continue; /* closed behind our back */
		if (slot >= 0 && pl->slot[slot].state == FS_SLOT_ORPHAN)
			return i;
		if (slot < 0 && found < 0)
			found = i;
	}
	return found >= 0 ? found : fs_sibling_create(l);
}

static int begin_listening(struct listener *l, int fd)
{
	int own = l->origin >= 0 ? l->origin : l->fd;

	fs_replay_options(own, fd);
	if (NEXT(listen)(fd, l->backlog) < 0)
		return -1;
	fs_replay_options(own, fd); /* TCP_QUICKACK is cleared by listen() */
	return 0;
}

/* Note a socket in the page as an orphan, before it listens: should this process die before it
 * polls, the others know of the queue. Returns the slot or -1 with errno.
 */
static int reserve(struct listener *l, struct fs_listener *pl, int fd, uint64_t cookie, int shared)
{
	int index = fs_find_slot(pl, cookie), own = cookie == l->cookie;
	struct fs_slot *slot;

	if (index < 0) {
		index = free_slot(pl);
		if (index < 0 || !fs_own_worker()) {
			errno = ENOSPC;
			return -1;
		}
		pl->past_assigned += pl->slot[index].assigned;
		pl->past_spilled += pl->slot[index].spilled;
		pl->slot[index] =
			(struct fs_slot){.cookie = cookie, .cpu = FS_NO_CPU, .state = FS_SLOT_FREE};
	} else {
		fs_unlink_cpu(pl, index);
	}
	slot = &pl->slot[index];
	slot->shared = shared;
	slot->own = own;
	slot->fd = own ? l->fd : fd;
	if (slot->state == FS_SLOT_FREE)
		fs_set_state(pl, index, FS_SLOT_ORPHAN);
	pl->help = 1;
	return index;
}

/* A claim failed: the slot is free, and its socket `fd`, if it is not the application's, must not
 * go on getting connections.
 */
static void give_back(struct fs_listener *pl, int index, int fd)
{
	int error = errno;

	fs_unlink_cpu(pl, index);
	pl->slot[index].cpu = FS_NO_CPU;
	fs_set_state(pl, index, FS_SLOT_FREE);
	fs_unpublish(pl, &pl->slot[index]);
	if (fd >= 0)
		fs_stop_listening(fd);
	errno = error;
}

/* Claim the reserved slot of the socket `fd`, which listens; returns its index or -1 with errno. */
static int claim_socket(struct listener *l, struct fs_listener *pl, int index, int fd)
{
	struct fs_worker *worker = fs_own_worker();
	struct fs_slot *slot = &pl->slot[index];

	if (!worker) {
		errno = ENOSPC;
		return -1;
	}
	pl->backlog = l->backlog;
	slot->worker = worker - fs_page->worker;
	slot->settled = 0;
	slot->accepted = slot->assigned;
	slot->live = 0;
	slot->forked = 0;
	slot->cpu = fs_choose_cpu(pl, worker);
	fs_link_cpu(pl, index);
	fs_set_state(pl, index, FS_SLOT_CLAIMED);
	if (fs_publish_all(l, pl) < 0) {
		give_back(pl, index, slot->own ? -1 : fd); /* not reachable through the program */
		return -1;
	}
	fs_pin_workers(pl);
	lean_relearn(l, pl);
	return index;
}

/* Keep the application's own socket when another is about to be put in its place. */
static int keep_origin(struct listener *l)
{
	int copy;

	if (l->origin >= 0)
		return 0;
	copy = fcntl(l->fd, F_DUPFD_CLOEXEC, 0);
	if (copy < 0)
		return -1;
	l->origin = fs_private(copy);
	return l->origin < 0 ? -1 : 0;
}

/* Let the application's descriptor be the slot's socket from here on. */
static int put_in_place(struct listener *l, int fd)
{
	int flags = fcntl(l->fd, F_GETFD);

	if (NEXT(dup3)(fd, l->fd, flags & FD_CLOEXEC ? O_CLOEXEC : 0) < 0)
		return -1;
	l->fd_cookie = fs_cookie(fd);
	return 0;
}

struct stand_in *fs_stand_in(struct listener *l, int epfd)
{
	for (int i = 0; i < l->stand_ins; i++)
		if (l->stand_in[i].epfd == epfd)
			return &l->stand_in[i];
	return NULL;
}

/* Whether the kernel can be told which of several sockets to take: found out before there is
 * a second one, so that none has to be withdrawn.
 */
static int can_choose(const struct listener *l, struct fs_listener *pl)
{
	if (pl->tier == FS_TIER_CLASSIC && !l->own_reuseport && !fs_classic_works())
		pl->tier = FS_TIER_NONE;
	return pl->tier != FS_TIER_NONE;
}

/* Give the calling thread a slot of its own for the listener. The first of a process has it
 * behind the application's descriptor, further threads behind a stand-in. Returns the slot,
 * or -1: then the thread shares the application's socket, as it would without us.
 */
int fs_claim(struct listener *l, int epfd)
{
	struct fs_listener *pl = &fs_page->listener[l->page_index];
	int saved_errno = errno, slot = -1, first, place;
	struct fs_guard guard, before;

	if (fs_cookie(l->fd) != l->fd_cookie) { /* closed by a raw system call */
		fs_listener_close(l);
		return -1;
	}
	fs_hold_signals(&before);
	/* Before the claim: once it has a slot, its death must be noticed. */
	fs_keeper_tell(FS_OP_WORKER, l, 0, 0, -1);
	errno = saved_errno;
	fs_lock(&pl->lock, &guard);
	first = l->slot < 0; /* known only now: threads claim at the same time */
	if (!first && epfd < 0) { /* another thread was quicker, and this one polls the same */
		fs_unlock(&pl->lock, &guard);
		fs_release_signals(&before);
		errno = saved_errno;
		return l->slot;
	}
	if (fs_sweep(pl))
		fs_level(pl);
	if (first && !is_taken(l, pl)) {
		int fd = l->origin >= 0 ? l->origin : l->fd;

		slot = reserve(l, pl, fd, l->cookie, 1);
		if (slot >= 0)
			slot = claim_socket(l, pl, slot, fd);
		if (slot >= 0 && l->origin >= 0)
			put_in_place(l, l->origin);
	} else if (can_choose(l, pl) && (!first || keep_origin(l) == 0) &&
		   (place = take_sibling(l, pl)) >= 0) {
		int fd = l->sibling[place];

		slot = reserve(l, pl, fd, l->sibling_cookie[place], l->sibling_shared[place]);
		if (slot >= 0 && begin_listening(l, fd) < 0)
			fs_set_state(pl, slot, FS_SLOT_FREE), slot = -1;
		if (slot >= 0)
			slot = claim_socket(l, pl, slot, fd);
		if (slot >= 0 && first && put_in_place(l, fd) < 0)
			give_back(pl, slot, fd), slot = -1;
		if (slot >= 0 && !first)
			l->stand_in[l->stand_ins++] =
				(struct stand_in){.epfd = epfd, .fd = fd, .slot = slot};
	}
	if (slot < 0) {
		pl->unslotted++;
		pl->reason = errno;
	}
	if (first && l->slot == UNCLAIMED)
		fs_unclaimed--;
	if (first)
		l->slot = slot < 0 ? SHARED : slot;
	if (first && slot >= 0) {
		l->epfd = epfd;
		l->tid = fs_worker->tid;
		l->paused = 0;
	}
	fs_unlock(&pl->lock, &guard);
	fs_release_signals(&before);
	errno = saved_errno;
	return slot;
}

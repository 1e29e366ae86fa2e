// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * How a slot comes free: its worker closes the listener, ends, replaces itself or dies. What waits
 * in its queue goes to those that stay.
 */
#include <errno.h>
#include <time.h>
#include <unistd.h>

#include "fsocket.h"

/* Stop a socket to listen; returns whether it listened. One that does not must not be shut again:
 * the kernel would mark it, and what it accepts after a further listen() would read as ended.
 */
int fs_stop_listening(int fd)
{
	return fs_listens(fd) && NEXT(shutdown)(fd, SHUT_RD) == 0;
}

/* Let the kernel move an orphan's queue to the slots that are polled: a socket that stops to
 * listen hands it over. Returns whether it did stop.
 */
static int pass_queue_on(struct fs_listener *pl, struct fs_slot *slot, int fd)
{
	if (pl->tier != FS_TIER_MIGRATE || slot->state != FS_SLOT_ORPHAN || !pl->claimed ||
	    !slot->published || fd < 0 || !fs_stop_listening(fd))
		return 0;
	slot->published = 0;
	return 1;
}

/* The worker of an orphan is gone for good. The application's own socket listens again at once,
 * for it may be what the next worker polls.
 */
static void hand_over(struct fs_listener *pl, int index, int fd)
{
	struct fs_slot *slot = &pl->slot[index];

	if (pl->tier == FS_TIER_CLASSIC && slot->state == FS_SLOT_ORPHAN && fd >= 0)
		fs_steer_classic(pl, fd); /* what waits there already, the others accept */
	if (slot->forked || fs_alive(slot->left_in, slot->left_in, 0))
		return; /* a child or a further thread may poll it still */
	if (!pass_queue_on(pl, slot, fd))
		return;
	if (slot->own)
		NEXT(listen)(fd, pl->backlog);
	else
		fs_set_state(pl, index, FS_SLOT_FREE);
}

/* The program does not choose the slot any more, and handshakes that are under way end on it. One that
 * ends at the instant in which the socket stops to listen is reset by the kernel, which then finds no
 * queue for it (inet_csk_reqsk_queue_add). Those from within the host get the time to be over.
 */
static void let_handshakes_end(const struct fs_listener *pl)
{
	const struct timespec pause = {.tv_nsec = 1000000};

	if (pl->tier == FS_TIER_MIGRATE && pl->claimed)
		nanosleep(&pause, NULL);
}

/* The application closes its listener in this process. */
void fs_release(struct listener *l, int index)
{
	struct fs_listener *pl = &fs_page->listener[l->page_index];
	struct fs_slot *slot = &pl->slot[index];
	struct fs_guard guard;

	fs_lock(&pl->lock, &guard);
	if (fs_worker_of(slot)->pid != (uint32_t)fs_pid) {
		fs_unlock(&pl->lock, &guard);
		return; /* taken over */
	}
	fs_abandon(pl, index);
	slot->left_in = 0; /* no further thread of this process polls it */
	let_handshakes_end(pl);
	hand_over(pl, index, fs_fd_of_cookie(l->page_index, slot->cookie));
	fs_level(pl);
	if (pl->tier == FS_TIER_CLASSIC && pl->claimed)
		fs_publish_all(l, pl);
	fs_unlock(&pl->lock, &guard);
}

/* Whether the slot is the listener's, and not of another socket that the application opened. */
static int belongs_to(const struct listener *l, const struct fs_slot *slot)
{
	return slot->state != FS_SLOT_FREE && (!slot->own || slot->cookie == l->cookie);
}

/* shutdown() stops the listener for all that have it, as where they share one socket. A further
 * listen() finds the slots as they are.
 */
void fs_stop(struct listener *l)
{
	struct fs_listener *pl = &fs_page->listener[l->page_index];
	struct fs_guard guard;

	fs_lock(&pl->lock, &guard);
	for (unsigned i = 0; i < pl->slots && i < FS_MAX_SLOTS; i++) {
		struct fs_slot *slot = &pl->slot[i];
		int fd = fs_fd_of_cookie(l->page_index, slot->cookie);

		if (!belongs_to(l, slot) || fd < 0)
			continue;
		fs_stop_listening(fd); /* but the one that the application just stopped */
		fs_unpublish(pl, slot);
	}
	if (l->origin >= 0)
		fs_stop_listening(l->origin);
	fs_unlock(&pl->lock, &guard);
}

/* A further listen(), which may follow a shutdown() or change the backlog, is for all of them. */
void fs_go_on(struct listener *l, int backlog)
{
	struct fs_listener *pl = &fs_page->listener[l->page_index];
	struct fs_guard guard;

	fs_lock(&pl->lock, &guard);
	l->backlog = pl->backlog = backlog;
	for (unsigned i = 0; i < pl->slots && i < FS_MAX_SLOTS; i++) {
		int fd = fs_fd_of_cookie(l->page_index, pl->slot[i].cookie);

		if (belongs_to(l, &pl->slot[i]) && fd >= 0)
			NEXT(listen)(fd, backlog);
	}
	fs_publish_all(l, pl);
	fs_unlock(&pl->lock, &guard);
}

/* A thread gives up a slot. What waits there would wait until another thread happens to accept; the
 * socket goes on, a further thread may poll it.
 */
static void leave(struct listener *l, struct fs_listener *pl, int index)
{
	int fd = fs_fd_of_cookie(l->page_index, pl->slot[index].cookie);

	fs_abandon(pl, index);
	let_handshakes_end(pl);
	if (pass_queue_on(pl, &pl->slot[index], fd))
		NEXT(listen)(fd, pl->backlog);
}

/* A thread that polled slots ends; its process goes on. */
void fs_thread_ends(void *worker)
{
	if (!fs_worker || worker != fs_worker)
		return; /* of a process that forked */
	for (int i = 0; i < fs_listener_count; i++) {
		struct listener *l = &fs_listeners[i];
		struct fs_listener *pl = &fs_page->listener[l->page_index];
		struct fs_guard guard;

		if (l->fd < 0)
			continue;
		fs_lock(&pl->lock, &guard);
		for (int j = l->stand_ins - 1; j >= 0; j--)
			if (fs_worker_of(&pl->slot[l->stand_in[j].slot]) == worker) {
				leave(l, pl, l->stand_in[j].slot);
				l->stand_in[j] = l->stand_in[--l->stand_ins];
			}
		if (l->slot >= 0 && (uint32_t)l->tid == fs_worker->tid &&
		    fs_worker_of(&pl->slot[l->slot]) == worker) {
			leave(l, pl, l->slot);
			l->slot = UNCLAIMED;
			l->epfd = -1;
			fs_unclaimed++;
		}
		fs_level(pl);
		fs_unlock(&pl->lock, &guard);
	}
	fs_worker->pid = 0;
	fs_worker = NULL;
}

/* This process had slots before it replaced itself by exec; now it polls none. */
void fs_forget_past(void)
{
	struct fs_guard guard;

	for (int i = 0; i < FS_MAX_LISTENERS; i++) {
		struct fs_listener *pl = &fs_page->listener[i];

		if (!pl->claimed)
			continue;
		fs_lock(&pl->lock, &guard);
		for (unsigned j = 0; j < pl->slots && j < FS_MAX_SLOTS; j++)
			if ((pl->slot[j].state == FS_SLOT_CLAIMED ||
			     pl->slot[j].state == FS_SLOT_PAUSED) &&
			    fs_worker_of(&pl->slot[j])->pid == (uint32_t)fs_pid)
				fs_abandon(pl, j);
		fs_unlock(&pl->lock, &guard);
	}
	for (int i = 0; i < FS_MAX_WORKERS; i++)
		if (fs_page->worker[i].pid == (uint32_t)fs_pid)
			fs_page->worker[i].pid = 0;
}

/* For the keeper, which is not written in C and has no other way to take a lock. It must not
 * wait for one: the holder may be waiting for the keeper's answer. Both return 0 if the
 * lock was not to be had. Nor does it move workers: it may be root, and the page may name
 * any thread of the host.
 */

/* Give up the slots of dead workers. */
EXPORT int fsocket_sweep(struct fs_page *page, unsigned listener)
{
	struct fs_listener *pl = &page->listener[listener & (FS_MAX_LISTENERS - 1)];
	struct fs_guard guard;

	fs_page = page;
	if (!fs_trylock(&pl->lock, &guard))
		return 0;
	fs_sweep(pl);
	fs_unlock(&pl->lock, &guard);
	return 1;
}

/* No socket of that cookie is left: the slot of an orphan is free. */
EXPORT int fsocket_forget(struct fs_page *page, unsigned listener, unsigned slot, uint64_t cookie)
{
	struct fs_listener *pl = &page->listener[listener & (FS_MAX_LISTENERS - 1)];
	struct fs_slot *gone = &pl->slot[slot & (FS_MAX_SLOTS - 1)];
	struct fs_guard guard;

	fs_page = page;
	if (!fs_trylock(&pl->lock, &guard))
		return 0;
	if (gone->state == FS_SLOT_ORPHAN && gone->cookie == cookie) {
		fs_set_state(pl, slot & (FS_MAX_SLOTS - 1), FS_SLOT_FREE);
		fs_unpublish(pl, gone);
	}
	fs_unlock(&pl->lock, &guard);
	return 1;
}

/* Move the queue of a slot that is still an orphan; `fd` is its socket. */
EXPORT int fsocket_hand_over(struct fs_page *page, unsigned listener, unsigned slot, int fd)
{
	struct fs_listener *pl = &page->listener[listener & (FS_MAX_LISTENERS - 1)];
	struct fs_guard guard;

	fs_page = page;
	if (!fs_trylock(&pl->lock, &guard))
		return 0;
	hand_over(pl, slot & (FS_MAX_SLOTS - 1), fd);
	fs_unlock(&pl->lock, &guard);
	return 1;
}

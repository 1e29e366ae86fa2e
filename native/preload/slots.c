// SPDX-License-Identifier: LGPL-2.1-or-later
/* The slots of a listener in the status page; all of it runs under the listener's lock. */
#include <sys/syscall.h>
#include <unistd.h>

#include "fsocket.h"

int fs_find_slot(const struct fs_listener *pl, uint64_t cookie)
{
	for (unsigned i = 0; i < pl->slots && i < FS_MAX_SLOTS; i++)
		if (pl->slot[i].state != FS_SLOT_FREE && pl->slot[i].cookie == cookie)
			return i;
	return -1;
}

void fs_set_state(struct fs_listener *pl, int index, enum fs_slot_state state)
{
	struct fs_slot *slot = &pl->slot[index];

	pl->claimed += (state == FS_SLOT_CLAIMED) - (slot->state == FS_SLOT_CLAIMED);
	__atomic_store_n(&slot->state, state, __ATOMIC_RELEASE);
}

/* The worker is gone: keep the slot if its socket still listens elsewhere; what waits there
 * is for the others to accept.
 */
void fs_abandon(struct fs_listener *pl, int index)
{
	const struct fs_worker *worker = fs_worker_of(&pl->slot[index]);
	int thread_only = worker->pid != worker->tid &&
			  fs_alive(worker->pid, worker->pid, worker->start);

	fs_unlink_cpu(pl, index);
	pl->slot[index].left_in = thread_only ? worker->pid : 0;
	pl->slot[index].cpu = FS_NO_CPU;
	if (pl->slot[index].shared || thread_only) {
		fs_set_state(pl, index, FS_SLOT_ORPHAN);
		pl->help = 1;
		return;
	}
	fs_set_state(pl, index, FS_SLOT_FREE);
	fs_unpublish(pl, &pl->slot[index]);
}

/* Give up the slots of dead workers, and mend what one left half done that died with the lock. */
int fs_sweep(struct fs_listener *pl)
{
	unsigned claimed = 0;
	int found = 0;

	for (unsigned i = 0; i < pl->slots && i < FS_MAX_SLOTS; i++) {
		const struct fs_slot *slot = &pl->slot[i];
		const struct fs_worker *worker = fs_worker_of(slot);

		if ((slot->state == FS_SLOT_CLAIMED || slot->state == FS_SLOT_PAUSED) &&
		    !fs_alive(worker->pid, worker->tid, worker->start)) {
			fs_abandon(pl, i);
			found = 1;
		}
		claimed += slot->state == FS_SLOT_CLAIMED;
	}
	pl->claimed = claimed;
	return found;
}

/* This thread's entry in the page, made at its first claim. */
struct fs_worker *fs_own_worker(void)
{
	pid_t pid = getpid(), tid = syscall(SYS_gettid);
	struct fs_guard guard;

	if (fs_worker)
		return fs_worker;
	fs_lock(&fs_page->worker_lock, &guard);
	for (int i = 0; i < FS_MAX_WORKERS; i++) {
		struct fs_worker *worker = &fs_page->worker[i];

		if (worker->pid && fs_alive(worker->pid, worker->tid, worker->start))
			continue;
		*worker = (struct fs_worker){
			.start = fs_start_time(pid), .pid = pid, .tid = tid, .cpu = FS_NO_CPU};
		fs_worker = worker;
		pthread_setspecific(fs_thread_key, worker);
		break;
	}
	fs_unlock(&fs_page->worker_lock, &guard);
	return fs_worker;
}

/* Descriptor in this process of the socket with that cookie, or -1. */
int fs_fd_of_cookie(int page_index, uint64_t cookie)
{
	for (int i = 0; i < fs_listener_count; i++) {
		struct listener *l = &fs_listeners[i];

		if (l->fd < 0 || l->page_index != page_index)
			continue;
		if (l->cookie == cookie)
			return l->origin >= 0 ? l->origin : l->fd;
		for (int j = 0; j < l->siblings; j++)
			if (l->sibling_cookie[j] == cookie)
				return l->sibling[j];
	}
	return -1;
}

/* Whether a worker polls the listener's only socket. */
static int is_lone(const struct listener *l, const struct fs_listener *pl)
{
	unsigned used = 0;

	for (unsigned i = 0; i < pl->slots && i < FS_MAX_SLOTS; i++)
		used += pl->slot[i].state != FS_SLOT_FREE;
	return used < 2 && !l->own_reuseport;
}

/* A lone socket needs no choice; from the second on the kernel must know all of them, or it would
 * choose an orphan as well.
 */
int fs_publish_all(struct listener *l, struct fs_listener *pl)
{
	if (is_lone(l, pl))
		return 0;
	for (unsigned i = 0; i < pl->slots && i < FS_MAX_SLOTS; i++) {
		struct fs_slot *slot = &pl->slot[i];
		int fd;

		if (slot->state != FS_SLOT_CLAIMED && slot->state != FS_SLOT_PAUSED)
			continue;
		if (slot->published && pl->tier >= FS_TIER_SELECT)
			continue;
		fd = fs_fd_of_cookie(l->page_index, slot->cookie);
		if (fd >= 0 && fs_publish(l, i, fd) < 0 && (pl->claimed > 1 || l->own_reuseport))
			return -1;
	}
	return 0;
}

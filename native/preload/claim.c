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

static int find_slot(const struct fs_listener *pl, uint64_t cookie)
{
	for (unsigned i = 0; i < pl->slots && i < FS_MAX_SLOTS; i++)
		if (pl->slot[i].state != FS_SLOT_FREE && pl->slot[i].cookie == cookie)
			return i;
	return -1;
}

/* Whether this thread needs a socket other than the application's own. Where that is one of
 * several which the application opened itself, a further process that polls it is the
 * successor of the one that does now (a reload), and takes its slot over.
 */
static int is_taken(const struct listener *l, const struct fs_listener *pl)
{
	int index = find_slot(pl, l->cookie);
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

static void set_state(struct fs_listener *pl, int index, enum fs_slot_state state)
{
	struct fs_slot *slot = &pl->slot[index];

	pl->claimed += (state == FS_SLOT_CLAIMED) - (slot->state == FS_SLOT_CLAIMED);
	__atomic_store_n(&slot->state, state, __ATOMIC_RELEASE);
}

/* The worker is gone: keep the slot if its socket still listens elsewhere; what waits there
 * is for the others to accept.
 */
static void abandon(struct fs_listener *pl, int index)
{
	const struct fs_worker *worker = fs_worker_of(&pl->slot[index]);
	int thread_only = worker->pid != worker->tid &&
			  fs_alive(worker->pid, worker->pid, worker->start);

	fs_unlink_cpu(pl, index);
	pl->slot[index].left_in = thread_only ? worker->pid : 0;
	pl->slot[index].cpu = FS_NO_CPU;
	if (pl->slot[index].shared || thread_only) {
		set_state(pl, index, FS_SLOT_ORPHAN);
		pl->help = 1;
		return;
	}
	set_state(pl, index, FS_SLOT_FREE);
	fs_unpublish(pl, &pl->slot[index]);
}

/* Give up the slots of dead workers, and mend what one left half done that died with the lock. */
static int sweep(struct fs_listener *pl)
{
	unsigned claimed = 0;
	int found = 0;

	for (unsigned i = 0; i < pl->slots && i < FS_MAX_SLOTS; i++) {
		const struct fs_slot *slot = &pl->slot[i];
		const struct fs_worker *worker = fs_worker_of(slot);

		if ((slot->state == FS_SLOT_CLAIMED || slot->state == FS_SLOT_PAUSED) &&
		    !fs_alive(worker->pid, worker->tid, worker->start)) {
			abandon(pl, i);
			found = 1;
		}
		claimed += slot->state == FS_SLOT_CLAIMED;
	}
	pl->claimed = claimed;
	return found;
}

/* This thread's entry in the page, made at its first claim. */
static struct fs_worker *own_worker(void)
{
	pid_t pid = getpid(), tid = syscall(SYS_gettid);
	sigset_t saved;

	if (fs_worker)
		return fs_worker;
	fs_lock(&fs_page->worker_lock, &saved);
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
	fs_unlock(&fs_page->worker_lock, &saved);
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
static int publish_all(struct listener *l, struct fs_listener *pl)
{
	if (is_lone(l, pl))
		return 0;
	for (unsigned i = 0; i < pl->slots && i < FS_MAX_SLOTS; i++) {
		struct fs_slot *slot = &pl->slot[i];
		int fd;

		if (slot->state != FS_SLOT_CLAIMED)
			continue;
		if (slot->published && pl->tier >= FS_TIER_SELECT)
			continue;
		fd = fs_fd_of_cookie(l->page_index, slot->cookie);
		if (fd >= 0 && fs_publish(l, i, fd) < 0 && (pl->claimed > 1 || l->own_reuseport))
			return -1;
	}
	return 0;
}

/* A socket for a further worker: an orphan's first, which may hold a queue, then a spare. */
static int take_sibling(struct listener *l, struct fs_listener *pl)
{
	int found = -1;

	for (int i = 0; i < l->siblings; i++) {
		int slot = find_slot(pl, l->sibling_cookie[i]);

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
	int index = find_slot(pl, cookie), own = cookie == l->cookie;
	struct fs_slot *slot;

	if (index < 0) {
		index = free_slot(pl);
		if (index < 0 || !own_worker()) {
			errno = ENOSPC;
			return -1;
		}
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
		set_state(pl, index, FS_SLOT_ORPHAN);
	pl->help = 1;
	return index;
}

/* Claim the reserved slot of the socket `fd`, which listens; returns its index or -1 with errno. */
static int claim_socket(struct listener *l, struct fs_listener *pl, int index, int fd)
{
	struct fs_worker *worker = own_worker();
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
	slot->cpu = fs_choose_cpu(pl, worker);
	fs_link_cpu(pl, index);
	set_state(pl, index, FS_SLOT_CLAIMED);
	if (publish_all(l, pl) < 0) {
		int error = errno;

		/* Not reachable through the program: this socket must not get a queue. */
		fs_unlink_cpu(pl, index);
		slot->cpu = FS_NO_CPU;
		set_state(pl, index, FS_SLOT_FREE);
		if (fd != l->fd)
			shutdown(fd, SHUT_RD);
		errno = error;
		return -1;
	}
	fs_pin_workers(pl);
	lean_relearn(l, pl);
	return index;
}

/* Let the application's descriptor be the slot's socket from here on. */
static int put_in_place(struct listener *l, int fd)
{
	int flags = fcntl(l->fd, F_GETFD), copy;

	if (l->origin < 0) {
		copy = fcntl(l->fd, F_DUPFD_CLOEXEC, 0);
		if (copy < 0)
			return -1;
		l->origin = fs_private(copy);
		if (l->origin < 0)
			return -1;
	}
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
	sigset_t saved, before;

	if (fs_cookie(l->fd) != l->fd_cookie) { /* closed by a raw system call */
		fs_listener_close(l);
		return -1;
	}
	fs_hold_signals(&before);
	fs_lock(&pl->lock, &saved);
	first = l->slot < 0; /* known only now: threads claim at the same time */
	if (!first && epfd < 0) { /* another thread was quicker, and this one polls the same */
		fs_unlock(&pl->lock, &saved);
		fs_release_signals(&before);
		errno = saved_errno;
		return l->slot;
	}
	if (sweep(pl))
		fs_level(pl);
	if (first && !is_taken(l, pl)) {
		int fd = l->origin >= 0 ? l->origin : l->fd;

		slot = reserve(l, pl, fd, l->cookie, 1);
		if (slot >= 0)
			slot = claim_socket(l, pl, slot, fd);
		if (slot >= 0 && l->origin >= 0)
			put_in_place(l, l->origin);
	} else if (can_choose(l, pl) && (place = take_sibling(l, pl)) >= 0) {
		int fd = l->sibling[place];

		slot = reserve(l, pl, fd, l->sibling_cookie[place], l->sibling_shared[place]);
		if (slot >= 0 && begin_listening(l, fd) < 0)
			set_state(pl, slot, FS_SLOT_FREE), slot = -1;
		if (slot >= 0)
			slot = claim_socket(l, pl, slot, fd);
		if (slot >= 0 && first && put_in_place(l, fd) < 0)
			abandon(pl, slot), slot = -1;
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
	fs_unlock(&pl->lock, &saved);
	if (slot >= 0)
		fs_keeper_tell(FS_OP_WORKER, l, slot, fs_worker - fs_page->worker, -1);
	fs_release_signals(&before);
	errno = saved_errno;
	return slot;
}

/* The application stopped polling the slot (`paused`) or goes on. */
void fs_pause(struct listener *l, int index, int paused)
{
	struct fs_listener *pl = &fs_page->listener[l->page_index];
	sigset_t saved;

	fs_lock(&pl->lock, &saved);
	if (pl->slot[index].state == (paused ? FS_SLOT_CLAIMED : FS_SLOT_PAUSED))
		set_state(pl, index, paused ? FS_SLOT_PAUSED : FS_SLOT_CLAIMED);
	fs_unlock(&pl->lock, &saved);
}

/* What was sent to the slot, and neither was accepted nor waits, never completed. */
static void settle(struct listener *l, int index, int fd)
{
	struct fs_slot *slot = page_slot(l->page_index, index);
	struct tcp_info info;
	socklen_t length = sizeof(info);

	/* Of a listener, tcpi_unacked is the length of its queue. */
	if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length) == 0)
		slot->settled = slot->assigned - slot->accepted - info.tcpi_unacked;
}

/* What waits on slots that are paused is for the others. Not said at the pause: nginx takes its
 * listener out of epoll and puts it back at every sixteenth connection.
 */
static void ask_for_the_paused(struct fs_listener *pl)
{
	for (unsigned i = 0; i < pl->slots && i < FS_MAX_SLOTS; i++) {
		struct fs_slot *slot = &pl->slot[i];

		if (slot->state == FS_SLOT_PAUSED &&
		    slot->assigned != slot->accepted + slot->settled)
			slot->help = pl->help = 1;
	}
}

/* From time to time: let the slots of this thread know how long their queues are, and the
 * listener whether somebody left connections behind.
 */
void fs_settle(void)
{
	int saved = errno;

	for (int i = 0; i < fs_listener_count; i++) {
		struct listener *l = &fs_listeners[i];
		struct stand_in *own;

		if (l->fd < 0 || l->slot < 0)
			continue;
		own = fs_stand_in(l, fs_last_epfd);
		settle(l, own ? own->slot : l->slot, own ? own->fd : l->fd);
		ask_for_the_paused(&fs_page->listener[l->page_index]);
	}
	errno = saved;
}

/* Let the kernel move an orphan's queue to the slots that are polled: a socket that stops to
 * listen hands it over. The application's own socket listens again at once, for it may be
 * what the next worker polls.
 */
static void hand_over(struct fs_listener *pl, int index, int fd)
{
	struct fs_slot *slot = &pl->slot[index];

	if (pl->tier == FS_TIER_CLASSIC && slot->state == FS_SLOT_ORPHAN && fd >= 0)
		fs_steer_classic(pl, fd); /* what waits there already, the others accept */
	if (fs_alive(slot->left_in, slot->left_in, 0))
		return; /* a further thread may poll it still */
	if (pl->tier != FS_TIER_MIGRATE || slot->state != FS_SLOT_ORPHAN || !pl->claimed ||
	    !slot->published || fd < 0 || NEXT(shutdown)(fd, SHUT_RD) < 0)
		return;
	slot->published = 0;
	if (slot->own)
		NEXT(listen)(fd, pl->backlog);
	else
		set_state(pl, index, FS_SLOT_FREE);
}

/* The application closes its listener in this process. */
void fs_release(struct listener *l, int index)
{
	struct fs_listener *pl = &fs_page->listener[l->page_index];
	struct fs_slot *slot = &pl->slot[index];
	sigset_t saved;

	fs_lock(&pl->lock, &saved);
	if (fs_worker_of(slot)->pid != (uint32_t)fs_pid) {
		fs_unlock(&pl->lock, &saved);
		return; /* taken over */
	}
	abandon(pl, index);
	hand_over(pl, index, fs_fd_of_cookie(l->page_index, slot->cookie));
	fs_level(pl);
	if (pl->tier == FS_TIER_CLASSIC && pl->claimed)
		publish_all(l, pl);
	fs_unlock(&pl->lock, &saved);
}

/* A thread that polled slots ends; its process goes on. */
void fs_thread_ends(void *worker)
{
	if (!fs_worker || worker != fs_worker)
		return; /* of a process that forked */
	for (int i = 0; i < fs_listener_count; i++) {
		struct listener *l = &fs_listeners[i];
		struct fs_listener *pl = &fs_page->listener[l->page_index];
		sigset_t saved;

		if (l->fd < 0)
			continue;
		fs_lock(&pl->lock, &saved);
		for (int j = l->stand_ins - 1; j >= 0; j--)
			if (fs_worker_of(&pl->slot[l->stand_in[j].slot]) == worker) {
				abandon(pl, l->stand_in[j].slot);
				l->stand_in[j] = l->stand_in[--l->stand_ins];
			}
		if (l->slot >= 0 && (uint32_t)l->tid == fs_worker->tid &&
		    fs_worker_of(&pl->slot[l->slot]) == worker) {
			abandon(pl, l->slot);
			l->slot = UNCLAIMED;
			l->epfd = -1;
			fs_unclaimed++;
		}
		fs_level(pl);
		fs_unlock(&pl->lock, &saved);
	}
	fs_worker->pid = 0;
	fs_worker = NULL;
}

/* This process had slots before it replaced itself by exec; now it polls none. */
void fs_forget_past(void)
{
	sigset_t saved;

	for (int i = 0; i < FS_MAX_LISTENERS; i++) {
		struct fs_listener *pl = &fs_page->listener[i];

		if (!pl->claimed)
			continue;
		fs_lock(&pl->lock, &saved);
		for (unsigned j = 0; j < pl->slots && j < FS_MAX_SLOTS; j++)
			if ((pl->slot[j].state == FS_SLOT_CLAIMED ||
			     pl->slot[j].state == FS_SLOT_PAUSED) &&
			    fs_worker_of(&pl->slot[j])->pid == (uint32_t)fs_pid)
				abandon(pl, j);
		fs_unlock(&pl->lock, &saved);
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
__attribute__((visibility("default"))) int fsocket_sweep(struct fs_page *page, unsigned listener)
{
	struct fs_listener *pl = &page->listener[listener & (FS_MAX_LISTENERS - 1)];
	sigset_t saved;

	fs_page = page;
	if (!fs_trylock(&pl->lock, &saved))
		return 0;
	sweep(pl);
	fs_unlock(&pl->lock, &saved);
	return 1;
}

/* No socket of that cookie is left: the slot of an orphan is free. */
__attribute__((visibility("default"))) int fsocket_forget(struct fs_page *page, unsigned listener,
							  unsigned slot, uint64_t cookie)
{
	struct fs_listener *pl = &page->listener[listener & (FS_MAX_LISTENERS - 1)];
	struct fs_slot *gone = &pl->slot[slot & (FS_MAX_SLOTS - 1)];
	sigset_t saved;

	fs_page = page;
	if (!fs_trylock(&pl->lock, &saved))
		return 0;
	if (gone->state == FS_SLOT_ORPHAN && gone->cookie == cookie) {
		set_state(pl, slot & (FS_MAX_SLOTS - 1), FS_SLOT_FREE);
		fs_unpublish(pl, gone);
	}
	fs_unlock(&pl->lock, &saved);
	return 1;
}

/* Move the queue of a slot that is still an orphan; `fd` is its socket. */
__attribute__((visibility("default"))) int
fsocket_hand_over(struct fs_page *page, unsigned listener, unsigned slot, int fd)
{
	struct fs_listener *pl = &page->listener[listener & (FS_MAX_LISTENERS - 1)];
	sigset_t saved;

	fs_page = page;
	if (!fs_trylock(&pl->lock, &saved))
		return 0;
	hand_over(pl, slot & (FS_MAX_SLOTS - 1), fd);
	fs_unlock(&pl->lock, &saved);
	return 1;
}

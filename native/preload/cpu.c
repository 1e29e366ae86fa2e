// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Which CPU a worker serves: chosen at its claim, and again when others left. All of it runs under
 * the listener's lock in the status page.
 */
#include <errno.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "fsocket.h"

#define WEIGH_NS 250000000 /* at least, between two looks */
#define ENOUGH 4 /* times in a row that other threads were found busy, before a worker roams */

/* Read once: a process that scribbles over the page must not change it between check and use, in
 * the keeper least of all.
 */
static uint32_t cpu_of(const struct fs_slot *slot)
{
	return __atomic_load_n(&slot->cpu, __ATOMIC_RELAXED);
}

void fs_unlink_cpu(struct fs_listener *pl, int index)
{
	struct fs_slot *slot = &pl->slot[index];
	uint32_t cpu = cpu_of(slot);
	unsigned next;

	if (cpu >= FS_MAX_CPUS)
		return;
	next = pl->cpu_slot[cpu];
	if (next == (unsigned)index + 1)
		pl->cpu_slot[cpu] = slot->next;
	for (int i = 0; next && i < FS_MAX_SLOTS; i++) {
		struct fs_slot *other = &pl->slot[(next - 1) & (FS_MAX_SLOTS - 1)];

		next = other->next;
		if (next == (unsigned)index + 1)
			other->next = slot->next;
	}
}

void fs_link_cpu(struct fs_listener *pl, int index)
{
	struct fs_slot *slot = &pl->slot[index];
	uint32_t cpu = cpu_of(slot);

	if (cpu >= FS_MAX_CPUS)
		return;
	slot->next = pl->cpu_slot[cpu];
	__atomic_store_n(&pl->cpu_slot[cpu], index + 1, __ATOMIC_RELEASE);
}

/* Claimed slots of a CPU. */
static int crowd(const struct fs_listener *pl, unsigned cpu)
{
	int count = 0;

	for (unsigned i = 0; i < pl->slots && i < FS_MAX_SLOTS; i++)
		count += pl->slot[i].state == FS_SLOT_CLAIMED && pl->slot[i].cpu == cpu;
	return count;
}

static void change_cpu(struct fs_listener *pl, int index, uint32_t cpu)
{
	fs_unlink_cpu(pl, index);
	pl->slot[index].cpu = cpu;
	fs_link_cpu(pl, index);
}

/* Whether the page may tell us to move that thread. For root the kernel allows it with any thread of
 * the host, so it must be one of this process, of a child, or of a process with the same parent.
 */
static int is_kin(pid_t pid)
{
	pid_t parent;

	if (geteuid() || pid == fs_pid)
		return 1;
	parent = fs_parent_of(pid);
	return parent == fs_pid || (parent > 1 && parent == getppid());
}

static int pin(const struct fs_worker *worker, const cpu_set_t *set)
{
	pid_t pid = __atomic_load_n(&worker->pid, __ATOMIC_RELAXED);
	pid_t tid = __atomic_load_n(&worker->tid, __ATOMIC_RELAXED);

	if (!is_kin(pid) || syscall(SYS_tgkill, pid, tid, 0) < 0)
		return -1;
	return sched_setaffinity(tid, sizeof(*set), set);
}

/* Whether the calling thread may run on that CPU only. */
static int is_confined_to(uint32_t cpu)
{
	cpu_set_t now;

	return cpu < CPU_SETSIZE && sched_getaffinity(0, sizeof(now), &now) == 0 &&
	       CPU_COUNT(&now) == 1 && CPU_ISSET(cpu, &now);
}

/* Whether the calling thread still is: an application may have chosen since. */
static int is_where_we_pinned(void)
{
	return is_confined_to(fs_worker->cpu);
}

/* Let the calling thread roam as it did at first, if it was we who pinned it: what it starts without
 * fork() would be confined to its CPU. Returns whether fs_pin_again() is to follow.
 */
int fs_unpin(void)
{
	int saved = errno, pinned;

	pinned = fs_worker && fs_worker->pinned == FS_PINNED_YES && is_where_we_pinned() &&
		 sched_setaffinity(0, sizeof(fs_first_affinity), &fs_first_affinity) == 0;
	errno = saved;
	return pinned;
}

/* What a thread does first that a worker began which was not pinned then: it may have inherited the CPU
 * of one that was pinned in the midst of that.
 */
void fs_roam(const struct fs_worker *creator)
{
	if (creator->pinned == FS_PINNED_YES && is_confined_to(creator->cpu))
		sched_setaffinity(0, sizeof(fs_first_affinity), &fs_first_affinity);
}

void fs_pin_again(int pinned)
{
	int saved = errno;
	uint32_t cpu = pinned ? fs_worker->cpu : FS_NO_CPU;
	cpu_set_t one;

	if (cpu >= CPU_SETSIZE)
		return;
	CPU_ZERO(&one);
	CPU_SET(cpu, &one);
	sched_setaffinity(0, sizeof(one), &one);
	errno = saved;
}

/* Move one worker that we pinned from the CPU with the most slots to that with the fewest: during
 * a reload old and new workers share the CPUs, and the old ones leave in any order.
 */
static int move_worker(struct fs_listener *pl)
{
	unsigned fullest = fs_page->cpu_order[0], emptiest = fullest;
	cpu_set_t one;

	for (unsigned i = 1; i < fs_page->cpus && i < FS_MAX_CPUS; i++) {
		unsigned cpu = fs_page->cpu_order[i];

		if (crowd(pl, cpu) > crowd(pl, fullest))
			fullest = cpu;
		if (crowd(pl, cpu) < crowd(pl, emptiest))
			emptiest = cpu;
	}
	if (emptiest >= CPU_SETSIZE || crowd(pl, fullest) - crowd(pl, emptiest) < 2)
		return 0;
	CPU_ZERO(&one);
	CPU_SET(emptiest, &one);
	for (unsigned i = 0; i < pl->slots && i < FS_MAX_SLOTS; i++) {
		struct fs_worker *worker = fs_worker_of(&pl->slot[i]);

		if (pl->slot[i].state != FS_SLOT_CLAIMED || pl->slot[i].cpu != fullest ||
		    worker->pinned != FS_PINNED_YES)
			continue;
		worker->cpu = emptiest; /* first said, as it may be there before the call returns */
		if (pin(worker, &one) < 0) {
			worker->cpu = fullest;
			continue;
		}
		change_cpu(pl, i, emptiest);
		return 1;
	}
	return 0;
}

/* Keep the workers level over the CPUs after one left. A worker may have been moved on account
 * of another of its listeners.
 */
void fs_level(struct fs_listener *pl)
{
	for (unsigned i = 0; i < pl->slots && i < FS_MAX_SLOTS; i++)
		if (pl->slot[i].state == FS_SLOT_CLAIMED &&
		    fs_worker_of(&pl->slot[i])->pinned == FS_PINNED_YES &&
		    fs_worker_of(&pl->slot[i])->cpu != pl->slot[i].cpu)
			change_cpu(pl, i, fs_worker_of(&pl->slot[i])->cpu);
	while (fs_page->listen_spawn == 2 && move_worker(pl))
		;
}

/* The CPU that the thread serves: the one that the application pinned it to, or, in mode 2,
 * the one of its allowed CPUs that serves the fewest slots of this listener.
 */
uint32_t fs_choose_cpu(const struct fs_listener *pl, const struct fs_worker *worker)
{
	uint32_t best = FS_NO_CPU;
	int fewest = FS_MAX_SLOTS + 1;
	cpu_set_t allowed;

	if (worker->cpu != FS_NO_CPU || worker->pinned == FS_PINNED_NO_MORE)
		return worker->cpu;
	if (sched_getaffinity(0, sizeof(allowed), &allowed) < 0)
		return FS_NO_CPU;
	for (unsigned i = 0; i < fs_page->cpus && i < FS_MAX_CPUS; i++) {
		unsigned cpu = fs_page->cpu_order[i];

		if (cpu >= CPU_SETSIZE || !CPU_ISSET(cpu, &allowed))
			continue;
		if (crowd(pl, cpu) < fewest) {
			fewest = crowd(pl, cpu);
			best = cpu;
		}
	}
	return CPU_COUNT(&allowed) == 1 || fs_page->listen_spawn == 2 ? best : FS_NO_CPU;
}

/* With a second worker locality begins to pay: pin all that serve a CPU and are not yet. */
void fs_pin_workers(struct fs_listener *pl)
{
	if (pl->claimed < 2 || fs_page->listen_spawn != 2)
		return;
	for (unsigned i = 0; i < pl->slots && i < FS_MAX_SLOTS; i++) {
		struct fs_slot *slot = &pl->slot[i];
		struct fs_worker *worker = fs_worker_of(slot);
		uint32_t cpu = cpu_of(slot);
		cpu_set_t one, now;

		if (slot->state != FS_SLOT_CLAIMED || cpu >= CPU_SETSIZE || worker->pinned)
			continue;
		CPU_ZERO(&one);
		CPU_SET(cpu, &one);
		worker->cpu = cpu;
		if (sched_getaffinity(worker->tid, sizeof(now), &now) < 0 || CPU_EQUAL(&one, &now))
			continue;
		/* First said, then done: what the worker starts meanwhile is to know that it was us.
		 * Another may do it on account of another listener.
		 */
		if (__atomic_compare_exchange_n(&worker->pinned, &(uint32_t){FS_PINNED_NOT},
						FS_PINNED_YES, 0, __ATOMIC_SEQ_CST,
						__ATOMIC_SEQ_CST) &&
		    pin(worker, &one) < 0)
			worker->pinned = FS_PINNED_NOT;
	}
}

/* Whether this thread is the only worker of its process. */
static int is_alone(void)
{
	for (int i = 0; i < FS_MAX_WORKERS; i++) {
		const struct fs_worker *worker = &fs_page->worker[i];

		if (worker != fs_worker && worker->pid == fs_worker->pid &&
		    fs_alive(worker->pid, worker->tid, worker->start))
			return 0;
	}
	return 1;
}

/* Let the calling worker roam, and its slots serve no CPU. Whoever was about to move it is done when
 * the locks were ours.
 */
static void lift(void)
{
	int ours = is_where_we_pinned();

	__atomic_store_n(&fs_worker->pinned, FS_PINNED_NO_MORE, __ATOMIC_RELAXED);
	for (int i = 0; i < FS_MAX_LISTENERS; i++) {
		struct fs_listener *pl = page_listener(i);
		struct fs_guard guard;

		if (!pl->claimed)
			continue;
		fs_lock(&pl->lock, &guard);
		fs_worker->cpu = FS_NO_CPU;
		for (unsigned j = 0; j < pl->slots && j < FS_MAX_SLOTS; j++)
			if (pl->slot[j].state == FS_SLOT_CLAIMED &&
			    fs_worker_of(&pl->slot[j]) == fs_worker)
				change_cpu(pl, j, FS_NO_CPU);
		fs_unlock(&pl->lock, &guard);
	}
	if (ours)
		sched_setaffinity(0, sizeof(fs_first_affinity), &fs_first_affinity);
}

static uint64_t cpu_time(clockid_t clock)
{
	struct timespec time = {0};

	clock_gettime(clock, &time);
	return time.tv_sec * 1000000000ULL + time.tv_nsec;
}

/* A worker whose process does much of the work in other threads (it accepts and parses, they
 * compute) is late for them where it may not go: each waits on that CPU for the other, beside one
 * that may be idle. So it is pinned no more when for some time they took over half of what it took.
 * Called at every FS_WEIGH_EACHth connection.
 */
COLD void fs_weigh_threads(void)
{
	static __thread uint64_t own_before, all_before, weighed_at;
	static __thread int times;
	uint64_t own, all, now = fs_now();
	int saved = errno, first = !weighed_at;

	if (!fs_worker || fs_worker->pinned != FS_PINNED_YES || now - weighed_at < WEIGH_NS)
		return;
	weighed_at = now;
	own = cpu_time(CLOCK_THREAD_CPUTIME_ID);
	all = cpu_time(CLOCK_PROCESS_CPUTIME_ID);
	times = !first && all - all_before > (own - own_before) * 3 / 2 && is_alone() ? times + 1 :
											0;
	if (times >= ENOUGH)
		lift();
	own_before = own;
	all_before = all;
	errno = saved;
}

// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * How the kernel learns which socket serves which CPU: through the keeper, which owns the
 * select program, or by a classic BPF program that needs no privilege. The classic one
 * returns a place in the reuseport group; places follow the order in which sockets began to
 * listen, and the last one moves into the place of one that is closed.
 */
#include <errno.h>
#include <linux/filter.h>

#include "fsocket.h"

#define LOAD_CPU BPF_STMT(BPF_LD | BPF_W | BPF_ABS, SKF_AD_OFF + SKF_AD_CPU)
#define MAX_CODE 1024

/* The claimed slot that serves the CPU, by place in the group, or -1. */
static int order_of_cpu(const struct fs_listener *pl, unsigned cpu)
{
	unsigned next = cpu < FS_MAX_CPUS ? pl->cpu_slot[cpu] : 0;

	for (int i = 0; next && i < FS_MAX_SLOTS; i++) {
		const struct fs_slot *slot = &pl->slot[(next - 1) & (FS_MAX_SLOTS - 1)];

		if (slot->state == FS_SLOT_CLAIMED)
			return slot->order;
		next = slot->next;
	}
	return -1;
}

/* One claimed slot's place for CPUs that none serves. */
static int order_of_any(const struct fs_listener *pl)
{
	for (unsigned i = 0; i < pl->slots && i < FS_MAX_SLOTS; i++)
		if (pl->slot[i].state == FS_SLOT_CLAIMED)
			return pl->slot[i].order;
	return 0;
}

static int attach_classic(struct fs_listener *pl, int fd)
{
	struct sock_filter code[MAX_CODE] = {LOAD_CPU};
	struct sock_fprog program = {.len = 1, .filter = code};

	for (unsigned i = 0; i < fs_page->cpus && i < FS_MAX_CPUS; i++) {
		unsigned cpu = __atomic_load_n(&fs_page->cpu_order[i], __ATOMIC_RELAXED);
		int order = order_of_cpu(pl, cpu);

		if (program.len >= MAX_CODE - 3)
			break;
		if (order < 0)
			continue;
		code[program.len++] =
			(struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, cpu, 0, 1);
		code[program.len++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, order);
	}
	code[program.len++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, order_of_any(pl));
	return NEXT(setsockopt)(fd, SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, &program,
				sizeof(program));
}

/* Let the program follow a change of the slots; `fd` is any socket of the group. */
void fs_steer_classic(struct fs_listener *pl, int fd)
{
	if (pl->group && pl->claimed)
		attach_classic(pl, fd);
}

/* Whether this process may attach such a program, tried on a socket that is never bound. */
int fs_classic_works(void)
{
	struct sock_filter code = BPF_STMT(BPF_RET | BPF_K, 0);
	struct sock_fprog program = {.len = 1, .filter = &code};
	int fd = NEXT(socket)(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1, result, error;

	if (fd < 0)
		return 0;
	NEXT(setsockopt)(fd, SOL_SOCKET, SO_REUSEPORT, &one, sizeof(one));
	result = NEXT(setsockopt)(fd, SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, &program,
				  sizeof(program));
	error = errno;
	NEXT(close)(fd);
	errno = error;
	return result == 0;
}

/* Sockets that the application put into the group itself stand there in an order that nobody
 * knows. Each says which CPU it serves instead. Since Linux commit b261eda84ec1 ("soreuseport:
 * Fix socket selection for SO_INCOMING_CPU.") (in v6.2); before that the kernel's hash chooses.
 */
static void prefer_cpu(const struct fs_slot *slot, int fd)
{
	int cpu = slot->cpu;

	if (slot->cpu != FS_NO_CPU)
		NEXT(setsockopt)(fd, SOL_SOCKET, SO_INCOMING_CPU, &cpu, sizeof(cpu));
}

/* Let the kernel choose the slot's socket; the listener's lock is held. */
int fs_publish(struct listener *l, int slot, int fd)
{
	struct fs_listener *pl = &fs_page->listener[l->page_index];
	struct fs_slot *ps = &pl->slot[slot];

	if (pl->tier >= FS_TIER_SELECT) {
		if (!ps->published && fs_keeper_tell(FS_OP_ADD, l, slot, 0, fd) < 0)
			return -1;
	} else if (l->own_reuseport) {
		prefer_cpu(ps, fd);
	} else {
		if (!ps->published)
			ps->order = pl->group++;
		if (pl->tier == FS_TIER_CLASSIC && attach_classic(pl, fd) < 0)
			pl->tier = FS_TIER_NONE;
	}
	ps->published = 1;
	return 0;
}

/* The slot's socket was closed; the kernel's array did the same as this does. */
void fs_unpublish(struct fs_listener *pl, struct fs_slot *slot)
{
	if (!slot->published)
		return;
	slot->published = 0;
	if (pl->tier >= FS_TIER_SELECT || !pl->group)
		return;
	pl->group--;
	for (unsigned i = 0; i < pl->slots && i < FS_MAX_SLOTS; i++)
		if (pl->slot[i].published && pl->slot[i].order == pl->group)
			pl->slot[i].order = slot->order;
}

// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Chooses the listening socket of a new connection: this CPU's slot if its worker keeps up,
 * else the least loaded slot that does. One instance is loaded per listener.
 *
 * Needs no BTF of the kernel and no CO-RE relocation, so that it loads within a millisecond.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "page.h"

#define SLOT_MASK (FS_MAX_SLOTS - 1)
#define CPU_MASK (FS_MAX_CPUS - 1)
#define WORKER_MASK (FS_MAX_WORKERS - 1)
#define WINDOW_SHIFT 26 /* a window of load is 2^26 ns, about 67 ms */
/* A slot's load: late (1 bit), queue (16 bits), connections in the window (32), slot (8). */
#define LATE (1ULL << 62)
#define QUEUE_AT 40
#define WINDOW_AT 8
#define UNCLAIMED (1ULL << 63)
#define NO_SLOT (~0U)
#define BURST 16 /* connections a window that any slot may have */
#define MAX_PER_CPU 4 /* slots of one CPU that are looked at before the others */

char LICENSE[] SEC("license") = "GPL";

const volatile __u32 listener_index;
const volatile __u64 listener_generation;

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct fs_page);
} fs_page SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_REUSEPORT_SOCKARRAY);
	__uint(max_entries, FS_MAX_SLOTS);
	__type(key, __u32);
	__type(value, __u64);
} fs_sockets SEC(".maps");

/* Connections that were sent to the slot and not accepted yet; SYNs that never completed
 * make it too high, so it decides nothing alone.
 */
static __always_inline __u64 queued(const struct fs_slot *slot)
{
	__u64 accepted = slot->accepted, assigned = slot->assigned;

	return assigned > accepted ? assigned - accepted : 0;
}

/* Whether the slot's worker makes no progress: it has been away from its wait for longer
 * than the threshold, or connections wait and none was accepted for that long.
 */
static __always_inline int is_late(const struct fs_page *page, struct fs_slot *slot, __u64 now)
{
	const struct fs_worker *worker = &page->worker[slot->worker & WORKER_MASK];
	__u64 busy = worker->busy_since, accepted = slot->accepted;

	if (slot->seen_accepted != accepted || !queued(slot)) {
		slot->seen_accepted = accepted;
		slot->seen_at = now;
		return busy && now > busy && now - busy > page->stall_ns;
	}
	return now - slot->seen_at > page->stall_ns;
}

/* The connections that wait for a late worker may be accepted by the others. */
static __always_inline void ask_for_help(struct fs_listener *listener, struct fs_slot *slot)
{
	if (!slot->help && queued(slot)) {
		slot->help = 1;
		listener->help = 1;
	}
}

static __always_inline __u32 in_window(const struct fs_slot *slot, __u64 epoch)
{
	return slot->epoch == epoch ? slot->window : 0;
}

/* Load of a slot as one number to be minimised: unclaimed slots last, late ones before them,
 * then by queue, then by connections in this window; the low eight bits are the slot itself.
 * A function of its own, so that the verifier walks it once and not once per slot.
 */
__noinline __u64 slot_load(__u32 index, __u64 now)
{
	struct fs_slot *slot;
	struct fs_page *page;
	__u32 zero = 0;
	__u64 load;

	index &= SLOT_MASK;
	page = bpf_map_lookup_elem(&fs_page, &zero);
	if (!page)
		return UNCLAIMED | index;
	slot = &page->listener[listener_index & (FS_MAX_LISTENERS - 1)].slot[index];
	if (slot->state != FS_SLOT_CLAIMED)
		return UNCLAIMED | index;
	load = (__u64)in_window(slot, now >> WINDOW_SHIFT) << WINDOW_AT | index;
	load |= (queued(slot) & 0xffff) << QUEUE_AT;
	return is_late(page, slot, now) ? load | LATE : load;
}

/* The load of the least loaded of the first `slots` slots, with the sum of the connections in
 * this window of all of them in place of its own.
 */
__noinline __u64 least_loaded(__u32 slots, __u64 now)
{
	__u64 best = ~0ULL, total = 0;

	for (__u32 i = 0; i < FS_MAX_SLOTS; i++) {
		__u64 load;

		if (i >= slots)
			break;
		load = slot_load(i, now);
		total += load >> WINDOW_AT & 0xffffffff;
		if (load < best)
			best = load;
	}
	return (best & ~(0xffffffffULL << WINDOW_AT)) | (total & 0xffffffff) << WINDOW_AT;
}

/* Count the connection and hand it to the slot's socket. */
static __always_inline int use_slot(struct sk_reuseport_md *ctx, struct fs_listener *listener,
				    __u32 index, __u64 now, int spilled)
{
	struct fs_slot *slot = &listener->slot[index & SLOT_MASK];
	__u64 epoch = now >> WINDOW_SHIFT;
	__u32 key = index & SLOT_MASK;

	if (bpf_sk_select_reuseport(ctx, &fs_sockets, &key, 0))
		return 0;
	if (slot->epoch != epoch) {
		slot->epoch = epoch;
		slot->window = 0;
		slot->quota = 0;
	}
	slot->window++;
	__sync_fetch_and_add(&slot->assigned, 1);
	if (spilled)
		__sync_fetch_and_add(&slot->spilled, 1);
	return 1;
}

/* This CPU's slot, if its worker keeps up and has not had more than its share in this window;
 * the share is computed again only when the slot has used up its quota, so that CPUs which
 * are evenly loaded share no cache line here. *fallback is a slot of this CPU in any case.
 */
static __always_inline __u32 local_slot(const struct fs_page *page, struct fs_listener *listener,
					__u64 now, __u32 *fallback)
{
	__u32 next = listener->cpu_slot[bpf_get_smp_processor_id() & CPU_MASK];
	__u32 best = NO_SLOT, best_window = ~0U;

	for (int i = 0; i < MAX_PER_CPU && next; i++) {
		__u32 index = (next - 1) & SLOT_MASK;
		struct fs_slot *slot = &listener->slot[index];
		__u32 window = in_window(slot, now >> WINDOW_SHIFT);

		next = slot->next;
		if (slot->state != FS_SLOT_CLAIMED)
			continue;
		*fallback = index;
		if (is_late(page, slot, now)) {
			ask_for_help(listener, slot);
			continue;
		}
		if (window >= BURST && window >= slot->quota) {
			__u64 total = least_loaded(listener->slots, now) >> WINDOW_AT & 0xffffffff;
			__u32 mean = total / (listener->claimed ?: 1);

			slot->quota = mean + mean * page->slack / 100 + BURST;
			if (window >= slot->quota)
				continue;
		}
		if (window < best_window) {
			best_window = window;
			best = index;
		}
	}
	return best;
}

static __always_inline int choose(struct sk_reuseport_md *ctx)
{
	__u32 zero = 0, local = NO_SLOT, fallback = NO_SLOT;
	struct fs_listener *listener;
	struct fs_page *page;
	__u64 now, best;

	page = bpf_map_lookup_elem(&fs_page, &zero);
	if (!page)
		return SK_PASS;
	listener = &page->listener[listener_index & (FS_MAX_LISTENERS - 1)];
	if (listener->generation != listener_generation || page->policy == FS_POLICY_HASH)
		return SK_PASS;
	now = bpf_ktime_get_ns();
	if (page->policy == FS_POLICY_LOCAL)
		local = local_slot(page, listener, now, &fallback);
	if (local != NO_SLOT && use_slot(ctx, listener, local, now, 0))
		return SK_PASS;
	best = least_loaded(listener->slots, now);
	if (best & LATE && fallback != NO_SLOT && use_slot(ctx, listener, fallback, now, 0))
		return SK_PASS; /* nobody keeps up: then locality at least */
	if (!(best & UNCLAIMED) && use_slot(ctx, listener, best, now, 1))
		return SK_PASS;
	__sync_fetch_and_add(&listener->passed, 1);
	return SK_PASS;
}

SEC("sk_reuseport")
int fs_select(struct sk_reuseport_md *ctx)
{
	return choose(ctx);
}

SEC("sk_reuseport/migrate")
int fs_migrate(struct sk_reuseport_md *ctx)
{
	return choose(ctx);
}

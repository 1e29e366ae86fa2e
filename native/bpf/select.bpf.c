// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Chooses the listening socket of a new connection: this CPU's slot if its worker keeps up,
 * else the least loaded slot that does. One instance is loaded per listener.
 *
 * Needs no BTF of the kernel and no CO-RE relocation, so that it loads within a millisecond.
 */
#include <linux/bpf.h>
#include <linux/tcp.h>
#include <bpf/bpf_helpers.h>

#include "lateness.h"
#include "page.h"

#define SLOT_MASK (FS_MAX_SLOTS - 1)
#define CPU_MASK (FS_MAX_CPUS - 1)
#define WINDOW_SHIFT 26 /* a window of load is 2^26 ns, about 67 ms */
/* A slot's load: late (1 bit), how late (6), queue (16), amount (32), slot (8); where connections
 * last: hung (1), how late (6), amount (40), how late (8), slot (8).
 */
#define LATE (1ULL << 62)
#define LATENESS_AT 56
#define NEARLY (2ULL << LATENESS_AT) /* workers less than two powers of two apart are late alike */
#define QUEUE_AT 40
#define AMOUNT_AT 8
#define LASTING_AT 16
#define AMOUNT 0xffffffffULL
#define UNCLAIMED (1ULL << 63)
#define NO_SLOT (~0U)
#define BURST 16 /* connections a window that any slot may have */
#define FEW 2 /* live connections above the mean and its 128th part that any slot may have */
#define HUNG_NS (1ULL << 28) /* a worker that is late by more gets no connection that lasts */
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

/* Connections that the slot's worker has or is about to have. */
static __always_inline __u64 held(const struct fs_slot *slot)
{
	__s32 live = slot->live; /* closes that were counted twice may take it below zero */

	return (live > 0 ? live : 0) + queued(slot);
}

/* The connections that wait for a late worker may be accepted by the others. Asked again while they
 * wait: who heard it first may have been unable to.
 */
static __always_inline void ask_for_help(struct fs_listener *listener, struct fs_slot *slot,
					 __u32 help)
{
	if (!queued(slot))
		return;
	if (slot->help < help)
		slot->help = help;
	if (!listener->help)
		listener->help = 1;
}

static __always_inline __u32 in_window(const struct fs_slot *slot, __u32 epoch)
{
	return slot->epoch == epoch ? slot->window : 0;
}

/* How far above the others a slot of so many connections that last may be. */
static __always_inline __u64 tolerance(__u64 count)
{
	return count / 128 + FEW;
}

/* What the slot had of the load that is spread. */
static __always_inline __u64 amount_of(const struct fs_listener *listener,
				       const struct fs_slot *slot, __u64 now)
{
	return listener->by_live ? held(slot) : in_window(slot, now >> WINDOW_SHIFT);
}

/* Load of a slot as one number to be minimised: unclaimed slots last, late ones before them,
 * then by queue, then by connections in this window; or by live connections where they last.
 * Those stay for much longer than a worker is late, unless it hangs: it is passed over within
 * the tolerance only, or its lateness of a moment would leave the workers uneven for good.
 * The low eight bits are the slot itself.
 * A function of its own, so that the verifier walks it once and not once per slot.
 */
__noinline __u64 slot_load(__u32 index, __u64 now)
{
	struct fs_listener *listener;
	struct fs_slot *slot;
	struct fs_page *page;
	__u64 load, late, by, amount;
	__u32 zero = 0;

	index &= SLOT_MASK;
	page = bpf_map_lookup_elem(&fs_page, &zero);
	if (!page)
		return UNCLAIMED | index;
	listener = &page->listener[listener_index & (FS_MAX_LISTENERS - 1)];
	slot = &listener->slot[index];
	if (slot->state != FS_SLOT_CLAIMED)
		return UNCLAIMED | index;
	late = lateness(page, listener, slot, now);
	by = degree(late);
	amount = amount_of(listener, slot, now) & AMOUNT;
	if (listener->by_live) {
		amount += late ? tolerance(amount) : 0;
		load = amount << LASTING_AT | by << AMOUNT_AT | index;
		late = late > HUNG_NS;
	} else {
		load = (queued(slot) & 0xffff) << QUEUE_AT | amount << AMOUNT_AT | index;
	}
	return late ? load | LATE | by << LATENESS_AT : load;
}

/* The load of the least loaded of the first `slots` slots. */
__noinline __u64 least_loaded(__u32 slots, __u64 now)
{
	__u64 best = ~0ULL;

	for (__u32 i = 0; i < FS_MAX_SLOTS; i++) {
		__u64 load;

		if (i >= slots)
			break;
		load = slot_load(i, now);
		if (load < best)
			best = load;
	}
	return best;
}

/* What a slot that is polled had of the load; a function of its own as slot_load() is. */
__noinline __u64 claimed_amount(__u32 index, __u64 now)
{
	struct fs_listener *listener;
	struct fs_slot *slot;
	struct fs_page *page;
	__u32 zero = 0;

	page = bpf_map_lookup_elem(&fs_page, &zero);
	if (!page)
		return 0;
	listener = &page->listener[listener_index & (FS_MAX_LISTENERS - 1)];
	slot = &listener->slot[index & SLOT_MASK];
	return slot->state == FS_SLOT_CLAIMED ? amount_of(listener, slot, now) & AMOUNT : 0;
}

__noinline __u64 total_amount(__u32 slots, __u64 now)
{
	__u64 total = 0;

	for (__u32 i = 0; i < FS_MAX_SLOTS; i++) {
		if (i >= slots)
			break;
		total += claimed_amount(i, now);
	}
	return total;
}

/* Connections last if most of those that came in this window and the one before are still
 * there. Then live ones are what a worker has to carry, else they are noise.
 */
static __always_inline void notice_length(struct fs_listener *listener, const struct fs_slot *slot)
{
	__u32 by_live = held(slot) * 4 >= (__u64)(slot->window + slot->before) * 3;

	if (listener->by_live != by_live)
		listener->by_live = by_live;
}

/* Whether the packet begins a connection. Stray ones that belong to a closed connection, or carry a
 * SYN cookie back, come here too; they must not count as if somebody had to accept them.
 */
static __always_inline int is_syn(const struct sk_reuseport_md *ctx)
{
	const struct tcphdr *tcp = (const void *)(long)ctx->data;

	return (const void *)(tcp + 1) <= (const void *)(long)ctx->data_end && tcp->syn &&
	       !tcp->ack;
}

/* Hand the packet to the slot's socket and, if it `counts`, count the connection. */
static __always_inline int use_slot(struct sk_reuseport_md *ctx, struct fs_listener *listener,
				    __u32 index, __u64 now, int spilled, int counts)
{
	struct fs_slot *slot = &listener->slot[index & SLOT_MASK];
	__u32 epoch = now >> WINDOW_SHIFT, patience;
	__u32 key = index & SLOT_MASK;

	if (bpf_sk_select_reuseport(ctx, &fs_sockets, &key, 0))
		return 0;
	if (!counts)
		return 1;
	if (slot->epoch != epoch) {
		slot->before = slot->epoch + 1 == epoch ? slot->window : 0;
		slot->epoch = epoch;
		slot->window = 0;
		slot->quota = 0;
		patience = patience_with(slot) - patience_with(slot) / 32;
		slot->patience = patience > LEAST_PATIENCE ? patience : LEAST_PATIENCE;
	}
	slot->window++;
	__sync_fetch_and_add(&slot->assigned, 1);
	if (spilled)
		__sync_fetch_and_add(&slot->spilled, 1);
	notice_length(listener, slot);
	return 1;
}

/* The mean of what the slots that are polled had. */
static __always_inline __u32 mean_amount(const struct fs_listener *listener, __u64 now)
{
	return (__u32)total_amount(listener->slots, now) / (listener->claimed ?: 1);
}

/* Whether the slot has had its share: of the connections in this window, or of the live ones
 * where they last. The former is computed again only when the slot has used up its quota, so
 * that CPUs which are evenly loaded share no cache line here.
 */
static __always_inline int had_its_share(const struct fs_page *page,
					 const struct fs_listener *listener, struct fs_slot *slot,
					 __u64 now)
{
	__u32 window = in_window(slot, now >> WINDOW_SHIFT), mean;

	if (listener->by_live) {
		if (held(slot) <= FEW)
			return 0;
		mean = mean_amount(listener, now);
		return held(slot) > mean + tolerance(mean);
	}
	if (window < BURST || window < slot->quota)
		return 0;
	mean = mean_amount(listener, now);
	slot->quota = mean + mean * page->slack / 100 + BURST;
	return window >= slot->quota;
}

/* This CPU's slot, if its worker keeps up and has not had more than its share. *fallback is a
 * slot of this CPU in any case.
 */
static __always_inline __u32 local_slot(const struct fs_page *page, struct fs_listener *listener,
					__u64 now, __u32 *fallback)
{
	__u32 next = listener->cpu_slot[bpf_get_smp_processor_id() & CPU_MASK], best = NO_SLOT;
	__u64 least = ~0ULL;

	for (int i = 0; i < MAX_PER_CPU && next; i++) {
		__u32 index = (next - 1) & SLOT_MASK;
		struct fs_slot *slot = &listener->slot[index];
		__u64 amount, late;

		next = slot->next;
		if (slot->state == FS_SLOT_PAUSED)
			ask_for_help(listener, slot, FS_HELP_ALWAYS);
		if (slot->state != FS_SLOT_CLAIMED)
			continue;
		*fallback = index;
		late = lateness(page, listener, slot, now);
		if (late) {
			ask_for_help(listener, slot,
				     late > HUNG_NS ? FS_HELP_ALWAYS : FS_HELP_EVENLY);
			continue;
		}
		if (had_its_share(page, listener, slot, now))
			continue;
		amount = amount_of(listener, slot, now);
		if (amount < least) {
			least = amount;
			best = index;
		}
	}
	return best;
}

static __always_inline int choose(struct sk_reuseport_md *ctx, int counts)
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
	if (local != NO_SLOT && use_slot(ctx, listener, local, now, 0, counts))
		return SK_PASS;
	best = least_loaded(listener->slots, now);
	if (best & LATE && fallback != NO_SLOT &&
	    slot_load(fallback, now) >> LATENESS_AT < (best + NEARLY) >> LATENESS_AT &&
	    use_slot(ctx, listener, fallback, now, 0, counts))
		return SK_PASS; /* nobody keeps up: then locality at least */
	if (!(best & UNCLAIMED) && use_slot(ctx, listener, best, now, 1, counts))
		return SK_PASS;
	__sync_fetch_and_add(&listener->passed, 1);
	listener->help = 1; /* the kernel may choose an orphan */
	return SK_PASS;
}

SEC("sk_reuseport")
int fs_select(struct sk_reuseport_md *ctx)
{
	return choose(ctx, is_syn(ctx));
}

SEC("sk_reuseport/migrate")
int fs_migrate(struct sk_reuseport_md *ctx)
{
	return choose(ctx, ctx->migrating_sk || is_syn(ctx));
}

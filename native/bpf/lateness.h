/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Whether a worker is late, as select.bpf.c sees it at each new connection. */
#ifndef FASTSOCKET_LATENESS_H
#define FASTSOCKET_LATENESS_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "page.h"

#define WORKER_MASK (FS_MAX_WORKERS - 1)
#define SETTLE_NS (1ULL << 30) /* a worker that waits for so long has an empty queue */
/* The patience with a worker, in 2^-16 of the threshold: how it begins and its least, and by what
 * it grows and shrinks.
 */
#define PATIENCE_SHIFT 16
#define PATIENCE (1U << PATIENCE_SHIFT)
#define FIRST_PATIENCE (PATIENCE / 16)
#define LEAST_PATIENCE (PATIENCE / 32)
#define LONG_NS 100000000ULL /* whoever sets a longer threshold does not want it sooner */

/* Connections that were sent to the slot and not accepted yet, as far as known: one whose
 * handshake never completes counts until the slot settles.
 */
static __always_inline __u64 queued(const struct fs_slot *slot)
{
	__s64 count = slot->assigned - slot->accepted - slot->settled;

	return count > 0 ? count : 0;
}

/* For how long a worker may be busy. */
static __always_inline __u32 patience_with(const struct fs_slot *slot)
{
	__u32 patience = slot->patience ?: FIRST_PATIENCE;

	return patience < PATIENCE ? patience : PATIENCE;
}

/* Whether a worker that has been busy since then is late. It is after the threshold, and sooner where
 * it as a rule is back sooner: each time that it was taken for late and was not, the patience with
 * it grows by half, and it wanes while that does not happen. `judged` is when the worker went
 * that was last taken for late; its lowest bit tells that it was.
 */
static __always_inline int is_late(const struct fs_page *page, const struct fs_listener *listener,
				   struct fs_slot *slot, __u64 since, __u64 age)
{
	__u32 patience = patience_with(slot), when = (__u32)since | 1;

	if (age > page->stall_ns) {
		if (slot->judged == when) {
			slot->judged = when - 1;
			slot->patience -= slot->patience / 3;
		}
		return 1;
	}
	if (listener->by_live || page->stall_ns > LONG_NS)
		return 0;
	if (slot->judged == when)
		return 1;
	if (age <= page->stall_ns * patience >> PATIENCE_SHIFT)
		return 0;
	slot->judged = when;
	slot->patience = patience + patience / 2;
	return 1;
}

/* For how long the slot's worker has made no progress, 0 if it is not late: it has been away
 * from its wait for long, or connections wait and none was accepted for long.
 */
static __always_inline __u64 lateness(const struct fs_page *page,
				      const struct fs_listener *listener, struct fs_slot *slot,
				      __u64 now)
{
	const struct fs_worker *worker = &page->worker[slot->worker & WORKER_MASK];
	__u64 since = worker->busy_since, accepted = slot->accepted;

	if (!since && now - slot->seen_at > SETTLE_NS)
		slot->settled = slot->assigned - accepted;
	if (slot->seen_accepted != accepted || !queued(slot)) {
		slot->seen_accepted = accepted;
		slot->seen_at = now;
	} else if (!since || slot->seen_at < since) {
		since = slot->seen_at;
	}
	return since && now > since && is_late(page, listener, slot, since, now - since) ?
		       now - since :
		       0;
}

/* How late a worker is: the power of two of that many nanoseconds, less than 64. */
static __always_inline __u64 degree(__u64 late)
{
	__u64 power = 0;

	for (int bits = 32; bits; bits >>= 1) {
		if (late >> bits) {
			late >>= bits;
			power += bits;
		}
	}
	return power;
}

#endif

/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A CPU takes packets in by two threads. The one of the map `batch` is scheduled as SCHED_BATCH: it
 * waits until what runs there sleeps, so it interrupts nobody and finds several packets at once. The
 * one of the map `cpus` runs at once. Packets go to the first, unless they often wait long behind
 * something that computes; then they go to the second for a while. Who reads from connections does not
 * count as such: it would read no sooner if it were interrupted.
 *
 * A CPU's packets change over only when none is on its way, so that none overtakes another; nor does
 * one that comes in on the CPU itself.
 */
#ifndef FASTSOCKET_STEER_QUEUE_H
#define FASTSOCKET_STEER_QUEUE_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "steer.h"

#define STEER_LATE_NS 500000LL
/* Late goes up by this, on time down by 1: what counts is whether more than one in 33 are late. */
#define STEER_LATE 32
#define STEER_OFTEN (3 * STEER_LATE)
#define STEER_FIRST_PAUSE_NS 1000000000ULL
#define STEER_LONGEST_PAUSE_NS 64000000000ULL
#define STEER_LOST_NS 100000000LL /* what is not taken by then was lost at a full queue */

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, STEER_MAX_CPUS);
	__type(key, __u32);
	__type(value, struct steer_queue);
} queues SEC(".maps");

/* Called by who sends: is a packet on its way to this CPU? */
static __always_inline bool queue_is_awaited(struct steer_queue *queue)
{
	__u64 since = queue->since;

	if ((__s64)(queue->sent - queue->taken) <= 0)
		return false;
	if ((__s64)(bpf_ktime_get_ns() - (since ? since : queue->took)) < STEER_LOST_NS)
		return true;
	queue->sent = queue->taken;
	return false;
}

/* Called by who sends: does a packet for this CPU go to the thread that runs at once? */
static __always_inline bool queue_is_prompt(struct steer_queue *queue)
{
	bool wanted = queue->until != 0;

	if (wanted != queue->prompt && !queue_is_awaited(queue))
		queue->prompt = wanted;
	return queue->prompt;
}

/* Called by who sends, when it has. */
static __always_inline void queue_sent(struct steer_queue *queue)
{
	if (!queue->since)
		queue->since = bpf_ktime_get_ns();
	__sync_fetch_and_add(&queue->sent, 1);
}

/* Called when an application of this CPU reads. */
static __always_inline void queue_read(__u32 cpu)
{
	struct steer_queue *queue = bpf_map_lookup_elem(&queues, &cpu);

	if (queue)
		queue->read = bpf_ktime_get_ns();
}

/* Called by both threads for each packet. */
static __always_inline void queue_taken(struct steer_queue *queue)
{
	__u64 since = queue->since, now;

	__sync_fetch_and_add(&queue->taken, 1);
	if (!since)
		return;
	queue->since = 0;
	queue->took = now = bpf_ktime_get_ns();
	if (queue->until) {
		if (now < queue->until)
			return;
		/* One that is late again is enough now. */
		queue->until = 0;
		queue->turned = now;
		queue->late = STEER_OFTEN - STEER_LATE;
	} else if ((__s64)(now - (queue->read > since ? queue->read : since)) < STEER_LATE_NS) {
		queue->late -= queue->late > 0;
	} else if ((queue->late += STEER_LATE) >= STEER_OFTEN) {
		if (!queue->pause || now - queue->turned > queue->pause)
			queue->pause = STEER_FIRST_PAUSE_NS;
		else if (queue->pause < STEER_LONGEST_PAUSE_NS)
			queue->pause *= 2;
		queue->until = now + queue->pause;
		queue->turned = now;
	}
}

#endif

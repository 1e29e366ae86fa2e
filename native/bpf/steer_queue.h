/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A CPU takes packets in by two threads. The one of the map `batch` is scheduled as SCHED_BATCH: it
 * waits until what runs there sleeps, so it preempts nobody and finds several packets at once. The one
 * of the map `cpus` is scheduled as any other. Packets go to the first, unless they often wait long
 * behind something that computes; then they go to the second for a while. Who reads from connections
 * does not count as such: it would read no sooner if it were preempted.
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
#define STEER_WINDOW_NS 100000000LL

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE); /* nobody maps it, but so it begins with a page */
	__uint(max_entries, STEER_MAX_CPUS);
	__type(key, __u32);
	__type(value, struct steer_queue);
} queues SEC(".maps");

/* Called by who sends: is a packet on its way to this CPU? */
static __always_inline bool queue_is_awaited(const struct steer_queue *queue)
{
	return (__s64)(queue->sent - queue->taken) > 0;
}

/* Called by who sends: does a packet for this CPU go to the second thread? */
static __always_inline bool queue_is_prompt(struct steer_queue *queue)
{
	bool wanted = queue->until != 0;

	if (wanted != queue->prompt && !queue_is_awaited(queue))
		queue->prompt = wanted;
	return queue->prompt;
}

/* Called by who sends, before the packet can be taken: the kernel queues it when the program is left. */
static __always_inline void queue_sent(struct steer_queue *queue)
{
	if (!queue->since)
		queue->since = bpf_ktime_get_ns();
	__atomic_fetch_add(&queue->sent, 1, __ATOMIC_RELAXED);
}

/* Called when an application of this CPU reads. */
static __always_inline void queue_read(__u32 cpu)
{
	struct steer_queue *queue = bpf_map_lookup_elem(&queues, &cpu);

	if (queue)
		queue->read = bpf_ktime_get_ns();
}

/*
 * Packets that a full queue lost are never taken. What was on its way all through a window counts as
 * lost; if it was not, it is not counted again when it is taken.
 */
static __always_inline void queue_forget_lost(struct steer_queue *queue, __u64 now)
{
	if ((__s64)(now - queue->window) < STEER_WINDOW_NS)
		return;
	if (queue->window)
		queue->taken += queue->least;
	queue->least = queue->sent - queue->taken;
	queue->window = now;
}

static __always_inline void queue_was_late(struct steer_queue *queue, __u64 now)
{
	queue->late += STEER_LATE;
	if (queue->late < STEER_OFTEN)
		return;
	if (!queue->pause || (__s64)(now - queue->turned) > (__s64)queue->pause)
		queue->pause = STEER_FIRST_PAUSE_NS;
	else if (queue->pause < STEER_LONGEST_PAUSE_NS)
		queue->pause *= 2;
	queue->until = now + queue->pause;
	queue->turned = now;
}

/* Called by both threads for each packet. */
static __always_inline void queue_taken(struct steer_queue *queue)
{
	__u64 since = queue->since, now;

	if (queue_is_awaited(queue))
		queue->taken++;
	if (queue->sent - queue->taken < queue->least)
		queue->least = queue->sent - queue->taken;
	if (!since)
		return;
	queue->since = 0;
	now = bpf_ktime_get_ns();
	queue_forget_lost(queue, now);
	if (!queue->until) {
		if (queue->read > since)
			since = queue->read;
		if ((__s64)(now - since) > STEER_LATE_NS)
			queue_was_late(queue, now);
		else if (queue->late)
			queue->late--;
	} else if (now > queue->until) {
		queue->until = 0;
		queue->turned = now;
		queue->late = STEER_OFTEN - STEER_LATE; /* once more is enough */
	}
}

#endif

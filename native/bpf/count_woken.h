/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Programs of count.bpf.c: which tasks reschedule interrupts made run, told by sender or receiver. */
#ifndef FASTSOCKET_COUNT_WOKEN_H
#define FASTSOCKET_COUNT_WOKEN_H

#include <linux/bpf.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#include "kernel.h"

#define MAX_WOKEN 1024

struct comm {
	char name[COMM_LEN];
};

/* The task that this CPU is waking; no name where it wakes none. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct comm);
} waking SEC(".maps");

/* Reschedule interrupts sent, by the name of the task that they were sent for. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_WOKEN);
	__type(key, struct comm);
	__type(value, __u64);
} woken SEC(".maps");

static __always_inline struct comm *woken_here(void)
{
	__u32 key = 0;

	return bpf_map_lookup_elem(&waking, &key);
}

/* Argument: the task. Interrupts are off from here to on_woken, so that nothing comes between. */
SEC("raw_tp/sched_waking")
int on_waking(struct bpf_raw_tracepoint_args *ctx)
{
	const struct task_struct *task = (const struct task_struct *)ctx->args[0];
	struct comm *comm = woken_here();

	if (comm) {
		__builtin_memset(comm, 0, sizeof(*comm));
		BPF_CORE_READ_STR_INTO(&comm->name, task, comm);
	}
	return 0;
}

SEC("raw_tp/sched_wakeup")
int on_woken(void *ctx __attribute__((unused)))
{
	struct comm *comm = woken_here();

	if (comm)
		__builtin_memset(comm, 0, sizeof(*comm));
	return 0;
}

static __always_inline void charge(const struct comm *comm)
{
	__u64 one = 1, *seen = bpf_map_lookup_elem(&woken, comm);

	if (seen)
		__sync_fetch_and_add(seen, 1);
	else
		bpf_map_update_elem(&woken, comm, &one, BPF_NOEXIST);
}

/*
 * Arguments: CPU, call site, function to call there. A reschedule interrupt calls none; a wake-up
 * that is handed to the other CPU as a call ends here.
 */
SEC("raw_tp/ipi_send_cpu")
int on_interrupt(struct bpf_raw_tracepoint_args *ctx)
{
	struct comm *comm = woken_here(), key;

	if (!comm)
		return 0;
	if (ctx->args[2]) {
		__builtin_memset(comm, 0, sizeof(*comm));
		return 0;
	}
	key = *comm;
	charge(&key);
	return 0;
}

/*
 * Where the kernel does not tell who is interrupted for whom: the receiver's side. The task that a
 * CPU switches to after a reschedule interrupt is the one that it was sent for.
 */
SEC("raw_tp/reschedule_entry")
int on_interrupted(void *ctx __attribute__((unused)))
{
	struct comm *comm = woken_here();

	if (comm)
		comm->name[0] = 1;
	return 0;
}

/* Arguments: whether it was preempted, the task before, the task after. */
SEC("raw_tp/sched_switch")
int on_switch(struct bpf_raw_tracepoint_args *ctx)
{
	const struct task_struct *task = (const struct task_struct *)ctx->args[2];
	struct comm *comm = woken_here(), key = {};

	if (!comm || !comm->name[0])
		return 0;
	comm->name[0] = 0;
	BPF_CORE_READ_STR_INTO(&key.name, task, comm);
	charge(&key);
	return 0;
}

#endif

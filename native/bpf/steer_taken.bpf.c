// SPDX-License-Identifier: GPL-2.0-or-later
/* Run by the threads of both cpumaps for each packet that they take out: counts it, and how long the
 * first one waited.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "steer_queue.h"

SEC("xdp/cpumap")
int steer_taken(struct xdp_md *ctx)
{
	__u32 cpu = bpf_get_smp_processor_id();
	struct steer_queue *queue = bpf_map_lookup_elem(&queues, &cpu);

	(void)ctx;
	if (queue)
		queue_taken(queue);
	return XDP_PASS;
}

char LICENSE[] SEC("license") = "GPL";

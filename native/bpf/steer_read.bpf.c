// SPDX-License-Identifier: GPL-2.0-or-later
/* Notes for each CPU when an application there read from a TCP connection, for rules other than
 * receive_cpu, whose own program does it.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "steer_queue.h"

SEC("tp_btf/tcp_rcv_space_adjust")
int steer_read(__u64 *args)
{
	(void)args;
	queue_read(bpf_get_smp_processor_id());
	return 0;
}

char LICENSE[] SEC("license") = "GPL";

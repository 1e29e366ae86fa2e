// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Chooses the listening socket of a server that runs without libfsocket.so: the one that was noted
 * for the CPU of the SYN. A socket that was closed meanwhile, or a CPU without one, is left to the
 * kernel's hash.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "page.h"

char LICENSE[] SEC("license") = "GPL";

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, FS_MAX_CPUS);
	__type(key, __u32);
	__type(value, __u32); /* 1 + index into fs_sockets, 0 = none */
} fs_cpu_socket SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_REUSEPORT_SOCKARRAY);
	__uint(max_entries, FS_MAX_SLOTS);
	__type(key, __u32);
	__type(value, __u64);
} fs_sockets SEC(".maps");

SEC("sk_reuseport")
int fs_attached(struct sk_reuseport_md *ctx)
{
	__u32 cpu = bpf_get_smp_processor_id();
	__u32 *socket = bpf_map_lookup_elem(&fs_cpu_socket, &cpu);

	if (socket && *socket) {
		__u32 index = *socket - 1;

		bpf_sk_select_reuseport(ctx, &fs_sockets, &index, 0);
	}
	return SK_PASS;
}

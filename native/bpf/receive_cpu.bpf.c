// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Receive-CPU-select: notes for each TCP connection the CPU whose application read from it last, in
 * the table READERS of the rule receive_cpu. tcp_rcv_space_adjust is reached whenever received data
 * was copied to the application, on the CPU that called recv() and the like.
 */
#include <linux/bpf.h>
#include <linux/in.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "flow.h"
#include "kernel.h"
#include "steer.h"
#include "steer_queue.h"

#define FAMILY_IPV4 2
#define FAMILY_IPV6 10

/* The loader puts the attached rule's table here. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, __s64);
	__type(value, __s32);
} readers SEC(".maps");

const volatile struct steer_settings steer_settings SEC(".rodata.steer");

static __always_inline void mapped(__u32 *words, __be32 address)
{
	words[0] = words[1] = 0;
	words[2] = 0xffff;
	words[3] = bpf_ntohl(address);
}

static __always_inline void whole(__u32 *words, const struct in6_addr *address)
{
	for (int i = 0; i < 4; i++)
		words[i] = bpf_ntohl(address->in6_u.u6_addr32[i]);
}

/* A tracepoint whose arguments have types: every read of the host comes by, and needs no helper here
 * to look at its socket.
 */
SEC("tp_btf/tcp_rcv_space_adjust")
int receive_cpu(__u64 *args)
{
	struct sock_common *sk = &((struct sock *)args[0])->__sk_common;
	struct flow flow = {.proto = IPPROTO_TCP};
	__u32 cpu = bpf_get_smp_processor_id();
	__s32 index, *known;
	__s64 key;

	queue_read(cpu);
	if (cpu >= STEER_MAX_CPUS)
		return 0;
	index = steer_settings.index[cpu];
	switch (sk->skc_family) {
	case FAMILY_IPV4:
		mapped(flow.src, sk->skc_daddr);
		mapped(flow.dst, sk->skc_rcv_saddr);
		break;
	case FAMILY_IPV6:
		whole(flow.src, &sk->skc_v6_daddr);
		whole(flow.dst, &sk->skc_v6_rcv_saddr);
		break;
	default:
		return 0;
	}
	flow.sport = bpf_ntohs(sk->skc_dport);
	flow.dport = sk->skc_num;
	key = flow_key(&flow);
	known = bpf_map_lookup_elem(&readers, &key);
	if (!known || *known != index)
		bpf_map_update_elem(&readers, &key, &index, BPF_ANY);
	return 0;
}

char LICENSE[] SEC("license") = "GPL";

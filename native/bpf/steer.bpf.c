// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The steer program: parse a packet, ask a rule for a CPU, hand the packet to that CPU's cpumap.
 *
 * It is compiled to LLVM bitcode and linked with a rule that fastsocket.steer generates from
 * Python. The rule sees nothing but the field_*, table_*, array_*, prefixes_* and counter_*
 * functions below, which take and return 64-bit integers: it has no pointer to get wrong.
 * With -DSTEER_RULE=name the rule is the C function of that name in steer_rules.h.
 *
 * Nothing here drops a packet: whatever cannot be parsed or steered stays on its CPU.
 */
#include <linux/bpf.h>
#include <linux/in.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "flow.h"
#include "packet.h"
#include "steer.h"
#include "steer_queue.h"

#define MAX_LENGTH 0xfffff /* 1 MiB: more than any packet, BIG TCP included */
#define TCP_LISTENING 10

/* ---- maps ---- */

struct {
	__uint(type, BPF_MAP_TYPE_CPUMAP);
	__uint(max_entries, STEER_MAX_CPUS);
	__type(key, __u32);
	__type(value, struct bpf_cpumap_val);
} cpus SEC(".maps"), batch SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, STEER_EXITS);
	__type(key, __u32);
	__type(value, __u64);
} exits SEC(".maps");

/* Not SEC(): a map that the rule does not use must be removable. */
#define REMOVABLE __attribute__((section(".maps")))

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, STEER_COUNTERS);
	__type(key, __u32);
	__type(value, __u64);
} counters REMOVABLE;

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} scratch REMOVABLE;

volatile struct steer_state steer_state SEC(".bss.steer");

/* ---- what a rule may ask: fields ---- */

#define FIELD(name, value)                                 \
	inlined __s64 field_##name(const struct packet *p) \
	{                                                  \
		(void)p;                                   \
		return (__s64)(value);                     \
	}

FIELD(version, p->version)
FIELD(proto, p->flow.proto)
FIELD(saddr, p->flow.src[3])
FIELD(saddr0, p->flow.src[0])
FIELD(saddr1, p->flow.src[1])
FIELD(saddr2, p->flow.src[2])
FIELD(daddr, p->flow.dst[3])
FIELD(daddr0, p->flow.dst[0])
FIELD(daddr1, p->flow.dst[1])
FIELD(daddr2, p->flow.dst[2])
FIELD(sport, p->flow.sport)
FIELD(dport, p->flow.dport)
FIELD(vlan, p->vlan)
FIELD(inner_vlan, p->inner_vlan)
FIELD(dscp, p->dscp)
FIELD(fragment, p->fragment)
FIELD(tcp_flags, p->tcp_flags)
FIELD(length, p->length)
FIELD(queue, p->queue)
FIELD(hash, flow_key(&p->flow) >> 31)
FIELD(symmetric_hash, flow_key_symmetric(&p->flow) >> 31)
FIELD(flow, flow_key(&p->flow))
FIELD(now, bpf_ktime_get_ns() / 1000000)

inlined __s64 field_cpu(const struct packet *p)
{
	__u32 cpu = bpf_get_smp_processor_id();

	(void)p;
	return cpu < STEER_MAX_CPUS ? steer_settings.index[cpu] : -1;
}

/*
 * Does this host listen on the packet's destination? The remote end is left out, so that an
 * established connection is not found in place of the listener of its port.
 */
inlined __s64 field_listening(const struct packet *p)
{
	__u32 size = p->version == 4 ? sizeof(((struct bpf_sock_tuple *)0)->ipv4) :
				       sizeof(((struct bpf_sock_tuple *)0)->ipv6);
	struct bpf_sock_tuple tuple = {};
	struct bpf_sock *sk;
	__s64 found;

	if (p->version == 4) {
		tuple.ipv4.daddr = bpf_htonl(p->flow.dst[3]);
		tuple.ipv4.dport = bpf_htons(p->flow.dport);
	} else {
		for (int i = 0; i < 4; i++)
			tuple.ipv6.daddr[i] = bpf_htonl(p->flow.dst[i]);
		tuple.ipv6.dport = bpf_htons(p->flow.dport);
	}
	if (p->flow.proto == IPPROTO_TCP)
		sk = bpf_sk_lookup_tcp(p->ctx, &tuple, size, BPF_F_CURRENT_NETNS, 0);
	else if (p->flow.proto == IPPROTO_UDP)
		sk = bpf_sk_lookup_udp(p->ctx, &tuple, size, BPF_F_CURRENT_NETNS, 0);
	else
		return 0;
	if (!sk)
		return 0;
	found = p->flow.proto == IPPROTO_UDP || sk->state == TCP_LISTENING;
	bpf_sk_release(sk);
	return found;
}

/* ---- what a rule may ask: tables and counters ---- */

#define TABLE(n)                                                        \
	struct {                                                        \
		__uint(type, BPF_MAP_TYPE_HASH);                        \
		__uint(max_entries, 1);                                 \
		__type(key, __s64);                                     \
		__type(value, __s32);                                   \
	} table_##n REMOVABLE;                                          \
	inlined __s64 table_##n##_get(__s64 key, __s64 otherwise)       \
	{                                                               \
		__s32 *value = bpf_map_lookup_elem(&table_##n, &key);   \
		return value ? *value : otherwise;                      \
	}                                                               \
	inlined __s64 table_##n##_has(__s64 key)                        \
	{                                                               \
		return bpf_map_lookup_elem(&table_##n, &key) != NULL;   \
	}                                                               \
	inlined void table_##n##_set(__s64 key, __s64 number)           \
	{                                                               \
		__s32 value = number;                                   \
		bpf_map_update_elem(&table_##n, &key, &value, BPF_ANY); \
	}

#define ARRAY(n)                                                                          \
	struct {                                                                          \
		__uint(type, BPF_MAP_TYPE_ARRAY);                                         \
		__uint(max_entries, 1);                                                   \
		__type(key, __u32);                                                       \
		__type(value, __s32);                                                     \
	} array_##n REMOVABLE;                                                            \
	static inlined __s32 *array_##n##_at(__s64 index)                                 \
	{                                                                                 \
		__u32 key = index;                                                        \
		return (__u64)index >> 32 ? NULL : bpf_map_lookup_elem(&array_##n, &key); \
	}                                                                                 \
	inlined __s64 array_##n##_get(__s64 index, __s64 otherwise)                       \
	{                                                                                 \
		__s32 *value = array_##n##_at(index);                                     \
		return value ? *value : otherwise;                                        \
	}                                                                                 \
	inlined void array_##n##_set(__s64 index, __s64 number)                           \
	{                                                                                 \
		__s32 *value = array_##n##_at(index);                                     \
		if (value)                                                                \
			*value = number;                                                  \
	}                                                                                 \
	inlined void array_##n##_add(__s64 index, __s64 number)                           \
	{                                                                                 \
		__s32 *value = array_##n##_at(index);                                     \
		if (value)                                                                \
			__atomic_fetch_add(value, number, __ATOMIC_RELAXED);              \
	}

#define PREFIXES(n)                                                                   \
	struct {                                                                      \
		__uint(type, BPF_MAP_TYPE_LPM_TRIE);                                  \
		__uint(max_entries, 1);                                               \
		__uint(map_flags, BPF_F_NO_PREALLOC);                                 \
		__type(key, struct steer_prefix);                                     \
		__type(value, __s32);                                                 \
	} prefixes_##n REMOVABLE;                                                     \
	static inlined __s64 prefixes_##n##_at(const __u32 *address, __s64 otherwise) \
	{                                                                             \
		struct steer_prefix key = {.bits = 128};                              \
		__s32 *value;                                                         \
		for (int i = 0; i < 4; i++)                                           \
			((__be32 *)key.address)[i] = bpf_htonl(address[i]);           \
		value = bpf_map_lookup_elem(&prefixes_##n, &key);                     \
		return value ? *value : otherwise;                                    \
	}                                                                             \
	inlined __s64 prefixes_##n##_get_src(const struct packet *p, __s64 otherwise) \
	{                                                                             \
		return prefixes_##n##_at(p->flow.src, otherwise);                     \
	}                                                                             \
	inlined __s64 prefixes_##n##_get_dst(const struct packet *p, __s64 otherwise) \
	{                                                                             \
		return prefixes_##n##_at(p->flow.dst, otherwise);                     \
	}

#define EIGHT(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7)
EIGHT(TABLE)
EIGHT(ARRAY)
EIGHT(PREFIXES)

/* Adds to this CPU's count and returns what it was. */
inlined __s64 counter_add(__s64 number, __s64 amount)
{
	__u32 key = number;
	__u64 *count = bpf_map_lookup_elem(&counters, &key);
	__u64 before;

	if (!count)
		return 0;
	before = *count;
	*count = before + amount;
	return before & 0x3fffffffffffffffULL;
}

/* NULL only if the kernel breaks its word: element 0 of a per-CPU array is always there. */
inlined __u64 *steer_scratch(void)
{
	__u32 key = 0;

	return bpf_map_lookup_elem(&scratch, &key);
}

/*
 * The same number, but unknown to the verifier, as it comes from a map. The verifier walks both
 * sides of a branch on an unknown number and joins them after it, but follows what is known, and
 * whatever that was computed from, along each way by itself: with many branches that would exceed
 * its limit. An addition of something unknown is not enough; the verifier looks through it.
 */
inlined __s64 steer_opaque(__u64 *kept, __s64 number)
{
	*(volatile __u64 *)kept = number;
	return *(volatile __u64 *)kept;
}

#ifdef STEER_RULE
#include "steer_rules.h"
#define rule STEER_RULE
#else
__s64 rule(const struct packet *p);
#endif

/* ---- the program ---- */

static inlined int leave(__u32 way, __s64 verdict, int action)
{
	__u64 *count = bpf_map_lookup_elem(&exits, &way);

	if (count)
		++*count;
	if (steer_settings.tracing) {
		steer_state.way = way;
		steer_state.verdict = verdict;
		return XDP_PASS;
	}
	return action;
}

/* Hands the packet to a thread of `cpu`; false if none takes it. */
static inlined bool send(struct steer_queue *queue, __u32 cpu)
{
	if ((queue_is_prompt(queue) || bpf_redirect_map(&batch, cpu, XDP_PASS) != XDP_REDIRECT) &&
	    bpf_redirect_map(&cpus, cpu, XDP_PASS) != XDP_REDIRECT)
		return false;
	queue_sent(queue);
	return true;
}

SEC("xdp")
int steer(struct xdp_md *ctx)
{
	struct cursor cursor = {(void *)(long)ctx->data, (void *)(long)ctx->data_end};
	/* The queue is read once, here: from several places LLVM makes one of a pointer into ctx, which the
	 * verifier refuses.
	 */
	struct packet p = {
		.ctx = ctx,
		.length = cursor.end - cursor.at,
		.queue = ctx->rx_queue_index & 0xffff,
	};
	__s64 verdict;
	struct steer_queue *queue;
	__u32 index, cpu;
	int way;

	if (steer_settings.frags)
		p.length = bpf_xdp_get_buff_len(ctx);
	if (p.length > MAX_LENGTH)
		p.length = MAX_LENGTH;
	way = parse(&cursor, &p);
	if (way != STEER_EXITS)
		return leave(way, -1, XDP_PASS);
	if (p.unfinished)
		return leave(STEER_UNFINISHED, -1, XDP_PASS);
	verdict = rule(&p);
	if (verdict < 0)
		return leave(STEER_RULE_PASS, verdict, XDP_PASS);
	index = verdict < steer_settings.cpus ? verdict : STEER_MAX_CPUS;
	/* The bound must be tested where the verifier sees it, whatever is known of the rule. */
	barrier_var(index);
	if (index >= STEER_MAX_CPUS)
		return leave(STEER_NO_CPU, verdict, XDP_PASS);
	cpu = steer_settings.number[index];
	queue = bpf_map_lookup_elem(&queues, &cpu);
	if (!queue)
		return leave(STEER_UNREACHABLE, verdict, XDP_PASS);
	if (cpu == bpf_get_smp_processor_id() && !queue_is_awaited(queue))
		return leave(STEER_HERE, verdict, XDP_PASS);
	if (!send(queue, cpu))
		return leave(STEER_UNREACHABLE, verdict, XDP_PASS);
	return leave(STEER_REDIRECTED, verdict, XDP_REDIRECT);
}

char LICENSE[] SEC("license") = "GPL";

// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Receive flow deliver for programs that no library can be preloaded into: gives a TCP connection a
 * local port of the slice of the CPU that opens it. Whatever does not succeed is left to the kernel,
 * which then chooses a port as it would have.
 */
#include <linux/bpf.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "connect.h"
#include "steer.h"

#define FAMILY_IPV4 2
#define FAMILY_IPV6 10
#define STREAM 1
#define SLICES 4 /* the CPU's own, and three to borrow from */
#define OWN_TRIES 8
#define TRIES 4 /* in each of the others */
#define ALLOW 1

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, STEER_MAX_CPUS);
	__type(key, __u32);
	__type(value, struct connect_slice);
} slices SEC(".maps");

/* Where each CPU goes on looking. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} cursor SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, CONNECT_EXITS);
	__type(key, __u32);
	__type(value, __u64);
} exits SEC(".maps");

const volatile struct steer_settings steer_settings SEC(".rodata.steer");
/* net.ipv4.ip_local_reserved_ports, which binds nobody but the kernel's own choice: a bit each. */
const volatile __u64 connect_reserved[CONNECT_PORTS / 64] SEC(".rodata.ports");

union address {
	struct sockaddr_in v4;
	struct sockaddr_in6 v6;
};

static __always_inline int leave(__u32 way)
{
	__u64 *count = bpf_map_lookup_elem(&exits, &way);

	if (count)
		++*count;
	return ALLOW;
}

static __always_inline int is_reserved(__u32 port)
{
	return connect_reserved[port % CONNECT_PORTS / 64] >> port % 64 & 1;
}

/* Binds to the next free port of a slice; returns whether one was found. */
static __always_inline int take(struct bpf_sock_addr *ctx, union address *address, int size,
				__u32 index, __u32 *next, int tries)
{
	struct connect_slice *slice = bpf_map_lookup_elem(&slices, &index);
	__u32 number;
	__be16 port;

	if (!slice || !slice->count)
		return 0;
	for (int i = 0; i < tries; i++) {
		number = slice->first + (*next)++ % slice->count;
		if (is_reserved(number))
			continue;
		port = bpf_htons(number);
		if (size == sizeof(address->v4))
			address->v4.sin_port = port;
		else
			address->v6.sin6_port = port;
		if (bpf_bind(ctx, (struct sockaddr *)address, size) == 0)
			return 1;
	}
	return 0;
}

static __always_inline int choose(struct bpf_sock_addr *ctx, union address *address, int size)
{
	__u32 cpu = bpf_get_smp_processor_id(), zero = 0, cpus = steer_settings.cpus;
	__u32 *next = bpf_map_lookup_elem(&cursor, &zero);
	__s32 index;

	if (!next || cpu >= STEER_MAX_CPUS || !cpus)
		return leave(CONNECT_KEPT);
	index = steer_settings.index[cpu];
	if (index < 0)
		return leave(CONNECT_KEPT);
	if (take(ctx, address, size, index, next, OWN_TRIES))
		return leave(CONNECT_OWN);
	for (__u32 step = 1; step < SLICES && step < cpus; step++)
		if (take(ctx, address, size, (index + step) % cpus, next, TRIES))
			return leave(CONNECT_BORROWED);
	return leave(CONNECT_LEFT);
}

SEC("cgroup/connect4")
int connect_ipv4(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	union address address = {};

	if (!sk || sk->src_port || ctx->type != STREAM || ctx->protocol != IPPROTO_TCP ||
	    bpf_ntohl(ctx->user_ip4) >> 24 == 127)
		return leave(CONNECT_KEPT);
	address.v4.sin_family = FAMILY_IPV4;
	address.v4.sin_addr.s_addr = sk->src_ip4;
	return choose(ctx, &address, sizeof(address.v4));
}

SEC("cgroup/connect6")
int connect_ipv6(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	union address address = {};

	if (!sk || sk->src_port || ctx->type != STREAM || ctx->protocol != IPPROTO_TCP)
		return leave(CONNECT_KEPT);
	if (!ctx->user_ip6[0] && !ctx->user_ip6[1] && !ctx->user_ip6[2] &&
	    ctx->user_ip6[3] == bpf_htonl(1))
		return leave(CONNECT_KEPT);
	address.v6.sin6_family = FAMILY_IPV6;
	address.v6.sin6_addr.in6_u.u6_addr32[0] = sk->src_ip6[0];
	address.v6.sin6_addr.in6_u.u6_addr32[1] = sk->src_ip6[1];
	address.v6.sin6_addr.in6_u.u6_addr32[2] = sk->src_ip6[2];
	address.v6.sin6_addr.in6_u.u6_addr32[3] = sk->src_ip6[3];
	return choose(ctx, &address, sizeof(address.v6));
}

char LICENSE[] SEC("license") = "GPL";

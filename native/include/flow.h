/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * One TCP or UDP flow as steering sees it, in host byte order, and its key. The XDP side computes
 * the key from packets and receive_cpu from sockets, so both include this.
 * IPv4 addresses stand as IPv4-mapped IPv6 (::ffff:a.b.c.d), word 3 being the last one.
 */
#ifndef FASTSOCKET_FLOW_H
#define FASTSOCKET_FLOW_H

#include <linux/types.h>

struct flow {
	__u32 src[4]; /* remote end, where the packet comes from */
	__u32 dst[4]; /* this host's end */
	__u16 sport;
	__u16 dport;
	__u8 proto;
};

/* The 64-bit finaliser of MurmurHash3: every input bit reaches every output bit. */
static inline __attribute__((always_inline)) __u64 flow_mix(__u64 x)
{
	x ^= x >> 33;
	x *= 0xff51afd7ed558ccdULL;
	x ^= x >> 33;
	x *= 0xc4ceb9fe1a85ec53ULL;
	return x ^ x >> 33;
}

static inline __attribute__((always_inline)) __u64 flow_end(const __u32 *address, __u16 port)
{
	__u64 high = (__u64)address[0] << 32 | address[1];
	__u64 low = (__u64)address[2] << 32 | address[3];

	return flow_mix(high * 0x9e3779b97f4a7c15ULL + low + ((__u64)port << 40));
}

/* 0 .. 2^63 - 1; the two directions of a connection differ. */
static inline __attribute__((always_inline)) __u64 flow_key(const struct flow *f)
{
	__u64 source = flow_end(f->src, f->sport);

	return flow_mix(source * 3 + flow_end(f->dst, f->dport) + f->proto) >> 1;
}

/* 0 .. 2^63 - 1; the same for both directions. */
static inline __attribute__((always_inline)) __u64 flow_key_symmetric(const struct flow *f)
{
	return flow_mix(flow_end(f->src, f->sport) + flow_end(f->dst, f->dport) + f->proto) >> 1;
}

#endif

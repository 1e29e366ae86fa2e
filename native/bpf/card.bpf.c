// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A network card with flow rules, for the benchmark: at the sending end of a veth pair, it gives
 * each TCP packet for a port of some CPU's slice the hash by which RPS at the other end chooses that
 * CPU. So a packet costs there what any other costs that RPS spreads by its own hash.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define BLOCKS 1024 /* of 64 ports, as in the rule rfd */

/* Set before loading: the hash for each block of ports, 0 where no rule matches. */
const volatile __u32 card_hash[BLOCKS] SEC(".rodata.card");

SEC("tc")
int card(struct __sk_buff *skb)
{
	__u32 hash, at = ETH_HLEN + sizeof(struct iphdr) + offsetof(struct tcphdr, dest);
	struct iphdr ip;
	__be16 port;

	if (skb->protocol != bpf_htons(ETH_P_IP) ||
	    bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof(ip)) || ip.ihl != 5 ||
	    ip.protocol != IPPROTO_TCP || bpf_skb_load_bytes(skb, at, &port, sizeof(port)))
		return TC_ACT_UNSPEC;
	hash = card_hash[bpf_ntohs(port) >> 6];
	if (hash)
		bpf_set_hash(skb, hash);
	return TC_ACT_UNSPEC;
}

char LICENSE[] SEC("license") = "GPL";

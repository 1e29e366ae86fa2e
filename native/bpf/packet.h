/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A packet as rules see it, and how it is read: Ethernet, VLAN tags, IPv4 and IPv6, TCP and UDP. */
#ifndef FASTSOCKET_PACKET_H
#define FASTSOCKET_PACKET_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "flow.h"
#include "steer.h"

#define inlined __attribute__((always_inline))
#define MAX_VLAN_TAGS 2
#define MAX_EXTENSIONS 6
#define IP_FRAGMENT 0x3fff /* more-fragments bit and fragment offset */

const volatile struct steer_settings steer_settings SEC(".rodata.steer");

struct vlan_header {
	__be16 tci;
	__be16 type;
};

struct extension_header {
	__u8 next;
	__u8 length;
};

struct fragment_header {
	__u8 next;
	__u8 reserved;
	__be16 offset;
	__be32 id;
};

struct packet {
	struct flow flow;
	__u32 length;
	__u16 vlan;
	__u16 inner_vlan;
	__u8 version;
	__u8 dscp;
	__u8 fragment;
	__u8 tcp_flags;
	__u8 unfinished;
	struct xdp_md *ctx;
	__u32 queue; /* of the device, 16 bits */
};

struct cursor {
	void *at;
	void *end;
};

#define HEADER(cursor, type)                               \
	({                                                 \
		type *header_ = (cursor)->at;              \
		if ((void *)(header_ + 1) > (cursor)->end) \
			return STEER_TRUNCATED;            \
		header_;                                   \
	})

/*
 * Is `check` only the sum of the pseudo header, for hardware to complete (CHECKSUM_PARTIAL)? Packets
 * of a veth peer are such, and an xdp_frame cannot say so: a redirected one would be taken for
 * damaged. One finished checksum in 65,536 looks the same; that packet merely stays on its CPU.
 */
static inlined __u8 is_unfinished(const struct packet *p, __be16 check, __u32 length)
{
	__u64 sum = p->flow.proto + length;

	for (int i = 0; i < 4; i++)
		if (p->version == 6 || i == 3)
			sum += (__u64)p->flow.src[i] + p->flow.dst[i];
	sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum == bpf_ntohs(check);
}

static inlined int parse_ports(struct cursor *c, struct packet *p)
{
	__u32 length = p->length - (__u32)(c->at - (void *)(long)p->ctx->data);
	struct tcphdr *tcp;
	struct udphdr *udp;

	/* Only the first fragment has ports: without them, all go the same way. */
	if (p->fragment)
		return STEER_EXITS;
	switch (p->flow.proto) {
	case IPPROTO_TCP:
		tcp = HEADER(c, struct tcphdr);
		p->flow.sport = bpf_ntohs(tcp->source);
		p->flow.dport = bpf_ntohs(tcp->dest);
		p->tcp_flags = ((__u8 *)tcp)[13];
		if (steer_settings.veth)
			p->unfinished = is_unfinished(p, tcp->check, length);
		break;
	case IPPROTO_UDP:
	case IPPROTO_UDPLITE:
	case IPPROTO_SCTP: /* its header starts with the ports as well, and is longer */
		udp = HEADER(c, struct udphdr);
		p->flow.sport = bpf_ntohs(udp->source);
		p->flow.dport = bpf_ntohs(udp->dest);
		if (steer_settings.veth)
			p->unfinished = p->flow.proto == IPPROTO_SCTP ||
					is_unfinished(p, udp->check, length);
		break;
	}
	return STEER_EXITS;
}

static inlined int parse_ipv4(struct cursor *c, struct packet *p)
{
	struct iphdr *ip = HEADER(c, struct iphdr);

	if (ip->version != 4 || ip->ihl < 5)
		return STEER_MALFORMED;
	p->version = 4;
	p->dscp = ip->tos >> 2;
	p->fragment = (ip->frag_off & bpf_htons(IP_FRAGMENT)) != 0;
	p->flow.proto = ip->protocol;
	p->flow.src[2] = p->flow.dst[2] = 0xffff;
	p->flow.src[3] = bpf_ntohl(ip->saddr);
	p->flow.dst[3] = bpf_ntohl(ip->daddr);
	c->at += ip->ihl * 4;
	return parse_ports(c, p);
}

static inlined int parse_ipv6(struct cursor *c, struct packet *p)
{
	struct ipv6hdr *ip = HEADER(c, struct ipv6hdr);
	struct extension_header *extension;
	struct fragment_header *fragment;
	__u8 next = ip->nexthdr;

	if (ip->version != 6)
		return STEER_MALFORMED;
	p->version = 6;
	p->dscp = (ip->priority << 4 | ip->flow_lbl[0] >> 4) >> 2 & 0x3f;
	for (int i = 0; i < 4; i++) {
		p->flow.src[i] = bpf_ntohl(ip->saddr.in6_u.u6_addr32[i]);
		p->flow.dst[i] = bpf_ntohl(ip->daddr.in6_u.u6_addr32[i]);
	}
	c->at += sizeof(*ip);
#pragma unroll
	for (int i = 0; i < MAX_EXTENSIONS; i++) {
		switch (next) {
		case IPPROTO_HOPOPTS:
		case IPPROTO_ROUTING:
		case IPPROTO_DSTOPTS:
			extension = HEADER(c, struct extension_header);
			next = extension->next;
			c->at += (extension->length + 1) * 8;
			break;
		case IPPROTO_AH:
			extension = HEADER(c, struct extension_header);
			next = extension->next;
			c->at += (extension->length + 2) * 4;
			break;
		case IPPROTO_FRAGMENT:
			fragment = HEADER(c, struct fragment_header);
			/* Later fragments carry no headers at all: take the first one's protocol. */
			p->fragment = 1;
			p->flow.proto = fragment->next;
			return STEER_EXITS;
		default:
			p->flow.proto = next;
			return parse_ports(c, p);
		}
	}
	return STEER_DEEP_OPTIONS;
}

static inlined int is_vlan(__be16 type)
{
	return type == bpf_htons(ETH_P_8021Q) || type == bpf_htons(ETH_P_8021AD);
}

/* Returns how the packet leaves without a rule, or STEER_EXITS if the rule is to see it. */
static inlined int parse(struct cursor *c, struct packet *p)
{
	struct ethhdr *ethernet = HEADER(c, struct ethhdr);
	__be16 type = ethernet->h_proto;
	struct vlan_header *tag;

	c->at += sizeof(*ethernet);
#pragma unroll
	for (int i = 0; i < MAX_VLAN_TAGS; i++) {
		if (!is_vlan(type))
			break;
		tag = HEADER(c, struct vlan_header);
		if (i == 0)
			p->vlan = bpf_ntohs(tag->tci) & 0xfff;
		else
			p->inner_vlan = bpf_ntohs(tag->tci) & 0xfff;
		type = tag->type;
		c->at += sizeof(*tag);
	}
	if (type == bpf_htons(ETH_P_IP))
		return parse_ipv4(c, p);
	if (type == bpf_htons(ETH_P_IPV6))
		return parse_ipv6(c, p);
	return is_vlan(type) ? STEER_DEEP_VLAN : STEER_NOT_IP;
}

#endif

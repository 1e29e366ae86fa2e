/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the steer program, its loader and the generated rule share. fastsocket.steer.layout holds
 * the Python side; a test compares the two through the object's BTF.
 */
#ifndef FASTSOCKET_STEER_H
#define FASTSOCKET_STEER_H

#include <linux/types.h>

#define STEER_MAX_CPUS 1024
#define STEER_TABLES 8 /* slots of each kind: table, array, prefixes */
#define STEER_COUNTERS 32 /* counters that one rule may declare */

/* Every way out of the program; each has a counter. */
enum steer_exit {
	STEER_REDIRECTED, /* sent to the CPU that the rule named */
	STEER_HERE, /* the rule named the CPU that has the packet already */
	STEER_RULE_PASS, /* the rule declined: None or a negative number */
	STEER_NO_CPU, /* the rule named a CPU outside the set: passed */
	STEER_UNREACHABLE, /* that CPU takes no packets, for example offline: passed */
	STEER_NOT_IP, /* ARP, LLDP and the like: passed */
	STEER_TRUNCATED, /* a header runs over the end of the packet: passed */
	STEER_MALFORMED, /* impossible header fields: passed */
	STEER_DEEP_VLAN, /* more than two VLAN tags: passed */
	STEER_DEEP_OPTIONS, /* more IPv6 extension headers than are walked: passed */
	STEER_UNFINISHED, /* its checksum is left to hardware (veth): passed, see steer_settings */
	STEER_EXITS
};

/* Set before loading, then constant: the verifier removes what it rules out. */
struct steer_settings {
	__u32 tracing; /* keep the rule's result in steer_state, redirect nothing */
	__u32 frags; /* bpf_xdp_get_buff_len may be called */
	__u32 cpus; /* CPUs in the set */
	__u32 veth; /* native XDP on veth: pass what has no checksum yet */
	__u16 number[STEER_MAX_CPUS]; /* index in the set -> CPU */
	__s16 index[STEER_MAX_CPUS]; /* CPU -> index in the set, or -1 */
};

struct steer_state {
	__s64 verdict; /* under tracing: what the rule returned */
	__u64 way; /* under tracing: enum steer_exit */
};

/* Of one CPU; a cache line of those who send to it, and one of its own threads. */
struct steer_queue {
	__u64 sent; /* packets, to either thread */
	__u64 since; /* ns: when a packet was sent, and none was taken since; or 0 */
	__u32 prompt; /* packets go to the second thread */
	__u32 unused[11];
	__u64 taken; /* packets, by either thread */
	__u64 least; /* packets: the fewest that were on their way since `window` */
	__u64 window; /* ns */
	__u64 until; /* ns: till when packets shall go to the second thread; or 0 */
	__u64 pause; /* ns: how long that lasts */
	__u64 turned; /* ns: when `until` was set, or set to 0 */
	__u64 late; /* how often packets waited too long of late */
	__u64 read; /* ns: when an application read from a TCP connection there */
};

/* Key of a `prefixes` table: struct bpf_lpm_trie_key with a 16-byte address. */
struct steer_prefix {
	__u32 bits;
	__u8 address[16];
};

#endif

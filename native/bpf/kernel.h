/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The kernel's own structures, as far as any of our programs reads them. CO-RE fits the offsets to
 * the running kernel, so neither order nor size mean anything here.
 */
#ifndef FASTSOCKET_KERNEL_H
#define FASTSOCKET_KERNEL_H

#include <linux/types.h>

#define COMM_LEN 16

struct ns_common {
	unsigned int inum;
} __attribute__((preserve_access_index));

struct net {
	struct ns_common ns;
} __attribute__((preserve_access_index));

typedef struct {
	struct net *net;
} __attribute__((preserve_access_index)) possible_net_t;

struct in6_addr {
	union {
		__be32 u6_addr32[4];
	} in6_u;
} __attribute__((preserve_access_index));

struct sock_common {
	unsigned short skc_family;
	__be32 skc_daddr;
	__be32 skc_rcv_saddr;
	__be16 skc_dport;
	__u16 skc_num;
	struct in6_addr skc_v6_daddr;
	struct in6_addr skc_v6_rcv_saddr;
	possible_net_t skc_net;
	int skc_incoming_cpu;
	struct {
		__u64 counter;
	} skc_cookie;
} __attribute__((preserve_access_index));

struct sock;

struct file {
	unsigned int f_flags;
	void *private_data;
} __attribute__((preserve_access_index));

struct socket {
	short type;
	struct file *file;
	struct sock *sk;
} __attribute__((preserve_access_index));

struct sock {
	struct sock_common __sk_common;
	struct socket *sk_socket;
	struct {
		struct {
			int counter;
		} rmem_alloc;
	} sk_backlog;
	int sk_rcvbuf;
} __attribute__((preserve_access_index));

struct inet_sock {
	struct sock sk;
	__be16 inet_sport;
} __attribute__((preserve_access_index));

struct inet_connection_sock {
	struct inet_sock icsk_inet;
	const void *icsk_ulp_ops;
} __attribute__((preserve_access_index));

struct tcp_sock {
	struct inet_connection_sock inet_conn;
	__u32 write_seq, copied_seq, snd_una;
	__u64 bytes_sent;
} __attribute__((preserve_access_index));

struct fdtable {
	unsigned int max_fds;
	struct file **fd;
} __attribute__((preserve_access_index));

struct files_struct {
	struct fdtable *fdt;
} __attribute__((preserve_access_index));

struct task_struct {
	struct files_struct *files;
	unsigned int flags;
	char comm[COMM_LEN];
} __attribute__((preserve_access_index));

/* The registers of a system call: of these exist those of the running architecture. */
struct pt_regs___x86 {
	unsigned long di, dx, r10, orig_ax;
} __attribute__((preserve_access_index));

struct pt_regs___arm64 {
	__u64 regs[31];
	__s32 syscallno;
} __attribute__((preserve_access_index));

#endif

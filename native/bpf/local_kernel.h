/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The kernel's own structures, as far as the local fast path reads them. */
#ifndef FASTSOCKET_LOCAL_KERNEL_H
#define FASTSOCKET_LOCAL_KERNEL_H

/* Offsets are those of the running kernel. */
struct sock_common {
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
} __attribute__((preserve_access_index));

struct inet_connection_sock {
	struct inet_sock icsk_inet;
	const void *icsk_ulp_ops;
} __attribute__((preserve_access_index));

struct tcp_sock {
	struct inet_connection_sock inet_conn;
	__u32 write_seq, copied_seq;
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
} __attribute__((preserve_access_index));

#endif

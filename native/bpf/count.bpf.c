// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Counters of the benchmark: lock contentions, reschedule interrupts and whom they wake, for each accepting thread
 * how many connections it accepted and how many of them came in on its own CPU, connections that
 * ended unanswered (in the queue of a listener that closed, or in a process that died), reads of a
 * server whose data came in on the reader's CPU, and packets of connections that a proxy opened
 * that came in on the CPU that opened them.
 *
 * Raw tracepoints need no tracefs and cost about a tenth of a perf tracepoint counter, so the
 * modes that are counted more often pay less for it. Only what is attached runs.
 */
#include <linux/bpf.h>
#include <linux/types.h>
#include <stdbool.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>

#include "count_woken.h"
#include "kernel.h"

#define MAX_THREADS 4096
#define MAX_SITES 4096
#define MAX_FRAMES 24
#define MAX_OPENERS 65536
#define SOCK_STREAM 1
#define PF_EXITING 0x4

/* enum tcp_state of the kernel's include/net/tcp_states.h */
#define TCP_ESTABLISHED 1
#define TCP_SYN_SENT 2
#define TCP_CLOSE 7
#define TCP_CLOSE_WAIT 8

enum event {
	EVENT_CONTENTION,
	EVENT_RESCHEDULE,
	EVENT_QUEUED_LOST,
	EVENT_ACCEPTED_LOST,
	EVENT_READ,
	EVENT_READ_LOCAL,
	EVENT_ACTIVE_PACKET,
	EVENT_ACTIVE_PACKET_LOCAL,
	EVENTS,
};

/*
 * Whose connections count: inode number of the network namespace, and ports, 0 for all. The first are
 * listeners, the second the backend that a proxy in that namespace connects to.
 */
enum role {
	ROLE_LISTENER,
	ROLE_BACKEND,
	ROLES,
};

struct target {
	__u32 netns;
	__u32 port, last; /* from, and up to and with */
};

/* A thread on a CPU: one that is not pinned has several. */
struct acceptor {
	__u32 tid;
	__u32 cpu;
};

struct accepts {
	__u64 accepted;
	__u64 local;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, EVENTS);
	__type(key, __u32);
	__type(value, __u64);
} events SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, ROLES);
	__type(key, __u32);
	__type(value, struct target);
} target_map SEC(".maps");

/* The CPU that opened a connection, by the address of its socket. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, MAX_OPENERS);
	__type(key, __u64);
	__type(value, __u32);
} openers SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_THREADS);
	__type(key, struct acceptor);
	__type(value, struct accepts);
} threads SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_STACK_TRACE);
	__uint(max_entries, MAX_SITES);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, MAX_FRAMES * sizeof(__u64));
} stacks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_SITES);
	__type(key, __u32);
	__type(value, __u64);
} sites SEC(".maps");

/* Numbers of accept and accept4 on this architecture, set by the loader. */
const volatile long accept_nr = -1;
const volatile long accept4_nr = -1;

static __always_inline void count(enum event event)
{
	__u32 key = event;
	__u64 *value = bpf_map_lookup_elem(&events, &key);

	if (value)
		(*value)++;
}

static __always_inline bool is_target(const struct sock *sk, enum role role, __be16 port)
{
	__u32 key = role;
	struct target *target = bpf_map_lookup_elem(&target_map, &key);
	__u32 number = bpf_ntohs(port);

	return target && (!target->port || (number >= target->port && number <= target->last)) &&
	       BPF_CORE_READ(sk, __sk_common.skc_net.net, ns.inum) == target->netns;
}

/*
 * Whether a socket of the server's side belongs to a listener that is watched. Its port is read
 * from inet_sport: a closing socket has given inet_num back when the tracepoint runs.
 */
static __always_inline bool is_watched(const struct sock *sk)
{
	const struct inet_sock *inet = (const struct inet_sock *)sk;

	return is_target(sk, ROLE_LISTENER, BPF_CORE_READ(inet, inet_sport));
}

static __always_inline long syscall_nr(const void *regs)
{
	const struct pt_regs___x86 *x86 = regs;
	const struct pt_regs___arm64 *arm64 = regs;

	if (bpf_core_field_exists(x86->orig_ax))
		return BPF_CORE_READ(x86, orig_ax);
	if (bpf_core_field_exists(arm64->syscallno))
		return BPF_CORE_READ(arm64, syscallno);
	return -1;
}

/* The socket behind descriptor fd of the current task, or NULL. */
static __always_inline struct socket *current_socket(long fd)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	struct fdtable *table = BPF_CORE_READ(task, files, fdt);
	struct file **slots, *file = NULL;

	if (fd < 0 || fd >= BPF_CORE_READ(table, max_fds))
		return NULL;
	slots = BPF_CORE_READ(table, fd);
	bpf_probe_read_kernel(&file, sizeof(file), slots + fd);
	return file ? BPF_CORE_READ(file, private_data) : NULL;
}

SEC("raw_tp/contention_begin")
int on_contention(void *ctx __attribute__((unused)))
{
	count(EVENT_CONTENTION);
	return 0;
}

SEC("raw_tp/reschedule_entry")
int on_reschedule(void *ctx __attribute__((unused)))
{
	count(EVENT_RESCHEDULE);
	return 0;
}

SEC("raw_tp/sys_exit")
int on_accept(struct bpf_raw_tracepoint_args *ctx)
{
	long nr = syscall_nr((void *)ctx->args[0]);
	struct accepts fresh = {}, *mine;
	struct acceptor acceptor;
	struct socket *socket;
	struct sock *sk;

	if (nr != accept4_nr && nr != accept_nr)
		return 0;
	socket = current_socket(ctx->args[1]);
	if (!socket || BPF_CORE_READ(socket, type) != SOCK_STREAM)
		return 0;
	sk = BPF_CORE_READ(socket, sk);
	if (!is_watched(sk))
		return 0;
	acceptor.tid = bpf_get_current_pid_tgid();
	acceptor.cpu = bpf_get_smp_processor_id();
	mine = bpf_map_lookup_elem(&threads, &acceptor);
	if (!mine) {
		bpf_map_update_elem(&threads, &acceptor, &fresh, BPF_NOEXIST);
		mine = bpf_map_lookup_elem(&threads, &acceptor);
		if (!mine)
			return 0;
	}
	mine->accepted++;
	if (BPF_CORE_READ(sk, __sk_common.skc_incoming_cpu) == (int)acceptor.cpu)
		mine->local++;
	return 0;
}

SEC("raw_tp/contention_begin")
int on_contention_site(void *ctx)
{
	long id = bpf_get_stackid(ctx, &stacks, 0);
	__u64 one = 1, *seen;
	__u32 key = id;

	if (id < 0)
		return 0;
	seen = bpf_map_lookup_elem(&sites, &key);
	if (seen)
		__sync_fetch_and_add(seen, 1);
	else
		bpf_map_update_elem(&sites, &key, &one, BPF_NOEXIST);
	return 0;
}

/*
 * Arguments: socket, old state, new state. A queued connection has no struct socket yet. One that
 * its owner's death closes is lost to the client only if nothing was ever written to it.
 */
SEC("raw_tp/inet_sock_set_state")
int on_lost(struct bpf_raw_tracepoint_args *ctx)
{
	const struct sock *sk = (const struct sock *)ctx->args[0];
	const struct tcp_sock *tp = (const struct tcp_sock *)sk;
	struct task_struct *task;
	int from = ctx->args[1], to = ctx->args[2];

	if (from != TCP_ESTABLISHED && from != TCP_CLOSE_WAIT)
		return 0;
	if (to == TCP_CLOSE_WAIT || !is_watched(sk))
		return 0;
	if (!BPF_CORE_READ(sk, sk_socket)) {
		if (to == TCP_CLOSE)
			count(EVENT_QUEUED_LOST);
		return 0;
	}
	task = (struct task_struct *)bpf_get_current_task();
	if (BPF_CORE_READ(task, flags) & PF_EXITING && !BPF_CORE_READ(tp, bytes_sent) &&
	    BPF_CORE_READ(tp, write_seq) == BPF_CORE_READ(tp, snd_una))
		count(EVENT_ACCEPTED_LOST);
	return 0;
}

/* A read that took data: was its last packet handled on the CPU that reads? */
SEC("raw_tp/tcp_rcv_space_adjust")
int on_read(struct bpf_raw_tracepoint_args *ctx)
{
	const struct sock *sk = (const struct sock *)ctx->args[0];

	if (!is_watched(sk))
		return 0;
	count(EVENT_READ);
	if (BPF_CORE_READ(sk, __sk_common.skc_incoming_cpu) == (int)bpf_get_smp_processor_id())
		count(EVENT_READ_LOCAL);
	return 0;
}

/*
 * The CPU is the one whose softirq took the packet, which the socket knows also where the packet
 * waited for its owner and is handled by that now.
 */
static __always_inline void count_active(const struct sock *sk)
{
	__u64 key = (__u64)sk;
	__u32 *opener = bpf_map_lookup_elem(&openers, &key);

	if (!opener)
		return;
	count(EVENT_ACTIVE_PACKET);
	if (BPF_CORE_READ(sk, __sk_common.skc_incoming_cpu) == (int)*opener)
		count(EVENT_ACTIVE_PACKET_LOCAL);
}

/*
 * Arguments: socket, old state, new state. connect() runs the first transition, on the opener's
 * CPU; the second is the SYN-ACK, the only packet of an open connection that on_packet misses.
 */
SEC("raw_tp/inet_sock_set_state")
int on_open(struct bpf_raw_tracepoint_args *ctx)
{
	const struct sock *sk = (const struct sock *)ctx->args[0];
	__u32 cpu = bpf_get_smp_processor_id();
	int from = ctx->args[1], to = ctx->args[2];
	__u64 key = (__u64)sk;

	if (to == TCP_SYN_SENT) {
		if (is_target(sk, ROLE_BACKEND, BPF_CORE_READ(sk, __sk_common.skc_dport)))
			bpf_map_update_elem(&openers, &key, &cpu, BPF_ANY);
	} else if (from == TCP_SYN_SENT && to == TCP_ESTABLISHED) {
		count_active(sk);
	} else if (to == TCP_CLOSE) {
		bpf_map_delete_elem(&openers, &key);
	}
	return 0;
}

/* Arguments: socket, packet; for every packet that comes in on an established connection. */
SEC("raw_tp/tcp_probe")
int on_packet(struct bpf_raw_tracepoint_args *ctx)
{
	count_active((const struct sock *)ctx->args[0]);
	return 0;
}

char LICENSE[] SEC("license") = "GPL";

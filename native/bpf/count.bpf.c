// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Counters of the benchmark: lock contentions, reschedule interrupts, and for each accepting
 * thread how many connections it accepted and how many of them came in on its own CPU.
 *
 * Raw tracepoints need no tracefs and cost about a tenth of a perf tracepoint counter, so the
 * modes that are counted more often pay less for it. Only what is attached runs.
 */
#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

#define MAX_THREADS 4096
#define MAX_SITES 4096
#define MAX_FRAMES 24
#define SOCK_STREAM 1

enum event {
	EVENT_CONTENTION,
	EVENT_RESCHEDULE,
	EVENTS,
};

/* What is read of the kernel's structures; CO-RE fits the offsets to the running kernel. */
struct ns_common {
	unsigned int inum;
} __attribute__((preserve_access_index));

struct net {
	struct ns_common ns;
} __attribute__((preserve_access_index));

typedef struct {
	struct net *net;
} __attribute__((preserve_access_index)) possible_net_t;

struct sock_common {
	possible_net_t skc_net;
	int skc_incoming_cpu;
} __attribute__((preserve_access_index));

struct sock {
	struct sock_common __sk_common;
} __attribute__((preserve_access_index));

struct socket {
	short type;
	struct sock *sk;
} __attribute__((preserve_access_index));

struct file {
	void *private_data;
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

struct pt_regs___x86 {
	unsigned long orig_ax;
} __attribute__((preserve_access_index));

struct pt_regs___arm64 {
	int syscallno;
} __attribute__((preserve_access_index));

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

/* Entry 0: the inode number of the network namespace whose accepts count. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} target SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_THREADS);
	__type(key, __u32);
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
	__u32 zero = 0, tid, *netns;
	struct socket *socket;
	struct sock *sk;

	if (nr != accept4_nr && nr != accept_nr)
		return 0;
	socket = current_socket(ctx->args[1]);
	if (!socket || BPF_CORE_READ(socket, type) != SOCK_STREAM)
		return 0;
	sk = BPF_CORE_READ(socket, sk);
	netns = bpf_map_lookup_elem(&target, &zero);
	if (!netns || BPF_CORE_READ(sk, __sk_common.skc_net.net, ns.inum) != *netns)
		return 0;
	tid = bpf_get_current_pid_tgid();
	mine = bpf_map_lookup_elem(&threads, &tid);
	if (!mine) {
		bpf_map_update_elem(&threads, &tid, &fresh, BPF_NOEXIST);
		mine = bpf_map_lookup_elem(&threads, &tid);
		if (!mine)
			return 0;
	}
	mine->accepted++;
	if (BPF_CORE_READ(sk, __sk_common.skc_incoming_cpu) == (int)bpf_get_smp_processor_id())
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

char LICENSE[] SEC("license") = "GPL";

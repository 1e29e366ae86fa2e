// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The local fast path: what one socket of a connection sends is put into the receive queue of
 * the other, if both are on this host, without TCP and IP between them.
 *
 * A reader finds first what was redirected, then what came by TCP. So bytes are redirected only
 * when the reader has taken everything that TCP carried in that direction, which one comparison of
 * sequence numbers tells, and only to a reader that does not block: one that waits inside the
 * kernel for the rest of a piece that came by TCP would never see the redirected bytes.
 */
#include <linux/bpf.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "kernel.h"
#include "local.h"
#include "local_call.h"

#define AF_INET 2
#define AF_INET6 10
#define TCP_CLOSE 7
#define O_NONBLOCK 04000
#define CONNECTIONS 65536 /* two ends each; further ones are plain TCP */
#define HANDSHAKES 4096 /* under way at the same time */
/* Redirected messages that may wait for a reader: each costs the kernel about a kilobyte
 * whatever its size, which no socket buffer is charged for.
 */
#define MOST_WAITING 512

char LICENSE[] SEC("license") = "GPL";

const volatile __u16 local_port; /* the server's port, in host byte order */
const volatile __u64 local_netns; /* cookie of the server's network namespace */

/* A connection as its active end has it, with both initial sequence numbers: two sockets that
 * agree in all of it talk to each other, in whichever network namespaces they are.
 */
struct connection {
	__u32 source[4], destination[4];
	__u32 source_port, destination_port; /* host byte order */
	__u32 source_seq, destination_seq;
};

/* An end of a paired connection. */
struct end {
	__u64 peer; /* cookie of the other end's socket, its key in local_sockets */
	__u64 peer_sock; /* its struct sock, believed only while it has that cookie */
	__u32 waiting; /* messages redirected since the peer's queue was last seen empty */
	__u8 client; /* whether this end is the client's */
	__u8 blocked; /* whether the peer was seen to read with blocking calls */
	__u16 splices; /* whether the peer reads by splice() */
};

/* The active end, while the passive one is not yet established. */
struct caller {
	__u64 cookie, sock;
};

struct {
	__uint(type, BPF_MAP_TYPE_SOCKHASH);
	__uint(max_entries, 2 * CONNECTIONS);
	__type(key, __u64);
	__type(value, __u64);
} local_sockets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 2 * CONNECTIONS);
	__type(key, __u64);
	__type(value, struct end);
} local_ends SEC(".maps");

/* Handshakes whose SYN came to a listener on this host: tuples without sequence numbers. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, HANDSHAKES);
	__type(key, struct connection);
	__type(value, __u8);
} local_syns SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, HANDSHAKES);
	__type(key, struct connection);
	__type(value, struct caller);
} local_callers SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct fs_local);
} local_page SEC(".maps");

static __always_inline struct fs_local *page(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&local_page, &zero);
}

static __always_inline void count(__u64 *counter)
{
	__sync_fetch_and_add(counter, 1);
}

/* The connection of a socket; `active` says whether the socket called or was called. */
static __always_inline void describe(const struct bpf_sock_ops *ctx, struct connection *c,
				     int active)
{
	__u32 local = ctx->local_port, remote = bpf_ntohl(ctx->remote_port);
	__u32 *mine = active ? c->source : c->destination;
	__u32 *theirs = active ? c->destination : c->source;

	if (ctx->family == AF_INET6) {
		mine[0] = ctx->local_ip6[0];
		mine[1] = ctx->local_ip6[1];
		mine[2] = ctx->local_ip6[2];
		mine[3] = ctx->local_ip6[3];
		theirs[0] = ctx->remote_ip6[0];
		theirs[1] = ctx->remote_ip6[1];
		theirs[2] = ctx->remote_ip6[2];
		theirs[3] = ctx->remote_ip6[3];
	}
	/* A socket for both families has IPv4 addresses mapped into IPv6: as IPv4 sees them. */
	if (ctx->family == AF_INET ||
	    (mine[0] == 0 && mine[1] == 0 && mine[2] == bpf_htonl(0xffff))) {
		mine[0] = mine[1] = theirs[0] = theirs[1] = 0;
		mine[2] = theirs[2] = bpf_htonl(0xffff);
		mine[3] = ctx->local_ip4;
		theirs[3] = ctx->remote_ip4;
	}
	c->source_port = active ? local : remote;
	c->destination_port = active ? remote : local;
}

/* The peer's socket is known by a number. Where the kernel makes a pointer of it that may be read
 * like its own, a message costs less than with a helper's call for every field. Since
 * Linux commit a35b9af4ec2c ("bpf: Add a kfunc for generic type cast") (in v6.2).
 */
#ifdef LOCAL_CAST
extern void *bpf_rdonly_cast(const void *obj, __u32 btf_id) __ksym;
#define PEER(number)                                          \
	((struct tcp_sock *)bpf_rdonly_cast((void *)(number), \
					    bpf_core_type_id_kernel(struct tcp_sock)))
#define READ(from, member) ((from)->member)
#else
#define PEER(number) ((struct tcp_sock *)(number))
#define READ(from, member) BPF_CORE_READ(from, member)
#endif

/* Whether the process that has the socket waits when it reads. */
static __always_inline int blocks(struct socket *socket)
{
	struct file *file = READ(socket, file);

	return !(READ(file, f_flags) & O_NONBLOCK);
}

/* Put the socket into the map, unless something stands on TCP that it would break (TLS, MPTCP),
 * or a client waits in its calls; whether the server does is seen when it has accepted.
 */
static __always_inline struct tcp_sock *take(struct bpf_sock_ops *ctx, __u64 *cookie, int client)
{
	struct bpf_sock *sk = ctx->sk;
	struct tcp_sock *tp;

	if (!sk)
		return NULL;
	tp = bpf_skc_to_tcp_sock(sk);
	if (!tp || tp->inet_conn.icsk_ulp_ops)
		return NULL;
	if (client && blocks(tp->inet_conn.icsk_inet.sk.sk_socket))
		return NULL;
	*cookie = bpf_get_socket_cookie(ctx);
	if (bpf_sock_hash_update(ctx, &local_sockets, cookie, BPF_NOEXIST))
		return NULL;
	return tp;
}

/* A SYN has come to a listener here. */
static __always_inline void called(struct bpf_sock_ops *ctx)
{
	struct connection c = {};
	__u8 one = 1;

	describe(ctx, &c, 0);
	bpf_map_update_elem(&local_syns, &c, &one, BPF_ANY);
}

static __always_inline void active_end(struct bpf_sock_ops *ctx)
{
	struct connection c = {};
	struct caller caller = {};
	struct tcp_sock *tp;

	describe(ctx, &c, 1);
	if (bpf_map_delete_elem(&local_syns, &c))
		return; /* the listener is elsewhere, or its addresses are translated */
	tp = take(ctx, &caller.cookie, 1);
	if (!tp)
		return;
	caller.sock = (__u64)tp;
	c.source_seq = ctx->snd_nxt;
	c.destination_seq = ctx->rcv_nxt;
	bpf_map_update_elem(&local_callers, &c, &caller, BPF_ANY);
	bpf_sock_ops_cb_flags_set(ctx, BPF_SOCK_OPS_STATE_CB_FLAG);
}

static __always_inline void passive_end(struct bpf_sock_ops *ctx, struct fs_local *local)
{
	struct end mine = {}, theirs = {};
	struct connection c = {};
	struct caller *caller;
	struct tcp_sock *tp;

	describe(ctx, &c, 0);
	c.source_seq = ctx->rcv_nxt;
	c.destination_seq = ctx->snd_nxt;
	caller = bpf_map_lookup_elem(&local_callers, &c);
	if (!caller)
		return;
	mine.peer = caller->cookie;
	mine.peer_sock = caller->sock;
	theirs.client = 1;
	bpf_map_delete_elem(&local_callers, &c);
	tp = take(ctx, &theirs.peer, 0);
	if (!tp)
		return;
	theirs.peer_sock = (__u64)tp;
	bpf_sock_ops_cb_flags_set(ctx, BPF_SOCK_OPS_STATE_CB_FLAG);
	if (bpf_map_update_elem(&local_ends, &theirs.peer, &mine, BPF_ANY))
		return;
	if (bpf_map_update_elem(&local_ends, &mine.peer, &theirs, BPF_ANY))
		return;
	count(&local->connections);
}

SEC("sockops")
int fs_local_establish(struct bpf_sock_ops *ctx)
{
	struct fs_local *local = page();
	__u64 cookie;

	if (!local)
		return 1;
	switch (ctx->op) {
	case BPF_SOCK_OPS_RWND_INIT:
		if (!local->off && ctx->local_port == local_port && !ctx->is_fullsock &&
		    bpf_get_netns_cookie(ctx) == local_netns)
			called(ctx);
		break;
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
		if (!local->off && ctx->remote_port == bpf_htonl(local_port))
			active_end(ctx);
		break;
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		if (!local->off && ctx->local_port == local_port)
			passive_end(ctx, local);
		break;
	case BPF_SOCK_OPS_STATE_CB:
		if (ctx->args[1] != TCP_CLOSE)
			break;
		cookie = bpf_get_socket_cookie(ctx);
		bpf_map_delete_elem(&local_ends, &cookie);
		break;
	}
	return 1; /* the reply stays: it is the kernel's, or another program's */
}

SEC("sk_msg")
int fs_local_send(struct sk_msg_md *msg)
{
	struct fs_local *local = page();
	struct tcp_sock *own, *peer;
	struct socket *socket;
	struct sock *sk;
	struct end *end;
	int queued, room;
	__u64 cookie;

	if (!local || !msg->sk)
		return SK_PASS;
	own = bpf_skc_to_tcp_sock(msg->sk);
	if (!own)
		return SK_PASS;
	cookie = own->inet_conn.icsk_inet.sk.__sk_common.skc_cookie.counter;
	end = bpf_map_lookup_elem(&local_ends, &cookie);
	if (!end)
		return SK_PASS;
	peer = PEER(end->peer_sock);
	sk = &peer->inet_conn.icsk_inet.sk;
	if (local->off || end->splices || own->inet_conn.icsk_ulp_ops || !plain_send())
		goto pass;
	if (READ(sk, __sk_common.skc_cookie.counter) != end->peer ||
	    READ(peer, copied_seq) != own->write_seq || READ(peer, inet_conn.icsk_ulp_ops))
		goto pass;
	socket = READ(sk, sk_socket);
	if (!socket)
		goto pass; /* not accepted yet */
	if (blocks(socket)) {
		/* A blocking call on a socket in a map ends with EAGAIN at a signal, which a server
		 * need not expect. Some servers make a socket non-blocking right after they have
		 * accepted it, so only one counts that has taken the piece before this one, too.
		 */
		if (end->client && end->blocked)
			local->off = FS_LOCAL_SERVER_BLOCKS;
		end->blocked = 1;
		goto pass;
	}
	queued = READ(sk, sk_backlog.rmem_alloc.counter);
	room = READ(sk, sk_rcvbuf) - queued;
	if (!queued)
		end->waiting = 0;
	if ((int)msg->size > room || end->waiting++ >= MOST_WAITING)
		goto pass;
	cookie = end->peer;
	if (bpf_msg_redirect_hash(msg, &local_sockets, &cookie, BPF_F_INGRESS) != SK_PASS)
		goto pass;
	count(&local->redirected);
	return SK_PASS;
pass:
	count(&local->passed);
	return SK_PASS;
}

/* splice() reads past what was redirected: its socket gets nothing more that way. What the number
 * belongs to may be no socket; then what was read is no cookie of one that we know.
 */
static __always_inline int splices(struct sock *sk)
{
	struct fs_local *local = page();
	struct end *end, *sender;
	__u64 cookie = BPF_CORE_READ(sk, __sk_common.skc_cookie.counter);

	end = bpf_map_lookup_elem(&local_ends, &cookie);
	if (!end || !local)
		return 0;
	sender = bpf_map_lookup_elem(&local_ends, &end->peer);
	if (!sender || sender->peer_sock != (__u64)sk || sender->splices)
		return 0;
	sender->splices = 1;
	count(&local->spliced);
	return 0;
}

/* Costs nobody else anything; where the kernel has no BPF trampolines there is the next one. */
SEC("fentry/tcp_splice_read")
int fs_local_splice(__u64 *ctx)
{
	return splices(BPF_CORE_READ((struct socket *)ctx[0], sk));
}

/* All system calls come by here; the tracepoint of splice() alone would need tracefs and costs the
 * others the same.
 */
SEC("raw_tracepoint/sys_enter")
int fs_local_splice_call(struct bpf_raw_tracepoint_args *ctx)
{
	struct file **table, *file = NULL;
	struct task_struct *task;
	struct socket *socket;
	__u32 fd;

	if (bpf_core_field_exists(struct pt_regs___x86, orig_ax)) {
		if (ctx->args[1] != X86_SPLICE)
			return 0;
		fd = BPF_CORE_READ((struct pt_regs___x86 *)ctx->args[0], di);
	} else {
		if (ctx->args[1] != ARM64_SPLICE)
			return 0;
		fd = BPF_CORE_READ((struct pt_regs___arm64 *)ctx->args[0], regs[0]);
	}
	task = (struct task_struct *)bpf_get_current_task();
	if (fd >= BPF_CORE_READ(task, files, fdt, max_fds))
		return 0;
	table = BPF_CORE_READ(task, files, fdt, fd);
	bpf_probe_read_kernel(&file, sizeof(file), table + fd);
	socket = BPF_CORE_READ(file, private_data);
	return splices(BPF_CORE_READ(socket, sk));
}

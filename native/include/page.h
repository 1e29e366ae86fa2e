/* SPDX-License-Identifier: GPL-2.0-or-later OR LGPL-2.1-or-later */
/*
 * The status page: one mmapable BPF array element (or anonymous memory, without BPF) that an
 * application's processes, the select program, the keeper and observers share.
 *
 * Each field has one writer, named beside it: "shim" is the owning worker, "lock" any shim
 * that holds the listener's lock, "program" the select program, "keeper" the keeper. The
 * select program masks every index and believes nothing else either: a page that was
 * scribbled over can only misdirect the application that it belongs to.
 *
 * src/fastsocket/listen/layout.py is the Python side; tests/unit/test_layout.py holds the two
 * together through the BTF of select.bpf.o.
 */
#ifndef FASTSOCKET_PAGE_H
#define FASTSOCKET_PAGE_H

#include <linux/types.h>

#define FS_PAGE_MAGIC 0x46534f434b504731ULL /* "FSOCKPG1" */
#define FS_PAGE_VERSION 4

#define FS_MAX_LISTENERS 64
#define FS_MAX_SLOTS 256 /* per listener; a power of two, used as a mask */
#define FS_MAX_WORKERS 1024
#define FS_MAX_PROCESSES 1024
#define FS_MAX_CPUS 1024 /* a power of two, used as a mask */

#define FS_NO_CPU 0xffffffffu

/* How connections reach the slots. */
enum fs_tier {
	FS_TIER_NONE, /* no BPF at all: the application's own socket, as without us */
	FS_TIER_CLASSIC, /* classic BPF: slot by CPU */
	FS_TIER_SELECT, /* sk_reuseport program: by CPU, load and state */
	FS_TIER_MIGRATE, /* the same, and a closed slot's queue moves to the others */
};

enum fs_policy {
	FS_POLICY_LOCAL, /* this CPU's slot first */
	FS_POLICY_SPREAD, /* the least loaded slot */
	FS_POLICY_HASH, /* the kernel's hash */
};

enum fs_slot_state {
	FS_SLOT_FREE, /* no socket */
	FS_SLOT_CLAIMED, /* a worker polls its socket */
	FS_SLOT_PAUSED, /* its worker lives and has taken it out of its poll set */
	FS_SLOT_ORPHAN, /* its worker is gone, the socket still listens and may hold a queue */
};

/* Whether the others may accept what waits for a late worker. */
enum fs_help {
	FS_HELP_NONE,
	FS_HELP_EVENLY, /* connections that last only by a worker that has fewer of them */
	FS_HELP_ALWAYS,
};

/* Whether a worker's epoll_ctl calls wait for its next wait. */
enum fs_fast_epoll {
	FS_FAST_EPOLL_OFF, /* not asked for */
	FS_FAST_EPOLL_ON,
	FS_FAST_EPOLL_THREADS, /* its process has several threads */
	FS_FAST_EPOLL_SHARED, /* its process forked, or began a program, when it had its epoll instance */
};

enum fs_pinned {
	FS_PINNED_NOT = 0, /* by Fastsocket */
	FS_PINNED_YES = 1,
	FS_PINNED_NO_MORE = 2, /* other threads of its process do much of the work */
};

/* One thread that polls; one cache line, written by that thread alone. */
struct fs_worker {
	__u64 busy_since; /* shim: CLOCK_MONOTONIC in ns of the last return from a wait, 0 = polling */
	__u64 waits; /* shim: waits begun */
	__u64 start; /* lock: start time of the process in clock ticks after boot, against reused pids */
	__u32 pid; /* lock: process, 0 = entry free */
	__u32 tid; /* lock: thread */
	__u32 cpu; /* lock: CPU that it runs on, FS_NO_CPU if not pinned */
	__u32 pinned; /* lock: enum fs_pinned */
	__u64 opened; /* shim: connections whose port is of its CPU's slice */
	__u64 borrowed; /* shim: connections that found no port there */
	__u32 merged; /* shim: epoll_ctl calls that fast epoll did not make */
	__u32 fast_epoll; /* shim: enum fs_fast_epoll */
} __attribute__((aligned(64)));

/* One listening socket of a listener. */
struct fs_slot {
	/* line 1: owner */
	__u64 cookie; /* lock: SO_COOKIE of the socket */
	__u64 accepted; /* shim: connections accepted */
	__u32 live; /* shim: accepted and not yet closed */
	__u32 state; /* lock: enum fs_slot_state */
	__u32 worker; /* lock: index into fs_page.workers */
	__u32 cpu; /* lock: CPU that it serves, FS_NO_CPU if none */
	__u32 next; /* lock: 1 + next slot of the same CPU, 0 = last */
	__u32 order; /* lock: place in the kernel's reuseport group (classic tier) */
	__u32 shared; /* lock: 1 if other processes hold the socket too, so that it outlives its worker */
	__u32 published; /* lock: 1 if the select program can choose the socket */
	__u32 own; /* lock: 1 if the application opened the socket, 0 for a sibling of ours */
	__u32 fd; /* lock: its number where it was opened, and in children of that process */
	__u64 settled; /* shim: assigned and not accepted, yet not in the queue: never completed */
	/* line 2: what the program knows */
	__u64 assigned; /* program: connections sent here */
	__u64 spilled; /* program: of these, from another CPU than the slot's */
	__u64 seen_accepted; /* program: `accepted` at the last look */
	__u64 seen_at; /* program: when `accepted` last moved or the queue was empty, in ns */
	__u32 epoch; /* program: number of the window that `window` counts */
	__u32 patience; /* program: how long its worker may be busy, in 2^-16 of stall_ns; 0 = not known */
	__u32 window; /* program: connections sent here in this window */
	__u32 quota; /* program: how many it may have before the mean is computed again */
	__u32 judged; /* program: when the worker went that was last found late, see select.bpf.c */
	__u16 help; /* program: enum fs_help, connections wait here for too long; shim: none do */
	__u16 forked; /* shim: 1 if its worker has forked since, so that a child may poll it too */
	__u32 before; /* program: connections sent here in the window before */
	__u32 left_in; /* lock: of an orphan: process in which its thread ended, 0 if that is gone */
} __attribute__((aligned(64)));

/* What lean connections may do without; bits of fs_lean.on by number. */
enum fs_means {
	FS_MEANS_DEFER, /* no wake-up before the request is there: TCP_DEFER_ACCEPT */
	FS_MEANS_HOLD, /* the answer and FIN in one segment: MSG_MORE */
	FS_MEANS_ACK, /* no lone ACK of a request: TCP_QUICKACK off */
};

#define FS_MEANS 3

/* What a connection did that a means cannot be used with. */
enum fs_contradiction {
	FS_NOTHING,
	FS_SPOKE_FIRST, /* the application wrote before it read */
	FS_WAITED, /* it waited, and the connection was left open or unanswered */
	FS_SLEPT, /* it called what may sleep between the answer and the close */
	FS_WAS_SLOW, /* without a call that we know it took long between the two */
	FS_READ_ON, /* it read from the connection again */
	FS_SHARED, /* another descriptor or process had the connection too */
	FS_SET_OPTION, /* it chose the socket's behaviour itself */
	FS_VARIED, /* it closed after another number of answers than before */
};

struct fs_lean_means {
	__u32 proof; /* shim: connections in a row that would allow the means */
	__u32 need; /* shim: how many are needed, 0 = FS_LEAN_PROOF */
	__u32 drops; /* shim: times that it was on and dropped */
	__u32 reason; /* shim: enum fs_contradiction, the last */
};

#define FS_LEAN_PROOF 64
#define FS_LEAN_MOST_PROOF 4096 /* each time it is dropped, a means needs eight times the proof */
#define FS_LEAN_NEVER 0xffffffffu /* as `need`: not again before the workers are new */

/* What was learned of a listener's connections; one cache line, written while learning. */
struct fs_lean {
	struct fs_lean_means means[FS_MEANS];
	__u32 on; /* shim: means in use, a bit for each; above them `exchange` of FS_MEANS_HOLD */
	__u32 own; /* shim: means that the application chose itself */
	__u32 exchange; /* shim: after how many answers the last connection was closed */
	__u32 pad;
} __attribute__((aligned(64)));

/* One address and port that the application listens on. */
struct fs_listener {
	__u64 generation; /* keeper: of the select program made for it; 0 = entry free */
	__u32 lock; /* shim: pid of the holder, 0 = free */
	__u32 slots; /* lock: 1 + highest slot ever used */
	__u32 claimed; /* lock: slots in state FS_SLOT_CLAIMED */
	__u32 tier; /* keeper or shim: enum fs_tier */
	__u32 group; /* lock: sockets in the kernel's reuseport group (classic tier) */
	__u16 family; /* keeper: AF_INET or AF_INET6 */
	__u16 port; /* keeper: host byte order */
	__u8 address[16]; /* keeper: network byte order */
	__u32 unslotted; /* shim: workers that share another's socket because no slot could be had */
	__u32 reason; /* shim: errno of the last slot that could not be had */
	__u32 help; /* program and shim: 1 if some slot's queue should be helped with */
	__u32 backlog; /* lock: of the application's last listen() */
	__u32 by_live; /* program: 1 while connections last, so that the live ones are the load */
	__u32 stolen; /* shim: connections accepted from another worker's slot */
	__u64 late_cookie; /* keeper or shim: SO_COOKIE of the socket whose SO_REUSEPORT we set */
	__u64 lent_cookie; /* keeper: SO_COOKIE of the socket that outlives the application */
	__u64 passed; /* program: no slot could be chosen, left to the kernel's hash */
	__u64 past_assigned; /* lock: `assigned` of slots that were used before for other sockets */
	__u64 past_spilled; /* lock: `spilled` of those */
	__u16 cpu_slot[FS_MAX_CPUS]; /* lock: 1 + first slot of the CPU, 0 = none */
	struct fs_lean lean;
	struct fs_slot slot[FS_MAX_SLOTS];
} __attribute__((aligned(64)));

struct fs_page {
	__u64 magic; /* keeper */
	__u32 version; /* keeper */
	__u32 size; /* keeper: sizeof(struct fs_page) */
	__u32 policy; /* keeper: enum fs_policy */
	__u32 listen_spawn; /* keeper: 0, 1 or 2 as in the 2014 module */
	__u64 stall_ns; /* keeper: a worker busy for longer gets no new connections, if not for less */
	__u32 slack; /* keeper: percent that a slot may be above the mean of a window */
	__u32 spare_slots; /* keeper: siblings to bind before a fork or a change of user */
	__u32 cpus; /* keeper: entries used in cpu_order */
	__u32 worker_lock; /* shim: pid of the holder, 0 = free */
	__u32 keeper; /* keeper: its pid; shim: of the one that it starts in place of a dead one */
	__u32 forks; /* shim: processes that were about to be forked */
	__u32 born; /* shim: of these, those that have registered themselves */
	__u16 cpu_order[FS_MAX_CPUS]; /* keeper: CPUs to fill, physical cores first */
	__u32 process[FS_MAX_PROCESSES]; /* shim: processes that share the page; keeper: forgets the dead */
	__u32 lean; /* shim: means that workers may use, a bit for each; 0 = no lean connections */
	__u32 busy_poll_us; /* keeper: how long waits look before they sleep, 0 = not at all */
	__u32 polled; /* shim: waits that found events so, as each thread adds some at once */
	struct fs_worker worker[FS_MAX_WORKERS];
	struct fs_listener listener[FS_MAX_LISTENERS];
} __attribute__((aligned(64)));

#endif

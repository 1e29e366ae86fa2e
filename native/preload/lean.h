/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Lean connections: what the wrappers ask on their way. The paths that every connection takes
 * are here; whatever happens once in a listener's life is in lean.c.
 *
 * A thread has at most a few open promises at a time: connections whose last answer the kernel
 * holds back, and connections whose request was read and neither answered nor acknowledged.
 * They are kept before the thread does anything that can sleep.
 */
#ifndef FASTSOCKET_LEAN_H
#define FASTSOCKET_LEAN_H

#include "fsocket.h"

/* Bits of fd_entry.lean. */
enum lean_bits {
	LEAN_READ = 1, /* the application has read from it */
	LEAN_WROTE = 2, /* it has answered */
	LEAN_HELD = 4, /* the kernel holds the end of the answer back */
	LEAN_OWED = 8, /* the request is not acknowledged */
	LEAN_PLAIN = 16, /* does as it likes: nothing of ours any more */
	LEAN_CORKED = 32, /* the application set TCP_CORK */
	LEAN_POLLED = 64, /* of a client: it waits for the connection to be writable */
	LEAN_LEVEL = 128, /* and would be told so again and again */
};

#define LEAN_OPEN (LEAN_HELD | LEAN_OWED)
#define LEAN_MOST 128 /* connections that one thread has promises for */
#define LEAN_CLIENTS 64 /* connections that it opened and has not written to */

struct lean_thread {
	uint16_t turn; /* blocking waits so far */
	uint16_t count; /* entries of `fd` in use, fulfilled ones among them */
	int watch; /* writes that are still measured */
	unsigned measured; /* writes that ever were */
	int blames; /* how often, by weight, the application was slow after these */
	uint64_t cpu_us; /* CPU time of the thread at the last of them */
	uint64_t sleeps; /* times that it had slept by then */
	int fd[LEAN_MOST];
	unsigned clients; /* entries of `client` in use */
	int client[LEAN_CLIENTS];
};

extern __thread struct lean_thread lean_thread;
extern uint16_t lean_spawns; /* forks and execs: what was open then is shared from then on */

/* lean.c */
void lean_release_all(enum fs_contradiction why);
void lean_release(struct fd_entry *entry, int fd, enum fs_contradiction why);
void lean_make_room(void);
void lean_judge_answer(struct fd_entry *entry);
void lean_judge_close(struct fd_entry *entry, int fd, int last);
void lean_was_slow(struct fd_entry *entry);
void lean_measure(void);
void lean_before_io(int fd, int writes);
void lean_shared(int fd);
void lean_apply(struct listener *l);
void lean_relearn(struct listener *l, struct fs_listener *pl);
void lean_listener_option(struct listener *l, int level, int name, const void *value,
			  socklen_t len);
int lean_option(struct fd_entry *entry, int fd, int level, int name, const void *value,
		socklen_t len);
void lean_spawn(void);
void lean_start(void);

/* lean_client.c */
extern int lean_wanted;
void lean_client_writes(struct fd_entry *entry);
void lean_client_reads(struct fd_entry *entry, int fd);
void lean_client_polls(struct fd_entry *entry, int fd, int polls, unsigned events);
void lean_clients_wait(void);

static inline uint64_t lean_ticks(void)
{
#if defined(__x86_64__)
	return __builtin_ia32_rdtsc();
#elif defined(__aarch64__)
	uint64_t ticks;

	__asm__ volatile("mrs %0, cntvct_el0" : "=r"(ticks));
	return ticks;
#else
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000ULL + now.tv_nsec;
#endif
}

static inline struct fs_lean *lean_of(const struct fd_entry *entry)
{
	return &fs_page->listener[entry->listener & (FS_MAX_LISTENERS - 1)].lean;
}

static inline int lean_is_on(const struct fs_lean *lean, enum fs_means means)
{
	return __atomic_load_n(&lean->on, __ATOMIC_RELAXED) >> means & 1;
}

extern uint64_t lean_slow_ticks;

/* Whether the application took long since it wrote, without a wait: it computes, or sleeps in
 * a call that is not ours.
 */
static inline int lean_is_slow(const struct fd_entry *entry)
{
	return lean_ticks() - entry->at > lean_slow_ticks;
}

/* The entry of a connection that is watched, else NULL. */
static inline struct fd_entry *lean_connection(int fd)
{
	struct fd_entry *entry = fd_entry(fd);

	return unlikely(entry->kind == FD_CONNECTION) && !(entry->lean & LEAN_PLAIN) ? entry : NULL;
}

/* Before anything that can sleep. */
static inline void lean_may_sleep(enum fs_contradiction why)
{
	if (unlikely(lean_thread.count))
		lean_release_all(why);
}

/* Before a wait for events; one that only looks leaves everything as it is. */
static inline void lean_wait_begins(int blocks)
{
	if (blocks) {
		lean_thread.turn++;
		if (unlikely(lean_thread.clients))
			lean_clients_wait();
		lean_may_sleep(FS_WAITED);
	}
}

/* Before a write to `fd`, which may sleep if it is another than the promises'. */
static inline void lean_write_begins(int fd)
{
	struct fd_entry *entry = fd_entry(fd);

	if (unlikely(entry->kind == FD_CLIENT))
		lean_client_writes(entry);
	if (unlikely(lean_thread.count) && !(lean_thread.count == 1 && lean_thread.fd[0] == fd))
		lean_before_io(fd, 1);
}

/* Before a read from `fd`: the same, and the thread with its promise may be another. */
static inline void lean_read_begins(int fd)
{
	struct fd_entry *entry = fd_entry(fd);

	if (unlikely(entry->kind == FD_CLIENT))
		lean_client_reads(entry, fd);
	if (unlikely(lean_thread.count ||
		     (entry->kind == FD_CONNECTION && entry->lean & LEAN_OPEN)))
		lean_before_io(fd, 0);
}

/* Note that `fd` has a promise. */
static inline void lean_promise(int fd)
{
	if (unlikely(lean_thread.count >= LEAN_MOST))
		lean_make_room();
	lean_thread.fd[lean_thread.count++] = fd;
}

/* After a read from a watched connection. */
static inline void lean_was_read(struct fd_entry *entry, int fd)
{
	if (entry->lean & LEAN_READ)
		return;
	entry->lean |= LEAN_READ;
	entry->turn = lean_thread.turn;
	if (lean_is_on(lean_of(entry), FS_MEANS_ACK)) {
		entry->lean |= LEAN_OWED;
		lean_promise(fd);
	}
}

/* After any read, with its result; a client that left without a request says nothing. */
static inline ssize_t lean_done_reading(int fd, ssize_t result)
{
	struct fd_entry *entry = lean_connection(fd);

	if (entry && result > 0)
		lean_was_read(entry, fd);
	else if (entry && result == 0 && !(entry->lean & LEAN_READ))
		entry->lean = LEAN_PLAIN;
	return result;
}

/* Before a write to a watched connection: whether the kernel is to hold its end back. */
static inline int lean_wants_hold(struct fd_entry *entry)
{
	const struct fs_lean *lean = lean_of(entry);
	unsigned exchange = entry->exchange;

	if (!lean_is_on(lean, FS_MEANS_HOLD) || !(entry->lean & LEAN_READ) ||
	    entry->lean & LEAN_CORKED || entry->spawns != lean_spawns)
		return 0;
	exchange += !exchange || entry->turn != lean_thread.turn;
	return exchange == lean->exchange;
}

/* After a write of at least a byte; `held` as it was done. */
static inline void lean_was_written(struct fd_entry *entry, int fd, int held)
{
	const unsigned settled = 1u << FS_MEANS_DEFER | 1u << FS_MEANS_ACK;
	uint8_t before = entry->lean;

	if (!(before & LEAN_WROTE) &&
	    unlikely(!(before & LEAN_READ) || entry->turn != lean_thread.turn ||
		     (lean_of(entry)->on & settled) != settled))
		lean_judge_answer(entry);
	if (!entry->exchange || entry->turn != lean_thread.turn)
		entry->exchange += entry->exchange < UINT8_MAX;
	else if (unlikely(lean_is_slow(entry)))
		lean_was_slow(entry);
	entry->lean = (before & ~LEAN_OPEN) | LEAN_WROTE | (held ? LEAN_HELD : 0);
	entry->turn = lean_thread.turn;
	entry->at = lean_ticks();
	if (unlikely(lean_thread.watch))
		lean_measure();
	if (held && !(before & LEAN_OPEN))
		lean_promise(fd);
}

/* Before a watched connection is closed (`last`) or shut down for writing. */
static inline void lean_closing(struct fd_entry *entry, int fd, int last)
{
	if (entry->lean & (LEAN_READ | LEAN_WROTE))
		lean_judge_close(entry, fd, last);
}

#endif

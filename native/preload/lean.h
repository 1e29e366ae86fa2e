/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Lean connections: what the wrappers ask on their way. libfsocket.so is built with FS_LEAN and has
 * lean*.c; in libfsocket-plain.so all of this is empty.
 *
 * A thread has at most a few open promises at a time: connections whose last answer the kernel
 * holds back, and connections whose request was read and neither answered nor acknowledged.
 * They are kept before the thread does anything that can sleep.
 *
 * The short way is for a listener that has learned all: a request is read, answered at once and
 * the connection closed. It is inline and reads no shared memory. Everything else is cold.
 */
#ifndef FASTSOCKET_LEAN_H
#define FASTSOCKET_LEAN_H

#include <errno.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "fsocket.h"

#ifndef FS_LEAN

#define lean_start() ((void)0)
#define lean_connect(fd, addr, len, next) (next)(fd, addr, len, 0)
#define lean_spawn() ((void)0)
#define lean_begins() ((void)0)
#define lean_shared(fd) ((void)(fd))
#define lean_relearn(l, pl) ((void)(l), (void)(pl))
#define lean_opened(entry, l, pl) ((void)(entry), (void)(l), (void)(pl))
#define lean_ends(entry, fd) 0
#define lean_closing(entry, fd) ((void)(entry), (void)(fd))
#define lean_shutting(fd, how) ((void)(fd), (void)(how))
#define lean_takes_option(fd, level, name, value, len) 0
#define lean_listener_option(l, level, name, value, len) ((void)(l))
#define lean_accepting(fd) ((void)(fd))
#define lean_read_begins(fd) ((void)(fd))
#define lean_read_ends(fd, result) (result)
#define lean_polls(fd, op, event) ((void)(fd), (void)(op), (void)(event))
#define lean_number_ends(entry) ((void)(entry))
#define lean_client_ends(entry, fd) ((void)(entry), (void)(fd))
#define lean_wait_begins(blocks) ((void)(blocks))
#define lean_may_sleep(why) ((void)(why))

#else

/* Bits of fd_entry.lean. */
enum lean_bits {
	LEAN_READ = 1, /* the application has read from it */
	LEAN_WROTE = 2, /* it has answered */
	LEAN_HELD = 4, /* the kernel holds the end of the answer back */
	LEAN_OWED = 8, /* the request is not acknowledged */
	LEAN_PLAIN = 16, /* does as it likes: nothing of ours any more */
	LEAN_CORKED = 32, /* the application set TCP_CORK */
	LEAN_POLLED = 64, /* of a client, or of what may become one: it waits to be writable */
	LEAN_LEVEL = 128, /* and would be told so again and again */
};

#define LEAN_OPEN (LEAN_HELD | LEAN_OWED)
#define LEAN_MOST 64 /* connections that one thread has promises for */
#define LEAN_CLIENTS 32 /* connections that it opened and has not written to */
#define LEAN_ODD_FLAGS (MSG_OOB | MSG_EOR | MSG_ZEROCOPY | MSG_MORE)
#define LEAN_ALL ((1u << FS_MEANS) - 1)
#define LEAN_PLAN (~(1u << FS_MEANS_DEFER)) /* of fs_lean.on, in fd_entry.plan */
#define LEAN_MOST_ANSWERS 4 /* a connection that goes on is no short one */

/* What a thread has promised. `only` says it all while there is nothing, or just one promise. */
struct lean_thread {
	struct fd_entry *only; /* NULL, the connection with the only promise, or LEAN_MANY */
	uint16_t turn; /* blocking waits so far */
	/* where `only` is LEAN_MANY */
	uint8_t count; /* entries of `fd` in use, fulfilled ones among them */
	uint8_t clients; /* entries of `client` in use */
	uint8_t watch; /* writes that are still measured */
	int fd[LEAN_MOST];
	int client[LEAN_CLIENTS];
	/* while measuring */
	unsigned measured; /* writes that ever were */
	int blames; /* how often, by weight, the application was slow after these */
	uint64_t cpu_us; /* CPU time of the thread at the last of them */
	uint64_t sleeps; /* times that it had slept by then */
};

#define LEAN_MANY ((struct fd_entry *)-1L)

#pragma GCC visibility push(hidden)

extern __thread struct lean_thread lean_thread;
extern uint16_t lean_spawns; /* forks and execs: what was open then is shared from then on */
extern uint16_t lean_born; /* lean_spawns when this process began */
extern uint32_t lean_slow_ticks;
extern uint32_t lean_allowed; /* means that may be used, a bit for each */
extern int lean_fast_open;

/* lean.c: promises */
void lean_release(struct fd_entry *entry, int fd, enum fs_contradiction why);
void lean_release_all(enum fs_contradiction why);
void lean_promise(int fd);
void lean_forget(int fd);
void lean_unfold(void);
void lean_fold(void);
void lean_before_io(int fd, int writes);
void lean_before_wait(void);
void lean_shared(int fd);
void lean_spawn(void);
int lean_option(struct fd_entry *entry, int fd, int level, int name, const void *value,
		socklen_t len);

/* lean_learn.c: what becomes of the means */
void lean_allow(void);
void lean_affirm(struct fs_lean *lean, enum fs_means means);
void lean_contradict(struct fs_lean *lean, enum fs_means means, enum fs_contradiction why);
void lean_catch_up(struct listener *l, struct fd_entry *entry);
void lean_relearn(struct listener *l, struct fs_listener *pl);
void lean_listener_option(struct listener *l, int level, int name, const void *value,
			  socklen_t len);

/* lean_judge.c: how a connection goes */
void lean_read_begins(int fd);
ssize_t lean_read_ends(int fd, ssize_t result);
int lean_write_begins(int fd, int flags);
int lean_wants_hold(struct fd_entry *entry);
ssize_t lean_write_ends(int fd, ssize_t result, int held);
void lean_judge_close(struct fd_entry *entry, int fd, int last);

/* lean_slow.c */
void lean_start(void);
void lean_measure(void);
int lean_slowness(const struct fd_entry *entry);

/* lean_client.c */
int lean_connect(int fd, const struct sockaddr *addr, socklen_t len,
		 int (*next)(int, const struct sockaddr *, socklen_t, int is_tcp));
void lean_client_wrote(struct fd_entry *entry, int fd);
void lean_client_reads(struct fd_entry *entry, int fd);
void lean_client_ends(struct fd_entry *entry, int fd);
void lean_client_polls(struct fd_entry *entry, int fd, int polls, unsigned events);
void lean_clients_wait(void);
void lean_clients_spawn(void);

#pragma GCC visibility pop

/* This process was forked. */
static inline void lean_begins(void)
{
	lean_born = lean_spawns;
}

/* Whether this is a child that begins without its fork being told, by vfork() or clone(). Nobody asks the
 * kernel where there never was one.
 */
static inline int lean_is_child(void)
{
	return unlikely(lean_spawns != lean_born) && getpid() != fs_pid;
}

/* A clock that is quick to read; fd_entry.at has its lower half, which wraps around in a second. */
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

/* Whether that is the state of a connection whose listener has learned all; compared at once. */
static inline int lean_stands(const struct fd_entry *entry, uint8_t bits, uint8_t exchange)
{
	const struct fd_entry wanted = {.kind = FD_CONNECTION,
					.plan = (LEAN_ALL & LEAN_PLAN) | 1u << FS_MEANS,
					.lean = bits,
					.exchange = exchange};
	uint32_t a, b;

	memcpy(&a, entry, sizeof(a));
	memcpy(&b, &wanted, sizeof(b));
	return a == b;
}

/* Whether a use of the descriptor can be of interest. */
static inline int lean_concerns(const struct fd_entry *entry)
{
	return lean_thread.only || entry->kind == FD_CLIENT ||
	       (entry->kind == FD_CONNECTION && !(entry->lean & LEAN_PLAIN));
}

/* The short way: the request ... */
static inline int lean_is_request(const struct fd_entry *entry)
{
	return likely(lean_stands(entry, 0, 0) && !lean_thread.only);
}

static inline ssize_t lean_requested(struct fd_entry *entry, ssize_t result)
{
	if (unlikely(result <= 0)) /* its number again: no register has to keep that */
		return lean_read_ends(entry - fs_fds, result);
	entry->lean = LEAN_READ | LEAN_OWED;
	lean_thread.only = entry;
	return result;
}

/* ... its answer, whose end is held ... */
static inline int lean_is_answer(const struct fd_entry *entry)
{
	return likely(lean_stands(entry, LEAN_READ | LEAN_OWED, 0) && lean_thread.only == entry);
}

static inline ssize_t lean_answered(struct fd_entry *entry, ssize_t result)
{
	if (likely(result > 0)) {
		entry->lean = LEAN_READ | LEAN_WROTE | LEAN_HELD;
		entry->exchange = 1;
		entry->at = lean_ticks();
	}
	return result;
}

/* ... and the close. shutdown() sends the answer with FIN even if input came that nobody read, for
 * which close() alone would send a reset and drop the answer. It must not touch errno.
 */
static inline void lean_send_fin(int fd)
{
#if defined(__x86_64__)
	long result;

	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "0"(SYS_shutdown), "D"(fd), "S"(SHUT_WR)
			 : "rcx", "r11", "memory");
#else
	int saved = errno;

	NEXT(shutdown)(fd, SHUT_WR);
	errno = saved;
#endif
}

static inline int lean_ends(const struct fd_entry *entry, int fd)
{
	if (!lean_stands(entry, LEAN_READ | LEAN_WROTE | LEAN_HELD, 1) ||
	    unlikely(lean_thread.only != entry || entry->spawns != lean_spawns ||
		     (uint32_t)lean_ticks() - entry->at > lean_slow_ticks))
		return 0;
	lean_send_fin(fd);
	lean_thread.only = NULL;
	return 1;
}

/* The close of a connection that did not go the short way. */
static inline void lean_closing(struct fd_entry *entry, int fd)
{
	if (!(entry->lean & LEAN_PLAIN))
		lean_judge_close(entry, fd, 1);
}

/* A connection was accepted and its entry made. */
static inline void lean_opened(struct fd_entry *entry, struct listener *l,
			       const struct fs_listener *pl)
{
	entry->plan = l->lean & LEAN_PLAN;
	entry->lean = 0;
	entry->exchange = 0;
	entry->spawns = lean_spawns;
	if (unlikely(l->lean != pl->lean.on))
		lean_catch_up(l, entry);
}

/* Before anything that can sleep. */
static inline void lean_may_sleep(enum fs_contradiction why)
{
	if (unlikely(lean_thread.only))
		lean_release_all(why);
}

/* Before a wait for events; one that only looks leaves everything as it is. */
static inline void lean_wait_begins(int blocks)
{
	lean_thread.turn += !!blocks;
	if (unlikely(lean_thread.only) && blocks)
		lean_before_wait();
}

/* Before an accept() that may sleep; on a slot of its own a worker finds something or returns. */
static inline void lean_accepting(int fd)
{
	if (unlikely(lean_thread.only))
		lean_before_io(fd, 0);
}

/* The entry of a connection that is watched, else NULL. */
static inline struct fd_entry *lean_connection(int fd)
{
	struct fd_entry *entry = fd_entry(fd);

	return unlikely(entry->kind == FD_CONNECTION) && !(entry->lean & LEAN_PLAIN) ? entry : NULL;
}

static inline void lean_shutting(int fd, int how)
{
	struct fd_entry *entry = how == SHUT_RD ? NULL : lean_connection(fd);

	if (unlikely(fd_entry(fd)->kind == FD_CLIENT))
		lean_shared(fd);
	if (entry)
		lean_judge_close(entry, fd, 0);
}

/* Whether an option that the application sets needs no call, because the close does the same. */
static inline int lean_takes_option(int fd, int level, int name, const void *value, socklen_t len)
{
	struct fd_entry *entry = lean_connection(fd);

	return entry && lean_option(entry, fd, level, name, value, len);
}

/* How a descriptor is polled that may be connected later: nginx begins with that. */
static inline void lean_may_connect(struct fd_entry *entry, int op, const struct epoll_event *event)
{
	entry->lean = 0;
	if (op != EPOLL_CTL_DEL && event && event->events & EPOLLOUT)
		entry->lean = event->events & EPOLLET ? LEAN_POLLED : LEAN_POLLED | LEAN_LEVEL;
}

/* The number of a descriptor that was nothing to us will be another's. */
static inline void lean_number_ends(struct fd_entry *entry)
{
	if (unlikely(entry->lean))
		entry->lean = 0;
}

/* Before epoll_ctl() of what was not accepted. */
static inline void lean_polls(int fd, int op, const struct epoll_event *event)
{
	struct fd_entry *entry = fd_entry(fd);

	if (entry->kind == FD_OTHER)
		lean_may_connect(entry, op, event);
	else if (entry->kind == FD_CLIENT && (event || op == EPOLL_CTL_DEL))
		lean_client_polls(entry, fd, op != EPOLL_CTL_DEL, event ? event->events : 0);
}

#endif
#endif

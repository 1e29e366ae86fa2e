/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the files of libfsocket.so share: state of this process, and who offers what. */
#ifndef FASTSOCKET_FSOCKET_H
#define FASTSOCKET_FSOCKET_H

#include <netdb.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>

#include "hooks.h"
#include "keeper.h"
#include "page.h"

#ifndef IP_LOCAL_PORT_RANGE
#define IP_LOCAL_PORT_RANGE 51 /* since Linux v6.3 */
#endif

#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)
#define EXPORT __attribute__((visibility("default")))
#define COLD __attribute__((noinline, cold))

/* Since glibc 2.32: 0 while there may be other threads. Not hidden: it is the C library's. */
extern char __libc_single_threaded __attribute__((weak));

/* What is not a wrapper is reached without the table for names that others may define. */
#pragma GCC visibility push(hidden)

/* The next definition of each intercepted function, the C library's as a rule. */
struct fs_next {
#define HOOK(result, name, parameters, arguments) result(*name) parameters;
	FS_HOOKS(HOOK)
#undef HOOK
};

extern struct fs_next fs_next;
void fs_resolve(void);

/* Calls the next definition. */
#define NEXT(name) (fs_next.name)

enum fd_kind {
	FD_OTHER, /* not ours to care about */
	FD_CONNECTION, /* accepted from a slot */
	FD_LISTENER, /* the application's listening socket */
	FD_PRIVATE, /* opened by us; the application does not know that it is open */
	FD_CLIENT, /* connected by the application, nothing written yet; see lean_client.c */
	FD_ALONE, /* has what a sibling cannot have: signing keys, a program of its own */
};

/* What is known of a file descriptor. */
struct fd_entry {
	uint8_t kind; /* enum fd_kind */
#ifdef FS_LEAN /* compared with `kind` as one word */
	uint8_t plan; /* as fs_lean.on when accepted */
	uint8_t lean; /* enum lean_bits */
	uint8_t exchange; /* answers so far */
#endif
	uint8_t listener; /* FD_CONNECTION: page index; FD_LISTENER: index of fs_listeners */
	uint16_t slot; /* FD_CONNECTION */
	uint32_t era; /* FD_CONNECTION: fs_era when accepted; after a fork it is the parent's */
#ifdef FS_LEAN
	uint16_t turn; /* lean_thread.turn when the application last wrote, or first read */
	uint16_t spawns; /* lean_spawns when accepted */
	uint32_t at; /* lean_ticks() of the last write; FD_CLIENT: the thread that owes an ACK */
} __attribute__((aligned(32))); /* a power of two, which is found faster */
#else
};
#endif

/* A slot that one thread of this process polls in place of the application's descriptor. */
struct stand_in {
	int epfd; /* the thread's epoll instance */
	int fd; /* the slot's socket */
	int slot;
};

#define UNCLAIMED (-1) /* not polled by this process so far */
#define SHARED (-2) /* no slot was to be had: polled as it would be without us */

/* A listening socket of the application in this process. */
struct listener {
	int fd; /* the application's descriptor, -1 = entry free */
	int origin; /* private copy of the application's own socket once `fd` is another, or -1 */
	int own_reuseport; /* the application had set SO_REUSEPORT itself */
	int page_index; /* in fs_page.listener */
	int backlog;
	int slot; /* slot that this process polls through `fd`, UNCLAIMED or SHARED */
	int epfd; /* epoll instance through which it was claimed, or -1 */
	pid_t tid; /* thread that claimed it */
	int paused; /* the application took it out of its epoll instance for a while */
#ifdef FS_LEAN
	uint32_t lean; /* fs_lean.on as its sockets in this process have it */
	int lean_late; /* connections to come that may have begun with other means */
#endif
	int inherited_epoll; /* an ancestor polls it in an epoll instance that we may share */
	uint64_t cookie; /* of the application's own socket */
	uint64_t fd_cookie; /* of the socket behind `fd`; another one there is a stranger */
	int stand_ins;
	int siblings;
	struct stand_in stand_in[FS_MAX_SLOTS];
	int sibling[FS_MAX_SLOTS]; /* private descriptors of bound sockets of the same address */
	uint64_t sibling_cookie[FS_MAX_SLOTS];
	uint8_t sibling_shared[FS_MAX_SLOTS]; /* a fork gave it to other processes too */
};

extern struct fs_page *fs_page; /* NULL until the first listener */
extern struct listener fs_listeners[FS_MAX_LISTENERS];
extern int fs_listener_count; /* 1 + highest entry in use */
extern int fs_unclaimed; /* listeners that a poll() or an accept() of this process may claim */
extern struct fd_entry *fs_fds;
extern unsigned fs_fd_count;
extern uint32_t fs_era;
extern pid_t fs_pid; /* this process; a child of vfork() differs */
extern int fs_mode; /* enable_listen_spawn */

/* Of the calling thread. */
extern __thread struct fs_worker *fs_worker; /* NULL until it claimed a slot */
extern __thread int fs_last_epfd;
extern pthread_key_t fs_thread_key; /* holds fs_worker too, for the end of the thread */
extern __thread int fs_interrupted; /* by signals during the last claim */

#define FS_RESTARTED 1 /* handled with SA_RESTART: accept() goes on, poll() and select() do not */
#define FS_INTERRUPTED 2

static inline struct fd_entry *fd_entry(int fd)
{
	static struct fd_entry other;

	return likely((unsigned)fd < fs_fd_count) ? &fs_fds[fd] : &other;
}

static inline struct fs_listener *page_listener(int listener)
{
	return &fs_page->listener[listener & (FS_MAX_LISTENERS - 1)];
}

static inline struct fs_slot *page_slot(int listener, int slot)
{
	return &page_listener(listener)->slot[slot & (FS_MAX_SLOTS - 1)];
}

static inline struct fs_worker *fs_worker_of(const struct fs_slot *slot)
{
	return &fs_page->worker[slot->worker & (FS_MAX_WORKERS - 1)];
}

/* close.c: a connection that a slot counts is gone */
static inline void fs_closed(const struct fd_entry *entry)
{
	struct fs_slot *slot = page_slot(entry->listener, entry->slot);

	/* The slot may have gone to another process meanwhile, and was counted anew then. */
	if (entry->era == fs_era && slot->live && fs_worker_of(slot)->pid == (uint32_t)fs_pid)
		__atomic_fetch_sub(&slot->live, 1, __ATOMIC_RELAXED);
}

/* listener.c: the listener behind `fd` if it has one and this is not a child of vfork() */
struct listener *fs_known_listener(int fd);

static inline struct listener *listener_of(int fd)
{
	return unlikely(fd_entry(fd)->kind == FD_LISTENER) ? fs_known_listener(fd) : NULL;
}

/* fds.c */
int fs_each_fd(int (*visit)(int fd, const void *data), const void *data);

/* Whether this is surely the only thread of its process. */
static inline int fs_alone(void)
{
	return &__libc_single_threaded && __libc_single_threaded;
}

/* Nanoseconds of the clock that the select program reads, too. */
static inline uint64_t fs_now(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000ULL + now.tv_nsec;
}

/* connect.c: receive flow deliver */
extern int fs_deliver; /* connections take their port from the CPU's slice */
extern int fs_own_ranges; /* the application sets ranges of local ports itself */
void fs_slices_find(void);
int fs_bind_now(int fd);

/* busy_poll.c: how long a wait looks for events before it sleeps; 0 = it sleeps at once */
extern unsigned fs_busy_poll_us;
void fs_busy_poll_find(void);
int fs_wait_busily(int epfd, struct epoll_event *events, int max, int timeout);

/* private.c: descriptors that the application does not know of */
int fs_private(int fd);
int fs_private_room(void);
void fs_private_close(int fd, uint64_t cookie);
int fs_private_move(int fd);
int fs_is_private(int fd);

/* options.c */
void fs_replay_options(int from, int to);
int fs_can_have_siblings(int fd);

/* siblings.c */
int fs_sibling_create(struct listener *l);
void fs_siblings_prepare(struct listener *l);
int fs_has_company(const struct listener *l);
uint64_t fs_cookie(int fd);

/* listener.c */
void fs_listener_add(int fd, int backlog, int inherited);
void fs_listener_close(struct listener *l);
void fs_listener_forget(struct listener *l);
int fs_listens(int fd);
void fs_adopt_inherited(void);
void fs_register_process(void);
void fs_before_fork(void);
void fs_after_fork_in_child(void);

/* share.c */
void fs_passes(const struct msghdr *message);

/* exec.c */
void fs_environment_keep(void);

/* claim.c */
int fs_claim(struct listener *l, int epfd);
struct stand_in *fs_stand_in(struct listener *l, int epfd);

/* slots.c */
int fs_find_slot(const struct fs_listener *pl, uint64_t cookie);
void fs_set_state(struct fs_listener *pl, int index, enum fs_slot_state state);
void fs_abandon(struct fs_listener *pl, int index);
int fs_sweep(struct fs_listener *pl);
struct fs_worker *fs_own_worker(void);
int fs_fd_of_cookie(int page_index, uint64_t cookie);
int fs_publish_all(struct listener *l, struct fs_listener *pl);

/* release.c */
void fs_release(struct listener *l, int slot);
int fs_stop_listening(int fd);
void fs_stop(struct listener *l);
void fs_go_on(struct listener *l, int backlog);
void fs_thread_ends(void *worker);
void fs_forget_past(void);

/* settle.c */
void fs_pause(struct listener *l, int slot, int paused);
void fs_settle(void);

/* wait.c */
int fs_was_interrupted(int kinds);
void fs_claim_without_epoll(struct listener *l);

/* cpu.c */
void fs_link_cpu(struct fs_listener *pl, int index);
void fs_unlink_cpu(struct fs_listener *pl, int index);
uint32_t fs_choose_cpu(const struct fs_listener *pl, const struct fs_worker *worker);
void fs_pin_workers(struct fs_listener *pl);
void fs_level(struct fs_listener *pl);
int fs_unpin(void);
void fs_pin_again(int pinned);
void fs_roam(const struct fs_worker *creator);
void fs_weigh_threads(void);
#define FS_WEIGH_EACH 128 /* connections; a power of two */
extern cpu_set_t fs_first_affinity; /* of the process, when it began */

/* steer.c: how the kernel learns of a slot */
int fs_classic_works(void);
void fs_steer_classic(struct fs_listener *pl, int fd);
int fs_publish(struct listener *l, int slot, int fd);
void fs_unpublish(struct fs_listener *pl, struct fs_slot *slot);

/* keeper.c */
void fs_keeper_find(void);
int fs_keeper_join(struct listener *l, int flags);
int fs_keeper_tell(enum fs_op op, struct listener *l, int slot, uint32_t worker, int fd);

/* resume.c */
void fs_resume_find(void);
void fs_keeper_ensure(void);
pid_t fs_keeper_anew(void);

/* lock.c */

/* What a thread had before it was to be left alone: its signals, and whether it can be cancelled. */
struct fs_guard {
	sigset_t signals;
	int cancel;
};

void fs_lock(uint32_t *word, struct fs_guard *guard);
int fs_trylock(uint32_t *word, struct fs_guard *guard);
void fs_unlock(uint32_t *word, const struct fs_guard *guard);
int fs_alive(uint32_t pid, uint32_t tid, uint64_t start);
uint64_t fs_start_time(pid_t pid);
pid_t fs_parent_of(pid_t pid);
void fs_hold_signals(struct fs_guard *guard);
void fs_release_signals(const struct fs_guard *guard);

#pragma GCC visibility pop

#endif

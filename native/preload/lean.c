// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Lean connections: learning how a listener's connections go, and promises that must be kept.
 *
 * Each of three means is proven by itself, by so many connections in a row, and dropped at the
 * first connection that contradicts it. What is learned stands in the status page, for all
 * workers together. While nothing changes, the page is only read.
 */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "lean.h"

#define SLOW_NS 1000000 /* between the last answer and the close */
#define SLOW_WATCH 256 /* writes of the thread that are measured after a slow connection */
#define SLOW_BLAMES 24 /* that are too many, less one for so many measured writes: */
#define SLOW_FORGIVEN 8
#define SLOW_WEIGHT 8 /* of one that took four times as long */

__thread struct lean_thread lean_thread;
uint16_t lean_spawns;

int lean_wanted; /* connections may be made lean; servers ask the page, which agrees */
uint64_t lean_slow_ticks; /* SLOW_NS by lean_ticks(); 0 until that is known */
static uint64_t start_ticks, start_ns;
static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000ULL + now.tv_nsec;
}

void lean_start(void)
{
	const char *word = getenv("FASTSOCKET_LEAN");

	lean_wanted = !word || strcmp(word, "off") != 0;
	start_ns = now_ns();
	start_ticks = lean_ticks();
}

/* Note what the thread used so far, for a verdict on what follows. */
void lean_measure(void)
{
	struct rusage usage;

	lean_thread.watch -= lean_thread.watch > 0;
	if (++lean_thread.measured % SLOW_FORGIVEN == 0)
		lean_thread.blames -= lean_thread.blames > 0;
	if (getrusage(RUSAGE_THREAD, &usage) < 0)
		return;
	lean_thread.cpu_us = (usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1000000ULL +
			     usage.ru_utime.tv_usec + usage.ru_stime.tv_usec;
	lean_thread.sleeps = usage.ru_nvcsw;
}

/* The listening sockets of all slots that this process has, as far as it has them. */
static void set_on_listener(int fd, unsigned on, unsigned own)
{
	int defer = on >> FS_MEANS_DEFER & 1, quick = !(on >> FS_MEANS_ACK & 1);

	if (!(own >> FS_MEANS_DEFER & 1))
		NEXT(setsockopt)(fd, IPPROTO_TCP, TCP_DEFER_ACCEPT, &defer, sizeof(defer));
	if (!(own >> FS_MEANS_ACK & 1))
		NEXT(setsockopt)(fd, IPPROTO_TCP, TCP_QUICKACK, &quick, sizeof(quick));
}

/* Give the listener's sockets in this process what is on. A deferred accept waits for a second
 * at most: the SYN/ACK is repeated once, and the answer to that ends it.
 */
void lean_apply(struct listener *l)
{
	const struct fs_lean *lean = &fs_page->listener[l->page_index].lean;
	unsigned on = __atomic_load_n(&lean->on, __ATOMIC_RELAXED);
	int saved = errno;

	set_on_listener(l->fd, on, lean->own);
	if (l->origin >= 0)
		set_on_listener(l->origin, on, lean->own);
	for (int i = 0; i < l->siblings; i++)
		set_on_listener(l->sibling[i], on, lean->own);
	l->lean = on;
	errno = saved;
}

static void apply_everywhere(const struct fs_lean *lean)
{
	for (int i = 0; i < fs_listener_count; i++)
		if (fs_listeners[i].fd >= 0 &&
		    &fs_page->listener[fs_listeners[i].page_index].lean == lean)
			lean_apply(&fs_listeners[i]);
}

/* What the application chose for itself stays as it is. */
static int is_own(struct fs_lean *lean, enum fs_means means)
{
	for (int i = 0; i < fs_listener_count; i++) {
		const struct listener *l = &fs_listeners[i];
		struct linger linger = {0};
		socklen_t length = sizeof(linger);
		int value = 0;

		if (l->fd < 0 || &fs_page->listener[l->page_index].lean != lean)
			continue;
		if (means == FS_MEANS_HOLD)
			getsockopt(l->fd, SOL_SOCKET, SO_LINGER, &linger, &length);
		length = sizeof(value);
		if (means == FS_MEANS_DEFER && !l->lean)
			getsockopt(l->fd, IPPROTO_TCP, TCP_DEFER_ACCEPT, &value, &length);
		if (linger.l_onoff || value)
			lean->own |= 1u << means;
	}
	return lean->own >> means & 1;
}

static void turn_on(struct fs_lean *lean, enum fs_means means)
{
	int saved = errno;

	lean->means[means].proof = 0;
	if (!is_own(lean, means)) {
		__atomic_fetch_or(&lean->on, 1u << means, __ATOMIC_RELAXED);
		apply_everywhere(lean);
	}
	errno = saved;
}

/* A connection went as the means wants it. */
static void affirm(struct fs_lean *lean, enum fs_means means)
{
	struct fs_lean_means *m = &lean->means[means];
	uint32_t need = m->need ?: FS_LEAN_PROOF;

	if (likely((lean->on | lean->own) >> means & 1) || need == FS_LEAN_NEVER)
		return;
	if (__atomic_add_fetch(&m->proof, 1, __ATOMIC_RELAXED) >= need)
		turn_on(lean, means);
}

/* A connection went otherwise: the means is dropped, or its proof begins again. A silent
 * client hides itself from an application that speaks first, so deferring has one chance.
 */
static void contradict(struct fs_lean *lean, enum fs_means means, enum fs_contradiction why)
{
	struct fs_lean_means *m = &lean->means[means];
	uint32_t bit = 1u << means, need = m->need ?: FS_LEAN_PROOF;

	if (m->proof)
		m->proof = 0;
	if (m->reason != why)
		m->reason = why;
	if (means == FS_MEANS_DEFER && m->need != FS_LEAN_NEVER)
		m->need = FS_LEAN_NEVER;
	if (!(__atomic_load_n(&lean->on, __ATOMIC_RELAXED) & bit))
		return;
	if (!(__atomic_fetch_and(&lean->on, ~bit, __ATOMIC_RELAXED) & bit))
		return; /* another worker was faster */
	m->drops++;
	if (means != FS_MEANS_DEFER)
		m->need = need * 8 < FS_LEAN_MOST_PROOF ? need * 8 : FS_LEAN_MOST_PROOF;
	if (means != FS_MEANS_HOLD)
		apply_everywhere(lean);
}

/* A new worker may be of a new version: what the old ones proved is void. */
void lean_relearn(struct listener *l, struct fs_listener *pl)
{
	struct fs_lean *lean = &pl->lean;

	for (int i = 0; i < FS_MEANS; i++)
		lean->means[i] = (struct fs_lean_means){.drops = lean->means[i].drops,
							.reason = lean->means[i].reason};
	lean->exchange = 0;
	if (__atomic_exchange_n(&lean->on, 0, __ATOMIC_RELAXED))
		lean_apply(l);
}

/* Promises */

static int is_open(int fd)
{
	const struct fd_entry *entry = fd_entry(fd);

	return entry->kind == FD_CONNECTION && entry->lean & LEAN_OPEN;
}

/* Forget the promises that were kept; keep all if that makes no room. */
void lean_make_room(void)
{
	unsigned count = 0;

	for (unsigned i = 0; i < lean_thread.count; i++)
		if (is_open(lean_thread.fd[i]))
			lean_thread.fd[count++] = lean_thread.fd[i];
	lean_thread.count = count;
	if (count == LEAN_MOST)
		lean_release_all(FS_NOTHING);
}

/* Keep what was promised for the connection. TCP_CORK off sends what a write without MSG_MORE
 * would have sent, by Nagle's rules; TCP_QUICKACK on sends an ACK that is due.
 */
void lean_release(struct fd_entry *entry, int fd, enum fs_contradiction why)
{
	int saved = errno, one = 1, zero = 0;
	uint8_t bits = entry->lean;

	entry->lean = bits & ~LEAN_OPEN;
	if (bits & LEAN_HELD)
		NEXT(setsockopt)(fd, IPPROTO_TCP, TCP_CORK, &zero, sizeof(zero));
	if (bits & LEAN_OWED)
		NEXT(setsockopt)(fd, IPPROTO_TCP, TCP_QUICKACK, &one, sizeof(one));
	if (why != FS_NOTHING && bits & LEAN_HELD)
		contradict(lean_of(entry), FS_MEANS_HOLD, why);
	if (why != FS_NOTHING && bits & LEAN_OWED)
		contradict(lean_of(entry), FS_MEANS_ACK, why);
	errno = saved;
}

/* Keep the thread's promises. A missing ACK may wait while the application sleeps elsewhere: the
 * client has nothing more to say, or the application would wait for that; and the kernel sends
 * it after 40 ms.
 */
void lean_release_all(enum fs_contradiction why)
{
	unsigned count = lean_thread.count, kept = 0;

	if (getpid() != fs_pid)
		return; /* a child of vfork() may have closed them; its parent will see to it */
	lean_thread.count = 0;
	for (unsigned i = 0; i < count; i++) {
		int fd = lean_thread.fd[i];

		if (!is_open(fd))
			continue;
		if (why == FS_SLEPT && fd_entry(fd)->lean & LEAN_OWED)
			lean_thread.fd[kept++] = fd;
		else
			lean_release(fd_entry(fd), fd, why);
	}
	lean_thread.count = kept;
}

static int is_regular_file(int fd)
{
	struct stat status;

	return fstat(fd, &status) == 0 && S_ISREG(status.st_mode);
}

/* Whether nothing is promised that a use of `fd` could put off. */
static int is_settled(int fd, int writes)
{
	int last = lean_thread.count ? lean_thread.fd[lean_thread.count - 1] : -1;

	if (lean_thread.count > 1)
		return 0;
	if (last >= 0 && !is_open(last))
		lean_thread.count = 0;
	if (!lean_thread.count)
		return writes || !is_open(fd);
	return writes && last == fd;
}

/* The thread has promises, or another has one for `fd`, which it is about to use. A read from the connection that was just
 * answered means that it is not closed; other calls are harmless unless they may sleep. To
 * write to a log file is no sleep, as the page cache takes it.
 */
void lean_before_io(int fd, int writes)
{
	struct fd_entry *entry = fd_entry(fd);
	int saved = errno;

	if (!writes && is_open(fd) && entry->lean & LEAN_HELD)
		lean_release(entry, fd, FS_READ_ON);
	if (is_settled(fd, writes))
		return;
	if (!(NEXT(fcntl)(fd, F_GETFL, NULL) & O_NONBLOCK) && !(writes && is_regular_file(fd))) {
		if (!writes && is_open(fd)) /* for the rest of the request */
			lean_release(entry, fd, FS_WAITED);
		lean_release_all(FS_SLEPT);
	}
	errno = saved;
}

/* Judgement */

/* The first byte of an answer is written: was there a request, and was it just read? */
void lean_judge_answer(struct fd_entry *entry)
{
	struct fs_lean *lean = lean_of(entry);

	if (entry->spawns != lean_spawns)
		return;
	if (!(entry->lean & LEAN_READ)) {
		contradict(lean, FS_MEANS_DEFER, FS_SPOKE_FIRST);
		contradict(lean, FS_MEANS_ACK, FS_SPOKE_FIRST);
		return;
	}
	affirm(lean, FS_MEANS_DEFER);
	if (entry->turn == lean_thread.turn)
		affirm(lean, FS_MEANS_ACK);
	else
		contradict(lean, FS_MEANS_ACK, FS_WAITED);
}

/* Whether it was the application, which computed or slept, that took long since its last
 * write, and not the machine, which ran others. The first slow connection only begins to
 * measure, and a few are allowed: a collector of garbage has its turns.
 */
static int is_to_blame(uint64_t ticks)
{
	uint64_t cpu_us = lean_thread.cpu_us, sleeps = lean_thread.sleeps, own_us;
	int measured = lean_thread.watch;

	lean_measure();
	lean_thread.watch = SLOW_WATCH;
	own_us = lean_thread.sleeps != sleeps ? ticks * (SLOW_NS / 1000) / lean_slow_ticks :
						lean_thread.cpu_us - cpu_us;
	if (!measured)
		lean_thread.blames = 0;
	else if (own_us > SLOW_NS / 1000)
		lean_thread.blames += own_us > 4 * SLOW_NS / 1000 ? SLOW_WEIGHT : 1;
	return lean_thread.blames >= SLOW_BLAMES;
}

void lean_was_slow(struct fd_entry *entry)
{
	if (!lean_slow_ticks) {
		uint64_t us = (now_ns() - start_ns) / 1000 + 1;

		lean_slow_ticks = (lean_ticks() - start_ticks) * (SLOW_NS / 1000) / us + 1;
		return;
	}
	if (is_to_blame(lean_ticks() - entry->at))
		contradict(lean_of(entry), FS_MEANS_HOLD, FS_WAS_SLOW);
}

static void learn_exchange(struct fs_lean *lean, struct fd_entry *entry)
{
	if (lean->exchange == entry->exchange)
		return;
	if (lean->exchange)
		contradict(lean, FS_MEANS_HOLD, FS_VARIED);
	lean->exchange = entry->exchange;
}

static void forget_promise(int fd)
{
	unsigned count = lean_thread.count;

	while (count && lean_thread.fd[count - 1] == fd)
		count--;
	lean_thread.count = count;
}

/* The connection is over for us. Its answer goes with FIN: shutdown() sends both even if input
 * came that nobody read, for which close() alone would send a reset and drop the answer.
 */
void lean_judge_close(struct fd_entry *entry, int fd, int last)
{
	struct fs_lean *lean = lean_of(entry);
	int saved = errno, held = entry->lean & LEAN_HELD;
	int same = entry->turn == lean_thread.turn;

	if (entry->spawns != lean_spawns || (held && getpid() != fs_pid)) {
		lean_release(entry, fd, FS_SHARED); /* a child of vfork() closes its own copy */
	} else if (!(entry->lean & LEAN_WROTE)) {
		; /* the client went away, which says nothing of the application */
	} else if (held) {
		if (last)
			NEXT(shutdown)(fd, SHUT_WR);
		if (unlikely(lean_is_slow(entry)))
			lean_was_slow(entry);
	} else if (!same) {
		contradict(lean, FS_MEANS_HOLD, FS_WAITED);
	} else {
		learn_exchange(lean, entry);
		if (unlikely(lean_is_slow(entry)))
			lean_was_slow(entry);
		else
			affirm(lean, FS_MEANS_HOLD);
	}
	forget_promise(fd);
	entry->lean = LEAN_PLAIN;
	errno = saved;
}

/* Whatever makes a connection unlike the others */

/* Another descriptor or process gets it too: from here on close() does not end it. */
void lean_shared(int fd)
{
	struct fd_entry *entry = fd_entry(fd);

	if (entry->kind != FD_CONNECTION)
		return;
	if (entry->lean & LEAN_OPEN)
		lean_release(entry, fd, FS_SHARED);
	entry->lean = LEAN_PLAIN;
}

/* Before a fork of any kind, or an exec. */
void lean_spawn(void)
{
	lean_may_sleep(FS_SHARED);
	__atomic_fetch_add(&lean_spawns, 1, __ATOMIC_RELAXED);
}

/* Before the application sets an option of a watched connection. Its TCP_CORK off is a promise
 * like ours and may wait for the close; returns 1 where it does.
 */
int lean_option(struct fd_entry *entry, int fd, int level, int name, const void *value,
		socklen_t len)
{
	int on = len >= sizeof(int) && *(const int *)value;

	if (level == IPPROTO_TCP && name == TCP_CORK && len >= sizeof(int)) {
		if (!on && entry->lean & LEAN_CORKED) {
			entry->lean &= ~LEAN_CORKED;
			if (!lean_wants_hold(entry))
				return 0;
			if (!(entry->lean & LEAN_OPEN))
				lean_promise(fd);
			entry->lean |= LEAN_HELD;
			return 1;
		}
		if (on)
			entry->lean |= LEAN_CORKED;
	}
	if (entry->lean & LEAN_HELD)
		lean_release(entry, fd, FS_SET_OPTION);
	if (level == SOL_SOCKET && name == SO_LINGER)
		entry->lean = LEAN_PLAIN;
	return 0;
}

/* The application chose an option of its listener that is one of our means. */
void lean_listener_option(struct listener *l, int level, int name, const void *value, socklen_t len)
{
	int means = name == TCP_QUICKACK ? FS_MEANS_ACK : FS_MEANS_DEFER;
	struct fs_lean *lean;

	if (level != IPPROTO_TCP || (name != TCP_QUICKACK && name != TCP_DEFER_ACCEPT))
		return;
	if (name == TCP_DEFER_ACCEPT && !(len >= sizeof(int) && *(const int *)value))
		return;
	lean = &fs_page->listener[l->page_index].lean;
	lean->own |= 1u << means;
	contradict(lean, means, FS_SET_OPTION);
}

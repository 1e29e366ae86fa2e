// SPDX-License-Identifier: LGPL-2.1-or-later
/* Lean connections: promises to clients, and how they are kept before anything can sleep. */
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/stat.h>
#include <unistd.h>

#include "lean.h"

__thread struct lean_thread lean_thread;
uint16_t lean_spawns, lean_born;

static int is_open(int fd)
{
	const struct fd_entry *entry = fd_entry(fd);

	return entry->kind == FD_CONNECTION && entry->lean & LEAN_OPEN;
}

/* Make the lists say what `only` says, for a look at them or a change ... */
void lean_unfold(void)
{
	if (lean_thread.only == LEAN_MANY)
		return;
	lean_thread.count = lean_thread.only != NULL;
	if (lean_thread.only)
		lean_thread.fd[0] = lean_thread.only - fs_fds;
	lean_thread.only = LEAN_MANY;
}

/* ... and let `only` say it all again if it can. */
void lean_fold(void)
{
	if (lean_thread.count + lean_thread.clients + lean_thread.watch == 0)
		lean_thread.only = NULL;
	else if (lean_thread.count == 1 && !lean_thread.clients && !lean_thread.watch)
		lean_thread.only = &fs_fds[lean_thread.fd[0]];
	else
		lean_thread.only = LEAN_MANY;
}

/* Forget the promises that were kept; keep all if that makes no room. */
static void make_room(void)
{
	unsigned count = 0;

	for (unsigned i = 0; i < lean_thread.count; i++)
		if (is_open(lean_thread.fd[i]))
			lean_thread.fd[count++] = lean_thread.fd[i];
	lean_thread.count = count;
	if (count == LEAN_MOST)
		lean_release_all(FS_NOTHING);
}

/* Note that `fd` has a promise. */
void lean_promise(int fd)
{
	lean_unfold();
	if (lean_thread.count >= LEAN_MOST)
		make_room();
	lean_unfold();
	lean_thread.fd[lean_thread.count++] = fd;
	lean_fold();
}

/* The last promises were for `fd`, which has none now. */
void lean_forget(int fd)
{
	lean_unfold();
	while (lean_thread.count && lean_thread.fd[lean_thread.count - 1] == fd)
		lean_thread.count--;
	lean_fold();
}

/* Keep what was promised for the connection. TCP_CORK off sends what a write without MSG_MORE
 * would have sent, by Nagle's rules; TCP_QUICKACK on sends an ACK that is due.
 */
void lean_release(struct fd_entry *entry, int fd, enum fs_contradiction why)
{
	int saved = errno, one = 1, zero = 0;
	uint8_t bits = entry->lean;

	entry->lean = bits & ~LEAN_OPEN;
	entry->turn = lean_thread.turn - (why == FS_WAITED);
	if (bits & LEAN_HELD)
		NEXT(setsockopt)(fd, IPPROTO_TCP, TCP_CORK, &zero, sizeof(zero));
	if (bits & LEAN_OWED)
		NEXT(setsockopt)(fd, IPPROTO_TCP, TCP_QUICKACK, &one, sizeof(one));
	if (why != FS_NOTHING && bits & LEAN_HELD)
		lean_contradict(lean_of(entry), FS_MEANS_HOLD, why);
	if (why != FS_NOTHING && bits & LEAN_OWED)
		lean_contradict(lean_of(entry), FS_MEANS_ACK, why);
	errno = saved;
}

/* Keep the thread's promises. A missing ACK may wait while the application sleeps elsewhere: the
 * client has nothing more to say, or the application would wait for that; and the kernel sends
 * it after 40 ms.
 */
void lean_release_all(enum fs_contradiction why)
{
	unsigned count, kept = 0;

	if (!lean_thread.only || lean_is_child())
		return; /* it may have closed them; its parent will see to it */
	if (lean_fast_open) /* their SYN would wait for ever */
		lean_clients_wait();
	lean_unfold();
	count = lean_thread.count;
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
	lean_fold();
}

void lean_before_wait(void)
{
	lean_clients_wait();
	lean_release_all(FS_WAITED);
}

/* A loop that answers many connections and closes them in its next turn may take longer for them
 * all than an answer may wait. Those that have waited go out without their FIN, and the rest of the
 * turn still saves it. Where the loop goes on with another connection, each is to blame for its own
 * time only.
 */
static void release_old(int goes_on)
{
	uint32_t now = lean_ticks();

	if (!lean_slow_ticks)
		return;
	lean_unfold();
	for (unsigned i = 0; i < lean_thread.count; i++) {
		int fd = lean_thread.fd[i];
		struct fd_entry *entry = fd_entry(fd);

		if (!is_open(fd) || !(entry->lean & LEAN_HELD) ||
		    now - entry->at <= lean_slow_ticks / 2 || lean_is_child())
			continue;
		if (goes_on) {
			if (lean_slowness(entry) > 1)
				lean_contradict(lean_of(entry), FS_MEANS_HOLD, FS_WAS_SLOW);
			entry->at = now;
		}
		lean_release(entry, fd, FS_NOTHING);
	}
	lean_fold();
}

static int is_regular_file(int fd)
{
	struct stat status;

	return fstat(fd, &status) == 0 && S_ISREG(status.st_mode);
}

/* Whether nothing is promised that a use of `fd` could put off. */
static int is_settled(int fd, int writes)
{
	int count, last;

	lean_unfold();
	while (lean_thread.count && !is_open(lean_thread.fd[lean_thread.count - 1]))
		lean_thread.count--;
	count = lean_thread.count;
	last = count ? lean_thread.fd[count - 1] : -1;
	lean_fold();
	if (!count)
		return writes || !is_open(fd);
	return count == 1 && writes && last == fd;
}

/* The thread has promises, or another has one for `fd`, which it is about to use. A read from the
 * connection that was just answered means that it is not closed; other calls are harmless unless
 * they may sleep. To write to a log file is no sleep, as the page cache takes it.
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
	} else {
		release_old(entry->kind == FD_CONNECTION);
	}
	errno = saved;
}

/* Another descriptor or process gets it too: from here on close() does not end it. */
void lean_shared(int fd)
{
	struct fd_entry *entry = fd_entry(fd);

	if (entry->kind == FD_CLIENT)
		lean_client_ends(entry, fd);
	if (entry->kind != FD_CONNECTION)
		return;
	if (entry->lean & LEAN_OPEN)
		lean_release(entry, fd, FS_SHARED);
	entry->lean = LEAN_PLAIN;
}

/* Before a fork of any kind, or an exec. No promise of the thread is left. */
void lean_spawn(void)
{
	lean_clients_spawn();
	lean_release_all(FS_SHARED);
	__atomic_fetch_add(&lean_spawns, 1, __ATOMIC_RELAXED);
}

/* Before the application sets an option of a watched connection. Its TCP_CORK off is a promise
 * like ours and may wait for the close; returns 1 where it does.
 */
int lean_option(struct fd_entry *entry, int fd, int level, int name, const void *value,
		socklen_t len)
{
	int on = len >= sizeof(int) && value && *(const int *)value;

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
	if ((level == SOL_SOCKET && name == SO_LINGER) ||
	    (level == IPPROTO_TCP && name == TCP_ULP)) /* kernel TLS would keep its record open */
		entry->lean = LEAN_PLAIN;
	return 0;
}

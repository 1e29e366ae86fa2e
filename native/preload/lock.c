// SPDX-License-Identifier: LGPL-2.1-or-later
/* Locks in the status page that outlive their holder, and whether a worker still lives. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "fsocket.h"

#define WAIT_NS 50000
#define PATIENCE 40000 /* waits before one living holder's lock is taken anyway: 2 s */
#define MOST_WAITS (10 * PATIENCE) /* before that of ever new holders is */

static void be_left_alone(struct fs_guard *guard)
{
	sigset_t all;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &guard->signals);
	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &guard->cancel);
}

static void be_as_before(const struct fs_guard *guard)
{
	pthread_setcancelstate(guard->cancel, NULL);
	pthread_sigmask(SIG_SETMASK, &guard->signals, NULL);
}

static int take(uint32_t *word, uint32_t *holder)
{
	return __atomic_compare_exchange_n(word, holder, getpid(), 0, __ATOMIC_ACQUIRE,
					   __ATOMIC_RELAXED);
}

/* Take the lock, from a holder that died if need be; signals wait until it is given back. */
void fs_lock(uint32_t *word, struct fs_guard *guard)
{
	const struct timespec pause = {.tv_nsec = WAIT_NS};
	uint32_t last = 0;
	int since = 0;

	be_left_alone(guard);
	for (int waits = 0;; waits++) {
		uint32_t holder = 0;

		if (take(word, &holder))
			return;
		if (holder != last) {
			last = holder;
			since = waits;
		}
		if ((waits - since >= PATIENCE || waits >= MOST_WAITS ||
		     !fs_alive(holder, holder, 0)) &&
		    take(word, &holder))
			return;
		nanosleep(&pause, NULL);
	}
}

/* Take the lock if it is free or its holder died; returns whether it was taken. */
int fs_trylock(uint32_t *word, struct fs_guard *guard)
{
	uint32_t holder = __atomic_load_n(word, __ATOMIC_RELAXED);

	if (holder && fs_alive(holder, holder, 0))
		return 0;
	be_left_alone(guard);
	if (take(word, &holder))
		return 1;
	be_as_before(guard);
	return 0;
}

void fs_unlock(uint32_t *word, const struct fs_guard *guard)
{
	uint32_t me = getpid();

	/* Not if it was taken from us, who held it for too long. */
	__atomic_compare_exchange_n(word, &me, 0, 0, __ATOMIC_RELEASE, __ATOMIC_RELAXED);
	be_as_before(guard);
}

__thread int fs_interrupted;

/* A claim comes before a call that would wait: a signal during it must not be lost on that wait. */
void fs_hold_signals(struct fs_guard *guard)
{
	be_left_alone(guard);
}

/* Let the signals in, and note what the wait would have done about them (signal(7)), beside what was
 * noted of a claim before.
 */
void fs_release_signals(const struct fs_guard *guard)
{
	struct sigaction action;
	sigset_t pending;

	sigpending(&pending);
	for (int signal = 1; signal < NSIG; signal++) {
		if (sigismember(&pending, signal) != 1 ||
		    sigismember(&guard->signals, signal) == 1 ||
		    sigaction(signal, NULL, &action) < 0 || action.sa_handler == SIG_IGN ||
		    action.sa_handler == SIG_DFL)
			continue;
		fs_interrupted |= action.sa_flags & SA_RESTART ? FS_RESTARTED : FS_INTERRUPTED;
	}
	be_as_before(guard);
}

/* What /proc says of a thread; all 0 where it says nothing, as in a chroot. */
struct stat_line {
	uint64_t start; /* in clock ticks after boot */
	pid_t parent;
	char state; /* a letter */
};

static struct stat_line read_stat(pid_t pid, pid_t tid)
{
	char path[48], text[1024], *at;
	struct stat_line line = {0};
	ssize_t length;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/task/%d/stat", pid, tid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return line;
	length = read(fd, text, sizeof(text) - 1);
	NEXT(close)(fd);
	if (length <= 0)
		return line;
	text[length] = 0;
	at = strrchr(text, ')'); /* the name may hold anything; field 3 follows it */
	if (!at || !at[1])
		return line;
	line.state = at[2];
	for (int field = 3; (at = strchr(at + 1, ' ')) && field <= 22; field++) {
		if (field == 4)
			line.parent = atoi(at);
		if (field == 22)
			line.start = strtoull(at, NULL, 10);
	}
	return line;
}

uint64_t fs_start_time(pid_t pid)
{
	return read_stat(pid, pid).start;
}

pid_t fs_parent_of(pid_t pid)
{
	return read_stat(pid, pid).parent;
}

/* Whether the thread lives, rather than being dead and not yet waited for; `start` (0:
 * unknown) of its process tells it from a later one of the same id.
 */
int fs_alive(uint32_t pid, uint32_t tid, uint64_t start)
{
	uint64_t now;
	char state;

	if (!pid)
		return 0;
	if (syscall(SYS_tgkill, pid, tid, 0) < 0 && errno == ESRCH)
		return 0;
	state = read_stat(pid, tid).state;
	if (state == 'Z' || state == 'X')
		return 0;
	now = start ? fs_start_time(pid) : 0;
	return !now || now == start;
}

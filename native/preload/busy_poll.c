// SPDX-License-Identifier: LGPL-2.1-or-later
/* Waits that look for events for a while before they sleep.
 *
 * Who sends to a thread that sleeps pays for its wake-up, an interrupt of its CPU, and the thread
 * for its way into sleep and out of it. To look costs the thread's own CPU, so it is done only
 * while it often is of use: not where what it waits for cannot come because it looks, as from a
 * client on the same CPU.
 *
 * A signal must end the wait although it is handled while we look, for what the handler did is what
 * the application waits for. A process of one thread has its signals blocked until the sleep lets
 * them in. Where there are others, the kernel would have one of them handle what we block, so
 * nothing is; instead the sleep has an end.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/epoll.h>

#include "fsocket.h"

#define LONGEST_US 1000
#define HOPE 16 /* looks in vain until there are fewer of them; one of use makes up for two */
#define SELDOM 64 /* waits, of which one looks then */
#define AT_ONCE 64 /* added to the status page, where all threads write */
#define SLEEP_MS 10 /* after a look during which a signal may have been handled */

unsigned fs_busy_poll_us;

static __thread unsigned hope = HOPE, skipped, polled;

void fs_busy_poll_find(void)
{
	const char *value = getenv("FASTSOCKET_BUSY_POLL");
	long us = value ? strtol(value, NULL, 10) : 0;

	fs_busy_poll_us = us < 0 ? 0 : us < LONGEST_US ? us : LONGEST_US;
}

/* What is left of a limit in ms that began then; negative = there is none. */
static int left(int timeout, uint64_t begin)
{
	uint64_t gone = (fs_now() - begin) / 1000000;

	return timeout < 0 ? timeout : gone < (uint64_t)timeout ? timeout - (int)gone : 0;
}

static int look(int epfd, struct epoll_event *events, int max, int timeout, uint64_t begin)
{
	uint64_t now, end = begin + fs_busy_poll_us * 1000ULL;
	int count;

	if (timeout > 0 && end > begin + timeout * 1000000ULL)
		end = begin + timeout * 1000000ULL;
	do {
		count = NEXT(epoll_wait)(epfd, events, max, 0);
		now = fs_now();
	} while (!count && now < end);
	if (count > 0) {
		hope = hope < HOPE - 2 ? hope + 2 : HOPE;
		if (!(++polled % AT_ONCE) && fs_page)
			__atomic_fetch_add(&fs_page->polled, AT_ONCE, __ATOMIC_RELAXED);
	} else if (hope) {
		hope--;
	}
	return count;
}

static int look_alone(int epfd, struct epoll_event *events, int max, int timeout)
{
	uint64_t begin = fs_now();
	sigset_t all, own;
	int count, error;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &own);
	count = look(epfd, events, max, timeout, begin);
	if (!count)
		count = NEXT(epoll_pwait)(epfd, events, max, left(timeout, begin), &own);
	error = errno;
	pthread_sigmask(SIG_SETMASK, &own, NULL);
	errno = error;
	return count;
}

static int look_among_threads(int epfd, struct epoll_event *events, int max, int timeout)
{
	uint64_t begin = fs_now();
	int count = look(epfd, events, max, timeout, begin), rest;

	if (count)
		return count;
	rest = left(timeout, begin);
	if (rest >= 0 && rest <= SLEEP_MS)
		return NEXT(epoll_wait)(epfd, events, max, rest);
	count = NEXT(epoll_wait)(epfd, events, max, SLEEP_MS);
	if (count)
		return count;
	errno = EINTR; /* if there was a signal or not */
	return -1;
}

int fs_wait_busily(int epfd, struct epoll_event *events, int max, int timeout)
{
	int count;

	if (!hope && ++skipped % SELDOM)
		return NEXT(epoll_wait)(epfd, events, max, timeout);
	count = NEXT(epoll_wait)(epfd, events, max, 0);
	if (count)
		return count; /* it would not have slept */
	if (fs_alone())
		return look_alone(epfd, events, max, timeout);
	return look_among_threads(epfd, events, max, timeout);
}

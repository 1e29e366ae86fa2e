// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * The client's side: the ACK that ends the handshake rides with the request, where the processes
 * of this application were seen to send one first to that address. The kernel keeps it back
 * for 200 ms at most; it is sent before the thread waits for anything else than the connection to
 * be writable, and before it reads.
 *
 * With TCP Fast Open the SYN itself waits for the request, and it for ever: that is for processes
 * of one thread only, which cannot wait for an answer where we do not see it.
 */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <unistd.h>

#include "lean.h"

#define DESTINATIONS 64 /* a power of two; two that share an entry learn together */

/* What was learned of an address and port. Threads may lose each other's steps, which only
 * makes learning longer.
 */
static struct destination {
	uint32_t proof, need;
	uint8_t on;
} destinations[DESTINATIONS];

extern char __libc_single_threaded __attribute__((weak)); /* since glibc 2.32 */

static unsigned hash(const void *data, size_t size, uint32_t seed)
{
	const unsigned char *byte = data;
	uint32_t sum = seed;

	while (size--)
		sum = (sum ^ *byte++) * 16777619u;
	return sum ^ sum >> 16;
}

/* Index of the destination, or -1 for what is not IP. */
static int destination_of(const struct sockaddr *addr, socklen_t len)
{
	const struct sockaddr_in *four = (const struct sockaddr_in *)addr;
	const struct sockaddr_in6 *six = (const struct sockaddr_in6 *)addr;

	if (len >= sizeof(*four) && addr->sa_family == AF_INET)
		return hash(&four->sin_addr, sizeof(four->sin_addr), four->sin_port) &
		       (DESTINATIONS - 1);
	if (len >= sizeof(*six) && addr->sa_family == AF_INET6)
		return hash(&six->sin6_addr, sizeof(six->sin6_addr), six->sin6_port) &
		       (DESTINATIONS - 1);
	return -1;
}

static void spoke_first(struct destination *to)
{
	if (!to->on && ++to->proof >= (to->need ?: FS_LEAN_PROOF))
		to->on = 1;
}

static void did_not(struct destination *to)
{
	uint32_t need = to->need ?: FS_LEAN_PROOF;

	to->proof = 0;
	if (!to->on)
		return;
	to->on = 0;
	to->need = need * 8 < FS_LEAN_MOST_PROOF ? need * 8 : FS_LEAN_MOST_PROOF;
}

/* Send the ACK, or the SYN, and look no further. Before the handshake ended, nothing speaks
 * against the destination.
 */
static void give_up(struct fd_entry *entry, int fd)
{
	int saved = errno, one = 1;
	struct tcp_info info = {0};
	socklen_t size = sizeof(info);

	entry->kind = FD_OTHER;
	if (entry->lean & LEAN_OWED)
		NEXT(setsockopt)(fd, IPPROTO_TCP, TCP_QUICKACK, &one, sizeof(one));
	if (NEXT(getsockopt)(fd, IPPROTO_TCP, TCP_INFO, &info, &size) < 0)
		;
	else if (info.tcpi_state == TCP_SYN_SENT && lean_fast_open)
		NEXT(send)(fd, "", 0, MSG_DONTWAIT | MSG_NOSIGNAL);
	else if (info.tcpi_state == TCP_ESTABLISHED)
		did_not(&destinations[entry->slot]);
	errno = saved;
}

/* connect(), the rest of which is done by `next`. */
int lean_connect(int fd, const struct sockaddr *addr, socklen_t len,
		 int (*next)(int, const struct sockaddr *, socklen_t))
{
	int to = addr ? destination_of(addr, len) : -1, zero = 0, one = 1, result, on;
	struct fd_entry *entry = fd_entry(fd);

	lean_may_sleep(FS_SLEPT);
	if (to < 0 || entry == fd_entry(-1) || entry->kind != FD_OTHER)
		return next(fd, addr, len); /* or asks how the connect goes that it began */
	on = destinations[to].on && lean_thread.clients < LEAN_CLIENTS &&
	     NEXT(setsockopt)(fd, IPPROTO_TCP, TCP_QUICKACK, &zero, sizeof(zero)) == 0;
	if (on && lean_fast_open && &__libc_single_threaded && __libc_single_threaded)
		NEXT(setsockopt)(fd, IPPROTO_TCP, TCP_FASTOPEN_CONNECT, &one, sizeof(one));
	result = next(fd, addr, len);
	if (result < 0 && errno != EINPROGRESS) {
		entry->kind = FD_OTHER;
		return result;
	}
	*entry = (struct fd_entry){.kind = FD_CLIENT,
				   .slot = to,
				   .turn = lean_thread.turn,
				   .lean = on ? LEAN_OWED : 0};
	if (on) {
		lean_unfold();
		lean_thread.client[lean_thread.clients++] = fd;
		lean_fold();
	}
	return result;
}

/* Before the connection's first write. */
void lean_client_writes(struct fd_entry *entry)
{
	struct destination *to = &destinations[entry->slot & (DESTINATIONS - 1)];

	entry->kind = FD_OTHER;
	if (lean_thread.clients && lean_thread.client[lean_thread.clients - 1] == entry - fs_fds) {
		lean_unfold(); /* one that never waits would fill the list */
		lean_thread.clients--;
		lean_fold();
	}
	if (entry->lean & LEAN_POLLED || (uint16_t)(lean_thread.turn - entry->turn) <= 1)
		spoke_first(to);
	else
		to->proof = 0;
}

/* Before it reads though it has not written. */
void lean_client_reads(struct fd_entry *entry, int fd)
{
	give_up(entry, fd);
}

/* It polls the connection for that; without EPOLLOUT it waits for the server. An edge counts for
 * one wait, a level for each: no wait sleeps once the connection is writable.
 */
void lean_client_polls(struct fd_entry *entry, int fd, int polls, unsigned events)
{
	if (polls && events & EPOLLOUT)
		entry->lean |= events & EPOLLET ? LEAN_POLLED : LEAN_POLLED | LEAN_LEVEL;
	else if (polls)
		give_up(entry, fd);
	else
		entry->lean &= ~(LEAN_POLLED | LEAN_LEVEL);
}

/* The thread will wait: for the connection to be writable, if that is what it asked for. */
void lean_clients_wait(void)
{
	unsigned count = lean_thread.clients, kept = 0;

	if (!count || getpid() != fs_pid)
		return;
	lean_unfold();
	for (unsigned i = 0; i < count; i++) {
		int fd = lean_thread.client[i];
		struct fd_entry *entry = fd_entry(fd);

		if (entry->kind != FD_CLIENT || !(entry->lean & LEAN_OWED))
			continue;
		if (entry->lean & LEAN_LEVEL ||
		    (entry->lean & LEAN_POLLED && (uint16_t)(lean_thread.turn - entry->turn) == 1))
			lean_thread.client[kept++] = fd;
		else
			give_up(entry, fd);
	}
	lean_thread.clients = kept;
	lean_fold();
}

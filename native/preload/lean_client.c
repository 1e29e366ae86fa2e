// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * The client's side: the ACK that ends the handshake rides with the request, where the processes
 * of this application were seen to send one first to that address. The kernel keeps it back
 * for 200 ms at most; it is sent before the thread waits for anything else than the connection to
 * be writable, and before it reads, unless that cannot wait.
 *
 * The kernel would delay the ACK of the answer, too: for 40 ms, which a server that writes it in two
 * pieces (Nagle's algorithm) waits for. So the request ends it all, and answers are acknowledged as
 * ever: whatever way a program has to wait for the rest of one, nobody is late.
 *
 * With TCP Fast Open the SYN itself waits for the request, and it for ever: that is for processes
 * of one thread only, which cannot wait for an answer where we do not see it.
 */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <unistd.h>

#include "lean.h"

#define DESTINATIONS 64 /* a power of two; two that share an entry learn together */
#define ASKED 4 /* waits during which a connect is asked after */
#define DOUBT 4 /* connections that were written to first, which one weighs that perhaps was not */

/* What was learned of an address and port. Threads may lose each other's steps, which only
 * makes learning longer.
 */
static struct destination {
	uint32_t proof, need; /* while on, proof is what is left to doubt */
	uint8_t on;
} destinations[DESTINATIONS];

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
	uint32_t need = to->need ?: FS_LEAN_PROOF;

	if (to->proof < need)
		to->proof++;
	if (to->proof == need)
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

/* The connection is there and was not written to in one turn of the thread's loop: it may have come
 * after that turn had begun, which a busy thread sees in the next.
 */
static void doubt(struct destination *to)
{
	if (to->proof < DOUBT)
		did_not(to);
	else
		to->proof -= DOUBT;
}

static int tcp_state(int fd)
{
	struct tcp_info info = {0};
	socklen_t size = sizeof(info);

	return NEXT(getsockopt)(fd, IPPROTO_TCP, TCP_INFO, &info, &size) < 0 ? -1 : info.tcpi_state;
}

/* Send the ACK, or the SYN, and look no further. Before the handshake ended, nothing speaks
 * against the destination; after it, what `against` makes of that, if anything.
 */
static void give_up(struct fd_entry *entry, int fd, void (*against)(struct destination *))
{
	int saved = errno, one = 1, state;

	entry->kind = FD_OTHER;
	if (entry->lean & LEAN_OWED)
		NEXT(setsockopt)(fd, IPPROTO_TCP, TCP_QUICKACK, &one, sizeof(one));
	state = tcp_state(fd);
	if (state == TCP_SYN_SENT && lean_fast_open)
		NEXT(send)(fd, "", 0, MSG_DONTWAIT | MSG_NOSIGNAL);
	else if (state == TCP_ESTABLISHED && against)
		against(&destinations[entry->slot]);
	entry->lean = 0;
	errno = saved;
}

/* The calling thread, in fd_entry.at: another may have the number in its list from before. */
static uint32_t owner(void)
{
	return (uintptr_t)&lean_thread >> 4;
}

static void promise(int fd)
{
	fd_entry(fd)->at = owner();
	lean_unfold();
	lean_thread.client[lean_thread.clients++] = fd;
	lean_fold();
}

/* connect(), the rest of which is done by `next`; an option of TCP that the socket took tells it that
 * the socket is one.
 */
int lean_connect(int fd, const struct sockaddr *addr, socklen_t len,
		 int (*next)(int, const struct sockaddr *, socklen_t, int is_tcp))
{
	int to = addr ? destination_of(addr, len) : -1, zero = 0, one = 1, result, on, saved;
	struct fd_entry *entry = fd_entry(fd);
	uint8_t polled = entry->lean & (LEAN_POLLED | LEAN_LEVEL); /* before it connects */

	lean_may_sleep(FS_SLEPT);
	if (to < 0 || entry == fd_entry(-1) || entry->kind != FD_OTHER)
		return next(fd, addr, len, 0); /* or asks how the connect goes that it began */
	on = destinations[to].on && lean_thread.clients < LEAN_CLIENTS &&
	     NEXT(setsockopt)(fd, IPPROTO_TCP, TCP_QUICKACK, &zero, sizeof(zero)) == 0;
	if (on && lean_fast_open && fs_alone())
		NEXT(setsockopt)(fd, IPPROTO_TCP, TCP_FASTOPEN_CONNECT, &one, sizeof(one));
	result = next(fd, addr, len, on);
	if (result < 0 && errno != EINPROGRESS) {
		saved = errno;
		if (on) /* there may be a connection already */
			NEXT(setsockopt)(fd, IPPROTO_TCP, TCP_QUICKACK, &one, sizeof(one));
		errno = saved;
		return result;
	}
	*entry = (struct fd_entry){.kind = FD_CLIENT,
				   .slot = to,
				   .turn = lean_thread.turn,
				   .lean = polled | (on ? LEAN_OWED : 0)};
	if (on)
		promise(fd);
	return result;
}

static int may_wait(int fd)
{
	return !(NEXT(fcntl)(fd, F_GETFL, NULL) & O_NONBLOCK);
}

/* After its first write: whether that came soon. */
void lean_client_wrote(struct fd_entry *entry, int fd)
{
	struct destination *to = &destinations[entry->slot & (DESTINATIONS - 1)];
	int saved = errno, one = 1;

	if (lean_thread.clients && lean_thread.client[lean_thread.clients - 1] == fd) {
		lean_unfold(); /* one that never waits would fill the list */
		lean_thread.clients--;
		lean_fold();
	}
	if (entry->lean & LEAN_POLLED || (uint16_t)(lean_thread.turn - entry->turn) <= 1)
		spoke_first(to);
	else
		to->proof = 0;
	if (entry->lean & LEAN_OWED)
		NEXT(setsockopt)(fd, IPPROTO_TCP, TCP_QUICKACK, &one, sizeof(one));
	entry->kind = FD_OTHER;
	entry->lean = 0;
	errno = saved;
}

/* It was told something before it wrote, others get it, too, or it will be closed. */
void lean_client_ends(struct fd_entry *entry, int fd)
{
	give_up(entry, fd, did_not);
}

/* Before a read. One that only looks, before the first write, is HAProxy's way: a write or a wait
 * comes next.
 */
void lean_client_reads(struct fd_entry *entry, int fd)
{
	if (!(entry->lean & LEAN_POLLED) || lean_fast_open || may_wait(fd))
		give_up(entry, fd, did_not);
}

/* It polls the connection for that; without EPOLLOUT it waits for the server. An edge counts for
 * one wait, a level for each: no wait sleeps once the connection is writable.
 */
void lean_client_polls(struct fd_entry *entry, int fd, int polls, unsigned events)
{
	if (polls && events & EPOLLOUT)
		entry->lean |= events & EPOLLET ? LEAN_POLLED : LEAN_POLLED | LEAN_LEVEL;
	else if (polls)
		give_up(entry, fd, did_not);
	else
		entry->lean &= ~(LEAN_POLLED | LEAN_LEVEL);
}

/* Whether the calling thread owes an ACK for it. */
static int owes(const struct fd_entry *entry)
{
	return entry->kind == FD_CLIENT && entry->lean & LEAN_OWED && entry->at == owner();
}

/* Whether an edge is still to come, or may be: then the wait that follows ends with it at once. One
 * that came before is not told again. A connect that takes longer is not asked after for ever.
 */
static int edge_to_come(const struct fd_entry *entry, int fd)
{
	uint16_t waits = lean_thread.turn - entry->turn;

	return waits == 1 || (waits <= ASKED && !lean_fast_open && tcp_state(fd) == TCP_SYN_SENT);
}

/* Whether the thread may wait and owe that ACK: if what it waits for is the connection to be writable. */
static int may_owe(const struct fd_entry *entry, int fd)
{
	return entry->lean & LEAN_LEVEL || (entry->lean & LEAN_POLLED && edge_to_come(entry, fd));
}

/* Keep what was promised, as far as the thread may not owe it. A process that begins another says
 * nothing of what it connected.
 */
static void see_to(int spawns)
{
	unsigned count = lean_thread.clients, kept = 0;

	if (!count || lean_is_child())
		return;
	lean_unfold();
	for (unsigned i = 0; i < count; i++) {
		int fd = lean_thread.client[i];
		struct fd_entry *entry = fd_entry(fd);

		if (!owes(entry))
			continue;
		if (spawns)
			give_up(entry, fd, NULL);
		else if (may_owe(entry, fd))
			lean_thread.client[kept++] = fd;
		else
			give_up(entry, fd, entry->lean & LEAN_POLLED ? doubt : did_not);
	}
	lean_thread.clients = kept;
	lean_fold();
}

/* The thread will wait for events. */
void lean_clients_wait(void)
{
	see_to(0);
}

/* Before a fork of any kind, or an exec. */
void lean_clients_spawn(void)
{
	see_to(1);
}

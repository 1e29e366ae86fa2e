// SPDX-License-Identifier: LGPL-2.1-or-later
/* What a sibling must have in common with the application's own socket. */
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/time.h>

#include "fsocket.h"

#ifndef SO_PREFER_BUSY_POLL
#define SO_PREFER_BUSY_POLL 69
#define SO_BUSY_POLL_BUDGET 70
#endif
#ifndef SO_BUF_LOCK
#define SO_BUF_LOCK 72
#endif
#ifndef SO_TXREHASH
#define SO_TXREHASH 74
#endif
#define LARGEST 256 /* bytes of the largest option below */

/* Options that an accepted connection takes over from its listener, or that decide which
 * connections the listener gets. Each is read from both sockets and written if they differ.
 */
static const struct {
	short level, name;
} handed_down[] = {
	{SOL_SOCKET, SO_REUSEADDR},
	{SOL_SOCKET, SO_KEEPALIVE},
	{SOL_SOCKET, SO_LINGER},
	{SOL_SOCKET, SO_PRIORITY},
	{SOL_SOCKET, SO_MARK},
	{SOL_SOCKET, SO_BINDTODEVICE},
	{SOL_SOCKET, SO_RCVLOWAT},
	{SOL_SOCKET, SO_RCVTIMEO},
	{SOL_SOCKET, SO_SNDTIMEO},
	{SOL_SOCKET, SO_OOBINLINE},
	{SOL_SOCKET, SO_DONTROUTE},
	{SOL_SOCKET, SO_DEBUG},
	{SOL_SOCKET, SO_TIMESTAMP},
	{SOL_SOCKET, SO_TIMESTAMPNS},
	{SOL_SOCKET, SO_TIMESTAMPING},
	{SOL_SOCKET, SO_BUSY_POLL},
	{SOL_SOCKET, SO_PREFER_BUSY_POLL},
	{SOL_SOCKET, SO_BUSY_POLL_BUDGET},
	{SOL_SOCKET, SO_MAX_PACING_RATE},
	{SOL_SOCKET, SO_RXQ_OVFL},
	{SOL_SOCKET, SO_NOFCS},
	{SOL_SOCKET, SO_SELECT_ERR_QUEUE},
	{SOL_SOCKET, SO_ZEROCOPY},
	{SOL_SOCKET, SO_TXREHASH},
	{IPPROTO_TCP, TCP_MAXSEG},
	{IPPROTO_TCP, TCP_NODELAY},
	{IPPROTO_TCP, TCP_CORK},
	{IPPROTO_TCP, TCP_KEEPIDLE},
	{IPPROTO_TCP, TCP_KEEPINTVL},
	{IPPROTO_TCP, TCP_KEEPCNT},
	{IPPROTO_TCP, TCP_SYNCNT},
	{IPPROTO_TCP, TCP_LINGER2},
	{IPPROTO_TCP, TCP_DEFER_ACCEPT},
	{IPPROTO_TCP, TCP_WINDOW_CLAMP},
	{IPPROTO_TCP, TCP_QUICKACK},
	{IPPROTO_TCP, TCP_CONGESTION},
	{IPPROTO_TCP, TCP_THIN_LINEAR_TIMEOUTS},
	{IPPROTO_TCP, TCP_USER_TIMEOUT},
	{IPPROTO_TCP, TCP_FASTOPEN},
	{IPPROTO_TCP, TCP_FASTOPEN_KEY},
	{IPPROTO_TCP, TCP_FASTOPEN_NO_COOKIE},
	{IPPROTO_TCP, TCP_NOTSENT_LOWAT},
	{IPPROTO_TCP, TCP_SAVE_SYN},
	{IPPROTO_TCP, TCP_INQ},
	{IPPROTO_TCP, TCP_TX_DELAY},
	{IPPROTO_IP, IP_TOS},
	{IPPROTO_IP, IP_TTL},
	{IPPROTO_IP, IP_MINTTL},
	{IPPROTO_IP, IP_OPTIONS},
	{IPPROTO_IP, IP_MTU_DISCOVER},
	{IPPROTO_IP, IP_TRANSPARENT},
	{IPPROTO_IP, IP_FREEBIND},
	{IPPROTO_IP, IP_RECVTOS},
	{IPPROTO_IP, IP_RECVTTL},
	{IPPROTO_IP, IP_PKTINFO},
	{IPPROTO_IP, IP_RECVERR},
	{IPPROTO_IP, IP_LOCAL_PORT_RANGE},
	{IPPROTO_IPV6, IPV6_V6ONLY},
	{IPPROTO_IPV6, IPV6_TCLASS},
	{IPPROTO_IPV6, IPV6_UNICAST_HOPS},
	{IPPROTO_IPV6, IPV6_MINHOPCOUNT},
	{IPPROTO_IPV6, IPV6_MTU_DISCOVER},
	{IPPROTO_IPV6, IPV6_MTU},
	{IPPROTO_IPV6, IPV6_TRANSPARENT},
	{IPPROTO_IPV6, IPV6_FREEBIND},
	{IPPROTO_IPV6, IPV6_RECVPKTINFO},
	{IPPROTO_IPV6, IPV6_RECVHOPLIMIT},
	{IPPROTO_IPV6, IPV6_RECVTCLASS},
	{IPPROTO_IPV6, IPV6_RECVERR},
	{IPPROTO_IPV6, IPV6_DONTFRAG},
	{IPPROTO_IPV6, IPV6_AUTOFLOWLABEL},
	{IPPROTO_IPV6, IPV6_ADDR_PREFERENCES},
};

static void copy_option(int from, int to, int level, int name)
{
	char wanted[LARGEST] = {0}, present[LARGEST] = {0};
	socklen_t length = LARGEST, other = LARGEST;

	if (NEXT(getsockopt)(from, level, name, wanted, &length) < 0)
		return;
	if (NEXT(getsockopt)(to, level, name, present, &other) == 0 && length == other &&
	    !memcmp(wanted, present, length))
		return;
	NEXT(setsockopt)(to, level, name, wanted, length);
}

/* A buffer size reads as twice what was set, and setting it ends the kernel's own tuning: only
 * a size that the application chose is copied.
 */
static void copy_buffer(int from, int to, int name, int force)
{
	int wanted = 0, present = 0;
	socklen_t length = sizeof(int);

	if (NEXT(getsockopt)(from, SOL_SOCKET, name, &wanted, &length) < 0 ||
	    NEXT(getsockopt)(to, SOL_SOCKET, name, &present, &length) < 0 || wanted == present)
		return;
	wanted /= 2;
	if (NEXT(setsockopt)(to, SOL_SOCKET, force, &wanted, length) < 0)
		NEXT(setsockopt)(to, SOL_SOCKET, name, &wanted, length);
}

/* A classic socket filter can be read back and attached again. */
static void copy_filter(int from, int to)
{
	struct sock_filter code[BPF_MAXINSNS];
	struct sock_fprog program = {.filter = code};
	socklen_t count = BPF_MAXINSNS;

	if (NEXT(getsockopt)(from, SOL_SOCKET, SO_GET_FILTER, code, &count) < 0 || !count)
		return;
	program.len = count;
	NEXT(setsockopt)(to, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof(program));
}

/* Give `to` what `from` has and hands down; errno is kept. */
void fs_replay_options(int from, int to)
{
	int saved = errno, flags = fcntl(from, F_GETFL);

	for (unsigned i = 0; i < sizeof(handed_down) / sizeof(*handed_down); i++)
		copy_option(from, to, handed_down[i].level, handed_down[i].name);
	copy_buffer(from, to, SO_RCVBUF, SO_RCVBUFFORCE);
	copy_buffer(from, to, SO_SNDBUF, SO_SNDBUFFORCE);
	copy_filter(from, to);
	if (flags >= 0 && flags != fcntl(to, F_GETFL))
		fcntl(to, F_SETFL, flags);
	errno = saved;
}

/* Whether the socket is a TCP listener of which a second one would do the same. Not so with
 * signal-driven input, whose owner cannot be shared, nor with an eBPF filter, which cannot be
 * read back.
 */
int fs_can_have_siblings(int fd)
{
	int domain = 0, protocol = 0, flags = fcntl(fd, F_GETFL);
	socklen_t length = sizeof(int), count = 0;

	if (NEXT(getsockopt)(fd, SOL_SOCKET, SO_DOMAIN, &domain, &length) < 0 ||
	    (domain != AF_INET && domain != AF_INET6))
		return 0;
	if (NEXT(getsockopt)(fd, SOL_SOCKET, SO_PROTOCOL, &protocol, &length) < 0 ||
	    protocol != IPPROTO_TCP)
		return 0;
	if (flags < 0 || flags & O_ASYNC)
		return 0;
	return NEXT(getsockopt)(fd, SOL_SOCKET, SO_GET_FILTER, NULL, &count) == 0;
}

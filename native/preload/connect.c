// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Receive flow deliver: a TCP connection takes its local port from the slice of the CPU that opens
 * it, so that whoever steers the answers knows where they belong.
 *
 * A slice that is used up borrows: the kernel then chooses from the whole range, as without us. A
 * port that the application bound, or a range that it set itself, it keeps.
 *
 * A socket that is bound to an address and to no port would be given a port there and then. Such
 * a bind leaves the port to connect() here. Whatever shows or needs the port before that, such as
 * getsockname() and listen(), binds it after all. The socket itself carries the mark (a range that
 * holds all ports), so that it survives dup(), fork() and exec().
 */
#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "lean.h"

#define RANGE(first, last) ((uint32_t)(last) << 16 | (first))
#define NO_RANGE 0
#define PORT_IS_LEFT RANGE(1, 65535)
#define MOST_PORT 65535
#define REST_NS 100000000 /* for which a slice that was used up is left alone */

int fs_deliver;
int fs_own_ranges;
static uint32_t slice[FS_MAX_CPUS]; /* by CPU; NO_RANGE: it has none */

/* Reads FIRST:SIZE:CPUS, such as 32768:8192:0-1,4: slices one after the other. */
void fs_slices_find(void)
{
	const char *value = getenv("FASTSOCKET_PORT_SLICES");
	unsigned long first, size, cpu, last;
	char *at;

	if (!value)
		return;
	first = strtoul(value, &at, 10);
	size = *at == ':' ? strtoul(at + 1, &at, 10) : 0;
	while (first && size && (*at == ':' || *at == ',')) {
		cpu = last = strtoul(at + 1, &at, 10);
		if (*at == '-')
			last = strtoul(at + 1, &at, 10);
		for (; cpu <= last && first + size - 1 <= MOST_PORT; cpu++, first += size)
			if (cpu < FS_MAX_CPUS)
				slice[cpu] = RANGE(first, first + size - 1);
		fs_deliver = 1;
	}
}

static int get_range(int fd, uint32_t *range)
{
	socklen_t length = sizeof(*range);

	return NEXT(getsockopt)(fd, IPPROTO_IP, IP_LOCAL_PORT_RANGE, range, &length);
}

static int set_range(int fd, uint32_t range)
{
	return NEXT(setsockopt)(fd, IPPROTO_IP, IP_LOCAL_PORT_RANGE, &range, sizeof(range));
}

static int is_tcp(int fd)
{
	int protocol = 0;
	socklen_t length = sizeof(protocol);

	return NEXT(getsockopt)(fd, SOL_SOCKET, SO_PROTOCOL, &protocol, &length) == 0 &&
	       protocol == IPPROTO_TCP;
}

static int is_inet(const struct sockaddr *addr, socklen_t len)
{
	return (len >= sizeof(struct sockaddr_in) && addr->sa_family == AF_INET) ||
	       (len >= sizeof(struct sockaddr_in6) && addr->sa_family == AF_INET6);
}

static in_port_t port_of(const struct sockaddr *addr)
{
	return addr->sa_family == AF_INET ? ((const struct sockaddr_in *)addr)->sin_port :
					    ((const struct sockaddr_in6 *)addr)->sin6_port;
}

/* Within this host, packets are received on the CPU that sends them. */
static int is_loopback(const struct sockaddr *addr)
{
	if (addr->sa_family == AF_INET)
		return *(const uint8_t *)&((const struct sockaddr_in *)addr)->sin_addr == 127;
	return IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6 *)addr)->sin6_addr);
}

/* bind, getsockname, listen */

/* Give a socket whose port was left to connect() one now, as bind() would have. */
COLD int fs_bind_now(int fd)
{
	struct sockaddr_storage address;
	socklen_t length = sizeof(address);
	int zero = 0, saved = errno, result = -1;
	uint32_t range = NO_RANGE;

	if (get_range(fd, &range) == 0 && range == PORT_IS_LEFT) {
		set_range(fd, NO_RANGE);
		NEXT(setsockopt)(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &zero, sizeof(zero));
		if (NEXT(getsockname)(fd, (struct sockaddr *)&address, &length) == 0 &&
		    !port_of((struct sockaddr *)&address))
			result = NEXT(bind)(fd, (struct sockaddr *)&address, length);
	}
	errno = saved;
	return result;
}

static COLD int bind_late(int fd, const struct sockaddr *addr, socklen_t len)
{
	int one = 1, zero = 0, own = 0, result, saved;
	uint32_t range = NO_RANGE;
	socklen_t length = sizeof(own);

	saved = errno;
	if (NEXT(getsockopt)(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &own, &length) < 0 || own ||
	    get_range(fd, &range) < 0 || range != NO_RANGE || set_range(fd, PORT_IS_LEFT) < 0) {
		errno = saved;
		return NEXT(bind)(fd, addr, len);
	}
	NEXT(setsockopt)(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof(one));
	result = NEXT(bind)(fd, addr, len);
	saved = errno;
	if (result < 0) {
		set_range(fd, NO_RANGE);
		NEXT(setsockopt)(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &zero, sizeof(zero));
	}
	errno = saved;
	return result;
}

EXPORT int bind(int fd, const struct sockaddr *addr, socklen_t len)
{
	if (likely(!fs_deliver) || !is_inet(addr, len) || !is_tcp(fd))
		return NEXT(bind)(fd, addr, len);
	fs_bind_now(fd); /* a second bind is refused */
	return port_of(addr) ? NEXT(bind)(fd, addr, len) : bind_late(fd, addr, len);
}

EXPORT int getsockname(int fd, struct sockaddr *addr, socklen_t *len)
{
	socklen_t room = len ? *len : 0;
	int result = NEXT(getsockname)(fd, addr, len);

	if (likely(!fs_deliver) || result < 0 || !is_inet(addr, room < *len ? room : *len) ||
	    port_of(addr) || fs_bind_now(fd) < 0)
		return result;
	*len = room;
	return NEXT(getsockname)(fd, addr, len);
}

/* connect */

/* The destination that this thread's slice had no port for, and until when it is left alone: to
 * find that out, the kernel looks at each port of the slice.
 */
static __thread struct {
	struct sockaddr_storage to;
	uint64_t until; /* CLOCK_MONOTONIC_COARSE in ns */
} used_up;

static uint64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC_COARSE, &time);
	return time.tv_sec * 1000000000ULL + time.tv_nsec;
}

static int is_used_up(const struct sockaddr *addr, socklen_t len)
{
	return unlikely(used_up.until) && !memcmp(&used_up.to, addr, len) && now() < used_up.until;
}

static int is_under_way(int result)
{
	return result == 0 || errno == EINPROGRESS;
}

static COLD int borrow(int fd, const struct sockaddr *addr, socklen_t len)
{
	int result;

	set_range(fd, NO_RANGE);
	result = NEXT(connect)(fd, addr, len);
	if (!is_under_way(result))
		return result;
	if (fs_worker)
		fs_worker->borrowed++;
	if (len <= sizeof(used_up.to)) {
		memcpy(&used_up.to, addr, len);
		used_up.until = now() + REST_NS;
	}
	return result;
}

static int connect_from(int fd, const struct sockaddr *addr, socklen_t len, uint32_t ports)
{
	int result, saved;

	if (set_range(fd, ports) < 0)
		return NEXT(connect)(fd, addr, len);
	result = NEXT(connect)(fd, addr, len);
	if (unlikely(result < 0 && errno == EADDRNOTAVAIL))
		return borrow(fd, addr, len);
	if (likely(is_under_way(result))) {
		if (likely(fs_worker))
			fs_worker->opened++;
		return result; /* the port is chosen: the range means nothing any more */
	}
	saved = errno;
	set_range(fd, NO_RANGE);
	errno = saved;
	return result;
}

/* Whether the application gave this socket a range of its own. */
static COLD int has_own_range(int fd)
{
	uint32_t range;

	if (get_range(fd, &range) < 0 || range == NO_RANGE || range == PORT_IS_LEFT)
		return 0;
	for (int cpu = 0; cpu < FS_MAX_CPUS; cpu++)
		if (slice[cpu] == range)
			return 0;
	return 1;
}

/* The calling CPU's slice, or NO_RANGE where that is of no use; `known`: the socket is TCP's. */
static uint32_t slice_for(int fd, const struct sockaddr *addr, socklen_t len, int known)
{
	int cpu = sched_getcpu();

	if (is_loopback(addr) || cpu < 0 || cpu >= FS_MAX_CPUS || !slice[cpu] ||
	    is_used_up(addr, len) || !(known || is_tcp(fd)) ||
	    (unlikely(fs_own_ranges) && has_own_range(fd)))
		return NO_RANGE;
	return slice[cpu];
}

/* A connected socket that is to be used anew (AF_UNSPEC) has no range again. */
static COLD int connect_otherwise(int fd, const struct sockaddr *addr, socklen_t len)
{
	int saved = errno;

	if (len >= sizeof(addr->sa_family) && addr->sa_family == AF_UNSPEC && is_tcp(fd) &&
	    !(fs_own_ranges && has_own_range(fd)))
		set_range(fd, NO_RANGE);
	errno = saved;
	return NEXT(connect)(fd, addr, len);
}

static inline int connect_delivered(int fd, const struct sockaddr *addr, socklen_t len, int known)
{
	uint32_t ports;
	int saved = errno;

	if (likely(!fs_deliver))
		return NEXT(connect)(fd, addr, len);
	if (!is_inet(addr, len))
		return connect_otherwise(fd, addr, len);
	ports = slice_for(fd, addr, len, known);
	errno = saved;
	return ports ? connect_from(fd, addr, len, ports) : NEXT(connect)(fd, addr, len);
}

EXPORT int connect(int fd, const struct sockaddr *addr, socklen_t len)
{
	return lean_connect(fd, addr, len, connect_delivered);
}

/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the connect program and its loader share; fastsocket.steer.connect holds the Python side. */
#ifndef FASTSOCKET_CONNECT_H
#define FASTSOCKET_CONNECT_H

#include <linux/types.h>

#define CONNECT_PORTS 65536

/* The ports that connections opened on one CPU of the set take. */
struct connect_slice {
	__u32 first;
	__u32 count;
};

/* What became of a connect(); each has a counter. */
enum connect_exit {
	CONNECT_OWN, /* took a port of this CPU's slice */
	CONNECT_BORROWED, /* took a port of another slice */
	CONNECT_LEFT, /* found no free port in a few tries: left to the kernel */
	CONNECT_KEPT, /* not TCP, to loopback, bound already, or a CPU outside the set */
	CONNECT_EXITS
};

#endif

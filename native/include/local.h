/* SPDX-License-Identifier: GPL-2.0-or-later OR LGPL-2.1-or-later */
/*
 * What the local fast path's programs share with their owner: a switch and counters.
 * src/fastsocket/local/fastpath.py is the Python side.
 */
#ifndef FASTSOCKET_LOCAL_H
#define FASTSOCKET_LOCAL_H

#include <linux/types.h>

enum fs_local_off {
	FS_LOCAL_ON = 0,
	FS_LOCAL_SWITCHED_OFF = 1, /* by the owner */
	FS_LOCAL_SERVER_BLOCKS = 2, /* by the program: the server reads with blocking calls */
};

struct fs_local {
	__u64 off; /* enum fs_local_off: if not 0, TCP carries all and nothing further is taken */
	__u64 connections; /* whose two ends were found here */
	__u64 redirected; /* messages that went past TCP and IP */
	__u64 passed; /* messages of such connections that TCP carried */
	__u64 spliced; /* directions left to TCP because their reader uses splice() */
};

#endif

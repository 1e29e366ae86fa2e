/* SPDX-License-Identifier: GPL-2.0-or-later OR LGPL-2.1-or-later */
/*
 * What the shim says to the keeper, over a unix SOCK_SEQPACKET socket with an abstract name:
 * one request, one reply, both with descriptors attached (SCM_RIGHTS), then it is closed. Whom the
 * keeper does not answer gets a reply with EPERM before anything of it was read.
 * src/fastsocket/app/protocol.py is the Python side.
 */
#ifndef FASTSOCKET_KEEPER_H
#define FASTSOCKET_KEEPER_H

#include <linux/types.h>

#define FS_KEEPER_MAGIC 0x46534b31 /* "FSK1" */

enum fs_op {
	FS_OP_JOIN = 1, /* + listening socket: which listener is it; reply + status page */
	FS_OP_ADD = 2, /* + a slot's socket: let the select program choose it */
	FS_OP_WORKER = 3, /* a worker is about to claim a slot: watch it */
	FS_OP_STATUS = 4, /* reply + a file that holds JSON of the application */
};

#define FS_JOIN_LATE 1 /* the application bound the socket without SO_REUSEPORT: that is ours */
#define FS_JOIN_INHERITED 2 /* the program found the socket when it began */

struct fs_request {
	__u32 magic;
	__u32 op; /* enum fs_op */
	__u32 listener;
	__u32 slot;
	__u32 worker;
	__u32 flags; /* FS_OP_JOIN: FS_JOIN_... */
};

struct fs_reply {
	__u32 magic;
	__s32 error; /* 0, or an errno: nothing was done */
	__u32 listener; /* index in the page */
	__u32 tier; /* enum fs_tier */
};

#endif

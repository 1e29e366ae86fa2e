// SPDX-License-Identifier: LGPL-2.1-or-later
/* Wrappers of changes of user: what a sibling needs, the process may do only before. */
#include <unistd.h>

#include "fsocket.h"

static void before_privileges_go(void)
{
	if (geteuid() == 0)
		for (int i = 0; i < fs_listener_count; i++)
			fs_siblings_prepare(&fs_listeners[i]);
}

EXPORT int setuid(uid_t uid)
{
	before_privileges_go();
	return NEXT(setuid)(uid);
}

EXPORT int seteuid(uid_t uid)
{
	before_privileges_go();
	return NEXT(seteuid)(uid);
}

EXPORT int setreuid(uid_t ruid, uid_t euid)
{
	before_privileges_go();
	return NEXT(setreuid)(ruid, euid);
}

EXPORT int setresuid(uid_t ruid, uid_t euid, uid_t suid)
{
	before_privileges_go();
	return NEXT(setresuid)(ruid, euid, suid);
}

// SPDX-License-Identifier: LGPL-2.1-or-later
/* The open descriptors of this process. */
#include <dirent.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "fsocket.h"

/* Call visit() for each open descriptor until it returns other than 0, and return that. No memory
 * is allocated: an application may close its listener in a signal handler.
 */
int fs_each_fd(int (*visit)(int fd, const void *data), const void *data)
{
	char buffer[2048] __attribute__((aligned(8)));
	int list = open("/proc/self/fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC), found = 0;
	ssize_t size;

	if (list < 0)
		return 0;
	while (!found && (size = syscall(SYS_getdents64, list, buffer, sizeof(buffer))) > 0)
		for (ssize_t at = 0; !found && at < size;) {
			const struct dirent64 *entry = (const void *)(buffer + at);

			if (entry->d_name[0] != '.' && atoi(entry->d_name) != list)
				found = visit(atoi(entry->d_name), data);
			at += entry->d_reclen;
		}
	NEXT(close)(list);
	return found;
}

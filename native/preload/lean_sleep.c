// SPDX-License-Identifier: LGPL-2.1-or-later
/* The wrappers of what may sleep. */
#include <sys/file.h>
#include <sys/resource.h>
#include <unistd.h>

#include "lean.h"

#define SLEEPER(result, name, parameters, arguments) \
	EXPORT result name parameters                \
	{                                            \
		lean_may_sleep(FS_SLEPT);            \
		return NEXT(name) arguments;         \
	}

FS_SLEEP_HOOKS(SLEEPER)

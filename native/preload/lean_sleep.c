// SPDX-License-Identifier: LGPL-2.1-or-later
/* The wrappers of what may sleep, or gives descriptors to another program. */
#include <sys/file.h>
#include <sys/resource.h>
#include <unistd.h>

#include "lean.h"

#define EXPORT __attribute__((visibility("default")))

#define SLEEPER(result, name, parameters, arguments)                                               \
	EXPORT result name parameters                                                              \
	{                                                                                          \
		lean_may_sleep(FS_SLEPT);                                                          \
		return NEXT(name) arguments;                                                       \
	}

#define SPAWNER(result, name, parameters, arguments)                                               \
	EXPORT result name parameters                                                              \
	{                                                                                          \
		lean_spawn();                                                                      \
		return NEXT(name) arguments;                                                       \
	}

FS_SLEEP_HOOKS(SLEEPER)
FS_SPAWN_HOOKS(SPAWNER)

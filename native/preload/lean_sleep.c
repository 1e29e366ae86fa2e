// SPDX-License-Identifier: LGPL-2.1-or-later
/* The wrappers of what may sleep, or gives descriptors to another program. */
#include <dlfcn.h>
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

static void *vfork_next;

/* vfork() returns twice from the same frame, so what is called before it cannot be a C function
 * that calls it: this one keeps the promises and tells where to go on.
 */
__attribute__((used)) void *lean_before_vfork(void)
{
	lean_spawn();
	if (!vfork_next)
		vfork_next = dlsym(RTLD_NEXT, "vfork");
	return vfork_next;
}

#if defined(__x86_64__)
__asm__(".text\n"
	".globl vfork\n"
	".type vfork, @function\n"
	"vfork:\n"
	"	endbr64\n"
	"	subq $8, %rsp\n"
	"	call lean_before_vfork\n"
	"	addq $8, %rsp\n"
	"	jmp *%rax\n"
	".size vfork, .-vfork\n");
#elif defined(__aarch64__)
__asm__(".text\n"
	".globl vfork\n"
	".type vfork, %function\n"
	"vfork:\n"
	"	stp x29, x30, [sp, #-16]!\n"
	"	bl lean_before_vfork\n"
	"	ldp x29, x30, [sp], #16\n"
	"	mov x16, x0\n"
	"	br x16\n"
	".size vfork, .-vfork\n");
#endif

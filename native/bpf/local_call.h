/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the local fast path learns from the registers of a system call. */
#ifndef FASTSOCKET_LOCAL_CALL_H
#define FASTSOCKET_LOCAL_CALL_H

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#include "kernel.h"

#define MSG_OOB 0x1
#define MSG_ZEROCOPY 0x4000000
#define X86_SPLICE 275
#define ARM64_SPLICE 76

/* Whether the system call that sends asks for nothing but plain bytes. One that is not known,
 * io_uring's among them, may ask for anything.
 */
static __always_inline int plain_send(void)
{
	void *regs = (void *)bpf_task_pt_regs(bpf_get_current_task_btf());
	unsigned long number, third, fourth, flags;

	if (bpf_core_field_exists(struct pt_regs___x86, orig_ax)) {
		struct pt_regs___x86 *x86 = regs;

		number = x86->orig_ax;
		switch (number) {
		case 1: /* write */
		case 20: /* writev */
		case 40: /* sendfile */
		case X86_SPLICE:
			return 1;
		case 44: /* sendto */
		case 307: /* sendmmsg */
			flags = x86->r10;
			break;
		case 46: /* sendmsg */
			flags = x86->dx;
			break;
		default:
			return 0;
		}
	} else {
		struct pt_regs___arm64 *arm = regs;

		third = arm->regs[2];
		fourth = arm->regs[3];
		switch (arm->syscallno) {
		case 64: /* write */
		case 66: /* writev */
		case 71: /* sendfile */
		case ARM64_SPLICE:
			return 1;
		case 206: /* sendto */
		case 269: /* sendmmsg */
			flags = fourth;
			break;
		case 211: /* sendmsg */
			flags = third;
			break;
		default:
			return 0;
		}
	}
	return !(flags & (MSG_OOB | MSG_ZEROCOPY));
}

#endif

/* The x86-64 signal frame that rt_sigreturn(2) takes everything from:
 * arch/x86/include/uapi/asm/sigcontext.h. */
#pragma once
#include <stddef.h>
#include <stdint.h>
#include "base/err.h"
#include "remote/park.h"

/* Build it in buf (room bytes, 64-byte aligned both here and at buf_va in the task). *ret_sp is the
 * stack pointer with which rt_sigreturn has to be called. -ENOSPC if it does not fit. */
int sigframe_build(void *buf, size_t room, uint64_t buf_va, const struct thread_state *st,
		   uint64_t *ret_sp, struct cr_err *err) must_check;

/* Bytes of the standard-format xsave area that the components in mask need; AMX's (17, 18) not
 * counted: a frame whose size covers them makes the kernel drop the vector state silently. */
size_t sigframe_xstate_bytes(uint64_t xfeatures);
/* The same, AMX's counted: what lies beyond is in its initial state. The first time that it is
 * asked about a component costs 30 us in a virtual machine. */
size_t xstate_used_bytes(uint64_t xfeatures);
uint64_t xstate_features(const void *xstate); /* that are not in their initial state */

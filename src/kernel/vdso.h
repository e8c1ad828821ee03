/* The vdso: code of the kernel's in every task, whose addresses programs keep. vdso(7). */
#pragma once
#include <stdint.h>
#include <sys/types.h>
#include "base/err.h"

/* Where a process has it, and a digest of it: two kernels with the same digest can take each
 * other's tasks. */
int vdso_describe(pid_t pid, uint64_t *ret_start, uint64_t *ret_end, uint8_t ret_digest[16],
		  struct cr_err *err) must_check;
/* The address of a `syscall` instruction in it. */
int vdso_syscall_insn(pid_t pid, uint64_t start, uint64_t end, uint64_t *ret,
		      struct cr_err *err) must_check;

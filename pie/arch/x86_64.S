/* Entry points whose addresses the agent knows from the header. */
	.section .text.header, "ax"
	.globl blob_header
blob_header:
	.long 0x314c4243
	.long blob_entry - blob_header
	.long arch_sigreturn_insn - blob_header
	.long arch_syscall_insn - blob_header
	.long blob_end - blob_header
	.long 0, 0, 0

	.section .text, "ax"
/* void arch_sigreturn(sp): does not return; the frame at sp holds everything. The agent parks tasks at
 * arch_sigreturn_insn with a hardware breakpoint. */
	.globl arch_sigreturn, arch_sigreturn_insn
arch_sigreturn:
	mov %rdi, %rsp
	mov $15, %eax
arch_sigreturn_insn:
	syscall
	ud2

	.globl arch_syscall_insn
arch_syscall_insn:
	syscall
	ud2

/* long arch_clone3(args, size, child_slot): the child (thread or process) starts in the executor with
 * the stack that args names, or, with none given, on its copy of this one. */
	.globl arch_clone3
arch_clone3:
	push %rbx
	mov %rdx, %rbx
	mov $435, %eax
	syscall
	test %rax, %rax
	jnz 1f
	xor %ebp, %ebp
	mov %rbx, %rdi
	and $-16, %rsp
	call blob_entry
1:	pop %rbx
	ret

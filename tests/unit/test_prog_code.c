/* eBPF programs as they were before the verifier. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <bpf/bpf.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "kernel/prog_code.h"

#define ENTRY(c, d, s, o, i)                                                                       \
	{                                                                                          \
		.code = (c), .dst_reg = (d), .src_reg = (s), .off = (o), .imm = (i)                \
	}
#define MOV(d, s) ENTRY(BPF_ALU64 | BPF_MOV | BPF_X, d, s, 0, 0)
#define SET(d, v) ENTRY(BPF_ALU64 | BPF_MOV | BPF_K, d, 0, 0, v)
#define FIELD(d, s, name)                                                                          \
	ENTRY(BPF_LDX | BPF_MEM | BPF_W, d, s, offsetof(struct __sk_buff, name), 0)
#define CALL(id) ENTRY(BPF_JMP | BPF_CALL, 0, 0, 0, id)
#define EXIT ENTRY(BPF_JMP | BPF_EXIT, 0, 0, 0, 0)

/* What comes out is what went in. */
static void there_and_back(const struct bpf_insn *code, size_t n, bool gpl)
{
	const struct prog_code in = {(struct bpf_insn *)code, n, "unit_test", gpl};
	struct bpf_prog_info info = {0};
	struct prog_code out;
	struct cr_err err = {0};
	uint32_t len = sizeof(info);
	int fd = prog_code_load(&in, &err);

	if (fd == -EPERM)
		skip();
	if (fd < 0)
		fail_msg("%s", err.msg);
	assert_int_equal(bpf_obj_get_info_by_fd(fd, &info, &len), 0);
	int r = prog_code_read(info.id, &out, &err);
	close(fd);
	if (r)
		fail_msg("%s", err.msg);
	assert_int_equal(out.n, n);
	assert_memory_equal(out.insn, code, n * sizeof(*code));
	assert_string_equal(out.name, "unit_test");
	assert_int_equal(out.gpl, gpl);
	free(out.insn);
}

#define BACK(code) there_and_back(code, sizeof(code) / sizeof(*(code)), true)

static void test_plain(void **state)
{
	const struct bpf_insn all[] = {SET(0, -1), EXIT}, none[] = {SET(0, 0), EXIT};
	const struct bpf_insn arithmetic[] = {
	    FIELD(2, 1, len), /* else the verifier leaves out what is never reached */
	    ENTRY(BPF_LD | BPF_IMM | BPF_DW, 3, 0, 0, 7),
	    ENTRY(0, 0, 0, 0, 0),
	    SET(0, 5),
	    ENTRY(BPF_JMP | BPF_JGT | BPF_X, 3, 2, 1, 0),
	    SET(0, 6),
	    ENTRY(BPF_STX | BPF_MEM | BPF_DW, 10, 3, -8, 0),
	    ENTRY(BPF_LDX | BPF_MEM | BPF_DW, 0, 10, -8, 0),
	    EXIT,
	};

	(void)state;
	BACK(all);
	BACK(none);
	BACK(arithmetic);
	there_and_back(none, 2, false);
}

static void test_context(void **state)
{
	const struct bpf_insn code[] = {
	    FIELD(0, 1, len),
	    FIELD(2, 1, protocol),
	    FIELD(3, 1, mark),
	    FIELD(4, 1, ifindex),
	    FIELD(5, 1, priority),
	    FIELD(6, 1, pkt_type),
	    FIELD(7, 1, ingress_ifindex),
	    FIELD(8, 1, hash),
	    FIELD(9, 1, vlan_tci),
	    ENTRY(BPF_JMP | BPF_JEQ | BPF_K, 4, 0, 2, 1),
	    ENTRY(BPF_STX | BPF_MEM | BPF_W, 1, 2, offsetof(struct __sk_buff, cb[1]), 0),
	    FIELD(2, 1, cb[1]),
	    FIELD(1, 1, queue_mapping),
	    EXIT,
	};

	(void)state;
	BACK(code);
}

static void test_packet(void **state)
{
	const struct bpf_insn code[] = {
	    MOV(6, 1),
	    ENTRY(BPF_LD | BPF_ABS | BPF_H, 0, 0, 0, 12),
	    ENTRY(BPF_JMP | BPF_JNE | BPF_K, 0, 0, 6, 0x800),
	    ENTRY(BPF_LD | BPF_ABS | BPF_B, 0, 0, 0, 23),
	    ENTRY(BPF_JMP | BPF_JNE | BPF_K, 0, 0, 4, 6),
	    SET(7, 14),
	    ENTRY(BPF_LD | BPF_IND | BPF_W, 0, 7, 0, 0),
	    ENTRY(BPF_LD | BPF_IND | BPF_H, 0, 7, 0, 2),
	    ENTRY(BPF_JMP | BPF_JEQ | BPF_K, 0, 0, 2, 80),
	    SET(0, 0),
	    EXIT,
	    SET(0, -1),
	    EXIT,
	};

	(void)state;
	BACK(code);
}

static void test_calls(void **state)
{
	const struct bpf_insn code[] = {
	    MOV(6, 1),
	    CALL(BPF_FUNC_ktime_get_ns),
	    CALL(BPF_FUNC_get_prandom_u32),
	    CALL(BPF_FUNC_get_smp_processor_id),
	    MOV(1, 6),
	    SET(2, 0),
	    MOV(3, 10),
	    ENTRY(BPF_ALU64 | BPF_ADD | BPF_K, 3, 0, 0, -8),
	    SET(4, 2),
	    CALL(BPF_FUNC_skb_load_bytes),
	    EXIT,
	};

	(void)state;
	BACK(code);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_plain),
	    cmocka_unit_test(test_context),
	    cmocka_unit_test(test_packet),
	    cmocka_unit_test(test_calls),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

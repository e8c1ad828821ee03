/* Connections whose options are the same, by what the kernel keeps of them (kernel/sockview.h): of
 * ten thousand, the options of a few are asked. */
#pragma once
#include <stdbool.h>
#include "base/err.h"
#include "kernel/sockview.h"

struct files_ctx;
struct sock_alike;

/* -ENOTSUP: not to be had here, or not to be believed; err says why. The result may be used by
 * processes forked since. */
int sock_alike_new(struct sock_alike **ret, struct cr_err *err) must_check;
void sock_alike_free(struct sock_alike *a);
/* Every option of the table that such a socket has was seen to change what sockview_read() says.
 * missing (may be NULL): the first that was not. */
bool sock_alike_covers(const struct sock_alike *a, int family, const char **missing);

/* All open files of a process that is stopped, if they are many, as if each had been asked.
 * *ret_told false: they have to be. */
int sock_alike_list(const struct sock_alike *a, pid_t pid, struct sock_facts_list *ret,
		    bool *ret_told, struct cr_err *err) must_check;
/* Of a process that runs, whatever it has open: of any moment. */
int sock_alike_read(const struct sock_alike *a, pid_t pid, struct sock_facts_list *ret,
		    struct cr_err *err) must_check;
/* As /proc/PID/fdinfo and fstat(2) have it of any socket. */
int sock_alike_mnt_id(const struct sock_alike *a);
uint64_t sock_alike_dev(const struct sock_alike *a);

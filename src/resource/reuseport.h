/* Programs that choose among the sockets that share a port: classic ones (SO_ATTACH_REUSEPORT_CBPF)
 * come along, and the sockets keep their places, which is what the program knows them by. eBPF ones
 * are refused. */
#pragma once
#include "resource/file_kind.h"

/* Into the tree, once all descriptions are known. */
int reuseport_capture(struct files_ctx *x, struct cr_err *err) must_check;

/* Destination. The socket that has that place in a group, index into t->files; UINT32_MAX: none. */
uint32_t reuseport_member(const struct tree *t, uint32_t group, uint32_t place);
/* Once it is in its group, fd, of f, gets the program, if there is one. */
int reuseport_attach(int fd, const struct file *f, struct cr_err *err) must_check;

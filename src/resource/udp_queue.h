/* Datagrams that wait to be read, out of one socket and into another. */
#pragma once
#include "base/arena.h"
#include "base/err.h"
#include "model/tree.h"

struct net_ways;

/* Of a locked socket of stopped tasks, into f. They stay where they are. */
int udp_dump(int fd, struct arena *a, struct file *f, struct cr_err *err) must_check;
/* f's datagrams and groups, once its addresses are here. w: NULL: none. What fails is logged, and
 * lost, as UDP may. */
void udp_launch(int fd, const struct file *f, const struct net_ways *w);

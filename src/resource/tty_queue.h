/* What waits in a pseudoterminal. */
#pragma once
#include "base/arena.h"
#include "base/err.h"
#include "model/tree.h"

/* Takes out what waits in both directions, into t, whose modes are set. slave: a description of our
 * own, O_NONBLOCK; -1: nobody has that side. Its users are stopped. Also after a failure, t has
 * what was taken. -EAGAIN: not now. */
int tty_drain(int master, int slave, struct arena *a, struct tty *t, struct cr_err *err) must_check;
/* Puts it into one that is empty, and sets the modes. */
int tty_feed(int master, int slave, const struct tty *t, struct cr_err *err) must_check;

/* Pages out of an image, by the protocol of lazy streams (wire/lazy_stream.h): to tasks that were
 * restored before all their memory was there. Of the page-server, and of cr-agent restore. */
#pragma once
#include "image/image.h"

/* Objects have no pid: on these connections they are called by a number that no pid can be. */
enum { LAZY_IMAGE_OBJECT = 1 << 24 };
static inline pid_t lazy_image_key(pid_t pid, uint32_t target)
{
	return pid ? pid : (pid_t)(LAZY_IMAGE_OBJECT + target);
}

/* Until the other side has everything, or the connections break; they are closed then. A page that
 * is damaged is not given out. max_bandwidth: of what was not asked for, bytes/s; 0: no limit. */
int lazy_image_serve(const struct image *im, int urgent, int bulk, uint64_t max_bandwidth,
		     struct cr_err *err) must_check;
